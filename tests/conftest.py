"""What holds for every test: no silent promotion of dtypes or ranks; warnings are errors.

The host shows itself as eight devices, so that any test may spread arrays over a mesh. XLA compiles
without most of its optimizations: most programs here run once, and compiling is most of the time.
"""

import os
from pathlib import Path

import jax
import pytest

if jax.__version_info__ < (0, 11):  # later ones do not know the first of these and would abort
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
        f"--xla_cpu_parallel_codegen_split_count=1"
    )  # compiles four times as fast
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


LONG = (
    "audit/test_audit.py", "audit/test_causes.py", "audit/test_every_transformation.py",
    "audit/test_forgotten_leaves.py", "audit/test_published_rules.py", "program/test_dead.py",
    "program/test_dead_in_frameworks.py", "program/test_published.py",
    "program/test_rules.py", "program/test_soundness.py", "report/test_browser.py", "sharding",
    "test_benchmarks.py", "test_cli_terminal.py", "test_conformance_optax.py", "test_demo.py",
    "test_policies.py", "transforms/test_conformance.py", "transforms/test_equilibrium.py",
    "transforms/test_every_base.py", "transforms/test_gain_rate.py", "transforms/test_hyperball.py",
    "transforms/test_keep_norm.py",
    "transforms/test_monitor_scale.py", "verify/test_verify_kinds.py",
)  # fmt: skip
"""Modules, and a folder, of half a minute or more: `.ci/run --quick` leaves them out."""
ONCE = (
    "audit/test_audit.py", "audit/test_causes.py", "audit/test_every_transformation.py",
    "audit/test_forgotten_leaves.py", "audit/test_published_rules.py", "program/test_published.py",
    "program/test_soundness.py",
    "report/test_browser.py", "sharding/test_sharded_training.py", "test_benchmarks.py",
    "test_cli_terminal.py", "test_conformance_optax.py", "test_demo.py", "test_policies.py",
    "transforms/test_conformance.py", "transforms/test_equilibrium.py",
    "transforms/test_every_base.py", "transforms/test_hyperball.py",
    "verify/test_verify_kinds.py",
)  # fmt: skip
"""Of these, those that other modules stand for on a newer Python and JAX in the gate: they train,
draw, or run every transformation of Optax, which is the same one there. At night all run there."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the modules of `LONG` and `ONCE`."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            place = item.path.relative_to(here).as_posix()
            for mark, modules in (("long", LONG), ("once", ONCE)):
                if place.startswith(modules):
                    item.add_marker(mark)


@pytest.fixture
def optax_promotion():
    """What strict promotion of dtypes and of ranks forbids, and Optax does.

    It raises its moments to the power of an int32 count, and multiplies by arrays of one entry.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def double_precision(optax_promotion):
    """Numbers in which a claim can be told from rounding, under the promotion that users have."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def modules_of_a_user(monkeypatch):
    """`inspected` and `optimizers` are imported as modules in a user's working directory are."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "support")
