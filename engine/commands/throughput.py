"""`--throughput`: inference speed of a model on synthetic images."""

import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Callable

import torch

from utils.config import batch_size_of
from utils.device import forget_memory, memory_mib, to_device
from utils.image_size import Size, height_and_width, size_text

from ..inference.engines import EXPORTING, describe, open_engine, require_engine
from ..session import Session
from ..setup.compilation import Compilation, compile_model, decide_compilation
from ..setup.complexity import complexity_of
from ..setup.model import prepare_model
from ..setup.precision import create_precision
from ..tasks import create_task

WARMUP_SECONDS, MEASURED_SECONDS = 3, 10  # half of the latter for the latency, half for the stretches
MAX_BATCHES = 100  # whose latency is taken
STRETCHES = 5


def throughput(session: Session) -> None:
    """Prints the model's inference speed on synthetic images; reads and writes no files."""
    cfg, device, log = session.cfg, session.device, session.log
    precision = create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, device)
    require_engine(cfg.TEST.ENGINE, device, precision)
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES or 1000)
    log.info(f"{cfg.MODEL.NAME} at {size_text(cfg.DATA.IMG_SIZE)} px: {complexity_of(model, cfg)}")
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
    form = describe(cfg.TEST.ENGINE, model, cfg.TEST.FUSED)
    engine = open_engine(cfg.TEST.ENGINE, model.eval(), precision, cfg.DATA.IMG_SIZE, cfg.TEST.FUSED, cfg.DATA.IN_CHANS)
    compilation = decide_compilation(cfg, device) if cfg.TEST.ENGINE == "torch" else Compilation("", "")
    if compilation.mode:
        compile_model(engine, compilation.mode)
    compiled = f" | {compilation.reason}" if compilation.reason else ""
    log.info(f"{session.placement} | {engine.precision}{form}{compiled} | batch {batch_size_of(cfg)}")
    channels_last = cfg.TRAIN.CHANNELS_LAST and engine.name not in EXPORTING
    speed = measure_throughput(engine, device, batch_size_of(cfg), cfg.DATA.IMG_SIZE, channels_last, cfg.DATA.IN_CHANS)
    log.info(str(speed))


@dataclass(frozen=True)
class Throughput:
    """Medians: images/s over `STRETCHES` stretches of `stretch` batches, latency over `batches` ones."""

    images_per_second: float
    stretch: int
    latency_ms: float  # of a batch that is waited for
    batches: int
    memory_mib: float

    def __str__(self) -> str:
        batches = "1 batch" if self.stretch == 1 else f"{self.stretch} batches"
        return (
            f"{self.images_per_second:.1f} images/s (median of {STRETCHES} stretches of {batches}, each stretch waited for) | "
            f"latency {self.latency_ms:.2f} ms per batch (median of {self.batches}, each batch waited for) | "
            f"peak memory {self.memory_mib:.0f} MiB"
        )


@torch.inference_mode()
def measure_throughput(
    model: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    batch_size: int,
    img_size: Size,
    channels_last: bool,
    in_chans: int = 3,
) -> Throughput:
    """Times forward passes of batches (batch_size, in_chans, height, width) after a warm-up.

    A GPU computes while the CPU starts what comes next. To wait for each batch shows how soon one is done, its latency; in
    images/s it would count the CPU's work between two batches, which is most of the time of a single image.
    """
    images = to_device(torch.randn(batch_size, in_chans, *height_and_width(img_size)), device, channels_last)

    def timed(batches: int) -> float:
        """Seconds until the last of them is done."""
        started = time.perf_counter()
        for _ in range(batches):
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def timed_batches(seconds: float, at_least: int) -> list[float]:
        times: list[float] = []
        while len(times) < at_least or (sum(times) < seconds and len(times) < MAX_BATCHES):
            times.append(timed(1))
        return times

    timed_batches(WARMUP_SECONDS, at_least=2)
    forget_memory(device)
    times = timed_batches(MEASURED_SECONDS / 2, at_least=5)
    latency = median(times)
    stretch = max(1, math.ceil(MEASURED_SECONDS / 2 / STRETCHES / latency))
    seconds = median(timed(stretch) for _ in range(STRETCHES))
    return Throughput(batch_size * stretch / seconds, stretch, 1000 * latency, len(times), peak_mib(device))


def peak_mib(device: torch.device) -> float:
    """The largest memory of the timed batches; on a GPU with what CUDA graphs keep for their maps, which torch calls free."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    return memory_mib(device)
