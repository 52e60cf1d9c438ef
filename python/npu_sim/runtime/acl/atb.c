// libatb.so: the symbols that libop_plugin_atb.so needs so that the schemas of the atb operators
// register. The operators themselves are Python (npu_sim.operators); reaching one of these means
// that an atb operator has no model, and fails.
#define MISSING(symbol, name) \
    __attribute__((visibility("default"))) long name(void) __asm__(symbol); \
    long name(void) { return 1; }

MISSING("_ZN3atb13CreateContextEPPNS_7ContextE", create_context)
MISSING("_ZN3atb14DestroyContextEPNS_7ContextE", destroy_context)
MISSING("_ZN3atb15CreateOperationINS_5infer11LinearParamEEEiRKT_PPNS_9OperationE", create_linear)
MISSING("_ZN3atb15CreateOperationINS_5infer12ElewiseParamEEEiRKT_PPNS_9OperationE", create_elewise)
MISSING("_ZN3atb15CreateOperationINS_5infer12RmsNormParamEEEiRKT_PPNS_9OperationE", create_rms_norm)
MISSING("_ZN3atb15CreateOperationINS_5infer14GroupTopkParamEEEiRKT_PPNS_9OperationE", create_group_topk)
MISSING("_ZN3atb15CreateOperationINS_5infer18SelfAttentionParamEEEiRKT_PPNS_9OperationE", create_self_attention)
MISSING("_ZN3atb15CreateOperationINS_5infer19PagedAttentionParamEEEiRKT_PPNS_9OperationE", create_paged_attention)
MISSING("_ZN3atb15CreateOperationINS_5infer20ReshapeAndCacheParamEEEiRKT_PPNS_9OperationE", create_reshape_and_cache)
MISSING("_ZN3atb15CreateOperationINS_5infer9RopeParamEEEiRKT_PPNS_9OperationE", create_rope)
MISSING("_ZN3atb16DestroyOperationEPNS_9OperationE", destroy_operation)
MISSING("_ZN3atb5Utils13GetTensorSizeERKNS_6TensorE", get_tensor_size)
