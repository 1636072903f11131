"""One process of a job: reads its part of the batches, trains, and writes down what it saw."""

import functools
import pathlib
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_bnmask as bnmask

DEVICES, STEPS, SIZE, DECAY = 4, 4, 16, 0.1
IMAGE, CLASSES = (6, 6, 3), 4
SCHEDULE = optax.linear_schedule(0.05, 0.01, STEPS)


class Network(nn.Module):
    """A convolution, a BatchNorm that its name does not give away, and a head."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=False, axis_name=self.axis_name, name="post")
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)
        return nn.Dense(CLASSES, name="head")(nn.relu(norm(x)).mean((1, 2)))


def images(step, rows):
    """Images and targets of some rows of a step's batch: no process makes what it does not read."""
    draws = [np.random.default_rng([step, row]).normal(size=(2, *IMAGE)) for row in rows]
    drawn = np.stack(draws).astype(np.float32)
    return drawn[:, 0], drawn[:, 1, 0, 0, :1] * np.arange(CLASSES, dtype=np.float32)


def replicated(leaf):
    return PartitionSpec()


def sharded(leaf):
    """Over the last axis, as with FSDP: no process holds any of these leaves."""
    return PartitionSpec(*[None] * (leaf.ndim - 1), "data")


LAYOUTS = {"replicated": replicated, "sharded": sharded}


def places(mesh, layout, tree):
    """The sharding of every leaf."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, LAYOUTS[layout](leaf)), tree)


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def loaded(mesh, step):
    """A global batch, of which this process loads its own rows."""
    by_data = NamedSharding(mesh, PartitionSpec("data"))
    places = by_data.addressable_devices_indices_map((SIZE,)).values()
    rows = sorted(row for (place,) in places for row in range(SIZE)[place])
    local = images(step, rows)
    return tuple(
        jax.make_array_from_process_local_data(by_data, x, (SIZE, *x.shape[1:])) for x in local
    )


def initial(mesh, layout):
    """The variables, made where they are to live."""
    init = functools.partial(Network().init, jax.random.key(0))
    shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((SIZE, *IMAGE), jnp.float32))
    return jax.jit(init, out_shardings=places(mesh, layout, shapes))(jnp.zeros((SIZE, *IMAGE)))


def optimizer(analysis):
    """All that there is in one: the mask, `keep_norm` by channel, and `monitor_scale` around."""
    adamw = optax.adamw(SCHEDULE, weight_decay=DECAY, mask=analysis.decay_mask())
    kept = bnmask.keep_norm(analysis.select("scale_invariant"), axes=analysis.invariant_axes)
    return bnmask.monitor_scale(optax.chain(adamw, kept), analysis)


def value_and_grad(module, params, stats, x, y):
    """The loss with the new statistics, and the gradient."""

    def loss(params):
        variables = {"params": params, "batch_stats": stats}
        out, new = module.apply(variables, x, mutable=["batch_stats"])
        return jnp.square(out - y).mean(), new["batch_stats"]

    return jax.value_and_grad(loss, has_aux=True)(params)


def by_compiler(mesh):
    """The gradient of the whole batch: the compiler finds out what to exchange."""
    del mesh
    return functools.partial(value_and_grad, Network())


def by_shard_map(mesh):
    """The gradient of each device's rows, averaged; the BatchNorms average over "data" too."""

    def each(params, stats, x, y):
        # Each its own copy: else the gradient of what all share would be summed over the devices.
        params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "data", to="varying"), params)
        return jax.lax.pmean(value_and_grad(Network("data"), params, stats, x, y), "data")

    whole, rows = PartitionSpec(), PartitionSpec("data")
    specs = {"in_specs": (whole, whole, rows, rows), "out_specs": whole}
    return jax.shard_map(each, mesh=mesh, **specs)


WAYS = {"jit": by_compiler, "shard_map": by_shard_map}
RUNS = (("replicated", "jit"), ("sharded", "jit"), ("replicated", "shard_map"))


def trained(mesh, variables, analysis, way):
    """Variables, optimizer state and losses after a few steps."""
    params, stats = variables["params"], variables["batch_stats"]
    tx, gradient = optimizer(analysis), WAYS[way](mesh)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, stats, state, x, y):
        (value, stats), grads = gradient(params, stats, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    losses = []
    for count in range(STEPS):
        params, stats, state, value = step(params, stats, state, *loaded(mesh, count))
        losses.append(value)
    return {"params": params, "stats": stats, "state": state, "losses": losses}


def by_path(tree):
    """The leaves by the names of their places."""
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}


def fetched(mesh, tree):
    """The whole of every leaf, as NumPy arrays."""
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return by_path(jax.tree.map(np.asarray, whole))


def copies(tree):
    """What each device of this process holds of every leaf."""
    return {
        path: [np.asarray(shard.data) for shard in leaf.addressable_shards]
        for path, leaf in by_path(tree).items()
    }


def forward(params, stats, x):
    """The same network as a function."""
    return Network().apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])[0]


def findings(variables, x):
    """All that the library says of the network, as text or bytes by what it is."""
    params, stats = variables["params"], variables["batch_stats"]
    analyses = {
        "linen": bnmask.analyze_linen(Network(), variables, x),
        "program": bnmask.analyze(forward, params, stats, x),
        "structure": bnmask.analyze_structure(params, stats),
    }
    said = {"decay_mask": pickle.dumps(bnmask.decay_mask(params, stats))}
    for name, analysis in analyses.items():
        masks = {"mask": analysis.decay_mask(), "labels": analysis.labels(categories=("norm",))}
        if name != "structure":
            masks["invariant mask"] = analysis.select("scale_invariant")
        for kind, mask in masks.items():
            said[f"{name}: {kind}"] = repr(mask)
            said[f"{name}: {kind} of the params"] = repr(mask(params))
            said[f"{name}: {kind} pickled"] = pickle.dumps(mask)
        for leaf in analysis.leaves:
            said[f"{name}: explain {leaf.path}"] = analysis.explain(leaf.path)
        said |= reports(name, analysis)
    checked = bnmask.verify(analyses["program"], forward, params, stats, x, key=jax.random.key(0))
    said["verify"] = str(checked)
    bare = optax.adamw(1e-3, weight_decay=DECAY)
    for name, tx in {"ours": optimizer(analyses["linen"]), "a bare adamw": bare}.items():
        said |= reports(f"audit of {name}", bnmask.audit(tx, params, analyses["linen"]))
    return said


def reports(name, shown):
    """An analysis or an audit, in every form."""
    return {
        f"{name}: text": shown.to_text(),
        f"{name}: json": shown.to_json(),
        f"{name}: html": shown.to_html(),
    }


def refusals(tree):
    """What JAX says to one who asks for the values of a leaf, by path."""
    said = {}
    for path, leaf in by_path(tree).items():
        try:
            said[path] = str(np.asarray(leaf).shape)
        except RuntimeError as error:
            said[path] = str(error)
    return said


def runs(mesh, variables, analysis):
    """Every way to train, with what the devices of this process hold in the end."""
    made = {}
    for layout, way in RUNS:
        start = jax.jit(lambda tree: tree, out_shardings=places(mesh, layout, variables))(variables)
        outcome = trained(mesh, start, analysis, way)
        made[layout, way] = {"whole": fetched(mesh, outcome), "copies": copies(outcome)}
    return made


def main(place, address, processes, rank):
    """What a process of the job does."""
    jax.config.update("jax_disable_most_optimizations", True)  # half the time is compiling
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.distributed.initialize(
        address, processes, rank, initialization_timeout=60, heartbeat_timeout_seconds=20
    )
    mesh = mesh_of(jax.devices())
    live = initial(mesh, "sharded")
    x, _ = loaded(mesh, 0)
    seen = {
        "processes": jax.process_count(),
        "hash": hash("optax_bnmask"),
        "start": fetched(mesh, live),
        "refusals": refusals({**live, "x": x}),
        "findings": findings(live, x),
        "runs": runs(mesh, live, bnmask.analyze_linen(Network(), live, x)),
    }
    (pathlib.Path(place) / f"{rank}.pickle").write_bytes(pickle.dumps(seen))
    jax.distributed.shutdown()
