"""What symmetries say of a gradient.

If ``L(c**s * p) = L(p)`` for all ``c > 0``, then its derivative by `c` at 1 is 0:

    sum_i s_i <p_i, dL/dp_i> = 0

The gradient of a scale-invariant leaf is orthogonal to it, that of each index of an invariant axis
to that index, that of a joint group to the group. Each kind of claim is a function below that
yields names and violations. The gradient of a dead leaf is 0, and has no angle to it; so is that of
a leaf each entry of which may be scaled by itself, such as a gain before a normaliser. Along an
axis along which the same number may be added, a gradient sums to 0.
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
from optax_bnmask.verify.trial import proof_of
from optax_bnmask.vocabulary import Scale

Array = Any

_ROUNDING = 16
"""A gradient below so many eps of the largest gradient of all leaves is taken for rounding."""


def violations(analysis: Analysis, p: Sequence[Array], g: Sequence[Array]) -> dict[str, Array]:
    """By claim, how far the gradients `g` at the leaves `p` are from what it demands."""
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
    """The leaves whose gradient is 0, entry by entry, if what is claimed of them is so."""
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
    """Products of parameters with their gradients, entry by entry, and of their norms.

    Both are taken relative to the largest there is, so that no square overflows.
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
        """The least that a violation by some leaves is divided by.

        A gradient that is rounding has any angle to its leaf. Where all of it should be 0, it is
        compared with the largest ``|p_i| |g_i|`` of all leaves.
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
    """Two arrays in one dtype, of at least single precision; what has no gradient counts as 0."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if not compat.is_inexact(x.dtype) or not compat.is_inexact(y.dtype):
        return jnp.zeros(x.shape), jnp.zeros(x.shape)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.astype(dtype), y.astype(dtype)


Violations = Iterator[tuple[str, Array]]


def _alone(analysis: Analysis, proof: Explainer, products: _Products) -> Violations:
    """Of each invariant leaf, with the biases added to its own output."""
    invariant = [leaf for leaf in analysis.leaves if leaf.scale is Scale.INVARIANT]
    for leaf, claim in zip(invariant, claims.leaves_alone(analysis, proof), strict=True):
        if not leaf.dead:
            yield leaf.path, _violation(claim, products)


def _dead(analysis: Analysis, products: _Products) -> Violations:
    """Of each dead leaf: its gradient, relative to the largest of all leaves'."""
    for i, leaf in enumerate(analysis.leaves):
        if leaf.dead:
            yield (
                f"{leaf.path}[dead]",
                _relative(products.gradients[i], jnp.max(products.gradients)),
            )


def _shifted(analysis: Analysis, products: _Products) -> Violations:
    """Of each axis along which the same may be added: the largest sum of a gradient along it.

    That is relative to the gradient of one index of the other axes, or where that is rounding, as
    for a class that does not occur, to the mean of them all.
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
    """Of each joint group, and of every symmetry."""
    for n, claim in enumerate(claims.groups(analysis, proof)):
        yield f"group {n}", _violation(claim, products)
    dead = {i for i, leaf in enumerate(analysis.leaves) if leaf.dead}
    for n, claim in enumerate(claims.symmetries(analysis)):
        if claim.exponents.keys() <= dead:
            continue
        yield f"symmetry {n}", _violation(claim, products)


def _violation(claim: claims.Scaling, products: _Products) -> Array:
    exponents = claim.exponents.items()
    inner = sum(float(s) * products.inner(i) for i, s in exponents)
    size = sum(abs(float(s)) * products.size(i) for i, s in exponents)
    return _relative(inner, jnp.maximum(size, products.floor(claim.exponents)))


def _relative(inner: Array, size: Array) -> Array:
    """``|inner| / size``: 0 where `size` is 0, and NaN where a value is."""
    return jnp.where(size == 0, 0, jnp.abs(inner) / jnp.where(size == 0, 1, size))


def _each_index(analysis: Analysis, proof: Explainer, products: _Products) -> Violations:
    """Of each index of each invariant axis: the largest of an axis."""
    for claim in claims.axes(analysis):
        if analysis.leaves[claim.leaf].dead:
            continue
        ways = claim.alternatives(claims.witness(proof, claim.leaf))
        # One of the ways in which its biases may go along is the right one.
        found = [_largest(way, products) for way in ways]
        name = f"{analysis.leaves[claim.leaf].path}[axis {claim.axis}]"
        yield name, jnp.min(jnp.stack(found))


def _largest(claim: claims.EachIndex, products: _Products) -> Array:
    inner = products.inner_along(claim.leaf, claim.axis)
    size = products.size_along(claim.leaf, claim.axis)
    for place in claim.places:
        inner += place.exponent * _of(place, products.inner, products.inner_along, claim.size)
        size += abs(place.exponent) * _of(place, products.size, products.size_along, claim.size)
    # An index that no gradient reaches just now, behind a rectifier, has one of rounding.
    floor = products.floor((claim.leaf, *(place.leaf for place in claim.places)))
    size = jnp.maximum(jnp.maximum(size, jnp.mean(size)), floor)
    return jnp.max(_relative(inner, size))


def _of(place: claims.Place, whole: Any, along: Any, n: int) -> Array:  # noqa: ANN401 - functions
    """What a bias adds at each of `n` indices."""
    if place.axis is None:
        return whole(place.leaf)
    parts = along(place.leaf, place.axis)
    return parts.reshape(n, -1).sum(1) if place.block else parts.reshape(-1, n).sum(0)
