"""Notes on functions that can be analysed and are hardly what was meant."""

from collections.abc import Iterator

from optax_bnmask import compat
from optax_bnmask.program.tape import Tape
from optax_bnmask.program.trace import Program
from optax_bnmask.program.uses.record import Record


def notes_on_misuse(program: Program, tape: Tape, uses: Record) -> Iterator[str]:
    """Sentences on a function that returns new parameters, or through which no gradient comes.

    Args:
      program: The function.
      tape: Its equations.
      uses: How it uses its leaves.
    """
    if returns_parameters(program):
        yield (
            "`fn` returns arrays of the names and shapes of `params`, as a training step or a "
            "gradient does, so that these are what roles and scales are of: analyse the function "
            "whose gradient is taken"
        )
    if not any(uses.reached[x] for x in tape.leaves):
        yield (
            "no gradient of an output of floating dtype reaches any leaf, so that none is decayed: "
            "trace the function without `stop_gradient` around it, and what it is trained by"
        )


def returns_parameters(program: Program) -> bool:
    """Whether the outputs, or those in one part of them, have the names and shapes of all leaves.

    Of a single array without a name, an output of its shape says nothing.
    """
    if "" in program.paths:
        return False
    outs = compat.open_jaxpr(program.jaxpr).outvars
    found = dict(zip(program.output_paths, (tuple(v.aval.shape) for v in outs), strict=False))
    leaves = dict(zip(program.paths, program.shapes, strict=True))
    first = program.paths[0]
    parts = [name.removesuffix(first) for name in found if f"/{name}".endswith(f"/{first}")]
    return any(
        all(found.get(part + path) == shape for path, shape in leaves.items()) for part in parts
    )
