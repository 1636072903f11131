"""Primitives written as a few others, a transpose as a move: there is one rule for each idea."""

from collections.abc import Sequence
from itertools import accumulate

from optax_bnmask import compat
from optax_bnmask.program.joining import slice_of_concatenation
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
    """Entries in the order that they had, in another shape.

    With ``dimensions``, axes are transposed to that order first. JAX does so to batch a convolution
    over its kernels: ``(B, H, W, I, O)`` to ``(H, W, I, B * O)``.
    """
    order, old = w.params["dimensions"], w.tape.shapes[x]
    if order is not None:
        x = w.move(x, {a: q for q, a in enumerate(order)}, [old[a] for a in order])
    return [w.reshape(x, w.shape)]


@lowering("slice_p")
def cut(w: Writer, x: int) -> list[int]:
    """A slice; along one axis, the array that was joined there, if it is just that."""
    bounds = tuple(zip(w.params["start_indices"], w.params["limit_indices"], strict=True))
    strides = w.params["strides"] or (1,) * len(bounds)
    old = w.tape.shapes[x]
    parted = [a for a, (low, high) in enumerate(bounds) if high - low < old[a]]
    if len(parted) == 1 and all(n == 1 for n in strides):
        return [_piece(w, x, parted[0], *bounds[parted[0]])]
    return [w.emit(SLICE, (x,), w.shape, bounds=bounds, strides=strides)]


def _piece(w: Writer, x: int, axis: int, low: int, high: int) -> int:
    """The slice ``low:high`` along an axis; if an array was joined just there, it is that array."""
    if (piece := slice_of_concatenation(w.tape, x, axis, (low, high))) is not None:
        return piece
    shape = w.tape.shapes[x]
    bounds = [(low, high) if a == axis else (0, n) for a, n in enumerate(shape)]
    part = [b - a for a, b in bounds]
    return w.emit(SLICE, (x,), part, bounds=bounds, strides=(1,) * len(shape))


def _joined(w: Writer, xs: Sequence[int], axis: int) -> int:
    """Writes a concatenation."""
    shapes = [w.tape.shapes[x] for x in xs]
    wide = [sum(s[a] for s in shapes) if a == axis else n for a, n in enumerate(shapes[0])]
    return w.emit(compat.primitive("concatenate_p"), xs, wide, 0, dimension=axis)


@lowering("split_p")
def split(w: Writer, x: int) -> list[int]:
    """Slices, one after the other."""
    sizes = w.params["sizes"]
    return [
        _piece(w, x, w.params["axis"], end - n, end)
        for end, n in zip(accumulate(sizes), sizes, strict=True)
    ]


@lowering("unstack_p")
def unstack(w: Writer, x: int) -> list[int]:
    """Slices of length 1, without that axis."""
    axis, shape = w.params["axis"], w.tape.shapes[x]
    to = {a: a - (a > axis) for a in range(len(shape)) if a != axis}
    return [w.move(_piece(w, x, axis, t, t + 1), to, w.shape) for t in range(shape[axis])]


@lowering("stack_p")
def stack(w: Writer, *xs: int) -> list[int]:
    """A new axis of length 1 for each operand, and a concatenation along it."""
    axis = w.params["axis"]
    row = (*w.shape[:axis], 1, *w.shape[axis + 1 :])
    to = {a: a + (a >= axis) for a in range(len(w.shape) - 1)}
    return [_joined(w, [w.move(x, to, row) for x in xs], axis)]


@lowering("pad_p")
def pad(w: Writer, x: int, value: int) -> list[int]:
    """Concatenations with the padding, and slices where it is negative."""
    for axis, (low, high, inside) in enumerate(w.params["padding_config"]):
        if inside and w.tape.shapes[x][axis] > 1:
            x = _dilated(w, x, value, axis, inside)
        x = _padded(w, x, value, axis, (max(low, 0), max(high, 0)))
        if low < 0 or high < 0:
            x = _piece(w, x, axis, max(-low, 0), w.tape.shapes[x][axis] + min(high, 0))
    return [x]


def _padded(w: Writer, x: int, value: int, axis: int, sides: tuple[int, int]) -> int:
    """Writes a concatenation with so many entries of some value on either side."""
    shape = w.tape.shapes[x]
    before, after = (
        [w.move(value, {}, (*shape[:axis], n, *shape[axis + 1 :]))] if n else [] for n in sides
    )
    around = [*before, x, *after]
    return _joined(w, around, axis) if len(around) > 1 else x


def _dilated(w: Writer, x: int, value: int, axis: int, inside: int) -> int:
    """Writes so many entries of some value between any two neighbours.

    With 2 of them, (5,) is (5, 1), joined with padding (5, 3), merged (15,), and cut to (13,).
    """
    shape = w.tape.shapes[x]
    n, before, behind = shape[axis], shape[:axis], shape[axis + 1 :]
    rows = _padded(w, w.reshape(x, (*before, n, 1, *behind)), value, axis + 1, (0, inside))
    merged = w.reshape(rows, (*before, n * (1 + inside), *behind))
    return _piece(w, merged, axis, 0, n + (n - 1) * inside)


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
