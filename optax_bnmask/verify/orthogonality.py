"""How far a gradient is from what the symmetries of a function demand of it.

If ``L(c**s * p) = L(p)`` for all ``c > 0``, then its derivative by `c` at 1 is 0:

    sum_i s_i <p_i, dL/dp_i> = 0

So the gradient of a scale-invariant leaf is orthogonal to it; that of each index of an invariant
axis to that index; that of a joint group to the group. The gradient is 0 for a dead leaf, and for a
leaf each entry of which may be scaled by itself, such as a gain before a normaliser. Along an axis
along which the same number may be added, a gradient sums to 0. For each kind of claim a function
below yields names and violations.
"""

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_bnmask import compat
from optax_bnmask.analysis import Analysis
from optax_bnmask.program.explain import Explainer
from optax_bnmask.verify import claims
from optax_bnmask.verify.claims import proof_of
from optax_bnmask.vocabulary import Scale

Array = Any

_ROUNDING = 16
"""A gradient below this many eps of the largest gradient of all leaves is taken for rounding."""


def violations(analysis: Analysis, p: Sequence[Array], g: Sequence[Array]) -> dict[str, Array]:
    """By claim, the relative violation of what it demands of gradients `g` at leaves `p`."""
    proof = proof_of(analysis, p)
    products = _Products(p, g, _vanishing(analysis, proof))
    return dict(
        [
            *_alone(analysis, proof, products),
            *_each_index(analysis, proof, products),
            *_together(analysis, proof, products),
            *_dead(analysis, products),
            *_shifted(analysis, products),
        ]
    )


def _vanishing(analysis: Analysis, proof: Explainer) -> frozenset[int]:
    """The numbers of the leaves whose gradient, as claimed, is 0 entry by entry."""
    return frozenset(
        i
        for i, leaf in enumerate(analysis.leaves)
        if leaf.dead
        or (
            leaf.scale is Scale.INVARIANT
            and leaf.size in (1, *(leaf.shape[axis] for axis in leaf.invariant_axes))
            and claims.witness(proof, i).keys() == {i}
        )
    )


class _Products:
    """The products of parameters with their gradients, and of the norms of both.

    Both are divided by their largest entry in any leaf, so that no square overflows.
    """

    def __init__(self, p: Sequence[Array], g: Sequence[Array], vanishing: frozenset[int]) -> None:
        pairs = [_promoted(x, y) for x, y in zip(p, g, strict=True)]
        largest_p, largest_g = (_largest_of(side) for side in zip(*pairs, strict=True))
        pairs = [(x / largest_p, y / largest_g) for x, y in pairs]
        self.entries = [y for _, y in pairs]
        self._products = [jnp.real(x * y) for x, y in pairs]
        self._squares = [(jnp.square(jnp.abs(x)), jnp.square(jnp.abs(y))) for x, y in pairs]
        eps = max(
            (float(jnp.finfo(y.dtype).eps) for y in g if compat.is_inexact(y.dtype)), default=0.0
        )
        self.gradients = jnp.stack([jnp.sqrt(jnp.sum(g)) for _, g in self._squares])
        self._vanishing = vanishing
        self._largest = jnp.max(jnp.stack([self.size(i) for i in range(len(pairs))]))
        self._rounding = _ROUNDING * eps * self._largest
        self.rounding_of_gradients = _ROUNDING * eps * jnp.max(self.gradients)

    def floor(self, leaves: Collection[int]) -> Array:
        """The least number that ``|sum_i s_i <p_i, g_i>|`` over these leaves is divided by.

        It is the size of rounding, as a gradient of rounding may have any angle to its leaf; or the
        largest ``|p_i| |g_i|`` of all leaves, where the gradients of all of these should be 0.
        """
        return self._largest if self._vanishing.issuperset(leaves) else self._rounding

    def inner(self, i: int) -> Array:
        """``<p_i, g_i>``."""
        return jnp.sum(self._products[i])

    def size(self, i: int) -> Array:
        """``|p_i| |g_i|``."""
        p, g = self._squares[i]
        return jnp.sqrt(jnp.sum(p) * jnp.sum(g))

    def inner_along(self, i: int, axis: int) -> Array:
        """``<p_ij, g_ij>`` for each index `j` of an axis."""
        return _along(self._products[i], axis)

    def size_along(self, i: int, axis: int) -> Array:
        """``|p_ij| |g_ij|`` for each index `j` of an axis."""
        p, g = self._squares[i]
        return jnp.sqrt(_along(p, axis) * _along(g, axis))


def _largest_of(arrays: Sequence[Array]) -> Array:
    """The largest magnitude in some arrays; 1 where there is none."""
    most = [jnp.max(jnp.abs(x)) for x in arrays if x.size]
    with jax.numpy_dtype_promotion("standard"):
        found = functools.reduce(jnp.maximum, most, jnp.zeros(()))
    return jnp.where(found == 0, 1, found)


def _along(x: Array, axis: int) -> Array:
    return jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a != axis))


def _promoted(x: Array, y: Array) -> tuple[Array, Array]:
    """Two arrays in one dtype, float32 or wider; zeros where either is not inexact."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if not compat.is_inexact(x.dtype) or not compat.is_inexact(y.dtype):
        return jnp.zeros(x.shape), jnp.zeros(x.shape)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.astype(dtype), y.astype(dtype)


Violations = Iterator[tuple[str, Array]]


def _alone(analysis: Analysis, proof: Explainer, products: _Products) -> Violations:
    """The violation of each invariant leaf, with the biases added to its output."""
    invariant = [leaf for leaf in analysis.leaves if leaf.scale is Scale.INVARIANT]
    for leaf, claim in zip(invariant, claims.leaf_claims(analysis, proof), strict=True):
        if not leaf.dead:
            yield leaf.path, _violation(claim, products)


def _dead(analysis: Analysis, products: _Products) -> Violations:
    """The gradient of each dead leaf, relative to the largest of all leaves."""
    relative = _relative(products.gradients, jnp.max(products.gradients))
    for i, leaf in enumerate(analysis.leaves):
        if leaf.dead:
            yield f"{leaf.path}[dead]", relative[i]


def _shifted(analysis: Analysis, products: _Products) -> Violations:
    """The largest sum of a gradient along each axis along which the same number may be added.

    Each sum is relative to the sum of magnitudes along the same line or, where that is rounding, as
    for a class that does not occur, to the mean of these over all lines.
    """
    shifts = analysis.shift_axes
    for i, leaf in enumerate(analysis.leaves):
        for axis in shifts.get(leaf.path, ()):
            entries = products.entries[i]
            size = jnp.sum(jnp.abs(entries), axis)
            floor = jnp.maximum(jnp.mean(size), products.rounding_of_gradients)
            violation = _relative(jnp.abs(jnp.sum(entries, axis)), jnp.maximum(size, floor))
            yield f"{leaf.path}[shift along axis {axis}]", jnp.max(violation)


def _together(analysis: Analysis, proof: Explainer, products: _Products) -> Violations:
    """The violation of each joint group, and of each symmetry."""
    for n, claim in enumerate(claims.group_claims(analysis, proof)):
        yield f"group {n}", _violation(claim, products)
    dead = {i for i, leaf in enumerate(analysis.leaves) if leaf.dead}
    for n, claim in enumerate(claims.symmetry_claims(analysis)):
        if claim.exponents.keys() <= dead:
            continue
        yield f"symmetry {n}", _violation(claim, products)


def _violation(claim: claims.LeafScaling, products: _Products) -> Array:
    exponents = claim.exponents.items()
    inner = sum(float(s) * products.inner(i) for i, s in exponents)
    size = sum(abs(float(s)) * products.size(i) for i, s in exponents)
    return _relative(inner, jnp.maximum(size, products.floor(claim.exponents)))


def _relative(inner: Array, size: Array) -> Array:
    """``|inner| / size``: 0 where `size` is 0, and NaN where a value is."""
    return jnp.where(size == 0, 0, jnp.abs(inner) / jnp.where(size == 0, 1, size))


def _each_index(analysis: Analysis, proof: Explainer, products: _Products) -> Violations:
    """The largest violation of an index, for each invariant axis."""
    for claim in claims.axis_claims(analysis):
        if analysis.leaves[claim.leaf].dead:
            continue
        ways = claim.alternatives(claims.witness(proof, claim.leaf))
        # Its biases are scaled along in one of these ways; which one is not known.
        found = [_largest_violation(way, products) for way in ways]
        name = f"{analysis.leaves[claim.leaf].path}[axis {claim.axis}]"
        yield name, jnp.min(jnp.stack(found))


def _largest_violation(claim: claims.AxisScaling, products: _Products) -> Array:
    """The largest violation of an index, its biases scaled along as `claim` says."""
    inner = products.inner_along(claim.leaf, claim.axis)
    size = products.size_along(claim.leaf, claim.axis)
    for bias in claim.biases:
        inner += bias.exponent * _by_index(bias, products.inner, products.inner_along, claim.size)
        size += abs(bias.exponent) * _by_index(bias, products.size, products.size_along, claim.size)
    # The gradient of an index that a rectifier cuts off is rounding: not smaller than the mean.
    floor = products.floor((claim.leaf, *(bias.leaf for bias in claim.biases)))
    size = jnp.maximum(jnp.maximum(size, jnp.mean(size)), floor)
    return jnp.max(_relative(inner, size))


def _by_index(bias: claims.BiasEntries, whole: Any, along: Any, n: int) -> Array:  # noqa: ANN401
    """What a bias adds at each of `n` indices, from the products of `whole` or `along` an axis."""
    if bias.axis is None:
        return whole(bias.leaf)
    parts = along(bias.leaf, bias.axis)
    return parts.reshape(n, -1).sum(1) if bias.contiguous else parts.reshape(-1, n).sum(0)
