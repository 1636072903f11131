"""Every primitive of the installed JAX has a rule, or is pinned on purpose."""

import importlib
import pkgutil
import warnings

import jax
import jax.numpy as jnp
import pytest

import optax_bnmask as bnmask
from optax_bnmask import compat
from optax_bnmask.program.registry import RULES
from optax_bnmask.program.rules import equinox, load
from optax_bnmask.program.tape import LOWERINGS, Op

load()
RULED = {
    key for key in (*RULES, *LOWERINGS) if not isinstance(key, Op)
} - equinox.primitives()  # another test of this process may have brought these in

PINNED = {
    "mutable references: what is read depends on what was written, which is not followed": (
        *("accum_grad_in_ref", "addupdate", "broadcast_to", "create_linear", "empty_ref"),
        *("free_ref", "freeze", "get", "new_ref", "pin", "run_state", "swap", "unpin"),
    ),
    "values whose type is not an array's": (
        *("call_hi_primitive_linearized", "from_edtype", "to_edtype"),
    ),
    "halves of asynchronous collectives: what is in flight has no degree of its own": (
        *("all_gather_done", "all_gather_reduced_start", "all_gather_start", "all_to_all_done"),
        *("all_to_all_start", "ppermute_done", "ppermute_start", "psum_done"),
        *("psum_invariant_start", "reduce_scatter_done", "reduce_scatter_start"),
    ),
    "messages between devices: the other end is not seen": ("precv", "psend"),
    "sums over meshes with explicit reduction states, which no model uses yet": (
        "unreduced_reduce_scatter",
    ),
    "symbolic shapes of exported programs: integers": ("dim_as_value", "shape_assertion"),
    "code that JAX does not see": (
        *("buffer_callback", "call_exported", "custom_partitioning", "ffi_call", "io_callback"),
        *("pure_callback", "tpu_custom_call"),
    ),
    "checks and inspections, which return nothing that scales": ("check", "inspect_sharding"),
    "only within JAX's own transformations, never in a traced program": (
        *("custom_jvp_call_jaxpr", "stage", "unreachable", "zeros_like"),
    ),
    "kernels of cuDNN": (
        "cudnn_fusion",
        *(
            f"dot_product_attention_{kind}{wrapped}"
            for kind in ("bwd", "fwd", "fp8_bwd", "fp8_fwd")
            for wrapped in ("", "_wrapper")
        ),
        *("scaled_matmul", "scaled_matmul_wrapper"),
    ),
}
"""Primitives without a rule, by their own names: what they read is taken to be sensitive."""

PINNED_BEFORE_0_11 = {
    "values whose type is not an array's": (
        *("box_get", "box_set", "log_extend", "log_read", "new_box", "new_log"),
    ),
    "halves of asynchronous collectives: what is in flight has no degree of its own": (
        *("pbroadcast_done", "pbroadcast_start", "psum_start", "unreduced_psum_start"),
        "unreduced_reduce_scatter_start",
    ),
    "shardings that must be equal, which no public function asks for": ("shard_alike",),
}

PINNED_SINCE_0_12 = {
    "sums over meshes with explicit reduction states, which no model uses yet": (
        *("pbroadcast_dynamic", "unreduced_pmax", "unreduced_pmin"),
    ),
    "orders and layouts of programs under construction, not yet public": (
        *("program_order", "relayout", "with_memory_space_constraint"),
    ),
}

_SKIPPED = ("pallas", "mosaic", "test_", "internal_test", "clusters", "thunky", "third_party")
"""Parts of JAX whose primitives only occur inside a kernel or a callback, which is pinned whole."""

_UNLISTED = ("jax._src.cudnn.fused_attention_stablehlo", "jax._src.cudnn.scaled_matmul_stablehlo")
"""Modules in folders that are no packages."""

VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])


def primitives() -> dict[str, compat.Primitive]:
    """Every primitive that a module of JAX holds, by name."""
    folders = importlib.import_module("jax._src").__path__
    listed = pkgutil.walk_packages(folders, "jax._src.")
    names = [info.name for info in listed if not any(part in info.name for part in _SKIPPED)]
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (*names, *_UNLISTED, "jax._src.cudnn.fusion"):
            try:
                module = importlib.import_module(name)
            except ImportError:  # needs a package that JAX can do without
                continue
            for value in vars(module).values():
                if isinstance(value, compat.Primitive):
                    found.setdefault(value.name, value)
    return found


@pytest.fixture(scope="module")
def existing() -> dict[str, compat.Primitive]:
    return primitives()


def pinned() -> set[str]:
    groups = [PINNED]
    if VERSION < (0, 11):
        groups.append(PINNED_BEFORE_0_11)
    if VERSION >= (0, 12):
        groups.append(PINNED_SINCE_0_12)
    return {name for group in groups for names in group.values() for name in names}


def test_every_primitive_is_ruled_or_pinned_on_purpose(existing):
    ruled = {key.name for key in RULED}
    unknown = sorted(existing.keys() - ruled - pinned())
    assert not unknown, f"JAX {jax.__version__} has primitives of which nothing is said: {unknown}"


def test_no_primitive_is_both_ruled_and_pinned():
    assert not {key.name for key in RULED} & pinned()


def test_no_pinned_primitive_is_gone(existing):
    gone = sorted(pinned() - existing.keys())
    assert not gone, f"JAX {jax.__version__} no longer has {gone}"


def test_every_rule_is_of_a_primitive_that_programs_can_hold(existing):
    assert all(existing[key.name] is key for key in RULED)


def test_a_function_that_jax_keeps_whole_is_expanded():
    def network(p, x):
        z = x @ p["w"]
        place = jnp.searchsorted(jnp.arange(6.0), z / jnp.linalg.norm(z)).astype(jnp.float32)
        return z / jnp.linalg.norm(z) + place

    found = bnmask.analyze(network, {"w": jnp.ones((4, 3))}, jnp.ones((2, 4)))
    assert not found.unhandled
    assert found["w"].scale is bnmask.Scale.INVARIANT
