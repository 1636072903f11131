"""Evidence from structure: the params tree against the tree of statistics, no model, no tracing.

Statistics decide: a scope that keeps a running `mean` and `var` is a BatchNorm whatever it is
called. Where no statistics are kept, the frameworks' conventions serve, and the reason says so.
What neither tells stays `UNKNOWN`.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_bnmask.analysis import Analysis, Evidence, Leaf, Role
from optax_bnmask.errors import StructureError
from optax_bnmask.paths import Layout, Scope, layout

Keys = tuple[str, ...]


class Verdict(NamedTuple):
    """The role of one leaf and what it rests on."""

    role: Role
    reason: str


class Reading(NamedTuple):
    """What the two trees say.

    Attributes:
      params: The params as read.
      verdicts: One for each leaf, in the order of `jax.tree.leaves`.
      untrainable: The leaves that no optimizer moves: integers, booleans, keys.
      notes: The candidates that were refused and the statistics without parameters.
    """

    params: Layout
    verdicts: dict[str, Verdict]
    untrainable: list[str]
    notes: tuple[str, ...]


class _Statistics(NamedTuple):
    """Running statistics of one scope."""

    mean: Any
    var: Any
    where: str


_GAINS: Final = ("scale", "weight")
_OFFSETS: Final = ("bias", "offset")
_CONVENTIONS: Final = {
    "scale": "Flax's and Haiku's",
    "weight": "Equinox's and PyTorch's",
}
_WEIGHTS: Final = {"kernel": "bias", "w": "b", "weight": "bias"}
_TABLES: Final = ("embedding", "embeddings")

_UNKNOWN: Final = Verdict(Role.UNKNOWN, "neither statistics nor a convention tells how it is used")
_UNTRAINABLE: Final = Verdict(Role.UNKNOWN, "not of floating dtype: no optimizer moves it")
_WEIGHT: Final = Verdict(Role.WEIGHT, "by convention: a matrix or filter of that name")
_BIAS: Final = Verdict(Role.BIAS, "by convention: beside a weight, of its output's shape")
_EMBEDDING: Final = Verdict(Role.EMBEDDING, "by convention: alone in its scope under that name")


def analyze_structure(params: Any, batch_stats: Any = None) -> Analysis:  # noqa: ANN401 - any pytree
    """What the params tree and the tree of statistics tell of each leaf's role.

    A BatchNorm is a scope whose counterpart in `batch_stats` holds `mean` *and* `var` of one shape,
    and whose `scale` and `bias` have that shape too, whatever the module is called and whatever
    else is in the scope. LayerNorm, GroupNorm, RMSNorm leave no statistics; they are told by
    convention (a scope with only a `scale` and perhaps a `bias` of the same shape). Of *scale*,
    structure says nothing: every leaf's `scale` is ``"unknown"``.

    Args:
      params: Any pytree of arrays (any shapes), `jax.ShapeDtypeStruct`s or tracers; an
        `nnx.Module` or `nnx.State` brings its own statistics.
      batch_stats: The tree of statistics beside it: Linen's `batch_stats`, Haiku's `state`.

    Returns:
      An `Analysis` whose leaves have a role and a reason. Candidates that were refused are in its
      `notes`.

    Raises:
      StructureError: The two trees are not of one model, or a leaf is not an array.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_bnmask as bnmask
      >>> params = {"odd_name": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
      >>> stats = {"odd_name": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}
      >>> print(bnmask.analyze_structure(params, stats).explain("odd_name/bias"))
      odd_name/bias: norm_bias. a running mean and var of its shape are kept at 'odd_name'
    """
    read = reading(params, batch_stats)
    leaves = tuple(
        Leaf(path, np.shape(array), dtype_of(array), verdict.role, reason=verdict.reason)
        for (path, verdict), array in zip(
            read.verdicts.items(), read.params.leaves.values(), strict=True
        )
    )
    return Analysis(leaves, frozenset({Evidence.STRUCTURE}), notes=read.notes)


def reading(params: Any, batch_stats: Any = None) -> Reading:  # noqa: ANN401 - any pytree
    """What `analyze_structure` and `decay_mask` share: a verdict for each leaf."""
    params, batch_stats = _split_nnx(params, batch_stats)
    tree = layout(params, "params")
    _refuse_variables(tree)
    kept = layout(batch_stats, "batch_stats")
    found, notes = _statistics(kept)
    verdicts = dict.fromkeys(tree.leaves, _UNKNOWN)
    mismatches: list[str] = []
    for scope in tree.scopes.values():
        statistics = found.get(scope.keys)
        odd = statistics is None and scope.keys in kept.scopes
        if statistics is not None:
            mismatches += _with_statistics(scope, statistics, verdicts)
        _by_convention(scope, verdicts, norms=not odd and statistics is None)
    _refuse_strangers(tree, found, kept)
    notes += mismatches
    notes += [
        f"the statistics at {'/'.join(keys)!r} have no parameters beside them: a normaliser "
        f"without scale and bias, or one whose parameters were taken out"
        for keys in found
        if keys not in tree.scopes
    ]
    untrainable = _untrainable(tree.leaves)
    verdicts.update(dict.fromkeys(untrainable, _UNTRAINABLE))
    return Reading(tree, verdicts, untrainable, tuple(notes))


def dtype_of(array: Any) -> Any:  # noqa: ANN401 - a dtype, extended ones included
    """The dtype of anything array-like."""
    return array.dtype if hasattr(array, "dtype") else jnp.result_type(array)


def _split_nnx(params: Any, batch_stats: Any) -> tuple[Any, Any]:  # noqa: ANN401 - any pytree
    """An NNX module or state as its parameters and its statistics; all else as it is."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or batch_stats is not None:
        return params, batch_stats
    if isinstance(params, nnx.Module):
        params = nnx.state(params)
    if isinstance(params, nnx.State) and jax.tree.leaves(params):
        stats = nnx.filter_state(params, nnx.BatchStat)
        if jax.tree.leaves(stats):
            return nnx.filter_state(params, nnx.Param), stats
        trained = nnx.filter_state(params, nnx.Param)
        return (trained if jax.tree.leaves(trained) else params), None
    return params, batch_stats


def _refuse_variables(tree: Layout) -> None:
    """Fails on Flax's whole variables dict and on leaves that are no arrays."""
    tops = {keys[0] for keys in tree.scopes if keys}
    if "params" in tops and tops <= {"params", "batch_stats", "intermediates", "cache"}:
        raise StructureError(
            f"`params` must be the tree that the optimizer updates. Found the collections "
            f"{', '.join(map(repr, sorted(tops)))} at its top. Pass `variables['params']`, and "
            f"`variables['batch_stats']` as `batch_stats`."
        )
    for path, leaf in tree.leaves.items():
        if not hasattr(leaf, "shape") and not isinstance(leaf, (int, float, complex)):
            raise StructureError(
                f"Every leaf of `params` must be an array or have a shape and a dtype. "
                f"{path!r} is a {type(leaf).__name__}. Leave it out of the tree first; for Equinox, "
                f"`eqx.filter(model, eqx.is_inexact_array)`."
            )


def _untrainable(leaves: Mapping[str, Any]) -> list[str]:
    """The leaves of no floating dtype."""
    known: dict[Any, bool] = {}
    result = []
    for path, leaf in leaves.items():
        dtype = dtype_of(leaf)
        if dtype not in known:
            known[dtype] = bool(jnp.issubdtype(dtype, np.inexact))
        if not known[dtype]:
            result.append(path)
    return result


def _statistics(kept: Layout) -> tuple[dict[Keys, _Statistics], list[str]]:
    """The scopes that keep a mean and a var, and why the other scopes with statistics do not."""
    found: dict[Keys, _Statistics] = {}
    notes: list[str] = []
    for keys, scope in kept.scopes.items():
        if (haiku := _haiku_average(scope, kept)) is not None:
            found.update(haiku)
            continue
        mean, var = scope.leaves.get("mean"), scope.leaves.get("var")
        if mean is None or var is None:
            if not keys or "/~/" not in keys[-1]:
                notes.append(
                    f"the statistics at {scope.path!r} are not BatchNorm's: they hold "
                    f"{', '.join(map(repr, scope.leaves))}, not both 'mean' and 'var'"
                )
        elif np.shape(mean) != np.shape(var):
            notes.append(
                f"the statistics at {scope.path!r} are not BatchNorm's: 'mean' has shape "
                f"{np.shape(mean)}, 'var' {np.shape(var)}"
            )
        else:
            found[keys] = _Statistics(mean, var, scope.path)
    return found, notes


def _haiku_average(scope: Scope, kept: Layout) -> dict[Keys, _Statistics] | None:
    """Haiku keeps ``<module>/~/mean_ema/average`` beside ``<module>/~/var_ema/average``."""
    suffix = "/~/mean_ema"
    if not scope.keys or not scope.keys[-1].endswith(suffix):
        return None
    module = scope.keys[-1].removesuffix(suffix)
    other = kept.scopes.get((*scope.keys[:-1], f"{module}/~/var_ema"))
    if other is None or "average" not in scope.leaves or "average" not in other.leaves:
        return None
    mean, var = scope.leaves["average"], other.leaves["average"]
    if np.shape(mean) != np.shape(var):
        return None
    keys = (*scope.keys[:-1], module)
    return {keys: _Statistics(mean, var, "/".join(keys))}


def _with_statistics(
    scope: Scope, statistics: _Statistics, verdicts: dict[str, Verdict]
) -> Iterator[str]:
    """Names the gain and the bias of a scope that keeps statistics; yields why it refused any."""
    shape = np.shape(statistics.mean)
    reason = f"a running mean and var of its shape are kept at {statistics.where!r}"
    candidates = [name for name in (*_GAINS, *_OFFSETS) if name in scope.leaves]
    alone = set(scope.leaves) <= {"scale", *_OFFSETS}
    for name in candidates:
        path, own = scope.leaf_path(name), np.shape(scope.leaves[name])
        if own == shape:
            role = Role.NORM_SCALE if name in _GAINS else Role.NORM_BIAS
            verdicts[path] = Verdict(role, reason)
        elif alone and len(own) == len(shape):
            raise StructureError(
                f"`params` and `batch_stats` must be of one model. {path!r} has shape {own}, but "
                f"'mean' and 'var' at {statistics.where!r} have shape {shape}. Were both taken "
                f"from the same `variables`?"
            )
        else:
            yield (
                f"{path!r} is not BatchNorm's: its shape is {own}, that of the mean and var kept "
                f"at {statistics.where!r} is {shape}"
            )


def _by_convention(scope: Scope, verdicts: dict[str, Verdict], *, norms: bool) -> None:
    """Names the leaves of a scope by what Flax, Haiku and Equinox call them."""
    leaves = scope.leaves
    for weight, bias in _WEIGHTS.items():
        if weight in leaves and len(np.shape(leaves[weight])) >= 2:
            if weight == "weight" and set(leaves) == {"weight"}:
                continue  # Equinox's Linear without bias and its Embedding look alike
            _settle(verdicts, scope.leaf_path(weight), _WEIGHT)
            if bias in leaves and _fits(np.shape(leaves[weight]), np.shape(leaves[bias])):
                _settle(verdicts, scope.leaf_path(bias), _BIAS)
    for table in _TABLES:
        if set(leaves) == {table} and len(np.shape(leaves[table])) >= 2:
            _settle(verdicts, scope.leaf_path(table), _EMBEDDING)
    if norms:
        _norm_by_convention(scope, verdicts)


def _norm_by_convention(scope: Scope, verdicts: dict[str, Verdict]) -> None:
    """A scope with only a gain, and perhaps an offset of the same shape, is a normaliser's."""
    names = set(scope.leaves)
    gain = next((name for name in _GAINS if name in names), None)
    if gain is None:
        return
    offsets = names - {gain}
    shapes = {np.shape(leaf) for leaf in scope.leaves.values()}
    if len(offsets) > 1 or not offsets <= set(_OFFSETS) or len(shapes) > 1 or () in shapes:
        return
    if gain == "weight" and not offsets:
        return  # a lone `weight` may be anything
    reason = (
        f"by {_CONVENTIONS[gain]} convention, unconfirmed by statistics: a scope with only "
        f"{' and '.join(repr(name) for name in scope.leaves)} of one shape"
    )
    verdicts[scope.leaf_path(gain)] = Verdict(Role.NORM_SCALE, reason)
    for offset in offsets:
        verdicts[scope.leaf_path(offset)] = Verdict(Role.NORM_BIAS, reason)


def _fits(weight: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    """Whether a bias has the shape of the weight's output, channels last or first."""
    return bool(bias) and bias != weight and (
        weight[-len(bias) :] == bias or weight[0] == bias[0]
    )


def _settle(verdicts: dict[str, Verdict], path: str, verdict: Verdict) -> None:
    """Gives a verdict to a leaf that has none."""
    if verdicts[path] is _UNKNOWN:
        verdicts[path] = verdict


def _refuse_strangers(tree: Layout, found: Mapping[Keys, _Statistics], kept: Layout) -> None:
    """Fails where no statistics at all have a place in the params: another model's, or wrapped."""
    if not found or not tree.leaves or any(keys in tree.scopes for keys in found):
        return
    inner = {keys[:n] for keys in tree.scopes for n in range(1, len(keys) + 1)}
    homeless = all(len(keys) > 1 and keys[:-1] not in inner for keys in found)
    alike = [s for s in tree.scopes.values() if set(s.leaves) & {"scale"} and set(s.leaves) <= {"scale", *_OFFSETS}]
    shapes = {np.shape(statistics.mean) for statistics in found.values()}
    orphan = any(np.shape(scope.leaves["scale"]) in shapes for scope in alike)
    if homeless or orphan:
        keys, where = next(iter(found)), next(iter(found.values())).where
        del keys
        some = ", ".join(repr(scope.path) for scope in list(tree.scopes.values())[:3])
        raise StructureError(
            f"`params` and `batch_stats` must be of one model. None of the {len(found)} "
            f"normalisers in `batch_stats`, the first at {where!r}, has its place in `params`, "
            f"whose scopes are {some}{', ...' if len(tree.scopes) > 3 else ''}. Were both taken "
            f"from the same `variables`?"
        )
    del kept
