"""What a hostile checkpoint must come to: a sentence."""

import pytest

from optax_bnmask import checkpoints
from optax_bnmask.errors import StructureError

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
"""JSON that exhausts a reader who follows it."""


def refused(path, said):
    with pytest.raises(StructureError, match=said) as caught:
        checkpoints.read(path)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
