"""The program of an optimizer, traced: its state at the start, and one update."""

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax

from optax_bnmask import compat
from optax_bnmask.arguments import is_of, require_optimizer
from optax_bnmask.paths import tree_index
from optax_bnmask.transforms.hyperball import HyperballState
from optax_bnmask.transforms.norms import KeepNormState

_ASKED: Final = ("value", "grad", "value_fn", "obj_fn")
"""What optimizers ask for beside a gradient: the loss, as a number and as a function."""

_HOLDERS: Final = (KeepNormState, HyperballState)

_FORMS: Final = 3
"""A state may change its form in the first updates, as that of `optax.monitor` does in one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """What an optimizer computes, as programs on flat lists of arrays.

    Attributes:
      leaves: The shapes and dtypes of the params.
      start: From the params to the leaves of the state.
      steps: From gradient, params and state to the update of each param and the next state: one
        program for each step in which the state changes its form, then the one that is repeated.
      state: The shapes and dtypes of the state at the start.
      held: For each of the leaves, the places in the state, flat, of the norms that it is held at
        by `keep_norm` or `hyperball`; None where neither holds it.
    """

    leaves: tuple[jax.ShapeDtypeStruct, ...]
    start: Any
    steps: tuple[Any, ...]
    state: tuple[jax.ShapeDtypeStruct, ...]
    held: tuple[int | None, ...] = ()


def traced(tx: Any, params: Any) -> Update:  # noqa: ANN401 - an optimizer, any pytree
    """Traces `init` and `update` of an optimizer; nothing is computed.

    An optimizer that refuses the arguments that others ask for is traced without them.

    Args:
      tx: An `optax.GradientTransformation`.
      params: The params' shapes and dtypes.

    Returns:
      The `Update`.

    Raises:
      Exception: Whatever the optimizer raises.
    """
    wants_more = isinstance(tx, optax.GradientTransformationExtraArgs)
    first: TypeError | None = None
    for count in (4, 0, 3, 2, 1) if wants_more else (0,):
        for names in itertools.combinations(_ASKED, count):
            try:
                with _lenient(), compat.without_collection():
                    return _traced(tx, params, names)
            except TypeError as error:  # raised for an argument that it does not take
                first = first or error
    raise first or TypeError


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """JAX's own promotion: a user's stricter setting is about their code, not about Optax's.

    An optimizer's own warnings are for whoever initialises it to train: here, findings say it.
    """
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def _traced(tx: Any, params: Any, names: tuple[str, ...]) -> Update:  # noqa: ANN401 - as above
    """The `Update`, given the names of what is handed over beside the gradient."""
    leaves, treedef = jax.tree.flatten(params)

    def init(*flat: Any) -> Any:  # noqa: ANN401 - leaves, a state
        return tx.init(jax.tree.unflatten(treedef, flat))

    start, state = jax.make_jaxpr(init, return_shape=True)(*leaves)
    first, held = tuple(jax.tree.leaves(state)), _held(state, params)
    step = _flat_update(tx, treedef, names)
    steps = []
    for _ in range(_FORMS):
        program, (_, after) = jax.make_jaxpr(step, return_shape=True)(leaves, leaves, state)
        steps.append(program)
        if _form(after) == _form(state):
            return Update(tuple(leaves), start, tuple(steps), first, held)
        state = after
    raise ValueError(f"its state must keep its form, and has another after each of {_FORMS} steps")


def _held(state: Any, params: Any) -> tuple[int | None, ...]:  # noqa: ANN401 - any pytrees
    """For each leaf of the params, the place in a flat state of the norms that it is held at."""
    structure = jax.tree.structure(state)
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    nodes = jax.tree.leaves(numbered, is_leaf=lambda node: isinstance(node, _HOLDERS))
    places: dict[str, int] = {}
    for node in nodes:
        if isinstance(node, _HOLDERS):
            norms = node.kept_norm if isinstance(node, KeepNormState) else node.radius
            places |= norms if isinstance(norms, dict) else {}
    return tuple(places.get(path) for path in tree_index(params).leaves)


def _form(state: Any) -> Any:  # noqa: ANN401 - any pytree
    """The containers, shapes and dtypes of a state."""
    leaves, treedef = jax.tree.flatten(state)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _flat_update(tx: Any, treedef: Any, names: tuple[str, ...]) -> Callable[..., Any]:  # noqa: ANN401
    """The update from lists of leaves to one array for each leaf of the params, and the state."""

    def step(gradient: Any, flat: Any, state: Any) -> Any:  # noqa: ANN401 - pytrees
        gradient, params = jax.tree.unflatten(treedef, gradient), jax.tree.unflatten(treedef, flat)
        two = _has_slow_params(state)
        given = optax.LookaheadParams.init_synced(params) if two else params
        updates, state = tx.update(gradient, state, given, **_asked(gradient, params, names))
        made = tree_index(updates.fast if two else updates, "updates").leaves
        # holes, as of `optax.masked`, are leaves that stay where they are
        whole = [
            jnp.asarray(made[path]) if path in made else jnp.zeros(leaf.shape, leaf.dtype)
            for path, leaf in tree_index(params).leaves.items()
        ]
        return whole, state

    return step


def _asked(gradient: Any, params: Any, names: tuple[str, ...]) -> dict[str, Any]:  # noqa: ANN401
    """A loss that has that very gradient everywhere, in the forms that optimizers ask for."""

    def loss(params: Any) -> jax.Array:  # noqa: ANN401 - a pytree
        terms = zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True)
        return sum(
            (jnp.sum(jnp.real(g * p)).astype(jnp.float32) for g, p in terms), start=jnp.ones(())
        )

    made = {
        "value": lambda: loss(params),
        "grad": lambda: gradient,
        "value_fn": lambda: loss,
        "obj_fn": lambda: loss,
    }
    return {name: made[name]() for name in names}


def _has_slow_params(state: Any) -> bool:  # noqa: ANN401 - any pytree
    """Whether a state is, or holds, that of `optax.lookahead`, which wants its params in pairs."""

    def is_pair(node: object) -> bool:
        return isinstance(node, optax.LookaheadState)

    return any(map(is_pair, jax.tree.leaves(state, is_leaf=is_pair)))


def optimizer_of(tx: Any) -> Any:  # noqa: ANN401 - an optimizer, or one of NNX
    """The Optax optimizer in an `nnx.Optimizer`, which holds params too; all else as it is.

    Raises:
      TypeError: It is no optimizer.
    """
    if is_of(tx, "flax.nnx", "Optimizer"):
        return tx.tx
    require_optimizer(tx, "tx", "tx, params, analysis")
    return tx
