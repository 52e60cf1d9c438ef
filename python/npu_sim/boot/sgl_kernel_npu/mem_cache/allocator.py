"""The allocation of KV cache pages, a Triton kernel of the package."""

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "alloc_extend",
    "(Tensor prefix_lens, Tensor seq_lens, Tensor last_loc, Tensor free_pages, Tensor(a!) out, "
    "int page_size) -> ()",
)
def _alloc_extend(prefix_lens, seq_lens, last_loc, free_pages, out, page_size):
    # The engine's own reference of the same kernel.
    from sglang.srt.mem_cache.allocator import alloc_extend_naive

    alloc_extend_naive(prefix_lens, seq_lens, last_loc, free_pages, out, page_size, "cpu")


class _Kernel:
    """Called as Triton kernels are: kernel[grid](arguments)."""

    def __getitem__(self, grid):
        def launch(
            prefix_lens, seq_lens, last_loc, free_pages, out, batch_upper, page_size, max_tokens
        ):
            _alloc_extend(prefix_lens, seq_lens, last_loc, free_pages, out, page_size)

        return launch


alloc_extend_kernel = _Kernel()
