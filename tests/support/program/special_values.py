"""Zeros, infinities, integers, packed arrays, effects: values that scale in no ordinary way."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.support.program.kinds import W, X, case, norm, normal, rms_normed

ALIVE = np.array([[1.0], [1], [0], [1], [0], [1]], np.float32)
ROWS = jnp.array([0, 1, 3])
GUARDED = {"gain": jnp.float32(1.7), "w": W["w"], "b": normal(3, 5)}


# A guard is harmless where what it guards is never 0, and decides what comes out where it is.


def normed_behind_a_guard(z, p):
    """Rows of 0 pass the guard as 1, a bias makes them count, and the mean mixes them in."""
    s = jnp.sqrt((z * z).mean(1, keepdims=True))
    s = jnp.where(s > 0, s, 1.0)
    y = jnp.tanh(z / s @ p["w"] + p["b"]) * s
    return (y - y.mean(0)) / y.std(0)


def guarded(*args):
    """Registers what makes some rows of 0, as a case with that guard behind it."""

    def add(make):
        def fn(p, *given):
            return normed_behind_a_guard(make(p["gain"], *given), p)

        fn.__name__ = make.__name__
        return case("guard", GUARDED, *(args or (X, jnp.asarray(ALIVE))), moves="gain")(fn)

    return add


@guarded()
def rows_masked_by_an_argument(g, x, alive):
    """One factor for each row."""
    return x * g * alive


@guarded(X, jnp.broadcast_to(ALIVE, X.shape))
def entries_masked_by_an_argument(g, x, alive):
    """One factor for each entry."""
    return x * g * alive


@guarded(X)
def rows_masked_by_a_captured_array(g, x):
    """The mask is a constant that holds zeros."""
    return x * g * ALIVE


@guarded(X, jnp.asarray(ALIVE, jnp.int32))
def rows_masked_by_integers(g, x, alive):
    """The mask is cast."""
    return x * g * alive.astype(x.dtype)


@guarded(X, jnp.asarray(ALIVE > 0))
def rows_masked_by_a_choice(g, x, alive):
    """The mask is a predicate."""
    return jnp.where(alive, x * g, 0.0)


@guarded()
def a_mask_on_the_parameter(g, x, alive):
    """The parameter is masked before it meets the data."""
    return x * (g * alive)


@guarded()
def a_mask_before_a_matrix(g, x, alive):
    """The data are masked before they meet the parameter."""
    return (x * alive) @ jnp.eye(4) * g


@guarded()
def a_mask_in_a_contraction(g, x, alive):
    """The mask is one operand of `einsum`."""
    return jnp.einsum("ij,ik->ij", x * g, alive)


@guarded()
def a_masked_term_beside_one_times_zero(g, x, alive):
    """A sum of which both terms may be 0."""
    return x * g * alive + 0.0 * (x * g)


@guarded(X)
def rows_of_padding(g, x):
    """`pad` puts rows of 0 before."""
    return jnp.pad((x * g)[:4], ((2, 0), (0, 0)))


@guarded(X)
def rows_joined_and_reversed(g, x):
    """Rows of 0 are joined on, and come to stand elsewhere."""
    return jnp.flip(jnp.concatenate([(x * g)[:4], jnp.zeros((2, 4))]), 0)


@guarded(X)
def rows_above_a_triangle(g, x):
    """`tril` leaves nothing of the first rows."""
    return jnp.tril(x * g, -2)


@guarded(X)
def rows_that_nothing_is_written_to(g, x):
    """Some rows are written into an array of zeros."""
    return jnp.zeros((6, 4)).at[ROWS].set(x[:3] * g)


@guarded(X)
def rows_looked_up_out_of_bounds(g, x):
    """What is not found is filled with 0."""
    places = jnp.array([0, 1, 9, 3, 9, 5])
    return jnp.take(x * g, places, axis=0, mode="fill", fill_value=0.0)


@guarded(X, jnp.float32(-1))
def rows_of_another_branch(g, x, t):
    """One branch returns zeros."""
    z = x * g
    return jnp.concatenate([z[:3], lax.cond(t > 0, lambda z: z, jnp.zeros_like, z[3:])])


@guarded(X)
def rows_that_cancel(g, x):
    """A value minus some of its own entries."""
    z = x * g
    return z - z.at[ROWS].set(0.0)


@guarded(X)
def rows_without_a_remainder(g, x):
    """A value divided by itself leaves none."""
    z = jnp.abs(x * g)
    return lax.rem(z, z.at[2:].multiply(3.0))


@case("guard", hides="w")
def a_guard_on_a_norm(p, x):
    """A norm of random rows is 0 nowhere."""
    z = x @ p["w"]
    s = norm(z)
    return z / jnp.where(s > 0, s, 1.0)


# L and U in one array: scaling the matrix scales U only.

SQUARE = {"w": normal(4, 4, 4)}
TRIANGLE = jnp.tril(normal(3, 4, 4)) + 2 * jnp.eye(4)


@case("packed", SQUARE, X, moves="w")
def a_packed_factorisation_on_the_right(p, x):
    """A triangular solve of the packed array."""
    lu, _ = jax.scipy.linalg.lu_factor(p["w"])
    y = lax.linalg.triangular_solve(TRIANGLE.astype(lu.dtype), lu, left_side=True, lower=True)
    return x @ (y / jnp.linalg.norm(y))


@case("packed", SQUARE, X, moves="w")
def a_transposed_factorisation_on_the_right(p, x):
    """Transposed, it is as packed as before."""
    lu, _, _ = lax.linalg.lu(p["w"])
    y = lax.linalg.triangular_solve(jnp.eye(4) * 2, lu.T, left_side=True)
    return x @ (y / jnp.linalg.norm(y))


@case("packed", SQUARE, X, moves="w")
def a_packed_factorisation_on_both_sides(p, x):
    """A half that is known is solved for an array that is not."""
    lu, _, _ = lax.linalg.lu(p["w"])
    options = {"left_side": True, "lower": True, "unit_diagonal": True}
    y = lax.linalg.triangular_solve(lu, lu, **options)
    return x @ (y / jnp.linalg.norm(y))


@case("packed", {"w": SQUARE["w"] + 3 * jnp.eye(4)}, X, hides="w")
def a_solution_by_a_factorisation(p, x):
    """It has degree -1, whatever its factors have."""
    y = jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(p["w"]), x.T)
    return y / jnp.linalg.norm(y)


# Outputs that are no floats are outputs.


@case("integers", moves="w")
def a_count_of_large_weights(p, x):
    """An integer that hangs on a threshold."""
    return rms_normed(x @ p["w"]), (jnp.abs(p["w"]) > 1).sum()


@case("integers", {"w": 0.1 * W["w"]}, X, moves="w")
def whether_any_weight_is_large(p, x):
    """A truth value that does."""
    return rms_normed(x @ p["w"]), (jnp.abs(p["w"]) > 1).any()


@case("integers", hides="w")
def the_place_of_the_largest(p, x):
    """No common scale changes which entry is the largest."""
    return rms_normed(x @ p["w"]), jnp.argmax(x @ p["w"], -1)


# What a captured array holds now, and what is no zero and no infinity of every degree.

ZEROS = np.zeros((6, 5), np.float32)
INFINITE = np.full(5, complex(np.inf, 1), np.complex64)


@case("zeros", hides="w")
def a_captured_zero_times_something(p, x):
    """The product is 0 as long as the array is."""
    return rms_normed(x @ p["w"]) + (x @ p["w"]) * ZEROS


@case("zeros", hides="w")
def a_captured_zero_added(p, x):
    """The sum is its other term as long as the array is 0."""
    return rms_normed(x @ p["w"] + ZEROS)


@case("infinity", moves="w")
def the_finite_half_of_a_complex_infinity(p, x):
    """``imag(inf + 1j + z)`` is ``1 + imag(z)``: one half of the number is infinite."""
    z = x @ p["w"]
    return rms_normed(jnp.imag(lax.complex(z, z) + INFINITE.astype(lax.complex(z, z).dtype)))


# What is only looked at is no output.


@case("observation", hides="w")
def a_print(p, x):
    """`jax.debug.print` of an activation."""
    z = x @ p["w"]
    jax.debug.print("{}", z.mean())
    return rms_normed(z)


@case("observation", hides="w")
def a_callback(p, x):
    """`jax.debug.callback` on an activation."""
    z = x @ p["w"]
    jax.debug.callback(lambda _: None, z.mean())
    return rms_normed(z)


@case("observation", hides="w")
def a_print_in_a_loop(p, x):
    """The loop is there for its effect only."""
    z = x @ p["w"]

    def step(carry, _):
        jax.debug.print("{}", z.sum())
        return carry, None

    lax.scan(step, 0.0, None, length=3)
    return rms_normed(z)


@case("observation", hides="w")
def a_look_at_the_sharding(p, x):
    """`jax.debug.inspect_array_sharding` of an activation."""
    z = x @ p["w"]
    jax.debug.inspect_array_sharding(z, callback=lambda _: None)
    return rms_normed(z)


@case("observation", hides="w")
def no_look_at_all(p, x):
    """The same network, unobserved."""
    return rms_normed(x @ p["w"])


# Rows that meet one of several operands.

SIZES = np.array([2, 1, 3], np.int32)


@case("ragged", {"w": normal(4, 3, 4, 5)}, X, hides="w")
def a_kernel_for_each_group_of_rows(p, x):
    """All groups are normed row by row."""
    return rms_normed(lax.ragged_dot(x, p["w"], jnp.asarray(SIZES)))


@case("ragged", {"w": normal(4, 3, 4, 5), "v": normal(5, 4, 5)}, X, moves="w v")
def a_kernel_for_each_group_beside_a_common_one(p, x):
    """Only both together may be scaled."""
    return rms_normed(lax.ragged_dot(x, p["w"], jnp.asarray(SIZES)) + x @ p["v"])


# Differences of values that may be the same, and rows that are in no group, are 0.


def share(s):
    """A norm with a guard, as a share of all."""
    s = jnp.where(s > 0, s, 1.0)
    return s / s.sum()


@case("guard", W, X, moves="w")
def distances_of_all_pairs(p, x):
    """That of a row from itself is 0."""
    z = x @ p["w"]
    return share(((z[:, None] - z[None]) ** 2).sum(-1))


@case("guard", W, X, moves="w")
def distances_from_the_first_row(p, x):
    """That of the first row is 0."""
    z = x @ p["w"]
    return share(norm(z - z[:1]))


@case("guard", {"w": normal(4, 3, 4, 5)}, X, moves="w")
def rows_of_no_group(p, x):
    """Three groups of 2, 1 and 1 rows leave 2 of 6 rows out."""
    return share(norm(lax.ragged_dot(x, p["w"], jnp.array([2, 1, 1], jnp.int32))))


@case("guard", W, X, hides="w")
def spread_about_a_mean(p, x):
    """A row that is constant is no ordinary row: a guard on a deviation is one."""
    z = x @ p["w"]
    s = jnp.std(z, -1, keepdims=True)
    return (z - z.mean(-1, keepdims=True)) / jnp.where(s > 0, s, 1.0)


@case("put into zeros", W, X, moves="w")
def a_function_put_into_zeros(p, x):
    """A scatter that puts each entry through a function may make anything of a zero."""
    return rms_normed(x @ p["w"] + jnp.zeros(5).at[jnp.array([2])].apply(jnp.cos))
