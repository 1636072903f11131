"""An analysis in the format that was asked for, with the decision where one was."""

import json
from collections.abc import Collection, Iterable
from typing import Any

from optax_bnmask.analysis import Analysis
from optax_bnmask.cli.speaking import Format
from optax_bnmask.mask import Mask
from optax_bnmask.paths import matches
from optax_bnmask.report import to_html, to_json, to_text


def shown(analysis: Analysis, form: Format, mask: Mask | None) -> str:
    """The analysis, and what was decided from it.

    In JSON the decision is a further field of `to_json`'s object, ``"decays"``, by path; those who
    read the object without it pass it over.
    """
    match form:
        case Format.TEXT:
            return to_text(analysis, mask=mask)
        case Format.HTML:
            return to_html(analysis, mask=mask)
        case Format.JSON:
            decision: dict[str, Any] = (
                {} if mask is None else {"decays": {path: mask[path] for path in mask}}
            )
            record = json.loads(to_json(analysis)) | decision
            return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)


def decided(analysis: Analysis, exempt: str | None) -> Mask | None:
    """The mask for categories that are listed with commas; none where nothing was asked."""
    if exempt is None:
        return None
    return analysis.decay_mask(exempt=[name.strip() for name in exempt.split(",") if name.strip()])


def explained(analysis: Analysis, globs: Collection[str]) -> str:
    """The explanations of the leaves that the globs match."""
    paths = [leaf.path for leaf in analysis.leaves]
    chosen: Iterable[str] = matches(globs, paths, "--explain")
    return "\n\n".join(analysis.explain(path) for path in paths if path in chosen)
