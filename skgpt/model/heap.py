"""Memory that the C library keeps for itself after it was freed."""

import ctypes


def give_memory_back() -> bool:
    """Have the C library give freed memory back to the system; say whether it knows how to.

    Each thread that allocates has a heap of its own, and what is freed in it stays there: after
    the folds of a few trials a search would hold half as much again as it uses.

    Returns
    -------
    known : bool
        Whether this is glibc, which can be asked for it.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    trim(0)
    return True
