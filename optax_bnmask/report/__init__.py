"""Writes an `Analysis` as text, as one HTML page, and as JSON, which it reads back."""

from optax_bnmask.report.html_page import to_html
from optax_bnmask.report.json_format import fields_of, to_json
from optax_bnmask.report.text import to_text

__all__ = ["fields_of", "to_html", "to_json", "to_text"]
