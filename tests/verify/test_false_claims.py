"""On networks that no one thought of, true claims are accepted and false ones refused."""

import warnings

import jax
import pytest

from tests.support.program.networks import seeded_network
from tests.support.verify.false_claims import accepts, false_claims


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


ONCE_REFUSED = [
    10_001_985,  # a rectifier leaves nothing of an example, for an L2 norm to divide by
    10_002_691,  # normalisers of what is the same for all examples
    30_002_431,  # the same, over two features and then over the batch: rounding, twice enlarged
    10_003_014,  # a bias of shape (2, 2): which of its axes goes along with the kernel's?
    40_003_282,  # the same, in a branch that is taken at the own parameters alone
]
ONCE_ACCEPTED = [
    30_000_026,  # a pooling by a function of the program's own left all of it in float32
    30_000_028,  # a branch that is taken at the own parameters alone
    40_000_085,  # a shift that must change signs to be seen
]


@pytest.mark.parametrize("seed", [*range(6), *ONCE_REFUSED])
def test_the_analysis_of_a_network_is_accepted(seed):
    assert accepts(seeded_network(seed))


@pytest.mark.parametrize("seed", [*range(3), *ONCE_ACCEPTED])
def test_false_claims_about_a_network_are_refused(seed):
    network = seeded_network(seed)
    claims = list(false_claims(network, seed))
    assert claims
    assert [f"{false.kind}: {false.said}" for false in claims if accepts(network, false)] == []
