"""The aclnn operators that torch_npu's own copy and allocation code calls.

They move and fill memory; operators that compute are in npu_sim.operators.
"""

from __future__ import annotations

import torch

OPERATORS: dict = {}


def _aclnn(name: str, signature: str):
    def register(model):
        model.signature = signature
        OPERATORS[name] = model
        return model

    return register


@_aclnn("aclnnInplaceZero", "t")
def _zero(x):
    from ..start import runtime

    if x.t.is_contiguous() and x.bytes == x.t.numel() * x.t.element_size():
        runtime().npu_sim_zero(x.address, x.bytes)
        torch.autograd.graph.increment_version(x.t)
    else:
        x.t.zero_()


@_aclnn("aclnnInplaceFillScalar", "ts")
def _fill(x, value):
    x.t.fill_(value)


@_aclnn("aclnnInplaceCopy", "tt")
def _copy(destination, source):
    destination.t.copy_(source.t)


@_aclnn("aclnnCast", "tit")
def _cast(source, dtype, destination):
    destination.t.copy_(source.t)


@_aclnn("aclnnCat", "Tit")
def _cat(tensors, dim, out):
    out.t.copy_(torch.cat([t.t for t in tensors], dim))


@_aclnn("aclnnConstantPadNd", "tIst")
def _pad(x, padding, value, out):
    out.t.copy_(torch.nn.functional.pad(x.t, padding, value=value))
