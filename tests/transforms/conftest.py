"""Fixtures of the tests of transformations."""

import jax
import pytest


@pytest.fixture
def optax_promotion():
    """Optax raises its moments to the power of an int32 count, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
