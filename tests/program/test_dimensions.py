"""Which axes make a matrix of a leaf, against the ranks of gradients, which know no names.

The gradient of a matrix is a sum of as many outer products as there are sites (examples, tokens,
output positions). With two sites its unfolding as (reduction | output) has rank 2 at most, within
each index of the batch, and unfoldings that put the axes otherwise have more.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import optax_bnmask as bnmask

KEY = jax.random.key(0)


def rank(gradient, reduction, output):
    """The largest rank of an unfolding over the indices of the other axes."""
    batch = [a for a in range(gradient.ndim) if a not in (*reduction, *output)]
    rows = int(np.prod([gradient.shape[a] for a in reduction]))
    columns = int(np.prod([gradient.shape[a] for a in output]))
    unfolded = gradient.transpose(*batch, *reduction, *output).reshape(-1, rows, columns)
    return max(np.linalg.matrix_rank(unfolded, tol=1e-4 * np.abs(gradient).max()))


def others(ndim, found):
    """The other ways to sort the axes into rows, columns and batch, up to which are the rows."""
    for kinds in itertools.product("roB", repeat=ndim):
        rows, columns = (tuple(a for a in range(ndim) if kinds[a] == kind) for kind in "ro")
        matrix_axes = {*found.reduction, *found.output}
        same = {rows, columns} == {found.reduction, found.output}
        if rows and columns and not same and {*rows, *columns} >= matrix_axes:
            yield rows, columns


def check(fn, params, x, sites, **expected):
    """The dimensions are as expected, and the ranks of the gradients agree that they are right."""
    analysis = bnmask.analyze(fn, params, x)
    shapes = {path: leaf.shape for path, leaf in params.items()}
    keys = dict(zip(shapes, jax.random.split(KEY, len(shapes)), strict=True))
    drawn = {path: jax.random.normal(keys[path], shapes[path]) for path in shapes}
    data = jax.random.normal(jax.random.key(1), x.shape)
    cotangent = jax.random.normal(jax.random.key(2), jax.eval_shape(fn, params, x).shape)
    gradients = jax.grad(lambda p: (fn(p, data) * cotangent).sum())(drawn)
    for path, axes in expected.items():
        found = analysis[path].dimensions
        assert found == axes, (path, found)
        if found is not None:
            gradient = np.asarray(gradients[path])
            assert rank(gradient, found.reduction, found.output) <= sites, path
            for rows, columns in others(gradient.ndim, found):
                assert rank(gradient, rows, columns) > sites, (path, rows, columns)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


def matrix(*, reduction, output, batch=()):
    return bnmask.Dimensions(reduction, output, batch)


DENSE = matrix(reduction=(0,), output=(1,))


def test_dense_layers():
    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    params = {"w": shape(5, 6), "v": shape(6, 4)}
    check(fn, params, shape(2, 5), 2, w=DENSE, v=DENSE)


def test_a_transposed_kernel():
    def fn(p, x):
        return jnp.tanh(x @ p["w"].T)

    check(fn, {"w": shape(6, 5)}, shape(2, 5), 2, w=matrix(reduction=(1,), output=(0,)))


def test_kernels_of_heads_in_and_out():
    def fn(p, x):
        h = jnp.einsum("td,dhk->thk", x, p["v"])
        return jnp.einsum("thk,hkd->td", jnp.tanh(h), p["o"])

    params = {"v": shape(5, 3, 4), "o": shape(3, 4, 6)}
    into = matrix(reduction=(0,), output=(1, 2))
    check(fn, params, shape(2, 5), 2, v=into, o=matrix(reduction=(0, 1), output=(2,)))


def test_a_convolution_sums_over_its_window_and_its_input_channels():
    def fn(p, x):
        return lax.conv_general_dilated(
            x, p["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    kernel = matrix(reduction=(0, 1, 2), output=(3,))
    check(fn, {"k": shape(3, 3, 4, 6)}, shape(2, 3, 3, 4), 2, k=kernel)


@pytest.mark.parametrize(("groups", "found"), [(2, matrix(reduction=(0, 1, 2), output=(3,)))])
def test_a_grouped_convolution_is_one_matrix_with_blocks(groups, found):
    conv = nn.Conv(6, (3, 3), feature_group_count=groups, use_bias=False)
    x = jnp.ones((2, 5, 5, 4))
    variables = conv.init(KEY, x)
    leaf = bnmask.analyze_linen(conv, variables, x)["kernel"]
    assert leaf.dimensions == found
    assert leaf.blocks == {3: (bnmask.Block(0, 6, 3),)}


@pytest.mark.parametrize("outputs", [4, 8])
def test_filters_of_depthwise_convolutions_are_no_matrices(outputs):
    conv = nn.Conv(outputs, (3, 3), feature_group_count=4, use_bias=False)
    x = jnp.ones((2, 5, 5, 4))
    leaf = bnmask.analyze_linen(conv, conv.init(KEY, x), x)["kernel"]
    assert (leaf.role, leaf.dimensions) == ("weight", None)


def test_neither_are_rows_columns_lookups_gains_and_biases():
    def fn(p, t):
        h = p["table"][t] * p["g"][None] + p["b"][None]
        return jnp.tanh(h @ p["column"]) @ p["row"]

    sizes = {"table": (9, 5), "g": (5,), "b": (5,), "column": (5, 1), "row": (1, 4)}
    params = {k: shape(*s) for k, s in sizes.items()}
    analysis = bnmask.analyze(fn, params, jax.ShapeDtypeStruct((2,), "int32"))
    assert {leaf.path: leaf.dimensions for leaf in analysis.leaves} == dict.fromkeys(sizes)


def stacked(p, x):
    def step(h, layer):
        w, b = layer
        return jnp.tanh(h @ w + b[None]), None

    return lax.scan(jax.checkpoint(step), x, (p["w"], p["b"]))[0]


def carried(p, x):
    def step(carry, layer):
        h, every = carry
        return (jnp.tanh(h @ every["w"][layer] + every["b"][layer][None]), every), None

    return lax.scan(jax.checkpoint(step), (x, p), jnp.arange(3))[0][0]


@pytest.mark.parametrize("fn", [stacked, carried])
def test_layers_of_a_scan_are_a_batch_of_matrices(fn):
    params = {"w": shape(3, 5, 5), "b": shape(3, 5)}
    layers = matrix(reduction=(1,), output=(2,), batch=(0,))
    check(fn, params, shape(2, 5), 2, w=layers, b=None)


def test_members_of_an_ensemble_are_a_batch_of_matrices():
    def fn(p, x):
        return jax.vmap(lambda w, x: jnp.tanh(x @ w))(p["w"], x)

    check(
        fn,
        {"w": shape(3, 5, 6)},
        shape(3, 2, 5),
        2,
        w=matrix(reduction=(1,), output=(2,), batch=(0,)),
    )


def test_experts_are_a_batch_of_matrices_dense_and_ragged():
    def dense(p, x):
        gates = jax.nn.softmax(x @ p["router"])
        h = jax.nn.silu(jnp.einsum("td,edf->tef", x, p["up"]))
        return jnp.einsum("te,ted->td", gates, jnp.einsum("tef,efd->ted", h, p["down"]))

    experts = matrix(reduction=(1,), output=(2,), batch=(0,))
    params = {"router": shape(5, 3), "up": shape(3, 5, 6), "down": shape(3, 6, 4)}
    # All experts see the same data and add up, so that by the ranks of gradients `up` and `down`
    # are one wide matrix as well: that they are a batch follows from how the two meet.
    analysis = bnmask.analyze(dense, params, shape(2, 5))
    found = [analysis[path].dimensions for path in ("router", "up", "down")]
    assert found == [DENSE, experts, experts]

    def ragged(p, x, sizes):
        h = jax.nn.silu(lax.ragged_dot(x, p["up"], sizes))
        return lax.ragged_dot(h, p["down"], sizes)

    sizes = jax.ShapeDtypeStruct((3,), "int32")
    params = {"up": shape(3, 5, 6), "down": shape(3, 6, 4)}
    analysis = bnmask.analyze(ragged, params, shape(9, 5), sizes)
    assert [analysis[k].dimensions for k in ("up", "down")] == [experts, experts]


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell(6), nn.GRUCell(6), nn.SimpleCell(6)])
def test_kernels_of_recurrent_cells_are_matrices(cell):
    rnn, x = nn.RNN(cell), jnp.ones((2, 5, 4))
    analysis = bnmask.analyze_linen(rnn, jax.eval_shape(rnn.init, KEY, x), x)
    kernels = [leaf for leaf in analysis.leaves if leaf.path.endswith("kernel")]
    assert {leaf.dimensions for leaf in kernels} == {DENSE}


def test_a_leaf_used_in_two_ways_that_disagree_is_no_matrix():
    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"]

    def tied(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T

    params = {"w": shape(5, 5)}
    assert bnmask.analyze(fn, params, shape(2, 5))["w"].dimensions == DENSE
    assert bnmask.analyze(tied, params, shape(2, 5))["w"].dimensions is None


def test_blocks_of_fused_kernels():
    def fn(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, -1)
        q, k, v = (z.reshape(5, 2, 4) for z in (q, k, v))
        h = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        h = jnp.einsum("hqk,khd->qhd", h, v).reshape(5, 8)
        gate, up = jnp.split(h @ p["gate_up"], 2, -1)
        return (jax.nn.silu(gate) * up) @ p["down"]

    params = {"qkv": shape(8, 24), "gate_up": shape(8, 12), "down": shape(6, 8)}
    analysis = bnmask.analyze(fn, params, shape(5, 8))
    thirds = tuple(bnmask.Block(start, start + 8, 4) for start in (0, 8, 16))
    assert analysis["qkv"].blocks == {1: thirds}
    halves = (bnmask.Block(0, 6, 6), bnmask.Block(6, 12, 6))
    assert analysis["gate_up"].blocks == {1: halves}
    assert analysis["down"].blocks == {}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(h, h)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, t):
        x = nn.Embed(7, 8)(t) + self.param("pos", nn.initializers.normal(), (5, 8))[None]
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Block), length=2, **axes)()(x, None)
        return nn.Dense(7)(nn.LayerNorm()(x))


TOKENS = jnp.zeros((2, 5), "int32")


def specs_by_hand(params):
    """What a person who knows the model would write."""
    numbers = optax.contrib.MuonDimensionNumbers

    def spec(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "ScanCheckpointBlock" not in name or not name.endswith("kernel"):
            return None
        if "/out/" in name:
            return numbers((1, 2), (3,))
        return numbers((1,), (2, 3)) if leaf.ndim == 4 else numbers((1,), (2,))

    return jax.tree_util.tree_map_with_path(spec, params)


@pytest.mark.usefixtures("optax_promotion")
def test_muon_gets_the_specs_that_one_would_write_by_hand_and_the_same_compiled_step():
    net = Transformer()
    variables = net.init(KEY, TOKENS)
    params = variables["params"]
    specs = bnmask.analyze_linen(net, variables, TOKENS).muon_dimension_numbers()

    def is_leaf(x):
        return x is None

    by_hand = specs_by_hand(params)
    assert jax.tree.leaves(specs(params), is_leaf=is_leaf) == jax.tree.leaves(
        by_hand, is_leaf=is_leaf
    )

    def lowered(numbers):
        tx = optax.contrib.muon(0.02, muon_weight_dimension_numbers=numbers)
        step = jax.jit(tx.update)
        return step.lower(params, tx.init(params), params).as_text()

    assert lowered(specs) == lowered(by_hand)


def test_muons_own_rule_has_stacked_layers_backwards():
    net = Transformer()
    variables = jax.eval_shape(net.init, KEY, TOKENS)
    analysis = bnmask.analyze_linen(net, variables, TOKENS)
    specs = analysis.muon_dimension_numbers()
    default = {leaf.path for leaf in analysis.leaves if len(leaf.shape) == 2}
    ours = {path for path in specs if specs[path] is not None}
    assert not default & ours
    assert any(path.endswith("bias") for path in default)


def test_specs_keep_holes_and_follow_what_is_asked_for():
    net = Transformer()
    variables = jax.eval_shape(net.init, KEY, TOKENS)
    analysis = bnmask.analyze_linen(net, variables, TOKENS)
    specs = analysis.muon_dimension_numbers(positions=("hidden", "head"))
    assert specs["Dense_0/kernel"] == optax.contrib.MuonDimensionNumbers((0,), (1,))
    holed = {**variables["params"], "Dense_0": optax.MaskedNode()}
    assert isinstance(specs(holed)["Dense_0"], optax.MaskedNode)
    assert specs.labels["Dense_0/kernel"] == "muon"
    assert specs.labels["pos"] == "adam"
    with pytest.raises(bnmask.CategoryError, match="`positions` must be a collection of"):
        analysis.muon_dimension_numbers(positions=("body",))
    with pytest.raises(bnmask.CategoryError, match="cannot be told from structure alone"):
        bnmask.analyze_structure(variables["params"]).muon_dimension_numbers()


def test_what_is_known_of_a_leaf_survives_json():
    net = Transformer()
    variables = jax.eval_shape(net.init, KEY, TOKENS)
    analysis = bnmask.analyze_linen(net, variables, TOKENS)
    assert bnmask.Analysis.from_json(analysis.to_json()) == analysis
