"""A norm's gain and bias are its own, whatever comes before it: layers of Flax, composed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask

NORMS = {
    "batch": lambda: nn.BatchNorm(use_running_average=False, name="norm"),
    "batch, in two passes": lambda: nn.BatchNorm(
        use_running_average=False, use_fast_variance=False, name="norm"
    ),
    "layer": lambda: nn.LayerNorm(name="norm"),
    "layer in halves": lambda: nn.LayerNorm(dtype=jnp.bfloat16, name="norm"),
    "root mean square": lambda: nn.RMSNorm(name="norm"),
    "group": lambda: nn.GroupNorm(num_groups=2, name="norm"),
    "instance": lambda: nn.InstanceNorm(name="norm"),
}


def dense(x):
    return nn.Dense(8, name="dense")(x)


def other(x):
    return nn.Dense(8, name="other")(x)


def with_a_token(x):
    token = nn.Embed(1, 8, name="embed")(jnp.zeros((x.shape[0], 1), int))
    return jnp.concatenate([token, dense(x)], 1)


BEFORE = {
    "dense": dense,
    "a convolution": lambda x: nn.relu(nn.Conv(8, (3,), name="dense")(x)),
    "features joined": lambda x: jnp.concatenate([dense(x), other(x)], -1),
    "features joined with data": lambda x: jnp.concatenate([dense(x), x], -1),
    "features joined, then rectified": lambda x: nn.relu(jnp.concatenate([dense(x), other(x)], -1)),
    "features joined, then pooled": lambda x: nn.avg_pool(
        jnp.concatenate([dense(x), other(x)], -1), (2,), (2,)
    ),
    "joined twice": lambda x: jnp.concatenate(
        [jnp.concatenate([dense(x), jnp.tanh(other(x))], -1), x], -1
    ),
    "a token before": with_a_token,
    "tokens joined, then shifted": lambda x: jnp.roll(
        jnp.concatenate([dense(x), other(x)], 1), 1, axis=1
    ),
    "examples joined": lambda x: jnp.concatenate([dense(x), other(x[:, ::-1])], 0),
    "stacked": lambda x: jnp.stack([dense(x), other(x)], 1).reshape(6, -1, 8),
    "in halves": lambda x: jnp.concatenate([dense(x), other(x)], -1).astype(jnp.bfloat16),
    "padded": lambda x: jnp.pad(dense(x), ((0, 0), (1, 1), (0, 0))),
    "a residual": lambda x: (h := dense(x)) + nn.relu(other(h)),
    "split and joined": lambda x: jnp.concatenate(jnp.split(dense(x), 2, -1)[::-1], -1),
    "in patches": lambda x: dense(x).reshape(3, 2, -1, 4),
    "gated": lambda x: dense(x) * jax.nn.sigmoid(other(x)),
}


class Net(nn.Module):
    """A block, its norm, and a head."""

    before: str
    norm: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(NORMS[self.norm]()(BEFORE[self.before](x)))
        return nn.Dense(2, name="head")(x.astype(jnp.float32).reshape(len(x), -1))


ROLES = {"embed": {"embedding"}, "norm": {"norm_scale", "norm_bias"}}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("before", BEFORE)
def test_each_leaf_is_what_its_layer_says(before, norm):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module, x = Net(before, norm), jax.ShapeDtypeStruct((3, 4, 8), "float32")
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        stats = jax.tree.map(lambda a: jnp.ones(a.shape), variables.get("batch_stats", {}))

        def fn(params, x):
            variables = {"params": params, "batch_stats": stats}
            return module.apply(variables, x, mutable=["batch_stats"])[0]

        analysis = bnmask.analyze(fn, variables["params"], x)
    for leaf in analysis.leaves:
        layer, name = leaf.path.split("/")
        expected = ROLES.get(layer, {"weight"} if name == "kernel" else {"bias"})
        assert str(leaf.role) in expected, (leaf.path, str(leaf.role))
        if layer == "norm":
            assert str(leaf.role) == f"norm_{name}", leaf.path
