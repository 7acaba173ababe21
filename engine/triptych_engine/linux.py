"""Calls of the engine that exist only on Linux; elsewhere they do nothing and say so by their result."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> bool:
    """Ask the kernel to kill this process when its parent ends, however the parent ends.

    To the kernel the parent is the thread that started this process, which therefore should be the main one.

    Args:
        parent: Process id of the parent at the time this process was started; if it is already another one,
            the parent ended before the request was made, and the caller should end as well.

    Returns:
        True if the kernel has taken the request.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    taken: int = libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return taken == 0 and os.getppid() == parent
