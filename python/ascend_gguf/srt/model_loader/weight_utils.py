"""The weights of a GGUF file under the names the engine's models load."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping

import torch

from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import GGUFTensor, open_gguf

HFNames = str | tuple[str, ...]

# Experts packed in one tensor, where the name map says nothing of them: the names that
# ``FusedMoE.make_expert_params_mapping`` is given by nearly every model.
_PACKED_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.weight")
# The shared expert's gate has one output: llama.cpp writes its one row as a vector.
_ROW_VECTOR = re.compile(r"blk\.\d+\.ffn_gate_inp_shexp\.weight")
_PROJECTIONS = {
    "gate": ("gate_proj",),
    "up": ("up_proj",),
    "down": ("down_proj",),
    "gate_up": ("gate_proj", "up_proj"),
}


def gguf_quant_weights_iterator(
    gguf_file: str, gguf_to_hf_name_map: Mapping[str, HFNames]
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Every weight of a model, whole or split: the types of the quantized ones, then all weights.

    Args:
        gguf_file: path of the file, or of any file of a split model.
        gguf_to_hf_name_map: tensor name in the file to name(s) in the model.  ``{expert}`` in a
            name runs over the tensor's first dimension; several names share the tensor's rows
            equally.  Tensors that the map lacks are skipped, but for packed experts, which get
            the names ``model.layers.N.mlp.experts.E.{gate,up,down}_proj.weight``.

    Yields:
        ``(X.qweight_type, int tensor of no dimension)`` for each quantized ``X.weight``; then
        ``(X.qweight, uint8 [rows, row_bytes])``, and for F32, F16 and BF16 tensors
        ``(X.weight, numbers of that dtype)``.  All are views into the mapped file.

    Raises:
        GGUFError: the file is damaged, or a tensor cannot be split as its names ask.
    """
    slices = [
        named
        for tensor in open_gguf(gguf_file).tensors.values()
        for named in _named_slices(tensor, gguf_to_hf_name_map)
    ]
    for name, _, tensor in slices:
        if tensor.type.is_quantized:
            yield _renamed(name, "qweight_type", tensor), torch.tensor(int(tensor.type.ggml_type))
    for name, data, tensor in slices:
        yield (_renamed(name, "qweight", tensor) if tensor.type.is_quantized else name), data


def get_gguf_extra_tensor_names(
    gguf_file: str, gguf_to_hf_name_map: Mapping[str, HFNames]
) -> list[HFNames]:
    """The model's names of the tensors that the map has and the file lacks."""
    present = open_gguf(gguf_file).tensors
    return [hf for gguf, hf in gguf_to_hf_name_map.items() if gguf not in present]


def _renamed(name: str, parameter: str, tensor: GGUFTensor) -> str:
    """``a.weight_norm.weight`` to ``a.weight_norm.qweight``: the last part of the name alone."""
    module, _, last = name.rpartition(".")
    if last != "weight":
        raise GGUFError(
            f"the model's {name} cannot be quantized: only a matrix named weight can",
            file=tensor.file,
            tensor=tensor.name,
            found=tensor.type.name,
            hint=CONVERT_AGAIN,
        )
    return f"{module}.{parameter}"


def _named_slices(
    tensor: GGUFTensor, name_map: Mapping[str, HFNames]
) -> Iterator[tuple[str, torch.Tensor, GGUFTensor]]:
    names = name_map.get(tensor.name) or _packed_expert_names(tensor.name)
    if names is None:
        return
    names = (names,) if isinstance(names, str) else names
    data = tensor.blocks if tensor.type.is_quantized else tensor.numbers
    if _ROW_VECTOR.fullmatch(tensor.name) and data.dim() == 1:
        data = data.unsqueeze(0)
    if all("{expert}" in name for name in names):
        for expert, matrix in enumerate(data):
            for name, part in zip(names, _row_parts(tensor, matrix, len(names)), strict=True):
                yield name.replace("{expert}", str(expert)), part, tensor
    else:
        for name, part in zip(names, _row_parts(tensor, data, len(names)), strict=True):
            yield name, part, tensor


def _packed_expert_names(tensor_name: str) -> tuple[str, ...] | None:
    match = _PACKED_EXPERTS.fullmatch(tensor_name)
    if match is None:
        return None
    experts = f"model.layers.{match[1]}.mlp.experts.{{expert}}"
    return tuple(f"{experts}.{projection}.weight" for projection in _PROJECTIONS[match[2]])


def _row_parts(tensor: GGUFTensor, matrix: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    if parts == 1:
        return (matrix,)
    if matrix.dim() < 2 or matrix.shape[0] % parts:
        raise GGUFError(
            f"the rows cannot be shared equally by {parts} tensors of the model",
            file=tensor.file,
            tensor=tensor.name,
            found=f"shape {tensor.shape}",
        )
    return matrix.chunk(parts, dim=0)
