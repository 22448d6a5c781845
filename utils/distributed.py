"""Processes: how many there are, which one this is, and the few exchanges between them."""

import contextlib
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Iterator, Mapping, Optional

import torch
import torch.distributed as dist
from torch import nn

from .errors import ConfigError, ShortageError
from .meeting import meet

MEETING_TIMEOUT = timedelta(minutes=10)  # all processes must have started by then
# one process may write to a slow disk while the others wait; see utils/peers.py
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Launch:
    """Where this process stands among those that a launcher started."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def read_launch(environ: Mapping[str, str], local_rank: Optional[int] = None) -> Launch:
    """Reads what the launcher says of this process.

    torchrun and torch.distributed.launch set RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and LOCAL_RANK (or pass
    --local-rank, given here as `local_rank`); srun sets SLURM_STEP_NUM_TASKS, SLURM_PROCID and SLURM_LOCALID. With
    neither it is one process.

    Raises:
        ConfigError: the variables are incomplete or no numbers.
    """
    try:
        if "RANK" in environ and "WORLD_SIZE" in environ:
            local = environ.get("LOCAL_RANK", local_rank)
            if local is None:
                raise ConfigError("LOCAL_RANK: not set by the launcher; use torchrun, or pass --local-rank")
            launch = Launch(int(environ["RANK"]), int(environ["WORLD_SIZE"]), int(local))
            if not 0 <= launch.rank < launch.world_size:
                raise ConfigError(
                    f"RANK is {launch.rank} of WORLD_SIZE {launch.world_size}; start with torchrun or srun"
                )
            if launch.world_size > 1:
                environ["MASTER_ADDR"], int(environ["MASTER_PORT"])  # torch.distributed reads them
            return launch
        if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            own_gpu = environ.get("CUDA_VISIBLE_DEVICES", "").isdigit()  # --gpus-per-task=1: a task sees only its own
            local = 0 if own_gpu else int(environ["SLURM_LOCALID"])
            return Launch(int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"]), local)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"launcher's environment: {error} is missing or wrong; start with torchrun or srun"
        ) from error
    return Launch()


def available_cores(processes: int) -> int:
    """The cores that each of so many processes of this machine may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def local_processes(world_size: int) -> int:
    """How many of the run's processes are on this machine; where no launcher says it, all."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(number) if number.isdigit() and 0 < int(number) <= world_size else world_size


def _srun_rendezvous(environ: Mapping[str, str]) -> dict[str, str]:
    """Address and port that every task of a Slurm step agrees on: this node, and a port from the job's number.

    Raises:
        ConfigError: the step spans nodes and nobody set MASTER_ADDR to that of the first task.
    """
    if int(environ.get("SLURM_STEP_NUM_NODES", 1)) > 1 and "MASTER_ADDR" not in environ:
        raise ConfigError(
            "MASTER_ADDR: not set, and the Slurm step spans several nodes; export it as the first node's address"
        )
    return {
        "MASTER_ADDR": environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": environ.get("MASTER_PORT", str(20000 + int(environ.get("SLURM_JOB_ID", 0)) % 40000)),
    }


@contextlib.contextmanager
def process_group(launch: Launch, device: torch.device, parent: int) -> Iterator[Optional[dist.Store]]:
    """The default process group while the block runs: NCCL on CUDA, gloo on CPU; nothing for one process.

    `parent` is the process that started this one. Yields this start's part of the store through which the processes met, None for one process.

    Raises:
        ShortageError: the processes do not find each other.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launch.world_size == 1:
        yield None
        return
    if "RANK" not in os.environ:
        os.environ.update(_srun_rendezvous(os.environ))
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
        raise ShortageError(
            f"MASTER_ADDR, MASTER_PORT: the processes do not find each other ({str(error).splitlines()[0]}); "
            "is the port free and the address this machine's?"
        ) from error
    met.set()
    yield store
    # Only after a good end: with an error on one rank, the others would wait here for it.
    dist.destroy_process_group()


def _end_with_launcher(parent: int, met: threading.Event) -> None:
    """Ends this process if its launcher does before all have met: its store would not answer, and nothing is lost yet."""
    while not met.wait(1.0):
        if os.getppid() != parent:
            os._exit(143)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all processes; `values` itself is left alone."""
    total = values.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def min_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise minimum over all processes; `values` itself is left alone."""
    smallest = values.clone()
    if dist.is_initialized():
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return smallest


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows of all processes' values, those of rank 0 first; each may have another number of them."""
    if not dist.is_initialized():
        return values
    counts = values.new_zeros(dist.get_world_size(), dtype=torch.int64)
    dist.all_gather_into_tensor(counts, counts.new_tensor([len(values)]))
    most = int(counts.max())
    padded = values.new_zeros(most, *values.shape[1:])
    padded[: len(values)] = values
    rows = values.new_empty(len(counts) * most, *values.shape[1:])
    dist.all_gather_into_tensor(rows, padded)
    return torch.cat([part[:count] for part, count in zip(rows.split(most), counts.tolist())])


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every process rank 0's buffers (BatchNorm statistics), so that all evaluate one and the same model."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
