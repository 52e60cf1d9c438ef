"""Ways to make the device wrong, as a release of CANN may be: NPU_SIM_FAULT names them.

One or more, with commas between: ``KIND:OPERATOR``, ``KIND:OPERATOR:WEIGHTS``, or one of `DEFECTS`.

    wrong    the results are not those of the weights (operators of `WITH_WEIGHTS`)
    refuse   the operator is refused with CANN's code for bad arguments
    missing  the installed CANN does not have the operator

An operator that takes weights is at fault where they are packed, as int4 or int8: WEIGHTS keeps the
fault to one of these.  Plain weights are multiplied as ever.
"""

from __future__ import annotations

import functools
import os

VARIABLE = "NPU_SIM_FAULT"

#: Quantized products do not add offsets.
ANTIQUANT_OFFSET = "antiquant_offset"
#: Weights of experts are not made to sum to one.
TOP_K_RENORM = "top_k_renorm"
DEFECTS = (ANTIQUANT_OFFSET, TOP_K_RENORM)

KINDS = ("wrong", "refuse", "missing")
WEIGHTS = ("int4", "int8")
WITH_WEIGHTS = ("npu_weight_quant_batchmatmul", "npu_grouped_matmul")
#: Every operator of the simulation, as torch_npu or ATB calls it.
OPERATORS = (
    *WITH_WEIGHTS,
    *("_npu_flash_attention_qlens", "_npu_paged_attention", "_npu_reshape_and_cache"),
    *("apply_token_bitmask", "npu_add_rms_norm"),
    *("npu_attention_update", "npu_clipped_swiglu", "npu_convert_weight_to_int4pack"),
    *("npu_dynamic_quant", "npu_fast_gelu", "npu_format_cast", "npu_fused_infer_attention_score"),
    *("npu_geglu", "npu_gemma_rms_norm", "npu_interleave_rope"),
    *("npu_kv_rmsnorm_rope_cache", "npu_moe_compute_expert_tokens", "npu_moe_finalize_routing"),
    *("npu_moe_gating_top_k", "npu_moe_gating_top_k_softmax", "npu_moe_gating_top_k_softmax_v2"),
    *("npu_moe_init_routing", "npu_moe_init_routing_v2"),
    *("npu_mrope", "npu_rms_norm", "npu_rotary_mul"),
    *("npu_scatter_nd_update_", "npu_scatter_pa_kv_cache", "npu_swiglu", "npu_top_k_top_p"),
    *("npu_transpose_batchmatmul", "sgemmv_expand", "sgemmv_shrink"),
)


class Fault(ValueError):
    """What CANN says where an operator is at fault."""


@functools.cache
def _parsed(text: str) -> frozenset[tuple[str, ...]]:
    """Raises ValueError: there is no such fault."""
    faults = {tuple(fault.strip().split(":")) for fault in text.split(",") if fault.strip()}
    for fault in faults:
        kind, operator, *weights = (*fault, "")[: max(2, len(fault))]
        known = WITH_WEIGHTS if kind == "wrong" or weights else OPERATORS
        is_known = kind in KINDS and operator in known and (*weights,) in ((), *zip(WEIGHTS))
        if fault not in zip(DEFECTS) and not is_known:
            raise ValueError(
                f"{VARIABLE}={':'.join(fault)}: no such fault. There are {', '.join(DEFECTS)}, and "
                f"KIND:OPERATOR with KIND one of {', '.join(KINDS)}, and OPERATOR one of "
                f"{', '.join(OPERATORS)}. Of the first two, which take weights, it may be "
                f"OPERATOR:{' or OPERATOR:'.join(WEIGHTS)}; 'wrong' is for these alone."
            )
    return frozenset(faults)


def check() -> None:
    """Raises ValueError: NPU_SIM_FAULT names a fault that there is not."""
    _parsed(os.environ.get(VARIABLE, ""))


def has(*fault: str) -> bool:
    return fault in _parsed(os.environ.get(VARIABLE, ""))


def strike(operator: str, weights: str | None = None) -> None:
    """Raises Fault: the operator refuses, or is missing.

    weights: how those of an operator of `WITH_WEIGHTS` are packed; others have none.
    """
    name = operator.rpartition("::")[2].partition(" ")[0]
    name = name if name in OPERATORS else name.removesuffix("_v2")
    if name in WITH_WEIGHTS and weights is None:
        return
    forms = [(name,), *([(name, weights)] if weights else [])]
    if any(has("refuse", *form) for form in forms):
        raise Fault(
            f"AclNN_Parameter_Error(EZ1001): {name} is refused, as {VARIABLE} asks"
            f"{f', with weights in {weights}' if weights else ''}."
        )
    if any(has("missing", *form) for form in forms):
        raise Fault(
            f"{name} or {name}GetWorkspaceSize not in libopapi.so, or libopapi.so not found."
        )


def is_wrong(operator: str, weights: str) -> bool:
    return has("wrong", operator) or has("wrong", operator, weights)
