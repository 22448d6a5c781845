"""Work that leaves its process as it was: for programs that go on afterwards, such as notebooks."""

import contextlib
import gc
import traceback
from typing import Callable, Iterator, Optional

import torch

from .errors import Stopped, UserError
from .malloc import give_back_freed_memory
from .rng import get_rng_state, set_rng_state

EXPLAINED = (UserError, Stopped, KeyboardInterrupt)  # what ends work is in their line; others are looked into


@contextlib.contextmanager
def without_leftovers() -> Iterator[None]:
    """When the block has ended, however it did, random numbers and torch's choice of algorithms are as before, and what
    it held is free: loading processes, memory, files.
    """
    random_state, restore_algorithms = get_rng_state(), _algorithms()
    try:
        yield
    except EXPLAINED as error:
        _clear_frames(error)
        raise
    finally:
        set_rng_state(random_state)
        restore_algorithms()
        gc.collect()
        give_back_freed_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _algorithms() -> Callable[[], None]:
    """Notes torch's settings that a session changes; returns what sets them back."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark, cudnn_tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    matmul_tf32 = torch.backends.cuda.matmul.allow_tf32

    def restore() -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        # a property that no checker sees, see `utils.device.use_deterministic_algorithms`
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32

    return restore


def _clear_frames(error: Optional[BaseException]) -> None:
    """Frees what the functions held that an error has ended: a notebook keeps its traceback, and they a whole run."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
