"""Which leaves of a tree a mask chooses: Optax's own reading of a `mask` argument."""

from typing import Any

import jax


def chosen(mask: Any, tree: Any) -> Any:  # noqa: ANN401 - any mask, any pytree
    """A mask as the tree of bools that it stands for.

    Args:
      mask: A callable from a tree to its mask, such as `optax_bnmask.Mask`; a pytree of bools, of
        the tree's structure or a prefix of it; or None, which chooses every leaf.
      tree: The params, or the updates.

    Returns:
      A pytree of the tree's structure, with a bool for each leaf.
    """
    if mask is None:
        return jax.tree.broadcast(True, tree)  # noqa: FBT003 - the mask's only leaf
    # A pytree can be callable too, as an Equinox module is: its leaves tell, as they do for Optax.
    is_function = callable(mask) and all(map(callable, jax.tree.leaves(mask)))
    return jax.tree.broadcast(mask(tree) if is_function else mask, tree)


def required(params: Any, transform: str) -> Any:  # noqa: ANN401 - any pytree
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
