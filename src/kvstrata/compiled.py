"""Functions compiled with numba, typed for the rest of the program as what they are written as."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


class Kept(Enum):
    """What numba's cache on disk has of some functions: all, not all, or there is no place for a cache."""

    ALL = "all"
    SOME = "some"
    NOWHERE = "nowhere"


def compiled(function: Function) -> Function:
    """Compile at the first call, without the GIL; later processes take it from numba's cache.

    The cache holds what was compiled of the same text: of the function's module and of all of ours that its
    functions come from. numba itself looks at the time and size of one file.
    """
    try:
        made = numba.njit(function, nogil=True, cache=True, error_model="numpy")
    except RuntimeError:  # no directory that the cache could be written to
        return cast(Function, numba.njit(function, nogil=True, error_model="numpy"))
    file = getattr(made._cache, "_cache_file", None)
    if file is not None and hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _text_of(function.__module__))
    return cast(Function, made)


def _text_of(module: str) -> str:
    """A digest of a module's text and of that of all modules of ours that it takes functions from."""
    mine = module.partition(".")[0]
    found: dict[str, bytes] = {}
    left = [module]
    while left:
        name = left.pop()
        if name in found:
            continue
        loaded = sys.modules[name]
        found[name] = Path(loaded.__file__).read_bytes() if loaded.__file__ else b""
        for value in vars(loaded).values():
            # A class cannot be called in compiled code; a compiled function is no plain one any more.
            callable_there = isinstance(value, FunctionType) or hasattr(value, "py_func")
            if callable_there and str(value.__module__).partition(".")[0] == mine:
                left.append(value.__module__)
    return hashlib.sha256(b"\0".join(found[name] for name in sorted(found))).hexdigest()


def kept(modules: Iterable[str]) -> Kept:
    """Whether the compiled functions of some modules can be had without compiling them.

    Args:
        modules: by name; they are imported.
    """
    found = [_index(function) for name in modules for function in _compiled_in(name)]
    if None in found:
        return Kept.NOWHERE
    return Kept.ALL if all(found) else Kept.SOME


def _compiled_in(name: str) -> Iterator[Any]:
    """Functions that `compiled` made in a module."""
    for value in vars(importlib.import_module(name)).values():
        options = getattr(value, "targetoptions", None)
        if options is None or value.__module__ != name:
            continue
        if not options.get("no_cpython_wrapper"):  # otherwise a part, which has no cache of its own
            yield value


def _index(function: Any) -> dict[Any, str] | None:
    """What the cache has of a function, by the types it was called with; None for a function without."""
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    if file is None:
        return None
    try:
        return dict(file._load_index())
    except (OSError, ValueError, EOFError, AttributeError):  # of another release, or half written
        return {}


def part(function: Function) -> Function:
    """Like `compiled`, for functions that only compiled ones call: they are cached with their callers.

    Nothing is made for calls from Python, which would take as long to compile as the function itself.
    """
    made = numba.njit(
        function,
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )
    return cast(Function, made)


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_context: Any, rows: Any, row: Any, column: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        data = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        skip = [
            builder.mul(builder.extract_value(array.strides, axis), arguments[1 + axis])
            for axis in range(2)
        ]
        address = builder.gep(data, [builder.add(*skip)])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _lowest_bit(_context: Any, value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


prefetch: Callable[[Any, int, int], None] = _prefetch
"""`prefetch(rows, i, j)` brings the cache line of `rows[i, j]`; a hint. Only in compiled code."""
lowest_bit: Callable[[Any], int] = _lowest_bit
"""Place of the lowest set bit of a uint64 that is not 0. Only in compiled code."""
