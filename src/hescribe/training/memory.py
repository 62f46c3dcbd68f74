"""Memory on a CPU: keep what a step has freed for the next step."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed memory back to the system; False where there is no glibc.

    Activations of a batch are hundreds of megabytes, which malloc maps afresh and returns in every step; on a
    virtual machine the page faults cost more than the convolutions. Training MobileNet on 128 tiles a step ran
    two to four times as fast with this.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 2**28)])
