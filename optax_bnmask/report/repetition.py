"""Folds what a report says of repeated blocks: leaves, groups, symmetries, assumptions."""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from fractions import Fraction

from optax_bnmask.families import Family, families, folded_lines, ranges
from optax_bnmask.mask import Mask
from optax_bnmask.record import Record
from optax_bnmask.vocabulary import Leaf


def leaf_families(analysis: Record, mask: Mask | None = None) -> list[Family]:
    """Groups leaves that differ in a number in their path, and in their reasons' words, alone.

    Args:
      analysis: What is known of each leaf.
      mask: What was decided; leaves of one family are decided alike.

    Returns:
      Families, whose members are indices into `Analysis.leaves`.
    """
    kinds = [
        (
            leaf.shape, str(leaf.dtype), leaf.role, leaf.confirmed, leaf.scale, leaf.invariant_axes,
            leaf.group is None, leaf.dimensions, frozenset(leaf.blocks.items()),
            frozenset(leaf.invariant_blocks.items()), leaf.dead and leaf.dead.kind,
            mask is not None and mask[leaf.path],
        )
        for leaf in analysis.leaves
    ]  # fmt: skip
    return families([leaf.path for leaf in analysis.leaves], kinds)


def single_families(analysis: Record) -> list[Family]:
    """Each leaf by itself."""
    return [Family(leaf.path, (number,)) for number, leaf in enumerate(analysis.leaves)]


def scale_words(leaves: Sequence[Leaf]) -> str:
    """The scale that leaves share, and where they are jointly invariant the numbers of groups."""
    groups = {leaf.group for leaf in leaves if leaf.group is not None}
    return f"{leaves[0].scale.value} [{ranges(groups)}]" if groups else leaves[0].scale.value


def group_lines(analysis: Record, *, collapse: bool) -> Iterator[str]:
    """Each group in the order of the leaves, under the number that the table gives it."""
    order = {leaf.path: number for number, leaf in enumerate(analysis.leaves)}
    groups = [sorted(group, key=lambda path: order.get(path, -1)) for group in analysis.groups]
    if not collapse:
        yield from (f"[{n}] {', '.join(group)}" for n, group in enumerate(groups))
        return
    for numbers, scopes, members in _alike([dict.fromkeys(group) for group in groups]):
        names = ", ".join(family.pattern for family in families(list(members)))
        if len(numbers) == 1:
            yield f"[{numbers[0]}] {names}"
        else:
            yield f"[{ranges(numbers)}] one in each of {scopes}: {names}"


def symmetry_lines(analysis: Record) -> Iterator[str]:
    """Each symmetry of the basis as the factors that the leaves are multiplied with."""
    for numbers, scopes, exponents in _alike(analysis.symmetries):
        paths = sorted(exponents)
        powers = [_power(exponents[path]) for path in paths]
        names = ", ".join(
            f"{family.pattern} · {powers[family.members[0]]}" for family in families(paths, powers)
        )
        yield names if len(numbers) == 1 else f"{len(numbers):,}, one in each of {scopes}: {names}"


def _power(exponent: Fraction | None) -> str:
    return "c" if exponent == 1 else f"c^{exponent}" if exponent else "1"


def assumption_lines(analysis: Record, *, collapse: bool) -> list[str]:
    """One line for each assumption and place; places that differ only in a number are one."""
    lines: list[str] = []
    alike = itertools.groupby(analysis.assumptions, lambda a: (a.kind, a.value, a.primitive))
    for _, assumptions in alike:
        several = list(assumptions)
        places = [assumption.where for assumption in several]
        shown = folded_lines(places) if collapse else places
        lines += [f"{several[0].in_words}, at {place}" for place in shown]
    return lines


_Names = Mapping[str, Fraction | None]


def _alike(sets: Iterable[_Names]) -> Iterator[tuple[list[int], str, _Names]]:
    """Merges sets of paths that are equal within their scopes, if these differ only in a number.

    Yields:
      The indices of the merged sets, the pattern of their scopes, and the paths of one set, which
      are relative to its scope if several were merged.
    """
    listed = list(sets)
    by_form: dict[Hashable, dict[str, int]] = {}
    for number, names in enumerate(listed):
        scope = _scope(names.keys())
        form: Hashable = frozenset((name[len(scope) :], power) for name, power in names.items())
        if not scope or scope in by_form.get(form, ()):
            form = number
        by_form.setdefault(form, {})[scope] = number
    found: list[tuple[list[int], str, _Names]] = []
    for scopes in by_form.values():
        paths, numbers = list(scopes), list(scopes.values())
        for family in families([path[:-1] for path in paths]):
            which = [numbers[member] for member in family.members]
            names, cut = listed[which[0]], len(paths[family.members[0]])
            if len(which) > 1:
                names = {name[cut:]: power for name, power in names.items()}
            found.append((sorted(which), family.pattern, names))
    yield from sorted(found, key=lambda each: each[0])


def _scope(paths: Set[str]) -> str:
    """The innermost scope that holds all of the paths, with its slash; empty for the root."""
    scopes = [path.split("/")[:-1] for path in paths] or [[]]
    pairs = zip(min(scopes), max(scopes), strict=False)  # what these share, all share
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(f"{name}/" for name, _ in shared)
