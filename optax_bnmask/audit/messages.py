"""What findings say."""

from typing import Final, NamedTuple


class Message(NamedTuple):
    """What findings of one cause have in common.

    Attributes:
      severity: Their severity.
      kind: Their kind.
      text: Their message, with ``{}`` for the number and names of the leaves, and fields by name
        for what else differs.
    """

    severity: str
    kind: str
    text: str


GROWTH: Final = Message(
    "error",
    "growth",
    "The decay points away from 0, so that leaves or parts of them grow without bound, {}. It is "
    "negative, or added after the learning rate has turned the sign of the updates. Put "
    "`optax.add_decayed_weights` before the learning rate, as `optax.adamw` does.",
)

ERASED: Final = Message(
    "error",
    "erased",
    "Decay moves leaves that no gradient moves, and so takes them to 0 step by step, {}. To "
    "freeze them, give them to `optax.set_to_zero` in an `optax.partition`, so that no decay "
    "comes after it.",
)

ROWS_ERASED: Final = Message(
    "error",
    "erased",
    "Decay moves parts of leaves that no gradient moves, and so takes them to 0 step by step, {}. "
    "The gradient is masked at some indices before something that decays. Mask the updates after "
    "the decay instead, as the last of the chain.",
)

ENTRIES_ERASED: Final = Message(
    "warning",
    "erased",
    "Decay moves single entries of leaves that no gradient moves, {}. That is right if these are "
    "pruned and 0. Otherwise mask the updates after the decay, as the last of the chain.",
)

ADDS_RAW_GRADIENT: Final = Message(
    "error",
    "climbs",
    "The gradient itself is added to leaves, which climb it, {}. `optax.masked` hands on what it "
    "leaves out as it is; it does not freeze. Use `optax.partition` with `optax.set_to_zero` for "
    "these leaves.",
)

CLIMBS: Final = Message(
    "warning",
    "climbs",
    "Leaves climb their gradient while others descend theirs, {}. That is right only if they are "
    "to raise the loss.",
)

ALL_CLIMB: Final = Message(
    "warning",
    "climbs",
    "All leaves climb their gradient, {}: nothing turns the sign of the updates, as a learning "
    "rate does, or it is turned twice. Added to the params as they are, they raise the loss, and "
    "what should decay grows. That is right only of a part of a chain, with the learning rate "
    "after it.",
)

PULLED_TO_START: Final = Message(
    "warning",
    "recalled",
    "Leaves are pulled to the values that the optimizer was initialised with, {}. That is no "
    "weight decay: it limits how far they get from there, not their size.",
)

NORM_NOT_KEPT: Final = Message(
    "warning",
    "norm_not_kept",
    "`keep_norm` or `hyperball` is to hold the norm of leaves, and a step leaves them another, {}. "
    "What comes after it changes its updates: put it last in the chain, with learning rate and "
    "decay before it. That is right only inside of a wrapper that averages params.",
)

NOTHING_DECAYED: Final = Message(
    "error",
    "nothing_decayed",
    "Nothing decays: the decay is 0, the mask is False everywhere, `keep_norm` or `hyperball` sets "
    "the norms back, or the optimizer has none. Two things an audit cannot see: a penalty on the "
    "norm that is a part of the loss, and a decay that starts after more than 64 steps.",
)

EVERYTHING_DECAYED: Final = Message(
    "error",
    "everything_decayed",
    "Everything decays, what normalisers own too, {}. No mask was passed, or it exempts nothing. "
    "Pass `mask=analysis.decay_mask()`.",
)

NORM_DECAYED: Final = Message(
    "error",
    "norm_decayed",
    "What normalisers own decays, {}. That pulls gains from where the data hold them, at a rate "
    "meant for weights, or where a gain is written `1 + g` holds it at 1. "
    "`mask=analysis.decay_mask()` exempts it.",
)

WEIGHT_EXEMPT: Final = Message(
    "error",
    "weight_exempt",
    "Weights are exempt though others decay and no normaliser is known to hide their scale, {}. "
    "If that is meant, name them in `never`.",
)

EXEMPT_DECAYED: Final = Message(
    "error",
    "exempt_decayed",
    "Leaves decay that are in a category of `exempt`, {}. Make the mask with the same `exempt`: "
    "`analysis.decay_mask(exempt=...)`.",
)

RATE_GROWS_WITH_SIZE: Final = Message(
    "warning",
    "coupled",
    "What leaves lose in a step is a larger share of them the larger they are, {}: it is "
    "multiplied with their size, as by `optax.scale_by_param_block_rms`. The rate shown holds for "
    "leaves of size 1 only.",
)

CONSTANT_PENALTY: Final = Message(
    "warning",
    "coupled",
    "What leaves lose in a step is not in proportion to them, {}, and the same whatever their "
    "gradient is: a penalty on absolute values (L1), or a soft threshold. That is no weight "
    "decay. The rate shown holds for leaves of size 1 only.",
)

NORMALISED_DECAY: Final = Message(
    "warning",
    "coupled",
    "What leaves lose in a step is not in proportion to them, {}: the decay is added before "
    "something that divides by the size of what it gets, as Adam does, and its strength means "
    "little. The rate shown holds for leaves of size 1 only. Decay after that: `optax.adamw` in "
    "place of `optax.add_decayed_weights` before `optax.adam`.",
)

LOST: Final = Message(
    "warning",
    "lost",
    "Leaves decay by less than half of the distance to the next number of their dtype, so that a "
    "step without a gradient leaves them as they are, {}. Keep the params in float32 and cast "
    "where they are used.",
)

PULLED_ELSEWHERE: Final = Message(
    "warning",
    "pulled_elsewhere",
    "Leaves are pulled to {where}, not toward zero, {}. The rate is the share of the way there "
    "that a leaf goes in a step. That is right only if it is meant; weight decay pulls toward "
    "zero.",
)

UNEVEN_RATES: Final = Message(
    "warning",
    "uneven_rates",
    "Parts of one leaf decay at different rates, from {low:.3g} to {high:.3g} of themselves in a "
    "step, {}. The rate shown is the highest. That is right only if it is meant, as where stacked "
    "layers have learning rates of their own.",
)

UNEQUAL_RATES: Final = Message(
    "warning",
    "unequal_rates",
    "Leaves decay at different rates, from {low:.3g} to {high:.3g} of themselves in a step; below "
    "the highest are {}.",
)

GROUP_SPLIT: Final = Message(
    "warning",
    "group_split",
    "A part of the leaves that share one scale is exempt while the others of the group decay, {}. "
    "The share of these grows against that of the others. Let all of a group decay, or none; "
    "`Analysis.groups` lists them.",
)

INVARIANT_SPLIT: Final = Message(
    "warning",
    "invariant_split",
    "Some weights whose scale a normaliser hides {do}, {}. Treat them alike, or their effective "
    "learning rates will part.",
)

HARDLY_ANYTHING_DECAYED: Final = Message(
    "warning",
    "hardly_anything_decayed",
    "Only {percent:.2g} % of the parameters decay; nothing holds the norms of the exempt ones, "
    "{}. Their effective learning rate will fall as they grow (arXiv:1910.07454). Let them decay, "
    "or put `bnmask.keep_norm` or `bnmask.corrected_weight_decay` in the chain.",
)

UNKNOWN_DECAYED: Final = Message(
    "warning",
    "unknown_decayed",
    "Leaves decay whose role is unknown, so that some may belong to normalisers, {}. "
    "`bnmask.analyze` reads roles off the program; `never` exempts leaves by name.",
)
