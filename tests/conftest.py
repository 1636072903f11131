"""What holds for every test: no silent promotion of dtypes or ranks; warnings are errors.

The host shows itself as eight devices, so that any test may spread arrays over a mesh. XLA compiles
without most of its optimizations: most programs here run once, and compiling is most of the time.
"""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def optax_promotion():
    """What strict promotion of dtypes and of ranks forbids, and Optax does.

    It raises its moments to the power of an int32 count, and multiplies by arrays of one entry.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
