"""Arguments of transformations, resolved: a mask, the params, a number or a schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_bnmask.arguments import described, number_of, require_size
from optax_bnmask.errors import StructureError, first_line


def mask_tree(mask: Any, tree: Any, argument: str = "mask") -> Any:  # noqa: ANN401 - any pytrees
    """A mask as the tree of bools that it stands for.

    Args:
      mask: A callable from a tree to its mask, such as `optax_bnmask.Mask`; a pytree of bools, of
        the tree's structure or a prefix of it; or None, which chooses every leaf.
      tree: The params, or the updates.
      argument: What the caller calls the mask, for the error.

    Returns:
      A pytree of the tree's structure, with a bool for each leaf.

    Raises:
      TypeError: The mask has something else than bools, such as labels or a whole analysis.
      StructureError: The mask is a tree of another structure.
    """
    if mask is None:
        return jax.tree.broadcast(True, tree)  # noqa: FBT003 - the mask's only leaf
    # A pytree can be callable too, as an Equinox module is: its leaves tell, as they do for Optax.
    is_function = callable(mask) and all(map(callable, jax.tree.leaves(mask)))
    found = mask(tree) if is_function else mask
    for flag in jax.tree.leaves(found):
        # Anything else would count as true, and so choose every leaf without a word.
        is_flag = (isinstance(flag, int) and flag in (0, 1)) or (
            hasattr(flag, "dtype") and flag.dtype == bool and not flag.shape
        )
        if not is_flag:
            raise TypeError(
                f"`{argument}` must hold a bool for each leaf. Found {described(flag)}"
                f"{f' from a `{type(mask).__name__}`' if is_function else ''}. Of an `Analysis`, "
                f"pass `analysis.decay_mask()` or `analysis.select(...)`."
            )
    try:
        return jax.tree.broadcast(found, tree)
    except ValueError as error:
        raise StructureError(
            f"`{argument}` must hold a bool for each leaf, or for each subtree, of the tree that "
            f"the optimizer updates. The two trees differ: {first_line(error)}. Make the mask of "
            f"all of these params, or pass a `Mask`, which is aligned by path."
        ) from error


def required_params(params: Any, transform: str, method: str = "update") -> Any:  # noqa: ANN401 - any pytree
    """The params that a transformation cannot do without.

    Raises:
      ValueError: There are none.
    """
    if params is None:
        call = "tx.init(params)" if method == "init" else "tx.update(updates, state, params)"
        raise ValueError(
            f"`{transform}` needs the parameters, and `{method}` got none. Call `{call}`."
        )
    return params


def value_at(rate: optax.ScalarOrSchedule, count: jax.Array, argument: str) -> jax.typing.ArrayLike:
    """A number, or a schedule's value at a step.

    Raises:
      TypeError: The schedule returned no single number.
      ValueError: It returned a negative one, or one that is not finite; a traced one is not looked
        at.
    """
    if not callable(rate):
        return rate
    value = rate(count)
    require_size(value, f"{argument}(count)", "a number at each step")
    return value


def value_at_start(rate: optax.ScalarOrSchedule, argument: str, step: int = 0) -> float | None:
    """A number, or a schedule's value at a step, for checks in `init`; None if it is traced.

    Raises:
      TypeError: As `value_at`.
      ValueError: As `value_at`, even where `init` is traced: that traces no constants.
    """
    # A user's stricter promotion is about their code, and Optax's schedules divide int32 by float.
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        return number_of(value_at(rate, jnp.asarray(step, jnp.int32), argument))
