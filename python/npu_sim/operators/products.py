"""Which products have which operator: the tables "supported products" of CANN's pages.

The pages are those of CANN 9.1 (ops-transformer) and 9.2 (ops-nn).  Where a page of torch_npu names
fewer products than CANN's, CANN's counts: torch_npu 2.13.0 names A2 alone for many operators that
A3 and Ascend 950 have.  What ATB and sgl-kernel-npu bring is built for A2 and A3.
"""

from __future__ import annotations

import os
import re

A2, A3, P310, A5 = "Atlas A2", "Atlas A3", "310P", "Ascend 950"
OLD = "Atlas training series"

_CHIPS = {
    r"Ascend910B\d": A2,
    r"Ascend910_93": A3,
    r"Ascend310P": P310,
    r"Ascend950|Ascend910_95": A5,
    r"Ascend910[ABP]": OLD,
}

_NEW = (A2, A3, A5)
_INFERENCE = (A2, A3, A5, P310)
_ATTENTION = "CANN aclnnFusedInferAttentionScore"

#: Operator, as `Rules` names it: the products that have it, and the page that says so.
OPERATORS: dict[str, tuple[tuple[str, ...], str]] = {
    "npu_weight_quant_batchmatmul": (_INFERENCE, "CANN aclnnWeightQuantBatchMatmulV2.md"),
    "npu_grouped_matmul": (_INFERENCE, "CANN aclnnGroupedMatmulV5.md"),
    "npu_convert_weight_to_int4pack": (_NEW, "CANN aclnnConvertWeightToINT4Pack.md"),
    "npu_format_cast": ((*_INFERENCE, OLD), "torch_npu 2.13.0 documentation of npu_format_cast"),
    "npu_rms_norm": (_INFERENCE, "CANN aclnnRmsNorm.md"),
    "npu_add_rms_norm": (_INFERENCE, "CANN aclnnAddRmsNorm.md"),
    "npu_gemma_rms_norm": (_NEW, "CANN aclnnGemmaRmsNorm.md"),
    "npu_swiglu": (_INFERENCE, "CANN aclnnSwiGlu.md"),
    "npu_clipped_swiglu": (_NEW, "CANN aclnnClippedSwiglu.md"),
    "npu_geglu": (_INFERENCE, "CANN aclnnGeGluV3.md"),
    # torch_npu's page has it for 310P, with another formula.
    "npu_fast_gelu": (_NEW, "CANN aclnnFastGelu.md"),
    "npu_dynamic_quant": ((*_INFERENCE, OLD), "CANN aclnnDynamicQuant.md"),
    "npu_top_k_top_p": (_NEW, "CANN aclnnApplyTopKTopP.md"),
    "npu_rotary_mul": (_INFERENCE, "CANN aclnnRotaryPositionEmbedding.md"),
    # CANN's page has it for 950 alone; SGLang 0.5.23 calls it on A2 and A3, in production.
    "npu_interleave_rope": (_NEW, "CANN aclnnInterleaveRope.md"),
    # As of its second version; the first is for Ascend 950 too.
    "npu_mrope": ((A2, A3), "CANN aclnnRopeWithSinCosCacheV2.md"),
    "npu_kv_rmsnorm_rope_cache": (_NEW, "CANN aclnnKvRmsNormRopeCache.md"),
    "npu_transpose_batchmatmul": (_NEW, "CANN aclnnTransposeBatchMatMul.md"),
    "npu_attention_update": (_NEW, "CANN aclnnAttentionUpdate.md"),
    # CANN's page lacks 310P from 9.0 on; torch_npu does without that interface there.
    "npu_scatter_nd_update_": (
        (*_INFERENCE, OLD),
        "torch_npu 2.13.0 documentation of npu_scatter_nd_update_",
    ),
    "npu_scatter_pa_kv_cache": (_NEW, "CANN aclnnScatterPaKvCache.md"),
    "npu_moe_gating_top_k_softmax": (_INFERENCE, "CANN aclnnMoeGatingTopKSoftmax.md"),
    "npu_moe_gating_top_k_softmax_v2": (_NEW, "CANN aclnnMoeGatingTopKSoftmaxV2.md"),
    "npu_moe_gating_top_k": (_NEW, "CANN aclnnMoeGatingTopK.md"),
    "npu_moe_init_routing": (_NEW, "CANN aclnnMoeInitRouting.md"),
    "npu_moe_init_routing_v2": (_NEW, "CANN aclnnMoeInitRoutingV3.md"),
    "npu_moe_compute_expert_tokens": (_NEW, "CANN aclnnMoeComputeExpertTokens.md"),
    "npu_moe_finalize_routing": (_INFERENCE, "CANN aclnnMoeFinalizeRoutingV2.md"),
    "npu_fused_infer_attention_score": ((A2, A3), f"{_ATTENTION}V3.md"),
    "npu_fused_infer_attention_score_v2": ((A2, A3), f"{_ATTENTION}V4.md"),
    "npu_fused_infer_attention_score (aclnn V5)": ((A5,), f"{_ATTENTION}V5.md"),
    # 310P keeps its caches in FRACTAL_NZ, Ascend 950 runs other code.
    "atb::_npu_reshape_and_cache": ((A2, A3), "ATB, ReshapeAndCacheOperation"),
    "atb::_npu_paged_attention": ((A2, A3), "ATB, PagedAttentionOperation"),
    "atb::_npu_flash_attention_qlens": ((A2, A3), "ATB, SelfAttentionOperation"),
    "npu::sgemmv_shrink": ((A2, A3), "sgl-kernel-npu, csrc/lora"),
    "npu::sgemmv_expand": ((A2, A3), "sgl-kernel-npu, csrc/lora"),
    "npu::apply_token_bitmask": (_INFERENCE, "SGLang 0.5.23 constrained/xgrammar_backend.py"),
}


def soc() -> str:
    """The simulated chip, from NPU_SIM_SOC: Ascend910B3 where it is not set."""
    return os.environ.get("NPU_SIM_SOC") or "Ascend910B3"


def product() -> str:
    """The product family of the simulated chip.  The one place that reads the chip's name."""
    name = soc()
    for chips, family in _CHIPS.items():
        if re.match(chips, name):
            return family
    raise ValueError(
        f"NPU_SIM_SOC={name} is not a simulated product; chips begin with {' or '.join(_CHIPS)}"
    )
