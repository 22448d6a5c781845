"""`--throughput`: inference speed of a model on synthetic images."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Callable

import torch

from utils.device import memory_mib, to_device

from ..inference.engines import describe, open_engine, require_engine
from ..session import Session
from ..setup.compilation import compile_model, decide_compilation
from ..setup.complexity import complexity_of
from ..setup.model import prepare_model
from ..setup.precision import create_precision
from ..tasks import create_task

WARMUP_SECONDS, MEASURED_SECONDS, MAX_BATCHES = 3, 10, 100


def throughput(session: Session) -> None:
    """Prints the model's inference speed on synthetic images; reads and writes no files."""
    cfg, device, log = session.cfg, session.device, session.log
    precision = create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, device)
    require_engine(cfg.TEST.ENGINE, device, precision)
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES or 1000)
    log.info(f"{cfg.MODEL.NAME} at {cfg.DATA.IMG_SIZE} px: {complexity_of(model, cfg)}")
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
    form = describe(cfg.TEST.ENGINE, model, cfg.TEST.FUSED)
    engine = open_engine(cfg.TEST.ENGINE, model.eval(), precision, cfg.DATA.IMG_SIZE, cfg.TEST.FUSED)
    compilation = decide_compilation(cfg, device)
    if compilation.mode:
        compile_model(engine, compilation.mode)
    compiled = f" | {compilation.reason}" if compilation.reason else ""
    log.info(f"{session.placement} | {engine.precision}{form}{compiled} | batch {cfg.DATA.BATCH_SIZE}")
    channels_last = cfg.TRAIN.CHANNELS_LAST and engine.name == "torch"
    speed = measure_throughput(engine, device, cfg.DATA.BATCH_SIZE, cfg.DATA.IMG_SIZE, channels_last)
    log.info(str(speed))


@dataclass(frozen=True)
class Throughput:
    """Median over `batches` timed ones."""

    images_per_second: float
    latency_ms: float  # of a batch
    memory_mib: float
    batches: int

    def __str__(self) -> str:
        return (
            f"{self.images_per_second:.1f} images/s, {self.latency_ms:.2f} ms per batch (median of {self.batches}), "
            f"peak memory {self.memory_mib:.0f} MiB"
        )


@torch.inference_mode()
def measure_throughput(
    model: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    batch_size: int,
    img_size: int,
    channels_last: bool,
) -> Throughput:
    """Times forward passes of batches (batch_size, 3, img_size, img_size) after a warm-up."""
    images = to_device(torch.randn(batch_size, 3, img_size, img_size), device, channels_last)

    def timed_batch() -> float:
        started = time.perf_counter()
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def timed_batches(seconds: float, at_least: int) -> list[float]:
        times: list[float] = []
        while len(times) < at_least or (sum(times) < seconds and len(times) < MAX_BATCHES):
            times.append(timed_batch())
        return times

    timed_batches(WARMUP_SECONDS, at_least=2)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = timed_batches(MEASURED_SECONDS, at_least=5)
    latency = median(times)
    return Throughput(batch_size / latency, 1000 * latency, memory_mib(device), len(times))
