"""Small constants: those that decide what comes out, and epsilons, which do not."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.program.kinds import W, X, case, norm, normal, rms_normed

FAINT = 1e-3 * X
"""Data of the size of the constants: beside it they are not small."""
FAINT_POSITIVE = 1e-4 * jnp.abs(X)

# Sums of small constants grow.

RATE = {"rate": jnp.float32(1.0)}


@case("accumulator", {"w": normal(2, 4, 4), "frequency": normal(3, 4)}, X, moves="w frequency")
def an_ode_driven_by_a_clock_of_small_ticks(p, x):
    """The time runs from 0 to 1 by 1e-3."""

    def step(carry, _):
        h, t = carry
        return (h + 1e-3 * jnp.tanh(h @ p["w"] + jnp.tanh(t * p["frequency"])), t + 1e-3), None

    return lax.scan(step, (x, 0.0), None, length=1000)[0][0]


@case("accumulator", {"w": normal(2, 4, 4), "frequency": normal(3, 4)}, X, moves="w frequency")
def an_ode_driven_by_a_clock_of_large_ticks(p, x):
    """The time runs from 0 to 1 by 1e-2, which is too large for an epsilon."""

    def step(carry, _):
        h, t = carry
        return (h + 1e-2 * jnp.tanh(h @ p["w"] + jnp.tanh(t * p["frequency"])), t + 1e-2), None

    return lax.scan(step, (x, 0.0), None, length=100)[0][0]


@case("accumulator", {"rate": jnp.float32(3.0)}, X, moves="rate")
def a_force_that_decays_with_time(p, x):
    """The rate stands beside a clock and nothing else."""

    def step(carry, _):
        h, t = carry
        return (h + 1e-2 * jnp.exp(-p["rate"] * t) * jnp.tanh(x), t + 1e-3), None

    return lax.scan(step, (x, 0.0), None, length=500)[0][0]


@case("accumulator", RATE, X, moves="rate")
def a_learning_rate_that_warms_up(p, x):
    """A clock in a `fori_loop`."""

    def body(_, carry):
        lr, h = carry
        return lr + 1e-3, h + jnp.tanh(lr * p["rate"])

    return lax.fori_loop(0, 300, body, (0.0, 0.0))[1] + x


@case("accumulator", RATE, X, moves="rate")
def a_learning_rate_that_warms_up_until_a_test_ends_it(p, x):
    """A clock in a `while_loop`, beside a counter."""

    def body(carry):
        n, lr, h = carry
        return n + 1, lr + 1e-3, h + jnp.tanh(lr * p["rate"])

    return lax.while_loop(lambda c: c[0] < 100, body, (0, 0.0, 0.0))[2] + x


@case("accumulator", RATE, X, moves="rate")
def a_phase_that_a_parameter_advances(p, x):
    """The constant is scaled before it accumulates."""

    def step(phase, _):
        phase = phase + 1e-3 * p["rate"]
        return phase, jnp.sin(phase)

    return lax.scan(step, 0.0, None, length=100)[1]


@case("accumulator", RATE, X, moves="rate")
def a_leaky_phase(p, x):
    """What accumulates also decays."""

    def step(phase, _):
        phase = phase * 0.999 + 1e-3
        return phase, jnp.sin(phase * p["rate"])

    return lax.scan(step, 0.0, None, length=100)[1]


@case("accumulator", {"mass": normal(5, 4)}, X, moves="mass")
def a_fall(p, x):
    """A velocity accumulates the constant, a position the velocity."""

    def step(carry, _):
        v, h = carry
        v = v - 1e-3
        return (v, h + v * p["mass"]), None

    return jnp.tanh(lax.scan(step, (0.0, x), None, length=50)[0][1])


@case("accumulator", W, X, hides="w")
def squares_gathered_by_a_loop(p, x):
    """A carry that starts as 0 takes the degree of what is gathered."""
    z = x @ p["w"]
    total, _ = lax.scan(lambda c, row: (c + row * row, None), jnp.zeros(5), z)
    return jnp.tanh(z * lax.rsqrt(total / 6 + 1e-12))


# Ceilings, thresholds and saturation constants decide what comes out, however small they are.


@case("ceiling", W, FAINT, moves="w")
def a_clip_on_both_sides(p, x):
    """Of what is larger than the bounds only the sign is left."""
    z = lax.clamp(jnp.asarray(-1e-3, x.dtype), x @ p["w"], jnp.asarray(1e-3, x.dtype))
    return z / norm(z)


@case("ceiling", W, FAINT, moves="w")
def a_smallest_of_value_and_constant(p, x):
    """A cap of 1e-3."""
    z = jnp.minimum(x @ p["w"], 1e-3)
    return z / norm(z)


@case("ceiling", W, 1e6 * X, moves="w")
def a_ceiling_above_a_norm(p, x):
    """What is longer than 1e3 is only made shorter."""
    z = x @ p["w"]
    return z / jnp.minimum(norm(z), 1e3)


@case("ceiling", W, FAINT_POSITIVE, moves="w")
def a_ceiling_above_the_reciprocal_of_each_entry(p, x):
    """Without it, each entry would be 1."""
    z = jnp.abs(x @ p["w"])
    return z * jnp.minimum(1 / z, 1e3)


@case("threshold", W, FAINT, moves="w")
def a_largest_of_value_and_constant(p, x):
    """A floor that nothing divides by is an offset."""
    return rms_normed(jnp.maximum(x @ p["w"], 1e-3))


@case("threshold", W, FAINT, moves="w")
def a_hard_threshold(p, x):
    """Entries below 1e-3 are dropped."""
    z = x @ p["w"]
    z = jnp.where(jnp.abs(z) > 1e-3, z, 0.0)
    return z / jnp.linalg.norm(z)


@case("threshold", W, FAINT, moves="w")
def a_soft_threshold(p, x):
    """1e-3 is taken from every magnitude, as far as that goes."""
    z = x @ p["w"]
    z = jnp.sign(z) * jnp.maximum(jnp.abs(z) - 1e-3, 0)
    return z / jnp.linalg.norm(z)


@case("saturation", RATE, FAINT_POSITIVE, moves="rate")
def a_rate_of_reaction(p, x):
    """Michaelis and Menten's: half of the largest where the concentration is the constant."""
    return p["rate"] * x / (p["rate"] * x + 1e-4)


@case("saturation", RATE, FAINT_POSITIVE, moves="rate")
def a_rate_of_reaction_by_a_reciprocal(p, x):
    """The same, factor by factor."""
    return (1 / (p["rate"] * x + 1e-4) * x) * p["rate"]


@case("saturation", RATE, FAINT_POSITIVE, moves="rate")
def a_rate_of_reaction_of_a_sum(p, x):
    """The sum of all concentrations saturates."""
    total = (p["rate"] * x).sum(-1)
    return total / (total + 1e-4)


@case("saturation", {"w": jnp.abs(W["w"])}, FAINT_POSITIVE, moves="w")
def a_rate_of_reaction_of_a_contraction(p, x):
    """A weighted sum of concentrations saturates."""
    z = x @ p["w"]
    return z / (z + 1e-4)


@case("saturation", {"w": jnp.abs(W["w"])}, 1e-2 * jnp.abs(X), moves="w")
def a_cooperative_rate(p, x):
    """Hill's, with exponent 2."""
    z = (x @ p["w"]) ** 2
    return z / (z + 1e-3)


@case("saturation", W, FAINT, moves="w")
def a_softsign(p, x):
    """Without the constant, only the sign is left."""
    z = x @ p["w"]
    return z / (jnp.abs(z) + 1e-3)


@case("saturation", W, FAINT, moves="w")
def an_algebraic_sigmoid(p, x):
    """As an RMS norm over one entry: without the constant, only signs are left."""
    z = x @ p["w"]
    return z * lax.rsqrt(z * z + 1e-6)


@case("saturation", W, 1e-2 * X, moves="w")
def a_squashed_capsule(p, x):
    """The length of a vector saturates, its direction is kept."""
    z = x @ p["w"]
    square = (z * z).sum(-1, keepdims=True)
    return square / (square + 1e-3) * z / jnp.sqrt(square)


# Epsilons that are epsilons.


@case("epsilon", hides="w")
def a_floor_under_a_norm(p, x):
    """`max` keeps a division from failing."""
    z = x @ p["w"]
    return z / jnp.maximum(norm(z), 1e-6)


@case("epsilon", hides="w")
def a_clip_from_below(p, x):
    """`clip` without a ceiling does the same."""
    z = x @ p["w"]
    return z / jnp.clip(norm(z), 1e-6, None)


@case("ceiling of a reciprocal", hides="w")
def a_ceiling_above_the_reciprocal_of_a_norm(p, x):
    """``min(1 / n, 1e7)`` is ``1 / max(n, 1e-7)``."""
    z = x @ p["w"]
    return z * jnp.minimum(lax.rsqrt(jnp.square(z).sum(-1, keepdims=True)), 1e7)


@case("epsilon", hides="w")
def an_epsilon_beside_a_sum_of_magnitudes(p, x):
    """Entries are compared with each other, as in an L1 norm."""
    z = x @ p["w"]
    return z / (jnp.abs(z).sum(-1, keepdims=True) + 1e-9)


@case("epsilon", {"a": normal(3, 5), "b": normal(4, 5)}, X, hides="a b")
def a_cosine_of_two_parameters(p, x):
    """One floor under the product of two norms."""
    a, b = p["a"], p["b"]
    return x * (a @ b / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-8))


@case("epsilon", hides="w")
def a_generalised_mean(p, x):
    """A floor under each entry keeps a root from failing."""
    z = jnp.maximum(jnp.abs(x @ p["w"]), 1e-6)
    return rms_normed((z**3).mean(-1, keepdims=True) ** (1 / 3) * z)


@case("epsilon", hides="w")
def an_rms_norm_in_a_loop(p, x):
    """The epsilon is met once for each iteration and does not add up."""

    def step(h, _):
        h = rms_normed(h @ p["w"][:, :4], 1e-12)
        return h, h

    return lax.scan(step, x, None, length=3)[1]


@case("epsilon", hides="w")
def a_norm_of_one_example_under_vmap(p, x):
    """The reduction is written for one row."""

    def one(row):
        z = row @ p["w"]
        return z / (jnp.linalg.norm(z) + 1e-9)

    return jax.vmap(one)(x)


@case("epsilon", hides="w")
def weight_normalisation_without_a_batch(p, x):
    """The norm is that of the parameter itself."""
    return p["w"].T @ x[0] / (jnp.linalg.norm(p["w"], axis=0) + 1e-9)


# What may be 0 or negative is bounded from below by what stands beside it.


@case("epsilon of no normaliser", W, X, moves="w")
def weights_by_the_inverse_of_a_distance(p, x):
    """The distance of a point from itself is 0: its weight is the inverse of the constant."""
    z = x @ p["w"]
    q = 1 / (((z[:, None] - z[None]) ** 2).sum(-1) + 1e-6)
    return jnp.log(q / q.sum(-1, keepdims=True))


@case("epsilon of no normaliser", W, X, moves="w")
def the_root_of_what_may_be_clipped(p, x):
    """Where the ReLU is off, the root is that of the constant."""
    return rms_normed(jnp.sqrt(jax.nn.relu(x @ p["w"]) + 1e-3))


@case("epsilon of no normaliser", W, X, moves="w")
def the_inverse_of_what_may_be_clipped(p, x):
    """Where the ReLU is off, the inverse is that of the constant."""
    z = 1 / (jax.nn.relu(x @ p["w"]) + 1e-3)
    return z / z.sum(-1, keepdims=True)


@case("epsilon of no normaliser", W, X, moves="w")
def the_root_of_a_floor_under_both_signs(p, x):
    """Half of the entries are the floor."""
    return rms_normed(jnp.maximum(x @ p["w"], 1e-3) ** 0.5)


@case("epsilon of no normaliser", W, X, moves="w")
def many_small_constants_in_one_sum(p, x):
    """Four thousand times 1e-3."""
    z = x @ p["w"]
    padded = jnp.concatenate([z, jnp.zeros((6, 4_000))], -1)
    return z / jnp.sqrt((padded * padded + 1e-3).sum(-1, keepdims=True))


@case("accumulator", {"gain": jnp.float32(0.02)}, X, moves="gain")
def squares_that_grow_by_a_small_constant(p, x):
    """The root is carried, and squared again."""
    z = x * p["gain"]
    start = (z * z).sum(-1, keepdims=True)
    end = lax.fori_loop(0, 2_000, lambda _, s: jnp.sqrt(s * s + 1e-3), start)
    return z / jnp.sqrt(end)


@case("saturation", W, FAINT, moves="w")
def a_square_norm_beside_itself_in_other_words(p, x):
    """Without the constant the quotient is 1, whichever way the two are computed."""
    z = x @ p["w"]
    return jnp.einsum("ij,ij->i", z, z) / ((z * z).sum(-1) + 1e-6)


# An entry's own constant.


@case("saturation", {"w": 1e-3 * normal(2, 4, 1)}, X, moves="w")
def norms_of_single_entries(p, x):
    """A mean over one entry is that entry."""
    z = x @ p["w"]
    return z / jnp.sqrt((z * z).mean(-1, keepdims=True) + 1e-6) + x


@case("saturation", {"gain": jnp.float32(1e-3)}, X, moves="gain")
def a_gain_over_its_own_magnitude(p, x):
    """The sum holds the gain, so that the quotient is ``g / (abs(g) + c)``."""
    return (x * p["gain"]).sum(-1) / (jnp.abs(p["gain"]) + 1e-3)


@case("saturation", {"a": 1e-3 * normal(2, 4)}, X, moves="a")
def a_norm_over_itself_in_other_words(p, x):
    """``jnp.linalg.norm`` writes squares as products."""
    norm_of_a = jnp.sqrt((p["a"] ** 2).sum())
    return x * (norm_of_a / (jnp.linalg.norm(p["a"]) + 1e-3))


@case("accumulator", W, X, moves="w")
def a_loop_of_no_iterations(p, x):
    """What it would gather is what it starts from, 0."""
    z = x @ p["w"]
    total, _ = lax.scan(lambda c, row: (c + (row * row).sum(), None), jnp.zeros(()), z[:0])
    return z * lax.rsqrt(total + 1e-6)
