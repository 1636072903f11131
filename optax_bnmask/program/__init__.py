"""Evidence from the program: how the traced function uses each parameter.

In this order, each step a file:

- `trace`: the function, from shapes alone, to a jaxpr;
- `tape`: the jaxpr to one flat list of equations; `control` opens calls, loops and branches,
  `devices` meshes, and `lowering` writes a primitive in terms of a few others;
- `facts`: the sign and the zeros of values, as `flags`; `constants`: arrays of one known number;
  `negation`: values that are negatives; `windows`: those that cover nothing but padding;
  `flatness`: along which axes values do not vary; `epsilons`: which small constants may stand for
  0, with `zeros`: beside divisors that may be 0, `segments`: beside sums over segments of rows;
- `demands`: the first pass, over `indices`: which axes are the same, cut or split;
- `solve`: the second pass, over `exponents`: how every value scales, entry by entry; `renaming`:
  the same after reshapes and slices; `equations`: the linear equations between exponents;
- `symmetries` and `freedom`: what the null space says of a leaf; `cones`: those that shrink none;
- `uses`: how each leaf meets the data: roles, dimensions, blocks, what a gradient reaches;
- `explain`: one symmetry followed through the tape; `passes`: all of this in order.

`registry` holds the rule of each primitive, which all of them read; `rules` has the rules.
"""

from collections.abc import Callable
from typing import Any

from optax_bnmask.analysis import Analysis


def analyze(
    fn: Callable[..., Any],
    params: Any,  # noqa: ANN401 - any pytree
    *args: Any,  # noqa: ANN401 - any pytrees
    has_aux: bool = False,
    **kwargs: Any,  # noqa: ANN401 - any pytrees
) -> Analysis:
    """How a function uses each parameter, and whether its scale matters: proved, not guessed.

    The function is traced once, from shapes alone. Every value gets a *degree*, the exponent ``k``
    in ``v(c*p) = c**k v(p)``, as a linear form in unknown exponents of the leaves; sums demand that
    degrees agree, nonlinear functions and the outputs that they are 0. What these equations leave
    free are the scale symmetries. Where no rule is known the answer is "sensitive".

    Args:
      fn: ``fn(params, *args, **kwargs)`` returning one array or a pytree of arrays of any shapes.
        Trace it as it is trained: normalisers on the statistics of the batch. All arrays that it
        returns count, those of integers and truth values too.
      params: Any pytree of arrays or `jax.ShapeDtypeStruct`s, any shapes.
      *args: The other arguments: arrays and `jax.ShapeDtypeStruct`s are traced, anything else is
        passed as it is.
      has_aux: Whether `fn` returns a pair ``(output, aux)`` of which only the first counts, as in
        `jax.grad`: new state and metrics belong into `aux`.
      **kwargs: More arguments, by name.

    Returns:
      The `Analysis`. Where an output other than the first makes a leaf matter, a note names it.

    Raises:
      StructureError: A leaf is no array, no output is of floating dtype, none depends on `params`,
        or `fn` returns no pair although `has_aux` says so.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> def f(p, x):
      ...     z = x @ p["w"] + p["b"][None]
      ...     z = (z - z.mean(0, keepdims=True)) / jnp.sqrt(z.var(0, keepdims=True) + 1e-5)
      ...     return jnp.tanh(z * p["gamma"][None]) @ p["head"]
      >>> params = {"w": jnp.ones((3, 8)), "b": jnp.ones(8), "gamma": jnp.ones(8),
      ...           "head": jnp.ones((8, 2))}
      >>> analysis = bnmask.analyze(f, params, jax.ShapeDtypeStruct((32, 3), "float32"))
      >>> {leaf.path: (str(leaf.role), str(leaf.scale)) for leaf in analysis.leaves}
      {'b': ('bias', 'invariant'), 'gamma': ('norm_scale', 'sensitive'),
       'head': ('weight', 'sensitive'), 'w': ('weight', 'invariant')}

    References:
      Kennedy, Types for Units-of-Measure, 2010, for degrees as dimensions.
    """
    from optax_bnmask.program.passes import (  # noqa: PLC0415 - what `import` need not wait for
        analysis_of,
    )
    from optax_bnmask.program.running import warn_of_running_statistics  # noqa: PLC0415
    from optax_bnmask.program.trace import traced  # noqa: PLC0415

    analysis = analysis_of(traced(fn, params, args, kwargs, has_aux=has_aux))
    warn_of_running_statistics(analysis)
    return analysis
