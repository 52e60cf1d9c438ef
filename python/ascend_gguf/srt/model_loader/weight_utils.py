"""The weights of a GGUF file under the names the engine's models load."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping

import torch

from ascend_gguf.architectures import Placement, Target
from ascend_gguf.architectures.tensor_names import scale_name
from ascend_gguf.reader import GGUFTensor, open_gguf
from ascend_gguf.reader.chunked_read import read
from ascend_gguf.weights.block_tensor import BlockTensor, as_blocks

# The shared expert's gate has one output: llama.cpp writes its one row as a vector.
_ROW_VECTOR = re.compile(r"blk\.\d+\.ffn_gate_inp_shexp\.weight")


def gguf_quant_weights_iterator(
    gguf_file: str, gguf_to_hf_name_map: Mapping[str, Target]
) -> Generator[tuple[str, torch.Tensor], None, None]:
    """Every weight of a model, whole or split.

    Args:
        gguf_file: path of the file, or of any file of a split model.
        gguf_to_hf_name_map: tensor name in the file to its place in the model.  ``{expert}`` in a
            name runs over the tensor's first dimension; several names share the tensor's rows,
            equally unless a :class:`Placement` says how.  Tensors that the map lacks are skipped.

    Yields:
        ``(X.weight, data)``: a quantized matrix as a ``BlockTensor`` ``[rows, cols]``, and tensors
        of F32, F16 and BF16 as they are; all of them views into the mapped file, but for those in
        which conversion to GGUF is undone.  A quantized vector is decoded; a weight with a scale
        beside it (:func:`scale_name`) is a ``BlockTensor`` whatever its type.

    Raises:
        GGUFError: the file is damaged, or a tensor cannot be split as its names ask.
    """
    tensors = open_gguf(gguf_file).tensors
    # A scale that the model takes by itself multiplies no weight.
    factors = {name: t for name, t in tensors.items() if name not in gguf_to_hf_name_map}
    placed = [
        (tensor, placement)
        for tensor in tensors.values()
        if (placement := _placement(tensor, gguf_to_hf_name_map)) is not None
    ]
    for tensor, placement in placed:
        _check_names(tensor, placement)
    for tensor, placement in placed:
        data = _data(tensor, placement, tensors, factors)
        scales = None if placement.beside else _scales(tensor, factors)
        count = len(placement.names)
        for i, (name, part) in enumerate(
            zip(_names(tensor, placement), _parts(tensor, placement, data), strict=True)
        ):
            factor = 1.0 if scales is None else scales[i // count % len(scales)].item()
            yield name, _weight(part, tensor, placement, factor)


def _scales(tensor: GGUFTensor, factors: Mapping[str, GGUFTensor]) -> torch.Tensor | None:
    """What a weight is multiplied with: float32 ``[1]``, or ``[experts]``; None if with nothing."""
    scale = factors.get(scale_name(tensor.name)) if tensor.name.endswith(".weight") else None
    return None if scale is None else scale.dequantize().flatten()


def _weight(
    part: torch.Tensor, tensor: GGUFTensor, placement: Placement, factor: float
) -> torch.Tensor:
    if _is_blocks(tensor, placement):
        return BlockTensor(part, int(tensor.type.ggml_type), factor=factor)
    if factor == 1:
        return part
    if isinstance(part, BlockTensor):
        return BlockTensor(part.blocks, part.block_type.ggml_type, part.columns, factor)
    return as_blocks(part, factor)


def gguf_weight_names(gguf_file: str, gguf_to_hf_name_map: Mapping[str, Target]) -> frozenset[str]:
    """The model's names, ``X.weight``, of what :func:`gguf_quant_weights_iterator` yields."""
    return frozenset(
        name
        for tensor in open_gguf(gguf_file).tensors.values()
        if (placement := _placement(tensor, gguf_to_hf_name_map)) is not None
        for name in _names(tensor, placement)
    )


def _placement(tensor: GGUFTensor, name_map: Mapping[str, Target]) -> Placement | None:
    target = name_map.get(tensor.name)
    if target is None or isinstance(target, Placement):
        return target
    return Placement((target,) if isinstance(target, str) else target)


def _is_blocks(tensor: GGUFTensor, placement: Placement) -> bool:
    """Whether :func:`_data` is blocks, uint8 ``[..., rows, row_bytes]``."""
    return _is_matrix(tensor, placement) and tensor.type.is_quantized and not placement.dense


def _is_matrix(tensor: GGUFTensor, placement: Placement) -> bool:
    """False for vectors, of the whole model or of each expert, which are small and no layers."""
    dims = len(tensor.shape) - bool(placement.names and _is_packed(placement))
    return dims > 1 and all(name.endswith(".weight") for name in placement.names)


def _is_packed(placement: Placement) -> bool:
    return all("{expert}" in name for name in placement.names)


def _names(tensor: GGUFTensor, placement: Placement) -> Iterator[str]:
    """The model's names of the parts of a tensor, in the order of :func:`_parts`."""
    for expert in range(tensor.shape[0] if placement.names and _is_packed(placement) else 1):
        for name in placement.names:
            yield name.replace("{expert}", str(expert))


def _data(
    tensor: GGUFTensor,
    placement: Placement,
    tensors: Mapping[str, GGUFTensor],
    factors: Mapping[str, GGUFTensor],
) -> torch.Tensor:
    """The whole tensor as the model knows it, blocks or floats, with conversion to GGUF undone."""

    def stored(tensor: GGUFTensor) -> torch.Tensor:
        if not tensor.type.is_quantized:
            data = tensor.values
            if data.dtype == torch.float64:
                return data.float()
        elif not _is_matrix(tensor, placement):
            return tensor.dequantize()
        elif placement.dense:
            return BlockTensor(tensor.blocks, int(tensor.type.ggml_type))
        else:
            data = tensor.blocks
        return data if placement.undo is None else read(data)

    data = stored(tensor)
    if _ROW_VECTOR.fullmatch(tensor.name) and data.dim() == 1:
        data = data.unsqueeze(0)
    if placement.undo is None:
        return data
    if not placement.beside:
        return placement.undo(data)
    others = (tensors[name] for name in placement.beside)
    return placement.undo(
        _multiplied(data, tensor, factors),
        *(_multiplied(stored(other), other, factors) for other in others),
    )


def _multiplied(
    data: torch.Tensor, tensor: GGUFTensor, factors: Mapping[str, GGUFTensor]
) -> torch.Tensor:
    scales = _scales(tensor, factors)
    return data if scales is None else data * scales.view(-1, *[1] * (data.dim() - 1))


def _parts(tensor: GGUFTensor, placement: Placement, data: torch.Tensor) -> Iterator[torch.Tensor]:
    for matrix in data if placement.names and _is_packed(placement) else (data,):
        yield from _row_parts(placement, matrix)


def _row_parts(placement: Placement, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parts = len(placement.names)
    if parts < 2:
        return (matrix,) * parts
    return matrix.split(placement.rows or matrix.shape[0] // parts, dim=0)


def _check_names(tensor: GGUFTensor, placement: Placement) -> None:
    """Refuse names that the parts of a tensor cannot have."""
    parts = len(placement.names)
    if parts < 2 or placement.rows is not None:
        return
    matrix = tensor.shape[1:] if _is_packed(placement) else tensor.shape
    if len(matrix) < 2 or matrix[0] % parts:
        raise tensor.error(
            f"the rows cannot be shared equally by {parts} tensors of the model",
            found=f"shape {tensor.shape}",
        )
