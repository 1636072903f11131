"""Arguments of transformations, resolved: a mask, the params, a number or a schedule."""

from typing import Any

import jax
import optax

from optax_bnmask.arguments import described
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


def required_params(params: Any, transform: str) -> Any:  # noqa: ANN401 - any pytree
    """The params that a transformation cannot do without.

    Raises:
      ValueError: There are none.
    """
    if params is None:
        raise ValueError(
            f"`{transform}` needs the parameters, and `update` got none. Call "
            f"`tx.update(updates, state, params)`."
        )
    return params


def value_at(rate: optax.ScalarOrSchedule, count: jax.Array) -> jax.typing.ArrayLike:
    """A number, or a schedule's value at a step."""
    return rate(count) if callable(rate) else rate
