"""Compute kernels over resident weights, in plain torch."""
