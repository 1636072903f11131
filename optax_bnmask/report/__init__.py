"""What is known, shown: an `Analysis` as text, as one HTML page, as JSON."""

from optax_bnmask.report.html import to_html
from optax_bnmask.report.json import to_json
from optax_bnmask.report.text import to_text

__all__ = ["to_html", "to_json", "to_text"]
