"""The one module that touches unstable JAX API or asks for a version.

JAX 0.10 to 0.12 differ in how closed jaxprs, scans and primitives look; the rest of the package
sees one face. Everything is looked up strictly, so that a rename fails on import.
"""

import contextlib
import functools
import gc
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax._src.state.types import AbstractRef
from jax.core import Tracer
from jax.extend.core import Literal, Primitive, jaxpr_as_fun

__all__ = [
    "Literal",
    "Primitive",
    "Tracer",
    "carry_of_scan",
    "consts_of",
    "expanded",
    "function_of",
    "is_inexact",
    "location",
    "open_jaxpr",
    "primitive",
    "primitive_of",
    "ragged_numbers",
]


_VERSION: Final = tuple(int(part) for part in jax.__version__.split(".")[:2])

_SINCE: Final = {
    "log2_p": (0, 12),
    "one_minus_square_p": (0, 12),
    "polynomial_p": (0, 12),
    "with_memory_space_constraint_p": (0, 12),
    "xla_metadata_call_p": (0, 12),
}
"""Primitives that the oldest supported JAX does not have, and the first supported that does."""

_UNTIL: Final = {"call_p": (0, 11), "closed_call_p": (0, 11)}
"""Primitives that the newest supported JAX no longer has, and the first that lacks them."""

_HOMES: Final = (
    "jax.extend.core.primitives",
    "jax.lax",
    "jax._src.ad_util",
    "jax._src.lax.parallel",
    "jax._src.lax.linalg",
    "jax._src.lax.lax",
    "jax._src.lax.control_flow",
    "jax._src.lax.control_flow.loops",
    "jax._src.shard_map",
    "jax._src.core",
    "jax._src.pjit",
    "jax._src.debugging",
    "jax._src.callback",
    "jax._src.ffi",
    "jax._src.custom_derivatives",
    "jax._src.custom_batching",
    "jax._src.custom_partitioning",
    "jax._src.compute_on",
    "jax._src.random",
    "jax._src.random.prng",
    "jax._src.random.philox2x32",
    "jax._src.random.philox4x32",
    "jax._src.random.threefry4x32",
    "jax._src.export.shape_poly",
    "jax._src.lax.scaled_dot",
    "jax._src.xla_metadata",
    "jax._src.ad_checkpoint",
)
"""Where primitives are looked for, in this order. If a later JAX moves one elsewhere, the first
analysis says so in words, and `import optax_bnmask` still works."""


@functools.cache
def _homes() -> tuple[ModuleType, ...]:
    """Those of the modules that this JAX has."""
    found = []
    for name in _HOMES:
        with contextlib.suppress(ModuleNotFoundError):
            found.append(importlib.import_module(name))
    return tuple(found)


def primitive(name: str) -> Primitive | None:
    """The primitive object of that attribute name, such as ``"add_p"``.

    Args:
      name: Its attribute name; a few differ from the primitive's own name.

    Returns:
      The primitive, or `None` where it is known that this JAX does not have it.

    Raises:
      ImportError: This JAX should have it.
    """
    if _SINCE.get(name, (0, 0)) > _VERSION or _UNTIL.get(name, (99, 0)) <= _VERSION:
        return None
    for module in _homes():
        found = getattr(module, name, None)
        if isinstance(found, Primitive):
            return found
    raise ImportError(
        f"Every rule must be of a primitive. JAX {jax.__version__} has none called `{name}`, "
        f"which JAX 0.10 to 0.12 have. Install one of these, or a newer optax_bnmask; "
        f"`decay_mask` and `analyze_structure` work without rules."
    )


@functools.cache  # there are few dtypes, and one is asked for by each equation
def is_inexact(dtype: Any) -> bool:  # noqa: ANN401 - a dtype, extended ones included
    """Whether arrays of that dtype hold real or complex numbers."""
    return bool(jnp.issubdtype(dtype, np.inexact))


def primitive_of(module: str, name: str) -> Primitive | None:
    """A primitive of another library, if the user has imported that and it has one so called.

    Args:
      module: The module that holds it, such as ``"equinox._unvmap"``.
      name: Its attribute name.
    """
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, Primitive) else None


def open_jaxpr(jaxpr: Any) -> Any:  # noqa: ANN401 - closed before 0.12, merged since
    """The jaxpr proper, whichever of the two kinds is given."""
    return jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr


def consts_of(jaxpr: Any) -> Sequence[Any]:  # noqa: ANN401 - closed before 0.12, merged since
    """The values of the constant inputs of a closed jaxpr."""
    return getattr(jaxpr, "consts", ())


def function_of(jaxpr: Any) -> Callable[..., Sequence[Any]]:  # noqa: ANN401 - closed before 0.12
    """A closed jaxpr as a function from arrays to a sequence of arrays."""
    return jaxpr_as_fun(jaxpr)


def expanded(eqn: Any) -> Any:  # noqa: ANN401 - as above
    """The jaxpr that a primitive of JAX's high-level kind stands for; `None` if not one of arrays.

    Args:
      eqn: A ``call_hi_primitive``.
    """
    primitive = eqn.params["_prim"]
    try:
        return jax.make_jaxpr(primitive.expand)(*primitive.in_avals)
    except (AttributeError, TypeError, NotImplementedError):  # types of the user's own
        return None


def carry_of_scan(params: Mapping[str, Any]) -> tuple[int, int]:
    """The number of constants and of carried values of a `scan`."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def location(eqn: Any, calls: Sequence[Any] = ()) -> str:  # noqa: ANN401 - JAX keeps it private
    """Where in the user's code an equation comes from.

    Args:
      eqn: The equation.
      calls: The calls that it is nested in, outermost first. JAX traces its own jitted functions
        once and reuses the result, so that an equation inside `jax.nn.relu` records its first
        caller only; for such an equation the place of the call is returned.

    Returns:
      ``file:line (function)``, outside of JAX and the frameworks if any frame is, and the module
      path where the trace knows one.
    """
    eqn = next((call for call in calls if not _is_written_by_user(call)), eqn)
    folders, here = _frameworks(), os.getcwd()  # noqa: PTH109 - `Path.cwd` takes ten times as long
    for known in (eqn, *reversed(calls)):
        if where := _place(known.source_info.traceback, folders, here):
            module = str(eqn.source_info.name_stack)
            return f"{where} in {module}" if module else where
    return "unknown place"


@functools.lru_cache(maxsize=4096)  # tracebacks of layers that repeat are equal
def _place(traceback: Any, folders: tuple[str, ...], here: str) -> str:  # noqa: ANN401 - as above
    """File, line and function of the user's innermost frame, or else of a framework's, if any."""
    first = None
    codes, places = traceback.raw_frames() if traceback else ((), ())
    for code, place in zip(codes, places, strict=True):
        whose = _whose(code.co_filename, folders)
        if whose == "user":
            return _line(code, place, here)
        if whose and first is None:
            first = code, place
    return _line(*first, here) if first else ""


@functools.lru_cache(maxsize=4096)  # layers that repeat come from the same lines
def _line(code: Any, place: int, here: str) -> str:  # noqa: ANN401 - as above
    """The file, line and function of a place in code."""
    frame = source_info_util.raw_frame_to_frame(code, place)
    return f"{_short(frame.file_name, here)}:{frame.start_line} ({_function(frame)})"


@functools.cache  # a traceback has a hundred frames, of few files
def _whose(file_name: str, frameworks: tuple[str, ...]) -> str:
    """Whose file it is: the user's, a framework's, or JAX's own, which is of no interest."""
    if not source_info_util.is_user_filename(file_name):
        return ""
    return "framework" if file_name.startswith(frameworks) else "user"


@functools.lru_cache(maxsize=256)  # each equation inside a call asks for it
def _is_written_by_user(call: Any) -> bool:  # noqa: ANN401 - as above
    """Whether a call's body was traced for this call; JAX traces its own jitted functions once."""
    if call.primitive.name != "jit":
        return True
    body = open_jaxpr(call.params["jaxpr"]).eqns
    frames = source_info_util.user_frames(body[0].source_info.traceback) if body else ()
    return call.params.get("name") in {_function(frame) for frame in frames}


def _function(frame: Any) -> str:  # noqa: ANN401 - as above
    return frame.function_name.rsplit(".", 1)[-1]


def _frameworks() -> tuple[str, ...]:
    """The folders of the frameworks that are in use, whose frames tell a user little."""
    names = ("flax", "haiku", "equinox", "einops", "optax_bnmask")
    return _folders(tuple([name for name in names if name in sys.modules]))


@functools.lru_cache
def _folders(names: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of imported packages."""
    files = (sys.modules[name].__file__ for name in names)
    return tuple(f"{Path(file).parent}{os.sep}" for file in files if file)


@functools.lru_cache
def _short(file_name: str, here: str) -> str:
    """A file as a user would name it: from the working directory, or from its package.

    A notebook's cell is a file of another random name in every process.
    """
    if re.search(r"ipykernel_\d+|ipython-input-", file_name):
        return "cell"
    _, found, inside = file_name.rpartition(f"site-packages{os.sep}")
    if found:
        return inside
    return file_name.removeprefix(f"{here}{os.sep}")


def is_reference(aval: Any) -> bool:  # noqa: ANN401 - JAX keeps it private
    """Whether a value is a mutable reference, as `jax.new_ref` makes one."""
    return isinstance(aval, AbstractRef)


def ragged_numbers(params: Mapping[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """The dimension numbers of a `ragged_dot_general`, and the axes of its right operands' groups.

    There are no such axes where the ragged dimension is contracted or a batch dimension.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    dot = numbers.dot_dimension_numbers
    return dot, tuple(numbers.rhs_group_dimensions)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Disables the garbage collector within a `with` block.

    The work there makes many small objects and no cycles; one full collection, which walks all of
    JAX's objects, costs as much as the work.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
