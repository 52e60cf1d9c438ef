"""From aclnn entry points in C to operator models in Python.

torch_npu calls ``aclnn<Name>GetWorkspaceSize(arguments..., &workspace, &executor)`` and then
``aclnn<Name>(workspace, bytes, executor, stream)``.  The first call decodes the arguments and keeps
them under an executor number; the second runs the model, now or in every replay of a graph.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import traceback
from math import prod

import torch

from ...operators.rules import OperatorRuleError
from .table import TABLE

ACLNN_ERR_PARAM_INVALID = 161002
ACLNN_ERR_INNER = 561000

# aclDataType -> torch dtype. int4 has no torch dtype: two values a byte, low nibble first.
DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    7: torch.uint16,
    8: torch.uint32,
    9: torch.int64,
    10: torch.uint64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    17: torch.complex128,
    27: torch.bfloat16,
    29: "int4",
    35: torch.float8_e5m2,
    36: torch.float8_e4m3fn,
    37: torch.float8_e8m0fnu,
}
MAX_DIMS = 10


class _Tensor(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int64) for n in ("n_dims", "n_storage_dims", "dtype", "format", "offset")
    ]
    _fields_ += [(n, ctypes.c_int64 * MAX_DIMS) for n in ("dims", "strides", "storage_dims")]
    _fields_ += [("data", ctypes.c_void_p)]


class _List(ctypes.Structure):
    _fields_ = [("n", ctypes.c_int64), ("items", ctypes.c_void_p)]


class _Scalar(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int64), ("value", ctypes.c_char * 16)]


#: What an operator did with memory, as bits of :attr:`Access.how`.
WRITTEN, VIEW = 1, 2


class Access(ctypes.Structure):
    """NpuSimAccess of device.h."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("how", ctypes.c_uint64),
    ]


class AclTensor:
    """A tensor argument of an aclnn operator.

    t: CPU tensor over the argument's device memory, with its shape and strides (int4: a copy, as
    int8).  dtype: torch dtype, or "int4".  fmt: aclFormat of the storage, 2 is ND, 29 is
    FRACTAL_NZ; it is a tag, the data stay in ND order.  storage_shape: dimensions of the storage in
    that format.
    """

    __slots__ = (
        "dtype",
        "shape",
        "strides",
        "offset",
        "fmt",
        "storage_shape",
        "data",
        "_view",
        "_version",
    )

    def __init__(self, raw: _Tensor, library):
        if raw.dtype not in DTYPES:
            raise TypeError(f"aclDataType {raw.dtype} is not simulated")
        self.dtype = DTYPES[raw.dtype]
        self.fmt = raw.format
        self.offset = raw.offset
        self.shape = tuple(raw.dims[: raw.n_dims])
        self.strides = tuple(raw.strides[: raw.n_dims])
        self.storage_shape = tuple(raw.storage_dims[: raw.n_storage_dims])
        self.data = raw.data or 0
        self._view = None
        if prod(self.shape) and not library.npu_sim_is_device(self.address, self.bytes):
            raise ValueError(
                f"{self!r} is not in live device memory: a host tensor, or one out of bounds"
            )

    @property
    def format(self) -> int:
        return self.fmt

    @property
    def extent(self) -> int:
        """Elements from the first to one past the last that the view reaches."""
        if not prod(self.shape):
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))

    @property
    def address(self) -> int:
        if self.dtype == "int4":
            return self.data + self.offset // 2
        return self.data + self.offset * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of memory the view spans."""
        return (self.extent + 1) // 2 if self.dtype == "int4" else self.extent * self.dtype.itemsize

    @property
    def t(self) -> torch.Tensor:
        if self._view is None:
            self._view = self._int4() if self.dtype == "int4" else self._alias(self.dtype)
            self._version = self._view._version
        return self._view

    @property
    def written(self) -> bool:
        """Whether the model wrote into the view."""
        return self._view is not None and self._view._version != self._version

    @property
    def how(self) -> int:
        """For :attr:`Access.how`."""
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n > 1 and stride != expected:
                return self.written * WRITTEN | VIEW
            expected *= n
        return self.written * WRITTEN

    def _alias(self, dtype: torch.dtype) -> torch.Tensor:
        if not self.extent:
            return torch.empty(self.shape, dtype=dtype)
        memory = (ctypes.c_char * self.bytes).from_address(self.address)
        return torch.frombuffer(memory, dtype=dtype, count=self.extent).as_strided(
            self.shape, self.strides
        )

    def _int4(self) -> torch.Tensor:
        index = torch.full(self.shape, self.offset % 2, dtype=torch.int64)
        for dim, (n, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            index += (torch.arange(n) * stride).reshape(
                [-1 if d == dim else 1 for d in range(len(self.shape))]
            )
        packed = torch.frombuffer(
            (ctypes.c_char * self.bytes).from_address(self.address), dtype=torch.uint8
        )
        nibbles = (packed[index // 2] >> (index % 2 * 4).to(torch.uint8)) & 15
        return ((nibbles ^ 8).to(torch.int8)) - 8

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        extra = f", format {self.fmt}" if self.fmt not in (-1, 0, 2) else ""
        return f"{dtype}{list(self.shape)}(strides {list(self.strides)}{extra})"


def _tensor(address, library):
    return AclTensor(_Tensor.from_address(address), library) if address else None


def _tensor_list(address, library):
    if not address:
        return None
    raw = _List.from_address(address)
    return (
        [_tensor(a, library) for a in (ctypes.c_void_p * raw.n).from_address(raw.items)]
        if raw.n
        else []
    )


def _array(item):
    def decode(address, library):
        if not address:
            return None
        raw = _List.from_address(address)
        return list((item * raw.n).from_address(raw.items)) if raw.n else []

    return decode


def _scalar(address, library=None):
    if not address:
        return None
    raw = _Scalar.from_address(address)
    value = ctypes.string_at(address + _Scalar.value.offset, 16)
    return torch.frombuffer(bytearray(value), dtype=DTYPES[raw.dtype], count=1)[0].item()


def _scalar_list(address, library):
    if not address:
        return None
    raw = _List.from_address(address)
    return [_scalar(a) for a in (ctypes.c_void_p * raw.n).from_address(raw.items)] if raw.n else []


def _string(value, library):
    return value.decode() if value is not None else None


# Letter of a signature -> (C type, decoder or None for what ctypes decodes itself).
LETTERS = {
    "t": (ctypes.c_void_p, _tensor),
    "T": (ctypes.c_void_p, _tensor_list),
    "I": (ctypes.c_void_p, _array(ctypes.c_int64)),
    "F": (ctypes.c_void_p, _array(ctypes.c_float)),
    "B": (ctypes.c_void_p, _array(ctypes.c_bool)),
    "s": (ctypes.c_void_p, _scalar),
    "L": (ctypes.c_void_p, _scalar_list),
    "S": (ctypes.c_char_p, _string),
    "i": (ctypes.c_int64, None),
    "w": (ctypes.c_int32, None),
    "c": (ctypes.c_int8, None),
    "b": (ctypes.c_bool, None),
    "d": (ctypes.c_double, None),
    "f": (ctypes.c_float, None),
}


class _Call:
    """One decoded call: what an executor number stands for."""

    __slots__ = ("name", "c_name", "model", "arguments")

    def __init__(self, name, c_name, model, arguments):
        self.name, self.c_name, self.model, self.arguments = name, c_name, model, arguments

    def tensors(self):
        for argument in self.arguments:
            for item in argument if isinstance(argument, list) else (argument,):
                if isinstance(item, AclTensor):
                    yield item


def _share_of_experts(call: _Call):
    """Tensor -> share of its bytes that is read: a grouped matmul reads experts that have rows."""
    if not call.name.startswith("aclnnGroupedMatmul") or call.arguments[8] is None:
        return lambda tensor: 1
    # x, weight and six more lists, group_list, three lists, then split_item, group_type and
    # group_list_type.
    group_list = call.arguments[8].t
    rows = group_list.clone()
    if call.arguments[14] == 0:  # cumulated
        rows[1:] -= group_list[:-1]
    experts = len(rows)
    per_expert = [
        t
        for argument in call.arguments[1:7]
        if argument
        for t in argument
        if t.shape[:1] == (experts,) and len(t.shape) > 1
    ]
    active = int((rows > 0).sum()) / experts
    return lambda tensor: active if any(tensor is t for t in per_expert) else 1


# What torch_npu 2.10 does not call.
_NOT_IN_2_10 = {"aclnnMoeFinalizeRoutingV4", "aclnnMoeGatingTopKV2"}


class Dispatch:
    """Fills the table of libopapi.so with the operator models and runs them."""

    def __init__(self, runtime: ctypes.CDLL, opapi: ctypes.CDLL, names: list[str], operators: dict):
        self._runtime = runtime
        self._trace = bool(os.environ.get("NPU_SIM_TRACE"))
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._keep = []  # ctypes callbacks must outlive the library
        unknown = sorted(set(operators) - set(names) - _NOT_IN_2_10)
        if unknown:
            raise RuntimeError(
                f"models of operators that torch_npu does not know: {', '.join(unknown)}"
            )
        table = (ctypes.c_void_p * (2 * len(names))).in_dll(opapi, TABLE)
        for slot, name in enumerate(names):
            model = operators.get(name)
            for upper in (0, 1):
                entry = self._entry(name, model, bool(upper)) if model else self._missing(name)
                self._keep.append(entry)
                table[slot + upper * len(names)] = ctypes.cast(entry, ctypes.c_void_p).value
        for symbol, result, function in (
            ("npu_sim_aclnn_run", ctypes.c_int, self._run),
            ("npu_sim_aclnn_drop", None, self._drop),
            ("npu_sim_aclnn_name", ctypes.c_void_p, lambda number: self._calls[number].c_name),
        ):
            callback = ctypes.CFUNCTYPE(result, ctypes.c_void_p)(function)
            self._keep.append(callback)
            ctypes.c_void_p.in_dll(opapi, symbol).value = ctypes.cast(
                callback, ctypes.c_void_p
            ).value

    def _error(self, name: str, error: BaseException, code: int = ACLNN_ERR_PARAM_INVALID) -> int:
        text = str(error)
        if isinstance(error, OperatorRuleError):
            text = f"AclNN_Parameter_Error(EZ1001): {text}"  # as CANN words it
        if not text.startswith(name):
            text = f"{name}: {text}"
        if not isinstance(error, (ValueError, NotImplementedError)):
            # Not a rule: a fault of the model. Its place matters more than its message.
            text += "\n" + "".join(traceback.format_exception(error))
            code = ACLNN_ERR_INNER
        self._runtime.npu_sim_error(code, b"%s", text.encode())
        return code

    def _missing(self, name: str):
        def refuse():
            return self._error(
                name, NotImplementedError("the simulation has no model of this operator")
            )

        return ctypes.CFUNCTYPE(ctypes.c_int)(refuse)

    def _entry(self, name: str, model, only_workspace: bool):
        letters = model.signature
        buffer = ctypes.create_string_buffer(name.encode())
        self._keep.append(buffer)
        c_name = ctypes.addressof(buffer)
        decoders = [LETTERS[letter][1] for letter in letters]

        def get_workspace_size(*raw):
            *raw, workspace, executor = raw
            try:
                arguments = [
                    d(v, self._runtime) if d else v for d, v in zip(decoders, raw, strict=True)
                ]
                number = 0
                if not only_workspace:
                    number = next(self._numbers)
                    self._calls[number] = _Call(name, c_name, model, arguments)
                ctypes.c_uint64.from_address(workspace).value = 512 if only_workspace else 0
                ctypes.c_uint64.from_address(executor).value = number
                return 0
            except Exception as error:
                return self._error(name, error)

        types = [LETTERS[letter][0] for letter in letters]
        return ctypes.CFUNCTYPE(ctypes.c_int, *types, ctypes.c_void_p, ctypes.c_void_p)(
            get_workspace_size
        )

    def _run(self, number: int) -> int:
        call = self._calls[number]
        if self._trace:
            print(f"[npu_sim] {call.name}{tuple(call.arguments)}", file=sys.stderr)
        try:
            for tensor in call.tensors():
                tensor._view = None  # int4 views are copies, and versions count from here
            with torch.inference_mode(False), torch.no_grad():
                call.model(*call.arguments)
            if self._runtime.npu_sim_recording():
                self._record(call)
            return 0
        except Exception as error:
            return self._error(call.name, error)

    def _record(self, call: _Call) -> None:
        tensors = list(call.tensors())
        share = _share_of_experts(call)
        accesses = (Access * len(tensors))(
            *((t.address, int(t.bytes * share(t)), t.how) for t in tensors)
        )
        self._runtime.npu_sim_record(b"op", call.name.encode(), accesses, len(tensors))

    def _drop(self, number: int) -> None:
        self._calls.pop(number, None)
