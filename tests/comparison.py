"""Who gets which wrong: rules by name or shape against the mask from structure.

`python -m tests.comparison` prints the table that the README shows.
"""

import re
from collections import Counter

import optax_bnmask as bnmask
from optax_bnmask.paths import layout
from tests.fixtures import FIXTURES

NAMES = ("norm", "bn", "ln", "scale", "bias")


def by_rank(decays):
    """A rule that looks at a leaf's rank alone."""
    return lambda leaves: {path: decays(len(leaf.shape)) for path, leaf in leaves.items()}


def by_names(leaves):
    """No decay where the joined path contains one of the usual names."""
    return {
        path: not any(name in path.replace("/", "").lower() for name in NAMES) for path in leaves
    }


def by_parts(leaves):
    """The same list of names, but on whole parts of the path."""
    return {
        path: not any(part.lower() in NAMES for part in re.split(r"[/_\d]+", path))
        for path in leaves
    }


def by_kernel(leaves):
    """Decay for what is called a kernel."""
    return {path: bool(re.search(r"(^|/)kernel$", path)) for path in leaves}


def by_layer_norm_names(leaves):
    """The `decay_mask_fn` of many Flax examples: no biases, nothing of a LayerNorm's name."""
    flat = {path: tuple(path.split("/")) for path in leaves}
    spared = {
        keys[-2:]
        for keys in flat.values()
        if any(name in "".join(keys).lower() for name in ("layernorm", "layer_norm", "ln"))
    }
    return {path: keys[-1] != "bias" and keys[-2:] not in spared for path, keys in flat.items()}


def by_batchnorm_name(leaves):
    """Haiku's ImageNet example: decay for all but modules called batchnorm."""
    return {path: "batchnorm" not in path for path in leaves}


RULES = {
    "`ndim != 1`": by_rank(lambda rank: rank != 1),
    "`ndim > 1`": by_rank(lambda rank: rank > 1),
    "any of `norm bn ln scale bias` in the joined path": by_names,
    "the same names, as whole words": by_parts,
    "`/kernel$`": by_kernel,
    "`decay_mask_fn` of Flax examples (no `bias`, no LayerNorm by name)": by_layer_norm_names,
    "`'batchnorm' not in module_name`": by_batchnorm_name,
}
OURS = "**`decay_mask(..., exempt=STANDARD)`**"


def judged():
    """For each rule the leaves it gets wrong: ``{rule: [(fixture, path, what it is)]}``."""
    wrong = {rule: [] for rule in (*RULES, OURS)}
    total = 0
    for fixture in FIXTURES:
        params, stats = fixture.build()
        mask = bnmask.decay_mask(params, stats, exempt=bnmask.STANDARD)
        leaves = {path: leaf for path, leaf in layout(params).leaves.items() if path in mask}
        total += len(leaves)
        answers = {rule: decide(leaves) for rule, decide in RULES.items()}
        answers[OURS] = {path: mask[path] for path in leaves}
        for rule, decays in answers.items():
            wrong[rule] += [
                (fixture, path, fixture.truth(path))
                for path in leaves
                if decays[path] != (fixture.truth(path) == "weight")
            ]
    return wrong, total


def table():
    """The comparison as a Markdown table."""
    wrong, total = judged()
    lines = [
        f"| rule | wrong of {total} leaves | norms decayed | biases decayed | scalars decayed "
        "| weights spared | for example |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for rule, leaves in wrong.items():
        kinds = Counter(what for _, _, what in leaves)
        counts = " | ".join(str(kinds[what]) for what in ("norm", "bias", "scalar", "weight"))
        example = next((f"`{path}`, {fixture.name}" for fixture, path, _ in leaves), "")
        lines.append(f"| {rule} | {len(leaves)} | {counts} | {example} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201 - what it is for
