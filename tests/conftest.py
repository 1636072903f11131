"""What holds for every test: no silent promotion of dtypes or ranks; warnings are errors.

The host shows itself as eight devices, so that any test may spread arrays over a mesh.
"""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def optax_promotion():
    """Optax raises its moments to the power of an int32 count, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
