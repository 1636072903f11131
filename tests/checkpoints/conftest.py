"""What holds for every checkpoint here: reading it takes next to no memory."""

import pytest
from peak_memory import Growth

MOST_MEMORY = 256 << 20
"""Bytes by which no file may make this process grow."""


@pytest.fixture(autouse=True)
def _no_file_takes_memory():
    growth = Growth()
    yield
    assert growth.bytes() < MOST_MEMORY
