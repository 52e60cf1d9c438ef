"""Torch versions of what SGLang calls of sgl_kernel on every CPU, with AMX kernels or without."""

from __future__ import annotations

import ctypes

import torch


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor,
    strides: torch.Tensor,
    tgt_loc: torch.Tensor,
    src_loc: torch.Tensor,
) -> None:
    """Copy cache rows ``src_loc`` to ``tgt_loc`` in every buffer; the two may overlap.

    ``data_ptrs``: [buffers] uint64, the address of each K or V buffer.  ``strides``: [buffers]
    int64, bytes in a row of each.  ``tgt_loc``, ``src_loc``: [tokens] int32 or int64 row numbers.
    Raises ValueError for lengths that differ and for a negative row.
    """
    if data_ptrs.numel() != strides.numel() or tgt_loc.numel() != src_loc.numel():
        raise ValueError(
            f"copy_all_layer_kv_cache_cpu: {data_ptrs.numel()} buffers with {strides.numel()} "
            f"strides, {src_loc.numel()} rows to {tgt_loc.numel()} places"
        )
    if tgt_loc.numel() == 0:
        return
    rows = torch.stack((tgt_loc.long(), src_loc.long()))
    if rows.min() < 0:
        raise ValueError(f"copy_all_layer_kv_cache_cpu: negative row {int(rows.min())}")
    target, source = rows
    used_rows = int(rows.max()) + 1
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_uint8 * (used_rows * stride)).from_address(address)
        buffer = torch.frombuffer(memory, dtype=torch.uint8).view(used_rows, stride)
        # Indexing with a tensor copies, so every source row is read before one is written.
        buffer[target] = buffer[source]
