"""What holds for every test: no silent promotion of dtypes or ranks; warnings are errors."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
