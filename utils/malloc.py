"""How the C library keeps memory that is freed and soon asked for again."""

import ctypes
import os

# glibc's mallopt(3): parameter, value
KEEP = {
    -4: 0,  # M_MMAP_MAX: no block is a mapping of its own, given back when freed
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap is never given back
    -2: 2**26,  # M_TOP_PAD: the heap grows by 64 MiB
}


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for this process (and for those forked from it) instead of giving it back.

    By default each large tensor on the CPU is a new mapping, whose pages the kernel clears at first touch: up to 42 % of
    an inference step. Who sets a variable MALLOC_... or another allocator (LD_PRELOAD) is left alone.

    Returns whether it did something.
    """
    if "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # no glibc
        return False
    return all([mallopt(parameter, value) for parameter, value in KEEP.items()])


def give_back_freed_memory() -> None:
    """Gives back once what glibc has kept, so that what is taken from now on can be measured."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # no glibc
        pass
