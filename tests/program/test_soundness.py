"""No claim of invariance may fail numerically, on networks that no one thought of."""

import warnings

import jax
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.program.networks import Network, networks, seeded_network
from tests.support.program.soundness import examine


def _examined(network: Network) -> None:
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        assert examine(network).wrong == ()


@pytest.mark.once
@pytest.mark.parametrize("first", range(0, 300, 25))
def test_no_claim_about_a_network_by_seed_fails(first: int) -> None:
    for seed in range(first, first + 25):
        _examined(seeded_network(seed))


@given(networks())
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_claim_about_a_network_that_can_shrink_fails(network: Network) -> None:
    _examined(network)


def test_a_false_claim_is_noticed() -> None:
    import dataclasses

    import jax.numpy as jnp
    import numpy as np

    import optax_bnmask as bnmask
    from tests.support.program.soundness import analysis_of

    network = Network(
        lambda p, x: jnp.tanh(x @ p["w"]), {"w": np.ones((3, 2))}, np.ones((4, 3)), {}, ("tanh",)
    )
    honest = analysis_of(network)
    assert examine(network, honest).wrong == ()
    false = dataclasses.replace(honest, symmetries=({"w": 1},))
    assert any("symmetry 0" in line for line in examine(network, false).wrong)
    del bnmask
