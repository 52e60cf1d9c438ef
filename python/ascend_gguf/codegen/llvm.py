"""The backend that appends instructions of LLVM: kernels as machine code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llvmlite import ir

import ascend_gguf.codegen.processor as processor
from ascend_gguf.codegen.kinds import BF16, F16, F32, I32, Kind


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    __hash__ = object.__hash__


_TYPES: dict[Kind, ir.Type] = {F16: ir.HalfType(), BF16: _BFloat(), F32: ir.FloatType()}
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_ALIGNED = 64


def _type(kind: Kind, count: int = 1) -> ir.Type:
    if kind.element is not None:
        return _type(kind.element.stored).as_pointer()
    element = _TYPES.get(kind) or ir.IntType(kind.bits)
    return element if count == 1 else ir.VectorType(element, count)


class LLVM:
    """Writes a function of a module.

    Args:
        module: what the function is of.
        name: of the function.
        parameter: the one argument: an address.
    """

    def __init__(self, module: ir.Module, name: str, parameter: Kind) -> None:
        signature = ir.FunctionType(ir.VoidType(), [_type(parameter)])
        self._function = ir.Function(module, signature, name)
        self._module = module
        self._builder = ir.IRBuilder(self._function.append_basic_block())
        self.argument = self._function.args[0]

    def finish(self) -> None:
        self._builder.ret_void()

    # Arithmetic

    def constant(self, kind: Kind, numbers: Sequence[float]) -> ir.Value:
        element = _type(kind)
        if len(numbers) == 1:
            return ir.Constant(element, numbers[0])
        lanes = [ir.Constant(element, number) for number in numbers]
        return ir.Constant(ir.VectorType(element, len(lanes)), lanes)

    def binary(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return getattr(self._builder, name)(a, b)

    def compare(self, name: str, sign: str, a: ir.Value, b: ir.Value) -> ir.Value:
        compare = {
            "signed": self._builder.icmp_signed,
            "unsigned": self._builder.icmp_unsigned,
            "ordered": self._builder.fcmp_ordered,
            "unordered": self._builder.fcmp_unordered,
        }
        return compare[sign](name, a, b)

    def select(self, condition: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
        return self._builder.select(condition, yes, no)

    def convert(self, name: str, a: ir.Value, kind: Kind, count: int) -> ir.Value:
        if name == "fneg":
            return self._builder.fneg(a)
        return getattr(self._builder, name)(a, _type(kind, count))

    def shuffle(self, a: ir.Value, b: ir.Value, places: Sequence[int]) -> ir.Value:
        return self._builder.shuffle_vector(a, b, self.constant(I32, places))

    def extract(self, a: ir.Value, place: int) -> ir.Value:
        return self._builder.extract_element(a, _I32(place))

    def collect(self, lanes: Sequence[ir.Value], kind: Kind) -> ir.Value:
        value = ir.Constant(_type(kind, len(lanes)), ir.Undefined)
        for place, lane in enumerate(lanes):
            value = self._builder.insert_element(value, lane, _I32(place))
        return value

    def splat(self, a: ir.Value, kind: Kind, count: int) -> ir.Value:
        undefined = ir.Constant(_type(kind, count), ir.Undefined)
        first = self._builder.insert_element(undefined, a, _I32(0))
        return self._builder.shuffle_vector(first, undefined, self.constant(I32, [0] * count))

    def call(self, name: str, kind: Kind, count: int, *arguments: ir.Value) -> ir.Value:
        return self._intrinsic(name, _type(kind, count), *arguments)

    def _intrinsic(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        function = self._module.globals.get(name) or ir.Function(
            self._module, ir.FunctionType(result, [value.type for value in arguments]), name
        )
        return self._builder.call(function, arguments)

    # Memory

    def address(self, number: ir.Value, element: Kind) -> ir.Value:
        return self._builder.inttoptr(number, _type(element.stored).as_pointer())

    def move(self, address: ir.Value, index: ir.Value, element: Kind) -> ir.Value:
        return self._builder.gep(address, [index])

    def cast(self, address: ir.Value, element: Kind) -> ir.Value:
        return self._builder.bitcast(address, _type(element.stored).as_pointer())

    def load(self, address: ir.Value, kind: Kind, count: int, align: int) -> ir.Value:
        place = self._builder.bitcast(address, _type(kind, count).as_pointer())
        return self._builder.load(place, align=align)

    def store(self, address: ir.Value, value: ir.Value, kind: Kind, align: int) -> None:
        place = self._builder.bitcast(address, value.type.as_pointer())
        self._builder.store(value, place, align=align)

    def prefetch(self, address: ir.Value, level: int) -> None:
        hints = _I32(0), _I32(4 - level), _I32(1)  # to read, how near, data
        self._intrinsic("llvm.prefetch.p0", ir.VoidType(), address, *hints)

    def table(self, name: str, content: bytes) -> ir.Value:
        kind = ir.ArrayType(_I8, len(content))
        if name not in self._module.globals:
            variable = ir.GlobalVariable(self._module, kind, name)
            variable.global_constant, variable.linkage = True, "internal"
            variable.initializer = ir.Constant(kind, bytearray(content))
        return self._builder.bitcast(self._module.globals[name], _I8.as_pointer())

    def local(self, nbytes: ir.Value) -> ir.Value:
        with self._builder.goto_entry_block():
            memory = self._builder.alloca(_I8, nbytes)
        memory.align = _ALIGNED
        return memory

    # Control

    def fold(
        self,
        bounds: tuple[ir.Value, ir.Value, int],
        initial: list[tuple[ir.Value, Kind, int]],
        body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
    ) -> list[ir.Value]:
        builder, (start, stop, step) = self._builder, bounds
        firsts = [start, *(raw for raw, _, _ in initial)]
        before = builder.block
        head, inside, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        phis = [builder.phi(value.type) for value in firsts]
        i, *values = phis
        builder.cbranch(builder.icmp_signed("<", i, stop), inside, after)
        builder.position_at_end(inside)
        following = [builder.add(i, _I64(step)), *body(i, values)]
        for phi, first, next_ in zip(phis, firsts, following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values

    def loop(self, start: ir.Value, stop: ir.Value, step: int) -> Iterator[ir.Value]:
        builder, before = self._builder, self._builder.block
        inside, after = (builder.append_basic_block() for _ in range(2))
        builder.cbranch(builder.icmp_signed("<", start, stop), inside, after)
        builder.position_at_end(inside)
        i = builder.phi(_I64)
        yield i
        following = builder.add(i, _I64(step))
        i.add_incoming(start, before)
        i.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, stop), inside, after)
        builder.position_at_end(after)

    def branch(
        self, condition: ir.Value, then: Callable[[], None], otherwise: Callable[[], None] | None
    ) -> None:
        if otherwise is None:
            with self._builder.if_then(condition):
                then()
            return
        with self._builder.if_else(condition) as (yes, no):
            with yes:
                then()
            with no:
                otherwise()

    def switch(self, value: ir.Value, cases: range, body: Callable[[int], None]) -> None:
        builder = self._builder
        after = builder.append_basic_block()
        choice = builder.switch(value, after)
        for case in cases:
            block = builder.append_basic_block()
            choice.add_case(_I64(case), block)
            builder.position_at_end(block)
            body(case)
            builder.branch(after)
        builder.position_at_end(after)

    # Threads

    def each_tile(self, next_tile: ir.Value, done: ir.Value, tiles: ir.Value) -> Iterator[ir.Value]:
        """Tiles that no other thread has taken; those this one has done are counted at the end."""
        builder, before = self._builder, self._builder.block
        take, work, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(take)
        builder.position_at_end(take)
        count = builder.phi(_I64)  # that this thread has done
        count.add_incoming(_I64(0), before)
        tile = builder.atomic_rmw("add", next_tile, _I64(1), "monotonic")
        builder.cbranch(builder.icmp_signed("<", tile, tiles), work, after)
        builder.position_at_end(after)
        builder.atomic_rmw("add", done, count, "release")
        builder.position_at_end(work)
        yield tile
        count.add_incoming(builder.add(count, _I64(1)), builder.block)
        builder.branch(take)
        builder.position_at_end(after)

    def load_acquire(self, address: ir.Value) -> ir.Value:
        return self._builder.load_atomic(address, "acquire", 8)

    def call_kernel(self, code: ir.Value, launch: ir.Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [launch.type]).as_pointer()
        self._builder.call(self._builder.inttoptr(code, kind), [launch])

    def wait_for(self, address: ir.Value, least: ir.Value, looks: int, nap: int) -> None:
        builder, before = self._builder, self._builder.block
        look, wait, sleep, after = (builder.append_basic_block() for _ in range(4))
        builder.branch(look)
        builder.position_at_end(look)
        count = builder.phi(_I64)
        count.add_incoming(_I64(0), before)
        is_done = builder.icmp_signed(">=", self.load_acquire(address), least)
        builder.cbranch(is_done, after, wait)
        builder.position_at_end(wait)
        if processor.IS_X86:
            self._intrinsic("llvm.x86.sse2.pause", ir.VoidType())
        elif processor.IS_ARM:
            self._intrinsic("llvm.aarch64.isb", ir.VoidType(), _I32(15))
        more = builder.add(count, _I64(1))
        count.add_incoming(more, wait)
        builder.cbranch(builder.icmp_signed("<", more, _I64(looks)), look, sleep)
        builder.position_at_end(sleep)
        self._intrinsic("usleep", _I32, _I32(nap))
        count.add_incoming(_I64(0), sleep)
        builder.branch(look)
        builder.position_at_end(after)
