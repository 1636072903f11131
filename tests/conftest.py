"""What holds for every test: no silent promotion of dtypes or ranks; warnings are errors.

The host shows itself as eight devices, so that any test may spread arrays over a mesh.
"""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
