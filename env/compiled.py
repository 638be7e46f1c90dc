"""Compiling loops over numbers with numba, and handing them arrays by address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function on its first call, and keep the machine code on disk beside it.

    The code on disk is used as long as the file of the function itself is unchanged: numba does not look at what it
    calls or which constants it takes from other modules. So a compiled function and all that it calls and takes
    belong into one file, or the file names what it takes by a stamp, as ``env.kernel`` does with ``env.state``.

    IEEE double precision in the order that is written: no fast math, and no exception where something is divided by 0.
    """
    options = {"error_model": "numpy", "nogil": True}
    try:
        made: Callable[P, R] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write, as in a read-only container: then each process compiles for itself
        made = numba.njit(**options)(function)
    return made


def is_on_disk(function: Callable[..., Any]) -> bool:
    """Whether the machine code of a compiled function was kept, of the file as it is, by this process or another.

    numba has no public way to ask; where it changes its private one, the answer is no.
    """
    cache: Any = getattr(function, "_cache", None)
    index = getattr(getattr(cache, "_cache_file", None), "_load_index", dict)
    return bool(index())


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing_context: Any, address: Any) -> Any:
    """Turn an integer address into a pointer, for ``numba.carray``.

    A call with one argument that holds the addresses of twenty arrays takes a fifth of the time of a call with twenty.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:
    """Have the cache line of an address brought, which is going to be written; never an error."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], form)
        place = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        builder.call(function, [place, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(address), generate
