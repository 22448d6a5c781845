"""What a command works with, and how it ends: `open_session`."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence

import torch
from yacs.config import CfgNode

from utils import ending
from utils.config import to_dict
from utils.device import choose_arithmetic, is_out_of_memory, select_device, use_deterministic_algorithms
from utils.errors import ConfigError, OutputError, ProcessError, ShortageError, Stopped, one_line
from utils.malloc import keep_freed_memory
from utils.processes import backend_errors
from utils.processes.group import process_group
from utils.processes.launch import Launch, read_launch
from utils.processes.machines import clock_skew, describe_machines
from utils.processes.members import START_AGAIN
from utils.processes.peers import Peers
from utils.processes.sameness import facts_of, require_same_start
from utils.run_log import RunLog

from .observer import Observer
from .setup.preprocessing import take_from_model


@dataclass(frozen=True)
class Session:
    """What every command needs, and what travels with it: the config, this process among the others, the run's folder."""

    cfg: CfgNode
    launch: Launch
    device: torch.device
    peers: Peers
    directory: Path
    log: RunLog
    arithmetic: str = ""  # of a GPU, see `choose_arithmetic`
    observers: Sequence[Observer] = ()  # who is told of a training run's events

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.launch.rank == 0

    @property
    def placement(self) -> str:
        """Where it runs, for the log."""
        processes = f"{self.launch.world_size} process{'es' if self.launch.world_size > 1 else ''}"
        return f"{self.device} | {processes}" + (f" | {self.arithmetic}" if self.arithmetic else "")

    def describe_machines(self) -> None:
        """Says, of several processes, where they are, what was compared between them, and whose clock differs."""
        members = self.peers.members
        if len(members) > 1:
            self.log.info(describe_machines(members))
        skew = clock_skew(members)
        if skew:
            self.log.warning(skew)


def run_directory(cfg: CfgNode) -> Path:
    """OUTPUT/MODEL.NAME/TAG, where everything of a run lies."""
    return Path(cfg.OUTPUT) / cfg.MODEL.NAME / cfg.TAG


@contextlib.contextmanager
def open_session(
    cfg: CfgNode,
    given: Sequence[str],
    local_rank: Optional[int],
    training: bool = False,
    observers: Sequence[Observer] = (),
) -> Iterator[Session]:
    """The processes meet, the block runs, they part. An error of torch or of the system becomes one of ours.

    Args:
        cfg: the config as loaded.
        given: keys that the user set on the command line, which DATA.FROM_MODEL leaves alone.
        local_rank: as old launchers pass it.
        training: whether the command trains, for which float32 may be TF32.
        observers: who is told of a training run's events.

    Raises:
        UserError: of every kind.
        Stopped: a signal has ended the work.
    """
    cfg = take_from_model(cfg, given=given)
    keep_freed_memory()
    launch = read_launch(os.environ, local_rank)
    device = select_device(cfg.DEVICE, launch.gpu)
    if cfg.DETERMINISTIC:
        use_deterministic_algorithms()
    fixed_sizes = not (training and cfg.TRAIN.IMG_SIZES)
    arithmetic = choose_arithmetic(device, not training, cfg.DETERMINISTIC, fixed_sizes)
    directory = run_directory(cfg)
    with process_group(launch, device, ending.LAUNCHER) as store:
        log = RunLog(directory, launch.rank == 0, cfg.LOGGERS, to_dict(cfg))
        facts = facts_of(cfg) if store else {}
        peers = Peers(launch, ending.LAUNCHER, store, cfg.RANK_TIMEOUT, ending.report, log.warning, facts)
        together = False
        try:
            require_same_start(peers, cfg)
            yield Session(cfg, launch, device, peers, directory, log, arithmetic, observers)
            peers.meet()
            together = True
        except Stopped as stopped:
            together = stopped.together
            stopped.reason = peers.stop.reason
            raise
        except OSError as error:
            raise OutputError(
                f"{error.filename or 'output'}: {error.strerror or error}; check the path and the disk"
            ) from error
        except (RuntimeError, MemoryError) as error:
            raise_as_ours(error, cfg, device)
            peers.name_lost()  # a collective operation fails when another process is gone
            raise_as_backend_s(error, peers)
            raise
        finally:
            log.abandon()  # what an error has left open
            peers.close(together)


def raise_as_ours(error: Exception, cfg: CfgNode, device: torch.device) -> None:
    """Raises the UserError that an error of torch stands for, if it is one that a setting mends."""
    if is_out_of_memory(error):
        raise ShortageError(
            f"DATA.BATCH_SIZE (--batch-size) is {cfg.DATA.BATCH_SIZE}: {device} is out of memory; use a smaller one "
            "(with TRAIN.TOTAL_BATCH_SIZE the recipe stays the same) or --use-checkpoint"
        ) from error
    if cfg.DETERMINISTIC and "deterministic" in str(error):
        reason = " ".join(str(error).split(". ")[0].split())
        raise ConfigError(f"DETERMINISTIC: {reason}; switch it off") from error
    if "DataLoader worker" in str(error):
        reason = one_line(error, 120)
        raise ShortageError(
            f"DATA.NUM_WORKERS is {cfg.DATA.NUM_WORKERS}: a loading process was killed, perhaps as memory ran out "
            f"({reason}); use fewer, and start the same command again"
        ) from error


def raise_as_backend_s(error: Exception, peers: Peers) -> None:
    """Raises the UserError for an error of NCCL or gloo that nobody's death explains, if it is one."""
    line = backend_errors.of_backend(error, os.environ)
    if line and peers.behind:
        raise ProcessError(f"{peers.behind}; {line}; {START_AGAIN}") from error
    if line:
        raise line from error
