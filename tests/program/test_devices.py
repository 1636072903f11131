"""Programs that say themselves what each device does, or where each array lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_bnmask as bnmask
from tests.support.program.slices import disagreements

DATA = np.random.default_rng(0).normal(size=(8, 4))
SHAPES = {"into": (4, 8), "gain": (8,), "out": (8, 6), "last": (6, 3)}
PARAMS = {name: jax.ShapeDtypeStruct(shape, jnp.float64) for name, shape in SHAPES.items()}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def mesh_of(kind):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)


def batch_normalised(z):
    """Over the devices' batches together; the variance is a difference of stacked means."""
    means = jax.lax.pmean(jnp.stack([z.mean(0), jnp.square(z).mean(0)]), "data")
    return (z - means[0]) * jax.lax.rsqrt(means[1] - jnp.square(means[0]) + 1e-6)


def normalised(z):
    return z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-6)


def columns_then_rows(p, x):
    """Tensor parallel: columns of the first kernel, rows of the second, one sum after that."""
    z = jnp.sin(batch_normalised(x @ p["into"]) * p["gain"])
    return jnp.sin(normalised(jax.lax.psum(z @ p["out"], "model")) @ p["last"])


def gathered_first(p, x):
    """Fully sharded: every kernel in parts, put together where it is used."""
    into, gain, out = (
        jax.lax.all_gather(p[name], "data", axis=p[name].ndim - 1, tiled=True)
        for name in ("into", "gain", "out")
    )
    return jnp.sin(normalised(jnp.sin(batch_normalised(x @ into) * gain) @ out) @ p["last"])


def scattered_sum(p, x):
    """As `columns_then_rows`, with each device of a row keeping a part of the sum."""
    z = jnp.sin(batch_normalised(x @ p["into"]) * p["gain"])
    z = jax.lax.psum_scatter(z @ p["out"], "model", scatter_dimension=1, tiled=True)
    z = jax.lax.all_gather(z, "model", axis=1, tiled=True)
    return jnp.sin(normalised(z) @ p["last"])


BY_TENSOR = {"into": P(None, "model"), "gain": P("model"), "out": P("model"), "last": P()}
BY_DATA = {"into": P(None, "data"), "gain": P("data"), "out": P(None, "data"), "last": P()}
EXPECTED = {
    "into": ("weight", "invariant", (1,)),
    "gain": ("norm_scale", "sensitive", ()),
    "out": ("weight", "invariant", ()),
    "last": ("weight", "sensitive", ()),
}


def found(analysis):
    return {x.path: (str(x.role), str(x.scale), x.invariant_axes) for x in analysis.leaves}


def spread_out(mesh, apply, specs, *, check):
    over = {"in_specs": (specs, P("data")), "out_specs": P("data")}
    return jax.shard_map(apply, mesh=mesh, check_vma=check, **over)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("apply", "specs", "check"),
    [
        (columns_then_rows, BY_TENSOR, True),
        (columns_then_rows, BY_TENSOR, False),
        (gathered_first, BY_DATA, True),
        (gathered_first, BY_DATA, False),
        (scattered_sum, BY_TENSOR, False),  # JAX takes what it gathers for varying
    ],
)
def test_kernels_in_parts_are_invariant_as_whole_ones_are(apply, specs, check, kind):
    mesh = mesh_of(kind)
    spread = spread_out(mesh, apply, specs, check=check)
    with jax.set_mesh(mesh):
        x = jax.device_put(DATA, NamedSharding(mesh, P("data")))
        params = {
            name: jax.device_put(jnp.ones(shape), NamedSharding(mesh, specs[name]))
            for name, shape in SHAPES.items()
        }
        analysis = bnmask.analyze(spread, params, x)
    assert found(analysis) == EXPECTED
    assert not analysis.unhandled


@pytest.mark.parametrize("apply", [columns_then_rows, scattered_sum])
def test_the_numbers_agree_index_by_index(apply):
    spread = spread_out(mesh_of(AxisType.Auto), apply, BY_TENSOR, check=False)
    analysis = bnmask.analyze(spread, PARAMS, DATA)
    assert disagreements(analysis, lambda p: spread(p, DATA), PARAMS) == []


def test_statistics_of_one_device_hide_no_more_than_its_own_part():
    """Rows of the second kernel on each device are normalised by their own partial sum."""

    def apply(p, x):
        z = normalised(jnp.sin(x @ p["into"]) @ p["out"])
        return jax.lax.psum(z, "model")

    specs = {"into": P(None, "model"), "out": P("model")}
    spread = spread_out(mesh_of(AxisType.Auto), apply, specs, check=True)
    params = {name: PARAMS[name] for name in specs}
    analysis = bnmask.analyze(spread, params, DATA)
    assert found(analysis)["out"] == ("weight", "invariant", ())
    assert "along axis 0 in blocks only" in analysis["out"].reason
    assert disagreements(analysis, lambda p: spread(p, DATA), params) == []


def test_sum_over_devices_that_scale_apart_is_sensitive_to_a_part():
    def apply(p, x):
        return jnp.sin(normalised(jax.lax.psum(x @ p["w"], "model")))

    mesh = mesh_of(AxisType.Auto)
    over = {"in_specs": ({"w": P("model")}, P("data", "model")), "out_specs": P("data")}
    spread = jax.shard_map(apply, mesh=mesh, **over)
    params = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float64)}
    analysis = bnmask.analyze(spread, params, DATA)
    assert found(analysis) == {"w": ("weight", "invariant", ())}
    assert "in blocks" not in analysis["w"].reason
    assert disagreements(analysis, lambda p: spread(p, DATA), params) == []


def test_arrays_of_explicit_sharding_are_traced_as_what_they_are():
    mesh = mesh_of(AxisType.Explicit)

    def fn(p, x):
        z = jnp.einsum("bi,io->bo", x, p["into"], out_sharding=P("data", None))
        return jnp.sin(normalised(jax.sharding.reshard(z, P(None, "model"))))

    with jax.set_mesh(mesh):
        params = {"into": jax.device_put(jnp.ones((4, 8)), P("model", None))}
        x = jax.device_put(DATA, P("data", "model"))
        analysis = bnmask.analyze(fn, params, x)
        assert found(analysis) == {"into": ("weight", "invariant", ())}
        without = functools.partial(jnp.einsum, "bi,io->bo")
        with pytest.raises(Exception, match="sharding"):  # so the types did arrive
            bnmask.analyze(lambda p, x: without(x, p["into"]), params, x)


def test_stacked_scalars_of_a_loop_may_be_joined_and_reshaped():
    def fn(p, x):
        def body(total, layer):
            both = jnp.stack([layer["a"], layer["b"]]).reshape(2, 1).reshape(1, 2)
            return total + jnp.sin(x * both / jnp.abs(both)).sum(), None

        return jax.lax.scan(body, jnp.zeros((), x.dtype), p)[0]

    params = {name: jax.ShapeDtypeStruct((5,), jnp.float64) for name in "ab"}
    x = np.ones((8, 2))
    analysis = bnmask.analyze(fn, params, x)
    assert {str(leaf.scale) for leaf in analysis.leaves} == {"invariant"}
    assert disagreements(analysis, lambda p: fn(p, x), params, axes=False) == []


@pytest.mark.parametrize("stacked", [False, True])
def test_heads_of_two_kernels_side_by_side_are_invariant_each(stacked):
    def layer(p, x):
        z = jnp.concatenate([x @ p["query"], x @ p["key"]], 1).reshape(-1, 4, 2)
        return jnp.sin(normalised(z)).sum()

    def fn(p, x):
        if not stacked:
            return layer(p, x)
        return jax.lax.scan(lambda c, q: (c, layer(q, x)), 0.0, p)[1]

    shape = (3, 4, 4) if stacked else (4, 4)
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float64) for name in ("query", "key")}
    analysis = bnmask.analyze(fn, params, DATA)
    assert {str(leaf.scale) for leaf in analysis.leaves} == {"invariant"}
    assert disagreements(analysis, lambda p: fn(p, DATA), params, axes=not stacked) == []


WHOLE, ROWS = P(), P("data")


def clipped_by_devices(collective, into=WHOLE, out=ROWS):
    """A collective of something that is 0 here and there, and what looks like a guard."""

    def fn(p, x):
        def inner(p, x):
            z = collective(x @ p["w"])
            return normalised(jnp.where(z != 0, z, 1.0))

        mesh = mesh_of(AxisType.Auto)
        over = {"in_specs": ({"w": into}, ROWS), "out_specs": out}
        return jax.shard_map(inner, mesh=mesh, check_vma=False, **over)(p, x)

    return fn


def relu(z):
    return jnp.maximum(z, 0.0)


CLIPPED = {
    "gathered": clipped_by_devices(
        lambda z: jax.lax.all_gather(relu(z), "model", axis=1, tiled=True), P(None, "model")
    ),
    "shifted": clipped_by_devices(lambda z: jax.lax.ppermute(relu(z), "data", [(0, 1), (1, 0)])),
    "shifted, the last gets nothing": clipped_by_devices(
        lambda z: jax.lax.ppermute(z, "data", [(0, 1)])
    ),
    "exchanged": clipped_by_devices(
        lambda z: jax.lax.all_to_all(relu(z), "data", 1, 0, tiled=True), out=P(None, "data")
    ),
    "summed up": clipped_by_devices(lambda z: jax.lax.psum(relu(z), "data"), out=P()),
    "largest": clipped_by_devices(lambda z: jax.lax.pmax(relu(z), "data"), out=P()),
}
for name, cut in {
    "negative": lambda z: -relu(z),
    "looked up": lambda z: relu(z)[:, np.array([0, 1, 3, 2])],
    "cut out": lambda z: jax.lax.dynamic_slice_in_dim(relu(z), 1, 2, 0),
    "largest of a column": lambda z: relu(z).max(0),
    "sorted": lambda z: jnp.sort(relu(z), 0),
    "cumulated": lambda z: jnp.cumsum(relu(z), 0),
    "of a sum": lambda z: relu(z) + relu(-z[::-1]),
    "of one branch": lambda z: jax.lax.cond(z[0, 0] > z[1, 1], relu, lambda z: z, z),
    "of an iteration": lambda z: jax.lax.fori_loop(0, 2, lambda i, h: relu(h) - 2 * relu(h), z),
    "of a stack": lambda z: jax.lax.scan(lambda c, row: (c, relu(row)), 0.0, z)[1],
}.items():
    CLIPPED[name] = clipped_by_devices(cut, out=P() if "column" in name else P("data"))


@pytest.mark.parametrize("name", CLIPPED)
def test_guard_of_what_is_zero_at_will_is_no_guard(name):
    """There the 1 is chosen among values that scale, so the weight's scale matters."""
    params = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float64)}
    analysis = bnmask.analyze(CLIPPED[name], params, DATA)
    assert str(analysis["w"].scale) == "sensitive"


def test_groups_of_devices_have_an_order_of_their_own():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))

    def inner(w, x):
        groups = [[1, 0]]
        z = jax.lax.all_gather(x @ w, "model", axis=1, tiled=True, axis_index_groups=groups)
        return jnp.concatenate([normalised(z[:, :4]), jnp.sin(z[:, 4:])], 1)

    def fn(p):
        w = jnp.concatenate([p["first"], p["second"]], 1)
        over = {"in_specs": (P(None, "model"), P()), "out_specs": P()}
        return jax.shard_map(inner, mesh=mesh, check_vma=False, **over)(w, DATA)

    params = {name: jax.ShapeDtypeStruct((4, 4), jnp.float64) for name in ("first", "second")}
    analysis = bnmask.analyze(fn, params)
    assert str(analysis["first"].scale) == "sensitive"  # and the second could be called invariant


@pytest.mark.parametrize("collective", ["scatter", "exchange"])
def test_channels_that_stay_where_they_are_scale_one_by_one_through_an_exchange(collective):
    def inner(p, x):
        z = x @ p["w"]
        if collective == "scatter":
            z = jax.lax.psum_scatter(z, "model", scatter_dimension=0, tiled=True)
        else:
            z = jax.lax.all_to_all(z.reshape(-1, 2, 3), "model", 0, 1, tiled=True)
        mean = jax.lax.pmean(z.mean((0, 1) if z.ndim == 3 else 0), ("data", "model"))
        square = jax.lax.pmean(jnp.square(z).mean((0, 1) if z.ndim == 3 else 0), ("data", "model"))
        return jnp.sin((z - mean) * jax.lax.rsqrt(square - jnp.square(mean) + 1e-6))

    mesh = mesh_of(AxisType.Auto)
    over = {"in_specs": ({"w": P()}, P("data")), "out_specs": P(("data", "model"))}
    spread = jax.shard_map(inner, mesh=mesh, check_vma=False, **over)
    params = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float64)}
    analysis = bnmask.analyze(spread, params, DATA)
    expected = (1,) if collective == "scatter" else ()
    assert found(analysis) == {"w": ("weight", "invariant", expected)}
    assert disagreements(analysis, lambda p: spread(p, DATA), params) == []
