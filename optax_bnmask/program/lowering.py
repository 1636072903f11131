"""Primitives that are others in disguise, written as those: there is one rule for each idea."""

from collections.abc import Sequence
from itertools import accumulate

from optax_bnmask import compat
from optax_bnmask.program.tape import CONTRACT, SLICE, Writer, lowering


@lowering("transpose_p")
def transpose(w: Writer, x: int) -> list[int]:
    """Axes in another order."""
    return [w.move(x, {a: q for q, a in enumerate(w.params["permutation"])}, w.shape)]


@lowering("broadcast_in_dim_p")
def broadcast(w: Writer, x: int, *_: int) -> list[int]:
    """New axes; those of length 1 that grow are new as well."""
    old, where = w.tape.shapes[x], w.params["broadcast_dimensions"]
    return [w.move(x, {a: q for a, q in enumerate(where) if old[a] == w.shape[q]}, w.shape)]


@lowering("squeeze_p")
def squeeze(w: Writer, x: int) -> list[int]:
    """Axes of length 1 dropped."""
    rank = len(w.tape.shapes[x])
    gone = {a % rank for a in w.params["dimensions"]}
    kept = (a for a in range(rank) if a not in gone)
    return [w.move(x, {a: q for q, a in enumerate(kept)}, w.shape)]


@lowering("reshape_p")
def reshape(w: Writer, x: int, *_: int) -> list[int]:
    """The same entries in the same order."""
    return [w.reshape(x, w.shape)]


@lowering("slice_p")
def cut(w: Writer, x: int) -> list[int]:
    """Some of the entries."""
    bounds = tuple(zip(w.params["start_indices"], w.params["limit_indices"], strict=True))
    strides = w.params["strides"] or (1,) * len(bounds)
    return [w.emit(SLICE, (x,), w.shape, bounds=bounds, strides=strides)]


def _pieces(w: Writer, x: int, axis: int, sizes: Sequence[int]) -> list[int]:
    """Writes slices of those sizes along an axis, one after the other."""
    shape, out = w.tape.shapes[x], list[int]()
    for end, n in zip(accumulate(sizes), sizes, strict=True):
        bounds = [(end - n, end) if a == axis else (0, m) for a, m in enumerate(shape)]
        part = (*shape[:axis], n, *shape[axis + 1 :])
        out.append(w.emit(SLICE, (x,), part, bounds=bounds, strides=(1,) * len(shape)))
    return out


@lowering("split_p")
def split(w: Writer, x: int) -> list[int]:
    """Slices, one after the other."""
    return _pieces(w, x, w.params["axis"], w.params["sizes"])


@lowering("unstack_p")
def unstack(w: Writer, x: int) -> list[int]:
    """Slices of length 1, without that axis."""
    axis, shape = w.params["axis"], w.tape.shapes[x]
    to = {a: a - (a > axis) for a in range(len(shape)) if a != axis}
    return [w.move(row, to, w.shape) for row in _pieces(w, x, axis, [1] * shape[axis])]


@lowering("stack_p")
def stack(w: Writer, *xs: int) -> list[int]:
    """A new axis of length 1 for each operand, and a concatenation along it."""
    axis = w.params["axis"]
    row = (*w.shape[:axis], 1, *w.shape[axis + 1 :])
    to = {a: a + (a >= axis) for a in range(len(w.shape) - 1)}
    rows = [w.move(x, to, row) for x in xs]
    return [w.emit(compat.primitive("concatenate_p"), rows, w.shape, 0, dimension=axis)]


@lowering("tile_p")
def tile(w: Writer, x: int) -> list[int]:
    """A new axis before each that is repeated, merged with it: (2, 3) is (4, 2, 3) is (8, 3)."""
    wide: list[int] = []
    to = {}
    for a, (copies, n) in enumerate(zip(w.params["reps"], w.tape.shapes[x], strict=True)):
        wide += [copies] if copies > 1 else []
        to[a] = len(wide)
        wide.append(n)
    return [w.reshape(w.move(x, to, wide), w.shape)]


@lowering("conv_general_dilated_p")
def grouped_convolution(w: Writer, x: int, kernel: int) -> list[int] | None:
    """Feature groups as an axis of their own, along which nothing is summed.

    With G groups of I input and O output channels, (.., G*I) and (I, G*O) become (.., G, I) and
    (I, G, O), contract to (.., G, O), and are (.., G*O) in the end.
    """
    groups, numbers = w.params["feature_group_count"], w.params["dimension_numbers"]
    if groups == 1 or w.params["batch_group_count"] > 1:
        return None

    def apart(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])

    (batch, feature), out_feature = numbers.lhs_spec[:2], numbers.rhs_spec[0]
    to_batch, to_feature = numbers.out_spec[:2]
    x = w.reshape(x, apart(w.tape.shapes[x], feature))
    kernel = w.reshape(kernel, apart(w.tape.shapes[kernel], out_feature))
    to_x = {batch + (batch > feature): to_batch + (to_batch > to_feature), feature: to_feature}
    to_kernel = {out_feature: to_feature, out_feature + 1: to_feature + 1}
    wide = apart(w.shape, to_feature)
    y = w.emit(CONTRACT, (x, kernel), wide, 0, to=(to_x, to_kernel))
    return [w.reshape(y, w.shape)]
