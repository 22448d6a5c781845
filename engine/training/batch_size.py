"""DATA.BATCH_SIZE auto: the largest micro-batch that fits into memory; TRAIN.TOTAL_BATCH_SIZE is kept by accumulation."""

import functools
import gc
import math
from dataclasses import replace
from typing import Any, Callable, Mapping, Optional, Sequence

import torch
from yacs.config import CfgNode

from utils.config import with_values
from utils.conflicts import is_rgb, mixes
from utils.device import forget_memory, is_out_of_memory
from utils.errors import ShortageError
from utils.image_size import height_and_width
from utils.malloc import give_back_freed_memory
from utils.memory import available_memory, forget_peak, peak_memory, resident_memory
from utils.processes.peers import Peers
from utils.rng import get_rng_state, set_rng_state
from utils.schema import AUTO

from ..session import Session
from .build import build_optimizer, build_trainer
from .preflight import batch_of, dry_step, read_images
from .trainer import Trainer

MOST, LEAST = 1024, 8  # images that are tried
STEP = 0.75  # a candidate is at most this share of the one before
SHARE = 0.9  # of the memory that is free; the rest is for what one step does not show


def batch_size_of_run(session: Session, checkpoint: Optional[Mapping[str, Any]]) -> tuple[int, str]:
    """How many images a process takes at a time, and what to say of it if the config says `auto`.

    A run that goes on takes as many as before, as BatchNorm's statistics are those of a micro-batch. All processes call this, and
    have the same.

    Args:
        checkpoint: that the run goes on from.

    Raises:
        ShortageError: not even the fewest images fit.
        UserError: the run cannot be built.
    """
    cfg, world_size = session.cfg, session.launch.world_size
    if cfg.DATA.BATCH_SIZE != AUTO:
        return cfg.DATA.BATCH_SIZE, ""
    before = recorded(checkpoint) if checkpoint else 0
    sizes = candidates(cfg.TRAIN.TOTAL_BATCH_SIZE, world_size, in_pairs=mixes(cfg))
    if before:
        return before, f"DATA.BATCH_SIZE auto: {before}, as in the checkpoint"
    size = largest(sizes, fits_here(session, sizes), session.peers)
    _free(session.device)  # of the rehearsed run
    why = "the most that are tried" if size == sizes[0] else f"{sizes[sizes.index(size) - 1]} do not fit into memory"
    return size, f"DATA.BATCH_SIZE auto: {size} ({why}); checkpoints keep it"


def recorded(checkpoint: Mapping[str, Any]) -> int:
    """The images at a time of a checkpoint's run; 0 if it does not say so."""
    size = checkpoint.get("plan", {}).get("batch_size") or checkpoint.get("config", {}).get("DATA", {}).get(
        "BATCH_SIZE"
    )
    return size if isinstance(size, int) else 0


def candidates(total: int, world_size: int, in_pairs: bool) -> list[int]:
    """What is tried, the most images first, from 1024 to 8: a few divisors of a process' share of an update, or, where the shares are
    not the same, parts of the largest.

    Args:
        total: TRAIN.TOTAL_BATCH_SIZE.
        in_pairs: mixup and cutmix need an even number.
    """
    unit = 2 if in_pairs else 1
    if total % (world_size * unit):
        shares = [-(-total // (world_size * unit * 2**halvings)) * unit for halvings in range(11)]
        return [size for size in dict.fromkeys(shares) if LEAST <= size <= MOST] or [max(shares[0], LEAST)]
    share = max(1, total // world_size)
    divisors = [size for size in range(min(share, MOST), 1, -1) if share % size == 0 and not (in_pairs and size % 2)]
    chosen: list[int] = []
    for size in divisors:
        if not chosen or (size >= LEAST and size <= STEP * chosen[-1]):
            chosen.append(size)
    return chosen or [share]


def largest(sizes: Sequence[int], fits: Callable[[int], bool], peers: Peers) -> int:
    """The first of these sizes, which fall, that fits on all processes.

    Raises:
        ShortageError: none does.
    """
    for size in sizes:
        if all(peers.gather(fits(size))):
            return size
    raise ShortageError(
        f"DATA.BATCH_SIZE (--batch-size) auto: not even {sizes[-1]} images at a time fit into memory; use --use-checkpoint, smaller "
        "images or a smaller model"
    )


def fits_here(session: Session, sizes: Sequence[int]) -> Callable[[int], bool]:
    """What finds out whether so many images at a time fit into this process' memory."""
    if session.device.type == "cuda":
        return functools.partial(fits_gpu, session, Rehearsal(session, sizes[-1]))
    return extrapolated(Rehearsal(session, sizes[-1]), sizes, SHARE * available_memory() / session.launch.local_size)


class Rehearsal:
    """Steps of the run on a copy, with micro-batches of any size.

    BatchNorm is that of this process alone, and the optimizer is whole (without TRAIN.SHARD, which leaves more room): one that runs
    out of memory must not leave others waiting for it.

    Args:
        size: the fewest images at a time, which the run is built for.
    """

    def __init__(self, session: Session, size: int):
        self.cfg = with_values(
            session.cfg,
            {"DATA.BATCH_SIZE": size, "TRAIN.SYNC_BN": "none", "TRAIN.SHARD": "none"},
            "DATA.BATCH_SIZE auto",
        )
        random_state = get_rng_state()
        try:
            self.trainer: Trainer = build_trainer(replace(session, cfg=self.cfg), "", size)[0]
            self.items = read_images(self.trainer)[0]
        finally:
            set_rng_state(random_state)

    def step(self, size: int) -> None:
        """Two training steps and evaluation batches. Raises what torch does where memory runs out."""
        random_state = get_rng_state()
        lr = self.trainer.data.plan.scale_lr(self.cfg.TRAIN.BASE_LR)
        try:
            batch = batch_of(self.trainer, self.items, size)
            dry_step(self.trainer, lambda model: build_optimizer(self.cfg, model, lr), batch)
        finally:
            set_rng_state(random_state)

    def memory_of(self, size: int) -> int:
        """Bytes of main memory that such steps take, with the batches that loading processes have ready."""
        _free(torch.device("cpu"))
        forget_peak()
        before = resident_memory()
        self.step(size)
        data = self.cfg.DATA
        loading = data.NUM_WORKERS * data.PREFETCH + 1
        return peak_memory() - before + loading * size * bytes_of_image(self.cfg)


def bytes_of_image(cfg: CfgNode) -> int:
    """Of a training image as a loading process sends it: of the largest size, with all its views."""
    sizes = [cfg.DATA.IMG_SIZE, *(size for _, size in cfg.TRAIN.IMG_SIZES)]
    pixels = max(math.prod(height_and_width(size)) for size in sizes)
    pixel = 3 if is_rgb(cfg) else 4 * cfg.DATA.IN_CHANS  # batches of bands are float32
    return pixel * pixels * max(1, cfg.AUG.SPLITS)


def fits_gpu(session: Session, rehearsal: Rehearsal, size: int) -> bool:
    """Whether a GPU has room for steps of so many images, which are done."""
    device = session.device
    _free(device)
    room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        rehearsal.step(size)
        fits = torch.cuda.max_memory_reserved(device) <= SHARE * room
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    _free(device)
    return fits


def extrapolated(rehearsal: Any, sizes: Sequence[int], room: float) -> Callable[[int], bool]:
    """The same in main memory, where a step that does not fit would end the process: only the two smallest sizes are tried, and
    the memory of others lies on the line through theirs.

    Args:
        rehearsal: has `memory_of`.
        room: bytes that may be taken.
    """
    few = sizes[-1]
    rehearsal.memory_of(few)  # with what torch makes once, which is not the images'
    low = rehearsal.memory_of(few)
    slope = 0.0
    for more in sizes[-2:-1]:
        slope = max(slope, (rehearsal.memory_of(more) - low) / (more - few))
    return lambda size: low + slope * (size - few) <= room


def _free(device: torch.device) -> None:
    """Gives back what steps before have left."""
    gc.collect()
    forget_memory(device)
    give_back_freed_memory()
