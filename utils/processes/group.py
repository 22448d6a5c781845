"""The processes meet and form torch's default group."""

import contextlib
import os
import threading
from datetime import timedelta
from typing import Iterator, Optional

import torch
import torch.distributed as dist

from . import backend_errors
from .interface import gloo_interface
from .launch import Launch, meeting_place
from .meeting import meet

MEETING_TIMEOUT = timedelta(minutes=10)  # all processes must have started by then
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # one process may write to a slow disk while the others wait


@contextlib.contextmanager
def process_group(launch: Launch, device: torch.device, parent: int) -> Iterator[Optional[dist.Store]]:
    """The default process group while the block runs: NCCL on CUDA, gloo on CPU; nothing for one process.

    `parent` is the process that started this one. Yields this start's part of the store through which the processes
    met, None for one process.

    Raises:
        ShortageError: the processes do not find each other.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launch.world_size == 1:
        yield None
        return
    os.environ.update(meeting_place(launch, os.environ))
    interface = gloo_interface(launch, os.environ["MASTER_ADDR"], os.environ)
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    met = threading.Event()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_launcher, args=(parent, met), daemon=True).start()
    try:
        store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.world_size, timeout=MEETING_TIMEOUT))
        store = meet(store, launch.rank, launch.world_size, MEETING_TIMEOUT)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("process_group", store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise backend_errors.of_meeting(error, os.environ) from error
    met.set()
    yield store
    # Only after a good end: with an error on one rank, the others would wait here for it.
    dist.destroy_process_group()


def _end_with_launcher(parent: int, met: threading.Event) -> None:
    """Ends this process if its launcher does before all have met: its store would not answer, and nothing is lost yet."""
    while not met.wait(1.0):
        if os.getppid() != parent:
            os._exit(143)
