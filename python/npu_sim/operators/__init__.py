"""Python models of the NPU operators, on CPU tensors, with the documented rules enforced.

One file an operator family; each begins with what the family computes, the shapes and dtypes it
takes, and where its rules come from.

| file | operators |
| --- | --- |
| weight_quant_matmul | products with weights in int4 and int8 |
| grouped_matmul | one product an expert, plain or with such weights |
| antiquant | the arithmetic these two share |
| int4_pack, format_cast | preparing weights |
| attention, attention_rules | fused attention |
| atb | ATB's paged attention, prefill and cache writes |
| attend | the arithmetic these two share |
| latent | around attention over latent vectors |
| lora | LoRA of sequences |
| moe_gating | experts of tokens, from a router's logits |
| moe_routing | sending tokens to experts and back |
| norm, activation, rope, quant, sampling, cache | what the names say |
| rules, view, registry | the vocabulary of refusals, the tensors, the table |

Contract with npu_sim.runtime (this half computes and refuses, the runtime dispatches):

* ``OPERATORS[name]`` is called for ``aclnn<Name>`` with the C arguments before workspace and
  executor, decoded by its ``.signature`` (one letter each, see registry.py): tensors as
  ``runtime.opapi.dispatch.AclTensor`` (``.t`` CPU view of the device memory, writing it writes the
  device; ``.dtype`` ``.shape`` ``.strides`` ``.fmt`` ``.storage_shape``) or None, tensor lists as
  lists or None, arrays as lists or None, scalars as numbers, strings as str.  Outputs are written
  in place; the return value is ignored.  Any exception becomes the error of the torch call, with
  the exception's own message.
* ``register_torch_ops()`` registers a kernel for the **CPU** dispatch key of operators that do not
  go through aclnn (``npu::`` and ``atb::`` schemas), and returns their names
  ("atb::_npu_paged_attention", ...).  The runtime then redirects the NPU kernels of these names to
  them: they are handed CPU views of the device memory in schema order, write mutable arguments in
  place, and return CPU tensors.  Recording and graph capture come with the redirect.  It also puts
  checks before the torch operators that stay torch_npu's own (format_cast.GUARDS).
"""

from . import (  # noqa: F401  (importing an operator file registers it)
    activation,
    atb,
    attention,
    cache,
    format_cast,
    grouped_matmul,
    int4_pack,
    latent,
    lora,
    moe_gating,
    moe_routing,
    norm,
    quant,
    rope,
    sampling,
    weight_quant_matmul,
)
from .products import product, soc
from .registry import OPERATORS, aclnn
from .rules import OperatorMissing, OperatorRuleError

__all__ = [
    "OPERATORS",
    "OperatorMissing",
    "OperatorRuleError",
    "TORCH_OPS",
    "aclnn",
    "product",
    "register_torch_ops",
    "soc",
]

# Schema name -> implementation, for operators that torch_npu does not run through aclnn.
TORCH_OPS = {
    **atb.TORCH_OPS,
    **int4_pack.TORCH_OPS,
    **lora.TORCH_OPS,
    **sampling.TORCH_OPS,
}

_libraries = []  # a torch Library unregisters its kernels when it goes


def register_torch_ops() -> list[str]:
    """Registers TORCH_OPS for the CPU dispatch key and returns their names.

    torch_npu must have been imported: it owns the schemas.
    """
    import torch

    for family in (lora, sampling):
        for namespace, schemas in family.SCHEMAS.items():
            library = torch.library.Library(namespace, "FRAGMENT")
            for schema in schemas:
                library.define(schema)
            _libraries.append(library)
    for operators, key in ((TORCH_OPS, "CPU"), (format_cast.GUARDS, "PrivateUse1")):
        for name, function in operators.items():
            namespace, operator = name.split("::")
            library = torch.library.Library(namespace, "IMPL", key)
            library.impl(operator, function)
            _libraries.append(library)
    return list(TORCH_OPS)
