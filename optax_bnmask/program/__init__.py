"""Evidence from the program: how the traced function uses each parameter.

`trace` makes a program of a function. The algebra, which knows nothing of JAX, is `forms` and the
`unknowns` exponents in them, the `degree` of a value, and what `layout` does to degrees along
`axes`. `interpreter` walks the program by the `rules`, for one `context` at a time: once to solve
for the exponents, of which `symmetries`, `cones` and `parts` make findings, and once to see how
leaves meet data (`roles`, `tags`). `assemble` puts both together, and `explain` follows one
symmetry through.
"""

from collections.abc import Callable
from typing import Any

from optax_bnmask.analysis import Analysis


def analyze(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> Analysis:  # noqa: ANN401 - any pytrees
    """How a function uses each parameter, and whether its scale matters: proved, not guessed.

    The function is traced once, from shapes alone. Every value gets a *degree*, the exponent ``k``
    in ``v(c*p) = c**k v(p)``, as a linear form in one unknown exponent for each leaf; sums demand
    that degrees agree, nonlinear functions and the outputs that they are 0. What these equations
    leave free are the scale symmetries. Where no rule is known the answer is "sensitive".

    Args:
      fn: ``fn(params, *args, **kwargs)`` returning one array or a pytree of arrays of any shapes.
        Trace it as it is trained: normalisers on the statistics of the batch.
      params: Any pytree of arrays or `jax.ShapeDtypeStruct`s, any shapes.
      *args: The other arguments: arrays and `jax.ShapeDtypeStruct`s are traced, anything else is
        passed as it is.
      **kwargs: The same by name.

    Returns:
      The `Analysis`.

    Raises:
      StructureError: A leaf is no array, no output is of floating dtype, or none depends on
        `params`.

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
      {'b': ('bias', 'joint'), 'gamma': ('norm_scale', 'sensitive'),
       'head': ('weight', 'sensitive'), 'w': ('weight', 'invariant')}

    References:
      Kennedy, Types for Units-of-Measure, 2010, for degrees as dimensions.
    """
    from optax_bnmask.program.assemble import (  # noqa: PLC0415 - what `import` need not wait for
        analysis_of,
        warn_of_running_statistics,
    )
    from optax_bnmask.program.trace import traced  # noqa: PLC0415

    analysis = analysis_of(traced(fn, params, args, kwargs))
    warn_of_running_statistics(analysis)
    return analysis
