"""The oracle: one table with an example for every rule, whose claim is checked in numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.lax import linalg  # noqa: TID251 - some primitives are bound nowhere else
from jax._src.lax.windowed_reductions import _select_and_scatter  # noqa: TID251 - as above
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry_2x32  # noqa: TID251 - the subject
from jax.sharding import PartitionSpec as P

from optax_bnmask import compat
from optax_bnmask.program.registry import RULES
from optax_bnmask.program.rules import equinox, load
from optax_bnmask.program.tape import LOWERINGS, Op
from tests.support.program.entrywise import check, read

load()


pytestmark = pytest.mark.usefixtures("double_precision")


RNG = np.random.default_rng(0)


def a(*shape):
    """Numbers of both signs."""
    return RNG.normal(size=shape)


def pos(*shape):
    """Numbers in (0, 1)."""
    return RNG.uniform(0.1, 0.9, size=shape)


def spd(n):
    """A symmetric positive definite matrix."""
    x = a(n, n)
    return x @ x.T + n * np.eye(n)


def bind(name, **params):
    """The primitive of that attribute name, as a function of its operands."""
    key = compat.primitive(name)
    return None if key is None else partial(key.bind, **params)


def on_axis(f):
    """A function of a per-device value, on a mesh of two devices called ``i``."""
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = P("i")
    return jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def checked_on_axis(f):
    """The same where what varies from device to device is followed."""
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=P("i"), out_specs=P("i"))


def on_two_axes(f, into, out=None):
    """A function of a per-device value, on a mesh of two by two devices, ``i`` and ``j``."""
    mesh = jax.make_mesh((2, 2), ("i", "j"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return jax.shard_map(f, mesh=mesh, in_specs=into, out_specs=out or into, check_vma=False)


@jax.custom_jvp
def with_jvp(x):
    return 2.0 * x


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))


@jax.custom_vjp
def with_vjp(x):
    return 2.0 * x


with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, g: (g,))


@jax.custom_batching.custom_vmap
def with_vmap(x):
    return 2.0 * x


@with_vmap.def_vmap
def with_vmap_rule(size, is_batched, x):
    return with_vmap(x), is_batched[0]


def windows(f):
    return partial(f, window_dimensions=(2, 1), window_strides=(1, 1), padding="VALID")


def beside(fn):
    """A value that does not scale, beside one that does."""

    def both(x):
        y = fn()
        return x if y is None else (x, y)

    return both


def through_a_loop(x, y):
    """A packed factorisation that is carried out of one loop and into another."""
    packed = lax.map(lambda x: jax.scipy.linalg.lu_factor(x)[0], x)
    return lax.map(lambda p: lax.linalg.triangular_solve(p, y[None], unit_diagonal=True), packed)


def constrained(x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    return lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, P("i")))


class Example(NamedTuple):
    """A function whose program holds the primitive, and how many exponents stay free."""

    fn: Callable[..., Any]
    operands: tuple[Any, ...]
    free: int


def ex(fn, *operands, free):
    return Example(fn, operands, free)


CONV = partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)
POOL = {"window_dimensions": (1, 2), "window_strides": (1, 1), "padding": ((0, 0), (0, 0))}
BITS = np.arange(4, dtype=np.int32)
KEY = np.zeros(2, np.uint32)
ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
PLACES = np.array([[2], [0]], np.int32)

EXAMPLES: dict[str, list[Example]] = {
    # Entry by entry.
    "mul_p": [
        ex(lambda x, y: x * y, a(3, 2), a(3, 2), free=8),
        ex(lambda x: x * x, a(3), free=3),
        ex(lambda x: x * 1e307, a(3), free=3),
        ex(lambda x: x * 0.0, a(3), free=3),
    ],
    "div_p": [ex(lambda x, y: x / y, a(3, 2), a(3, 2), free=8), ex(lambda x: 1 / x, a(3), free=3)],
    "square_p": [ex(jnp.square, a(3), free=3)],
    "sqrt_p": [ex(jnp.sqrt, pos(3), free=3)],
    "rsqrt_p": [ex(lax.rsqrt, pos(3), free=3)],
    "cbrt_p": [ex(jnp.cbrt, a(3), free=3)],
    "integer_pow_p": [ex(lambda x: x**3, a(3), free=3), ex(lambda x: x**-2, a(3), free=3)],
    "pow_p": [
        ex(lambda x: x**0.3, pos(3), free=3),
        ex(lambda x: lax.pow(x * 0.0, 0.0) + x, a(3), free=0),
        ex(lax.pow, pos(3), pos(3), free=0),
    ],
    "neg_p": [ex(lambda x: -x, a(3), free=3)],
    "real_p": [ex(lambda x: jnp.real(x * (1 + 1j)), a(3), free=3)],
    "imag_p": [ex(lambda x: jnp.imag(x * (1 + 1j)), a(3), free=3)],
    "conj_p": [ex(lambda x: jnp.conj(x * (1 + 1j)), a(3), free=3)],
    "reduce_precision_p": [ex(lambda x: lax.reduce_precision(x, 11, 45), a(3), free=3)],
    "abs_p": [ex(jnp.abs, a(3), free=3), ex(lambda x, y: jnp.abs(x + 1j * y), a(3), a(3), free=3)],
    "copy_p": [ex(lax.copy_p.bind, a(3), free=3)],
    "name_p": [ex(lambda x: checkpoint_name(x, "here"), a(3), free=3)],
    "tie_p": [ex(bind("tie_p"), a(3), a(3), free=6)],
    "add_p": [
        ex(lambda x, y: x + y, a(3, 2), a(3, 2), free=4),
        ex(lambda x: x + 1.0, a(3), free=0),
        ex(lambda x: x + 0.0, a(3), free=3),
        ex(lambda x: x + np.array([1j, 2j]), a(2), free=0),
        ex(lambda x: x + jnp.full(3, 0.5).astype(bool), a(3), free=0),
    ],
    "sub_p": [ex(lambda x, y: x - y, a(3, 2), a(2), free=2)],
    "add_any_p": [ex(bind("add_any_p"), a(3), a(3), free=3)],
    "max_p": [ex(lambda x: jnp.maximum(x, 0), a(3), free=3), ex(jnp.maximum, a(3), a(3), free=3)],
    "min_p": [
        ex(lambda x: jnp.minimum(x, np.inf), a(3), free=3),
        ex(jnp.minimum, a(3), a(3), free=3),
    ],
    "clamp_p": [
        ex(lambda x: lax.clamp(0.0, x, np.inf), a(3), free=3),
        ex(lambda x: lax.clamp(0.0, x, 6.0), a(3), free=0),
        ex(lax.clamp, pos(3) - 1, a(3), pos(3), free=3),
        ex(lambda x, low: lax.clamp(low, x, np.inf), a(3), np.float64(0.1), free=1),
    ],
    "rem_p": [ex(lax.rem, a(3), pos(3), free=3)],
    "complex_p": [ex(lax.complex, a(3), a(3), free=3)],
    "eq_p": [ex(lambda x, y: x == y, a(3), a(3), free=3)],
    "ne_p": [ex(lambda x, y: x != y, a(3), a(3), free=3)],
    "lt_p": [ex(lambda x, y: x < y, a(3), a(3), free=3)],
    "le_p": [ex(lambda x, y: x <= y, a(3), a(3), free=3)],
    "gt_p": [ex(lambda x, y: x > y, a(3), a(3), free=3), ex(lambda x: x > 0, a(3), free=3)],
    "ge_p": [ex(lambda x, y: x >= y, a(3), a(3), free=3), ex(lambda x: x >= 1, a(3), free=0)],
    "eq_to_p": [ex(bind("eq_to_p"), a(3), a(3), free=3)],
    "lt_to_p": [ex(bind("lt_to_p"), a(3), a(3), free=3)],
    "le_to_p": [ex(bind("le_to_p"), a(3), a(3), free=3)],
    "not_p": [ex(lambda x: ~(x > 0), a(3), free=3)],
    "atan2_p": [ex(jnp.arctan2, a(3), a(3), free=3)],
    "sign_p": [ex(jnp.sign, a(3), free=3)],
    "is_finite_p": [ex(jnp.isfinite, a(3), free=3)],
    "select_n_p": [
        ex(lambda x, y: jnp.where(x > y, x, y), a(3), a(3), free=3),
        ex(lambda x: jnp.where(x != 0, x, 1.0), a(3), free=3),
        ex(lambda x: jnp.where(jnp.zeros(3) != 0, x, 1.0), a(3), free=0),
        ex(lambda x: jnp.where(jnp.maximum(x, 0) > 0, x, 1.0), a(3), free=0),
        ex(
            lambda x, y, z: lax.select_n(np.array([0, 1, 2], np.int32), x, y, z),
            a(3),
            a(3),
            a(3),
            free=3,
        ),
        ex(lambda x: jnp.where(BITS > 1, x, jnp.finfo(x.dtype).min).max(), a(4), free=1),
    ],
    "convert_element_type_p": [
        ex(lambda x: x.astype(np.float32), a(3), free=3),
        ex(lambda x: x.astype(np.int32), a(3), free=0),
        ex(lambda x: x.astype(bool), a(3), free=3),
        ex(lambda x: x.astype(complex), a(3), free=3),
    ],
    "exp_p": [ex(jnp.exp, a(3), free=0)],
    "exp2_p": [ex(lax.exp2, a(3), free=0)],
    "expm1_p": [ex(jnp.expm1, a(3), free=0)],
    "log_p": [ex(jnp.log, pos(3), free=0)],
    "log1p_p": [ex(jnp.log1p, pos(3), free=0)],
    "log2_p": [ex(bind("log2_p", accuracy=None), pos(3), free=0)],
    "logistic_p": [ex(jax.nn.sigmoid, a(3), free=0)],
    "sin_p": [ex(jnp.sin, a(3), free=0)],
    "cos_p": [ex(jnp.cos, a(3), free=0)],
    "tan_p": [ex(jnp.tan, a(3), free=0)],
    "asin_p": [ex(lax.asin, pos(3), free=0)],
    "acos_p": [ex(lax.acos, pos(3), free=0)],
    "atan_p": [ex(lax.atan, a(3), free=0)],
    "sinh_p": [ex(jnp.sinh, a(3), free=0)],
    "cosh_p": [ex(jnp.cosh, a(3), free=0)],
    "tanh_p": [ex(jnp.tanh, a(3), free=0)],
    "asinh_p": [ex(lax.asinh, a(3), free=0)],
    "acosh_p": [ex(lax.acosh, pos(3) + 1, free=0)],
    "atanh_p": [ex(lax.atanh, pos(3), free=0)],
    "erf_p": [ex(lax.erf, a(3), free=0)],
    "erfc_p": [ex(lax.erfc, a(3), free=0)],
    "erf_inv_p": [ex(lax.erf_inv, pos(3), free=0)],
    "lgamma_p": [ex(lax.lgamma, pos(3), free=0)],
    "digamma_p": [ex(lax.digamma, pos(3), free=0)],
    "bessel_i0e_p": [ex(lax.bessel_i0e, pos(3), free=0)],
    "bessel_i1e_p": [ex(lax.bessel_i1e, pos(3), free=0)],
    "floor_p": [ex(jnp.floor, a(3), free=0)],
    "ceil_p": [ex(jnp.ceil, a(3), free=0)],
    "round_p": [ex(jnp.round, a(3), free=0)],
    "one_minus_square_p": [ex(bind("one_minus_square_p"), a(3), free=0)],
    "polynomial_p": [ex(lambda x: lax.polynomial(x, (1.0, 2.0)), a(3), free=0)],
    "igamma_p": [ex(lax.igamma, pos(3), pos(3), free=0)],
    "igammac_p": [ex(lax.igammac, pos(3), pos(3), free=0)],
    "igamma_grad_a_p": [ex(lax.igamma_grad_a, pos(3), pos(3), free=0)],
    "polygamma_p": [ex(lax.polygamma, np.ones(3), pos(3), free=0)],
    "zeta_p": [ex(lax.zeta, pos(3) + 2, pos(3), free=0)],
    "nextafter_p": [ex(lax.nextafter, a(3), a(3), free=0)],
    "regularized_incomplete_beta_p": [ex(lax.betainc, pos(3), pos(3), pos(3), free=0)],
    "random_gamma_p": [ex(lambda x: jax.random.gamma(jax.random.key(0), x), pos(3), free=0)],
    "bitcast_convert_type_p": [ex(lambda x: lax.bitcast_convert_type(x, np.int64), a(3), free=0)],
    # Integers, predicates, random numbers: whatever else a program reads, it scales as if alone.
    **{
        name: [ex(beside(fn), a(4), free=4)]
        for name, fn in {
            "and_p": lambda: BITS & jnp.asarray(BITS),
            "or_p": lambda: BITS | jnp.asarray(BITS),
            "xor_p": lambda: BITS ^ jnp.asarray(BITS),
            "clz_p": lambda: lax.clz(jnp.asarray(BITS)),
            "population_count_p": lambda: lax.population_count(jnp.asarray(BITS)),
            "shift_left_p": lambda: lax.shift_left(jnp.asarray(BITS), BITS),
            "shift_right_arithmetic_p": lambda: lax.shift_right_arithmetic(jnp.asarray(BITS), BITS),
            "shift_right_logical_p": lambda: lax.shift_right_logical(jnp.asarray(BITS), BITS),
            "reduce_and_p": lambda: jnp.all(jnp.asarray(BITS) > 1),
            "reduce_or_p": lambda: jnp.any(jnp.asarray(BITS) > 1),
            "reduce_xor_p": lambda: lax.reduce(
                jnp.asarray(BITS), np.int32(0), lax.bitwise_xor, (0,)
            ),
            "iota_p": lambda: lax.iota(np.int32, 4),
            "random_bits_p": lambda: jax.random.bits(jax.random.key(0), (4,)),
            "random_clone_p": lambda: jax.random.key_data(jax.random.clone(jax.random.key(0))),
            "random_fold_in_p": lambda: jax.random.key_data(
                jax.random.fold_in(jax.random.key(0), 1)
            ),
            "random_seed_p": lambda: jax.random.key_data(jax.random.key(0)),
            "random_split_p": lambda: jax.random.key_data(jax.random.split(jax.random.key(0))),
            "random_unwrap_p": lambda: jax.random.key_data(jax.random.key(0)),
            "random_wrap_p": lambda: jax.random.key_data(jax.random.wrap_key_data(KEY)),
            "rng_bit_generator_p": lambda: lax.rng_bit_generator(np.zeros(4, np.uint32), (4,))[1],
            "rng_uniform_p": lambda: lax.rng_uniform(0, 5, (4,)) * 0,
            "threefry2x32_p": lambda: threefry_2x32(KEY, np.arange(4, dtype=np.uint32)),
            "platform_index_p": lambda: lax.platform_dependent(cpu=lambda: 1, default=lambda: 1),
            "lu_pivots_to_permutation_p": lambda: linalg.lu_pivots_to_permutation(BITS, 5),
            "debug_callback_p": lambda: jax.debug.callback(lambda: None),
            "debug_print_p": lambda: jax.debug.print("nothing", ordered=False),
        }.items()
    },
    # Views, joins, reductions.
    "reshape_p": [
        ex(lambda x: x.reshape(4, 3), a(2, 6), free=7),
        ex(lambda x: x.reshape(2, 2, 3), a(4, 3), free=6),
    ],
    "transpose_p": [ex(lambda x: x.transpose(2, 0, 1), a(2, 3, 4), free=7)],
    "broadcast_in_dim_p": [ex(lambda x: jnp.broadcast_to(x, (4, 3)), a(3), free=3)],
    "squeeze_p": [ex(lambda x: jnp.squeeze(x, 1), a(3, 1, 2), free=4)],
    "rev_p": [ex(lambda x: jnp.flip(x, 0), a(3, 2), free=2)],
    "tile_p": [ex(lambda x: jnp.tile(x, (2, 1)), a(3, 2), free=4)],
    "slice_p": [
        ex(lambda x: (x[1:3], x[:2]), a(4, 2), free=5),
        ex(lambda x: x[::2], a(4, 2), free=2),
    ],
    "split_p": [ex(lambda x: tuple(jnp.split(x, 2)), a(4, 2), free=5)],
    "unstack_p": [ex(lambda x: tuple(jnp.unstack(x)), a(3, 2), free=4)],
    "concatenate_p": [
        ex(lambda x, y: jnp.concatenate([x, y]), a(2, 3), a(3, 3), free=9),
        ex(lambda x: jnp.concatenate([x, jnp.zeros(2)]), a(3), free=3),
    ],
    "stack_p": [ex(lambda x, y: jnp.stack([x, y], 1), a(3), a(3), free=6)],
    "pad_p": [
        ex(lambda x: jnp.pad(x, ((1, 1), (0, 0))), a(3, 2), free=4),
        ex(lambda x: jnp.pad(x, 1, constant_values=2.0), a(3), free=3),
        ex(lambda x: lax.pad(x, 0.0, ((-1, 1, 1),)), a(4), free=4),
        ex(lambda x, v: lax.pad(x, v, ((1, 1, 0),)), a(4), np.float64(2.0), free=5),
    ],
    "reduce_sum_p": [ex(lambda x: x.sum(1), a(3, 2), free=3)],
    "reduce_max_p": [ex(lambda x: x.max(1), a(3, 2), free=3)],
    "reduce_min_p": [ex(lambda x: x.min(0), a(3, 2), free=2)],
    "reduce_prod_p": [
        ex(lambda x: x.prod(1), a(3, 2), free=3),
        ex(lambda x: x[:0].prod() + x, a(3), free=0),
    ],
    "argmax_p": [ex(lambda x: x.argmax(1), a(3, 2), free=3)],
    "argmin_p": [ex(lambda x: x.argmin(1), a(3, 2), free=3)],
    "cumsum_p": [ex(lambda x: lax.cumsum(x, 1, reverse=True), a(3, 2), free=3)],
    "cummax_p": [ex(lambda x: lax.cummax(x, 1), a(3, 2), free=3)],
    "cummin_p": [ex(lambda x: lax.cummin(x, 1), a(3, 2), free=3)],
    "cumprod_p": [ex(lambda x: lax.cumprod(x, 1), a(3, 2), free=0)],
    "cumlogsumexp_p": [ex(lambda x: lax.cumlogsumexp(x, 1), a(3, 2), free=0)],
    "reduce_p": [ex(lambda x: lax.reduce(x, 0.0, lambda u, v: u + v + u * v, (0,)), a(3), free=0)],
    "reduce_window_p": [
        ex(lambda x: lax.reduce_window(x, 0.0, lambda u, v: u + v + u * v, **POOL), a(3, 4), free=0)
    ],
    "reduce_window_sum_p": [
        ex(lambda x: lax.reduce_window(x, 0.0, lax.add, **POOL), a(3, 4), free=3),
        ex(
            lambda x: lax.reduce_window(x, 0.0, lax.add, **POOL, base_dilation=(2, 1)),
            a(3, 4),
            free=1,
        ),
    ],
    "reduce_window_max_p": [
        ex(lambda x: lax.reduce_window(x, -np.inf, lax.max, **POOL), a(3, 4), free=3)
    ],
    "reduce_window_min_p": [
        ex(lambda x: lax.reduce_window(x, np.inf, lax.min, **POOL), a(3, 4), free=3)
    ],
    "select_and_scatter_p": [
        ex(
            lambda x, source: _select_and_scatter(
                x, lax.ge, *POOL.values(), source, np.float64(0), lax.mul
            ),
            a(3, 4),
            a(3, 3),
            free=0,
        )
    ],
    "select_and_scatter_add_p": [
        ex(bind("select_and_scatter_add_p", select_prim=lax.ge_p, **POOL), a(3, 3), a(3, 4), free=6)
    ],
    "select_and_gather_add_p": [
        ex(
            bind(
                "select_and_gather_add_p",
                select_prim=lax.ge_p,
                base_dilation=(1, 1),
                window_dilation=(1, 1),
                **POOL,
            ),
            a(3, 4).astype(np.float32),
            a(3, 4).astype(np.float32),
            free=6,
        )
    ],
    "sort_p": [
        ex(lambda x: jnp.sort(x, 1), a(3, 2), free=3),
        ex(lambda x, y: lax.sort((x, y), num_keys=1), a(4), a(4), free=2),
        ex(lambda x, y: lax.sort((x, y), num_keys=2, dimension=0), a(4, 2), a(4, 2), free=4),
    ],
    "top_k_p": [ex(lambda x: lax.top_k(x, 2), a(3, 4), free=3)],
    "approx_top_k_p": [ex(lambda x: lax.approx_max_k(x, 2), a(3, 4).astype(np.float32), free=3)],
    # Contractions and factorisations.
    "dot_general_p": [
        ex(jnp.matmul, a(3, 2), a(2, 4), free=7),
        ex(lambda x, y: jnp.einsum("bij,kbj->bik", x, y), a(2, 3, 4), a(5, 2, 4), free=10),
    ],
    "ragged_dot_general_p": [
        ex(
            lambda x, y: lax.ragged_dot(x, y, np.array([2, 3], np.int32)),
            a(5, 2),
            a(2, 2, 3),
            free=8,
        )
    ],
    "conv_general_dilated_p": [
        ex(CONV, a(2, 4, 4, 3), a(3, 3, 3, 5), free=7),
        ex(partial(CONV, feature_group_count=2), a(2, 4, 4, 4), a(3, 3, 2, 6), free=9),
        ex(partial(CONV, feature_group_count=4), a(2, 4, 4, 4), a(3, 3, 1, 8), free=13),
        ex(partial(CONV, batch_group_count=2), a(2, 4, 4, 3), a(3, 3, 3, 4), free=2),
    ],
    "fft_p": [
        ex(jnp.fft.fft, a(3, 4), free=3),
        ex(jnp.fft.rfft2, a(2, 3, 4), free=2),
        ex(lambda x: jnp.fft.irfft(x.astype(complex)), a(3, 4), free=3),
    ],
    "cholesky_p": [ex(jnp.linalg.cholesky, np.stack([spd(3), spd(3)]), free=2)],
    "qr_p": [ex(jnp.linalg.qr, a(2, 4, 3), free=2)],
    "eigh_p": [
        ex(lambda x: jnp.linalg.eigh(x, symmetrize_input=False), np.stack([spd(3), spd(3)]), free=2)
    ],
    "eig_p": [ex(jnp.linalg.eig, spd(3), free=1)],
    "svd_p": [ex(partial(jnp.linalg.svd, full_matrices=False), a(2, 4, 3), free=2)],
    "schur_p": [ex(linalg.schur, spd(3), free=1)],
    "lu_p": [
        ex(jnp.linalg.solve, spd(3), a(3), free=2),
        ex(jax.scipy.linalg.lu, spd(3), free=0),
        ex(jnp.linalg.slogdet, spd(3), free=0),
        ex(through_a_loop, np.stack([spd(3), spd(3)]), a(3), free=1),
    ],
    "triangular_solve_p": [
        ex(lambda x, y: jax.scipy.linalg.solve_triangular(x, y, lower=True), spd(3), a(3), free=2),
        ex(
            lambda x, y: lax.linalg.triangular_solve(x, y, unit_diagonal=True),
            spd(3),
            a(2, 3),
            free=2,
        ),
    ],
    "tridiagonal_solve_p": [ex(linalg.tridiagonal_solve, a(4), a(4) + 4, a(4), a(4, 2), free=2)],
    "householder_product_p": [ex(linalg.householder_product, a(4, 3), a(3), free=0)],
    "hessenberg_p": [ex(linalg.hessenberg, spd(3), free=0)],
    "tridiagonal_p": [ex(linalg.tridiagonal, spd(3), free=0)],
    "geqrf_p": [ex(linalg.geqrf, a(4, 3), free=0)],
    "geqp3_p": [ex(lambda x: linalg.geqp3(x, np.zeros(3, np.int32)), a(4, 3), free=0)],
    "ormqr_p": [ex(linalg.ormqr, a(4, 3), a(3), a(4, 2), free=0)],
    "cholesky_update_p": [ex(linalg.cholesky_update, np.linalg.cholesky(spd(3)).T, a(3), free=0)],
    "symmetric_product_p": [ex(linalg.symmetric_product, a(3, 2), spd(3), free=0)],
    # Places that are computed.
    "gather_p": [
        ex(lambda x: x[np.array([2, 0, 1, 2])], a(4, 3), free=3),
        ex(lambda x: jnp.take(x, np.array([0, 9]), mode="fill", fill_value=7.0), a(4), free=0),
        ex(lambda x: jnp.take(x, np.array([0, 9]), mode="fill"), a(4), free=1),
        ex(lambda x, k: jnp.take_along_axis(x, jnp.argsort(k, 1), 1), a(3, 4), a(3, 4), free=6),
    ],
    "dynamic_slice_p": [
        ex(lambda x, i: lax.dynamic_slice_in_dim(x, i, 2), a(4, 3), np.int32(1), free=3),
        ex(lambda x: lax.dynamic_slice_in_dim(x, 1, 2), a(4, 3), free=6),
    ],
    "dynamic_update_slice_p": [
        ex(
            lambda x, y, i: lax.dynamic_update_slice_in_dim(x, y, i, 0),
            a(4, 3),
            a(2, 3),
            np.int32(1),
            free=3,
        )
    ],
    "scatter_p": [
        ex(lambda x, y: x.at[np.array([0, 2])].set(y), a(4, 3), a(2, 3), free=3),
        ex(lambda x: x.at[np.array([0, 2])].apply(jnp.tanh), a(4), free=0),
    ],
    "scatter_add_p": [ex(lambda x, y: x.at[np.array([0, 2])].add(y), a(4, 3), a(2, 3), free=3)],
    "scatter_sub_p": [
        ex(lambda x, y: x.at[np.array([0, 2])].subtract(y), a(4, 3), a(2, 3), free=3)
    ],
    "scatter_max_p": [ex(lambda x, y: x.at[np.array([0, 2])].max(y), a(4, 3), a(2, 3), free=3)],
    "scatter_min_p": [ex(lambda x, y: x.at[np.array([0, 2])].min(y), a(4, 3), a(2, 3), free=3)],
    "scatter_mul_p": [
        ex(lambda x, y: x.at[np.array([0, 2])].multiply(y), a(4, 3), a(2, 3), free=6)
    ],
    # Programs within programs.
    "jit_p": [ex(jax.jit(lambda x: x * 2), a(3), free=3)],
    "remat_p": [ex(jax.checkpoint(lambda x: x * 2), a(3), free=3)],
    "custom_jvp_call_p": [ex(with_jvp, a(3), free=3)],
    "custom_vjp_call_p": [ex(with_vjp, a(3), free=3)],
    "custom_vmap_p": [ex(with_vmap, a(3), free=3)],
    "composite_p": [ex(lax.composite(lambda x: x * 2, "my.double"), a(3), free=3)],
    "linear_call_p": [
        ex(
            lambda x, y: jax.custom_derivatives.linear_call(jnp.multiply, jnp.multiply, x, y),
            a(3),
            a(3),
            free=6,
        )
    ],
    "linear_solve_p": [
        ex(
            lambda x, b: lax.custom_linear_solve(lambda v: x * v, b, lambda _, b: b / x),
            a(3),
            a(3),
            free=6,
        )
    ],
    "cond_p": [
        ex(
            lambda x, y: lax.cond(x[0] > 0, lambda x, y: x, lambda x, y: 2 * y, x, y),
            a(3),
            a(3),
            free=3,
        ),
        ex(
            lambda x: lax.switch(jnp.argmax(x), [lambda x: x, lambda x: 2 * x, jnp.abs], x),
            a(3),
            free=1,
        ),
    ],
    "while_p": [
        ex(
            lambda x, w: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * w), (0, x)),
            a(3),
            a(3),
            free=3,
        ),
        ex(
            lambda x, w: lax.while_loop(
                lambda s: s[1].sum() < 9, lambda s: (s[0], s[1] + 1), (x, w)
            ),
            a(3),
            a(3),
            free=3,
        ),
    ],
    "scan_p": [
        ex(lambda x, w: lax.scan(lambda h, w: (h, h * w), x, w), a(4), a(3, 4), free=10),
        ex(lambda x, w: lax.scan(lambda h, w: (h @ w, h), x, w), a(2, 4), a(3, 4, 4), free=2),
        ex(
            lambda x: lax.scan(lambda h, x: lax.scan(lambda h, x: (h, 2 * x), h, x), 0.0, x),
            a(2, 3, 4),
            free=7,
        ),
        ex(lambda x, w: lax.fori_loop(0, 3, lambda i, h: h + w[i] * x, x), a(4), a(3), free=4),
        ex(
            lambda x: lax.scan(lambda m, x: (jnp.maximum(m, x), 0), jnp.finfo(x.dtype).min, x)[0],
            a(4),
            free=1,
        ),
        ex(lambda x, w: lax.scan(lambda h, _: (h * w, 0), x, None, length=0), a(3), a(3), free=3),
    ],
    "shard_map_p": [
        ex(on_axis(lambda x: 2 * x), a(4, 2), free=5),
        ex(on_axis(lambda x: x.reshape(-1)), a(4, 3), free=6),
        ex(on_axis(lambda x: x.T.reshape(2, 3).sum(0)), a(4, 3), free=2),
        ex(on_axis(lambda x: jnp.concatenate([x, x[::-1]], 1)[:, 1:3]), a(4, 3), free=4),
        ex(on_axis(lambda x: x / jnp.abs(x).sum(0, keepdims=True)), a(8, 3), free=4),
        ex(on_axis(lambda x: lax.scan(lambda h, x: (h, 2 * x), 0.0, x)[1]), a(4, 3), free=6),
        ex(on_two_axes(jnp.square, P(("i", "j"))), a(8, 3), free=10),
        ex(on_two_axes(lambda x: lax.psum(x, "j"), P(("i", "j")), P("i")), a(8, 3), free=6),
        ex(on_two_axes(lambda x: lax.psum(x, "i"), P(("i", "j")), P("j")), a(8, 3), free=6),
        ex(on_two_axes(lambda x: x.sum(1), P("j", "i"), P(("j", "i"))), a(4, 6), free=5),
    ],
    # Many devices.
    "psum_p": [ex(on_axis(lambda x: lax.psum(x, "i")), a(4, 2), free=3)],
    "pmax_p": [ex(on_axis(lambda x: lax.pmax(x, "i")), a(4, 2), free=3)],
    "pmin_p": [ex(on_axis(lambda x: lax.pmin(x, "i")), a(4, 2), free=3)],
    "ppermute_p": [ex(on_axis(lambda x: lax.ppermute(x, "i", [(0, 1), (1, 0)])), a(4, 2), free=3)],
    "all_gather_p": [
        ex(on_axis(lambda x: lax.all_gather(x, "i", axis=1)[:, 0]), a(4, 2), free=5),
        ex(on_axis(lambda x: lax.all_gather(x, "i", tiled=True)), a(4, 2), free=5),
        ex(on_axis(lambda x: lax.all_gather(x, "i", axis=1, tiled=True)), a(4, 3), free=6),
        ex(on_two_axes(lambda x: lax.all_gather(x, "i", axis=1), P(("i", "j"))), a(8, 3), free=10),
        ex(
            on_two_axes(lambda x: lax.all_gather(x, ("i", "j"), tiled=True), P(("i", "j"))),
            a(8, 3),
            free=10,
        ),
        ex(
            on_axis(
                lambda x: lax.all_gather(x, "i", axis_index_groups=[[0], [1]], tiled=True),
            ),
            a(4, 2),
            free=2,
        ),
    ],
    "all_to_all_p": [
        ex(on_axis(lambda x: lax.all_to_all(x, "i", 1, 0, tiled=True)), a(4, 2), free=1)
    ],
    "reduce_scatter_p": [
        ex(on_axis(lambda x: lax.psum_scatter(x, "i", tiled=True)), a(4, 2), free=2)
    ],
    "axis_index_p": [ex(on_axis(lambda x: x * (1 + lax.axis_index("i"))), a(4, 2), free=5)],
    "psum_invariant_p": [ex(checked_on_axis(lambda x: x + lax.psum(x, "i")), a(4, 2), free=3)],
    "pvary_p": [
        ex(
            checked_on_axis(lambda x: x * lax.pcast(jnp.ones(2), ("i",), to="varying")),
            a(4, 2),
            free=5,
        ),
        ex(checked_on_axis(lambda x: jnp.sqrt(jnp.square(x) + 1e-12)), a(4, 2), free=5),
    ],
    "optimization_barrier_p": [ex(lax.optimization_barrier, a(3), free=3)],
    "device_put_p": [ex(jax.device_put, a(3), free=3)],
    "sharding_constraint_p": [ex(constrained, a(3), free=3)],
    "pure_callback_p": [
        ex(
            lambda x: jax.pure_callback(np.tanh, jax.ShapeDtypeStruct((3,), np.float64), x),
            a(3),
            free=0,
        )
    ],
    "io_callback_p": [
        ex(
            lambda x: jax.experimental.io_callback(
                np.tanh, jax.ShapeDtypeStruct((3,), np.float64), x
            ),
            a(3),
            free=0,
        )
    ],
}


UNTRACED = {
    "only within JAX's own transformations and lowerings": (
        *("call_p", "closed_call_p", "custom_lin_p", "remat_opt_p", "eval_jaxpr_p", "dce_sink_p"),
        *("stop_gradient_p", "create_token_p", "after_all_p", "iota_2x32_shape_p"),
        *("empty_p", "empty2_p", "dimension_size_p"),
    ),
    "only on meshes of several devices or with explicit reduction states": (
        *("all_gather_invariant_p", "all_gather_reduced_p", "pbroadcast_p", "preduced_p"),
        *("ragged_all_to_all_p", "reduced_vary_cast_p", "reshard_p", "unreduced_psum_p"),
        *("vary_unreduced_cast_p", "layout_constraint_p"),
    ),
    "only for other hardware than a test has": (
        *("mulhi_p", "scaled_dot_p", "compute_on_p"),
        *("xla_metadata_call_p", "xla_metadata_value_p"),
    ),
    "what some JAX of 0.10 to 0.12 traces no function to": ("call_hi_primitive_p",),
    "generators that are chosen by a global option": (
        *("philox2x32_p", "philox4x32_p", "threefry4x32_p"),
    ),
}
"""Rules of primitives that no small example of a user's program holds."""


def inside(jaxpr) -> set[Any]:
    """All primitives of a program, those of its inner programs too."""
    found = set()
    for eqn in compat.open_jaxpr(jaxpr).eqns:
        found.add(eqn.primitive)
        for value in jax.tree.leaves(dict(eqn.params), is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(compat.open_jaxpr(value), "eqns"):
                found |= inside(value)
    return found


KNOWN = {
    name: examples for name, examples in EXAMPLES.items() if compat.primitive(name) is not None
}
CASES = [(name, place) for name, examples in KNOWN.items() for place in range(len(examples))]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_a_rule_claims_what_holds(name, place):
    fn, operands, free = KNOWN[name][place]
    assert compat.primitive(name) in inside(read(fn, *operands).jaxpr)
    single = any(np.asarray(x).dtype == np.float32 for x in operands) or "float32" in name
    assert check(fn, *operands, rtol=1e-4 if single else 1e-6) == free


def test_every_rule_has_an_example():
    untraced = {compat.primitive(name) for names in UNTRACED.values() for name in names}
    tried = {compat.primitive(name) for name in KNOWN}
    ruled = {key for key in (*RULES, *LOWERINGS) if not isinstance(key, Op)}
    others = equinox.primitives()  # another test of this process may have brought these in
    missing = sorted(key.name for key in ruled - tried - untraced - others)
    assert not missing, f"no example for the rules of {missing}"
