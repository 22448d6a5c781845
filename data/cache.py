"""Image files in memory, undecoded: DATA.CACHE_MODE.

'full': every process holds all images. 'part': process r of n holds the images r, r + n, ..., and its training batches
are drawn from these alone, as in Swin.
"""

import mmap
from typing import Callable, Sequence

import numpy as np

from utils.errors import ConfigError
from utils.memory import available_memory

SPARE = 0.1  # share of the available memory that is left to the run itself


class ImageCache:
    """Bytes of some of a source's image files.

    Args:
        indices: which ones.
        sizes: bytes of each file of the source.
        read: index -> bytes.
    """

    def __init__(self, indices: range, sizes: np.ndarray, read: Callable[[int], bytes]):
        self.indices = indices
        self.starts = np.concatenate([[0], np.cumsum(sizes[indices])])
        # shared with forked workers
        self.memory = mmap.mmap(-1, max(int(self.starts[-1]), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.damaged = set()
        for position, index in enumerate(indices):
            try:
                self.memory[self.starts[position] : self.starts[position + 1]] = read(index)
            except Exception:  # whoever wants this image reads the file again, and gets the error
                self.damaged.add(index)

    def __contains__(self, index: int) -> bool:
        return index in self.indices and index not in self.damaged

    def __getitem__(self, index: int) -> bytes:
        position = self.indices.index(index)
        return self.memory[self.starts[position] : self.starts[position + 1]]


def can_be_cached(source) -> bool:
    return hasattr(source, "sizes")


def cached_indices(mode: str, num_images: int, rank: int, world_size: int) -> range:
    """Which images a process holds."""
    return range(rank, num_images, world_size) if mode == "part" else range(num_images)


def plan_caches(
    sources: Sequence,
    mode: str,
    rank: int,
    world_size: int,
    gather: Callable[[int], list[int]],
    local_processes: int,
    say: Callable[[str], None],
) -> Callable[[], None]:
    """Says how much memory the files of archives take; returns what reads them there.

    Args:
        sources: archives get a `cache`, others stay as they are.
        mode: 'no', 'full' or 'part'.
        gather: a number of each process -> all numbers, by which all processes wait for one another.
        local_processes: how many of them this machine has.
        say: takes a line for the log.

    Raises:
        ConfigError: the memory does not suffice.
    """
    sources = list(filter(can_be_cached, sources))
    if mode == "no" or not sources:
        return lambda: None
    shares = [cached_indices(mode, len(source), rank, world_size) for source in sources]
    needed = int(sum(source.sizes[share].sum() for source, share in zip(sources, shares)))
    available = available_memory()
    everyone = gather(needed)
    here = max(everyone) * local_processes
    text = (
        f"DATA.CACHE_MODE {mode}: {_gib(needed)} of images in each of {local_processes} processes here, {_gib(here)} in all, "
        f"of {_gib(available)} available"
    )
    if here > (1 - SPARE) * available:
        whole = sum(int(source.sizes.sum()) for source in sources)
        other = (
            f"part, which takes {_gib(whole * local_processes // world_size)}, or no"
            if mode == "full" and world_size > 1
            else "no"
        )
        raise ConfigError(
            f"{text}, {SPARE:.0%} of which the run itself needs; use DATA.CACHE_MODE (--cache-mode) {other}"
        )
    say(text)

    def fill() -> None:
        for source, share in zip(sources, shares):
            source.cache = ImageCache(share, source.sizes, source.read)

    return fill


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.3g} MiB"
