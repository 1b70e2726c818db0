"""A Numba type of eight float64 values, for arithmetic on eight frames at once (SIMD).

LLVM compiles a value to one AVX-512 register, two AVX registers or four SSE registers. Numba does not vectorise loops
over arrays this short, because it cannot exclude that the arrays overlap. Every lane undergoes the same IEEE
operations, whatever the registers: the bits of a frame depend neither on its lane nor on the processor.

The type is defined with Numba's extension API (numba.extending) and generates LLVM code with llvmlite; both may change
between releases. Written against Numba 0.68 and llvmlite 0.50; tests/features/test_fft.py covers it.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

LANES = 8
CACHE_LINE_BYTES = 64
"""Loading a vector that spans two cache lines takes twice as long."""

_INDEX = ir.IntType(32)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


class _Float64x8(types.Type):  # type: ignore[misc] # numba has no types
    def __init__(self) -> None:
        super().__init__(name="Float64x8")


_float64x8 = _Float64x8()


@register_model(_Float64x8)
class _Model(models.PrimitiveModel):  # type: ignore[misc] # numba has no types
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _DOUBLES)


def empty_cache_aligned(values: int) -> NDArray[np.float64]:
    """Return an uninitialised (values,) float64 array that begins at a cache line."""
    raw = np.empty(values + CACHE_LINE_BYTES // 8, np.float64)
    skipped = -raw.ctypes.data % CACHE_LINE_BYTES // 8
    return raw[skipped : skipped + values]


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


@intrinsic
def load(_: Any, array: Any, index: Any) -> Any:
    """Return the eight values at `index` of a float64 or float32 array of one dimension; bounds are not checked."""
    vector, align = (_DOUBLES, 8) if array.dtype == types.float64 else (_FLOATS, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        value = builder.load(builder.bitcast(place, vector.as_pointer()), align=align)
        return value if vector is _DOUBLES else builder.fpext(value, _DOUBLES)

    return _float64x8(array, types.intp), generate


@intrinsic
def store(_: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight values at `index` of a float64 or float32 array of one dimension; bounds are not checked."""
    vector, align = (_DOUBLES, 8) if array.dtype == types.float64 else (_FLOATS, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        content = arguments[2] if vector is _DOUBLES else builder.fptrunc(arguments[2], _FLOATS)
        builder.store(content, builder.bitcast(place, vector.as_pointer()), align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, _float64x8), generate


@intrinsic
def gather(_: Any, array: Any, index: Any, stride: Any) -> Any:
    """Return the eight values at `index`, `index + stride` … of a float32 array of one dimension."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, place = _data(context, builder, signature.args[0], arguments[0]), arguments[1]
        value = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            value = builder.insert_element(value, builder.load(builder.gep(data, [place])), _INDEX(lane))
            place = builder.add(place, arguments[2])
        return builder.fpext(value, _DOUBLES)

    return _float64x8(array, types.intp, types.intp), generate


@intrinsic
def scatter(_: Any, array: Any, index: Any, stride: Any, value: Any) -> Any:
    """Write eight values at `index`, `index + stride` … of a float32 array of one dimension."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, place = _data(context, builder, signature.args[0], arguments[0]), arguments[1]
        content = builder.fptrunc(arguments[3], _FLOATS)
        for lane in range(LANES):
            builder.store(builder.extract_element(content, _INDEX(lane)), builder.gep(data, [place]))
            place = builder.add(place, arguments[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _float64x8), generate


@intrinsic
def splat(_: Any, number: Any) -> Any:
    """Return `number`, a float64, in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        undefined = ir.Constant(_DOUBLES, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], _INDEX(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))

    return _float64x8(types.float64), generate


@intrinsic
def maximum(_: Any, a: Any, b: Any) -> Any:
    """Return the larger of two values, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return _float64x8(_float64x8, _float64x8), generate


def _overload(operation: Callable[..., Any], instruction: str) -> None:
    """Define a binary operator for two vectors, and for a float and a vector, by an instruction of llvmlite."""

    @intrinsic
    def vectors(_: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return _float64x8(_float64x8, _float64x8), generate

    @overload(operation)
    def implementation(a, b):  # type: ignore[no-untyped-def] # numba compares the signature with the lambdas'
        if isinstance(a, _Float64x8) and isinstance(b, _Float64x8):
            return lambda a, b: vectors(a, b)  # noqa: PLW0108 an intrinsic is no overload
        if isinstance(a, types.Float) and isinstance(b, _Float64x8):
            return lambda a, b: vectors(splat(a), b)
        return None


_overload(operator.add, "fadd")
_overload(operator.sub, "fsub")
_overload(operator.mul, "fmul")
