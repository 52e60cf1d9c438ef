import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


def prepare_chunk_indices(cu_seqlens, chunk_size):
    """The request and the number in it of each chunk of ``chunk_size`` tokens: ``[chunks, 2]``."""
    counts = [-(-n // chunk_size) for n in cu_seqlens.diff().tolist()]
    pairs = [(request, chunk) for request, n in enumerate(counts) for chunk in range(n)]
    return torch.tensor(pairs, dtype=cu_seqlens.dtype).view(-1, 2).to(cu_seqlens.device)


@device_kernel(
    "fused_qkvzba_split",
    "(Tensor qkvz, Tensor ba, int k_heads, int v_heads, int k_size, int v_size)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def fused_qkvzba_split_reshape_cat_contiguous(qkvz, ba, k_heads, v_heads, k_size, v_size):
    """Queries, keys and values together, gates by head, rates and decays."""
    values = v_heads * v_size
    qkv, z = qkvz.split([2 * k_heads * k_size + values, values], -1)
    b, a = ba.chunk(2, -1)
    z = z.reshape(-1, v_heads, v_size)
    return tuple(x.contiguous() for x in (qkv, z, b, a))
