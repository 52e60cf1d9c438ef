"""States after drafted tokens were checked: those of the last one accepted."""

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "move_intermediate_cache",
    "(Tensor(a!) states, Tensor intermediate, Tensor slots, Tensor requests, Tensor steps) -> ()",
)
def _move(states, intermediate, slots, requests, steps):
    for slot, request, step in zip(*(x.tolist() for x in (slots, requests, steps)), strict=True):
        if step >= 0:
            states[:, slot] = intermediate[:, request, step]


def move_intermediate_cache(
    ssm_states, intermediate_state_cache, dst_indices_tensor, src_indices_tensor, last_steps_tensor
):
    """The state of each request after its step, in all layers; nothing where the step is < 0."""
    indices = dst_indices_tensor, src_indices_tensor, last_steps_tensor
    _move(ssm_states, intermediate_state_cache, *indices)
    return ssm_states


@device_kernel(
    "conv_state_rollback",
    "(Tensor(a!) states, Tensor slots, Tensor steps, int draft_token_num) -> ()",
)
def _roll_back(states, slots, steps, draft_token_num):
    for slot, step in zip(slots.tolist(), steps.tolist(), strict=True):
        shift = draft_token_num - 1 - step
        if step >= 0 and shift > 0:
            states[:, slot, shift:] = states[:, slot, :-shift].clone()


def conv_state_rollback(conv_states, state_indices, step_indices, draft_token_num):
    """Moves inputs ``[layers, slots, inputs, channels]`` so that the last accepted comes last."""
    _roll_back(conv_states, state_indices, step_indices, draft_token_num)
    return conv_states
