"""The memory that a piece of code takes at its height, beyond what was held before it."""

import contextlib
import re
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak():
    """Bytes of this process at its height.

    `ru_maxrss` would do, but Linux lets a process inherit it from a larger parent.
    """
    if STATUS.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Growth:
    """How far the peak has risen since this was made."""

    def __init__(self):
        with contextlib.suppress(OSError):  # an earlier peak would hide ours; Linux can forget it
            Path("/proc/self/clear_refs").write_text("5")
        self.before = peak()

    def bytes(self):
        return peak() - self.before


@contextlib.contextmanager
def little_memory(most=256 << 20):
    """Fails if what is done in it makes this process grow by more."""
    growth = Growth()
    yield
    assert growth.bytes() < most
