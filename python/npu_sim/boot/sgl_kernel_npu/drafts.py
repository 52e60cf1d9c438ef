"""Trees of drafted tokens, and their places in the cache: ``torch.ops.npu``.

Arguments are those of SGLang's calls, and what they mean is read in the engine's kernels for other
devices.
"""

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)

FULL_MASK, QLEN_ONLY = 0, 1  # of SGLang's TreeMaskMode


@device_kernel(
    "cache_loc_update",
    "(Tensor req_indices, Tensor token_pool, Tensor start_offset, Tensor end_offset, "
    "Tensor(a!) out_cache_loc) -> Tensor(a!)",
    "npu",
)
def cache_loc_update(req_indices, token_pool, start_offset, end_offset, out_cache_loc):
    """The places of each request's tokens from ``start_offset`` to ``end_offset``, as one list."""
    first = 0
    ranges = (req_indices.tolist(), start_offset.tolist(), end_offset.tolist())
    for request, start, end in zip(*ranges, strict=True):
        out_cache_loc[first : first + end - start] = token_pool[request, start:end]
        first += end - start
    return out_cache_loc


@device_kernel(
    "build_tree_kernel_efficient",
    "(Tensor parent_list, Tensor selected_index, Tensor verified_seq_len, Tensor(a!) tree_mask, "
    "Tensor(b!) positions, Tensor(c!) retrieve_index, Tensor(d!) retrieve_next_token, "
    "Tensor(e!) retrieve_next_sibling, int topk, int depth, int draft_token_num, "
    "int tree_mask_mode) -> ()",
    "npu",
)
def build_tree_kernel_efficient(
    parent_list,
    selected_index,
    verified_seq_len,
    tree_mask,
    positions,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    topk,
    depth,
    draft_token_num,
    tree_mask_mode,
):
    """Node 0 of a tree is verified; ``parent_list[selected // topk]`` is the parent of a node."""
    if tree_mask_mode not in (FULL_MASK, QLEN_ONLY):
        raise NotImplementedError("build_tree_kernel_efficient with a mask of bits")
    first = 0
    for request, length in enumerate(verified_seq_len.tolist()):
        chosen = selected_index[request].tolist()
        parents = [-1]
        for choice in chosen[: draft_token_num - 1]:
            above = choice // topk
            parent = 1 + chosen.index(parent_list[request, above].item()) if above else 0
            parents.append(parent)
        own = retrieve_next_token[request], retrieve_next_sibling[request]
        _link(parents, *own)
        base = request * draft_token_num
        for node in range(draft_token_num):
            retrieve_index[request, node] = base + node
            path = _path(parents, node)
            positions[base + node] = length + len(path) - 1
            first += length if tree_mask_mode == FULL_MASK else 0
            row = tree_mask[first : first + draft_token_num]
            row.fill_(False)
            row[path] = True
            first += draft_token_num


def _path(parents, node):
    """A node and all above it."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path


def _link(parents, next_token, next_sibling):
    """Each node's first child, and the next child of the same parent; -1 for none."""
    for node in range(len(parents) - 1, 0, -1):
        parent = parents[node]
        if next_token[parent] != -1:
            next_sibling[node] = next_token[parent]
        next_token[parent] = node
