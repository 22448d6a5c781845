"""`--benchmark-data`: how fast training images are loaded, where the time goes, and how many workers a speed takes."""

import io
import math
import os
import time
from collections import defaultdict
from functools import partial
from statistics import median
from typing import Any, BinaryIO, Callable, NamedTuple, Sequence, cast

import torch
from torch.utils.data import default_collate
from torchvision import transforms
from yacs.config import CfgNode

from data.batches import Finish, Item, collate_items
from data.decode import decode_image
from data.loader import AnyDataset, endless_batches
from data.patience import patience
from data.sample import Sample
from data.transforms import Erase, Transform
from data.workers import Lines, describe_wait
from utils.config import batch_size_of
from utils.conflicts import is_rgb, require_no_conflict
from utils.errors import ConfigError, DataError
from utils.image_size import size_text
from utils.rng import derive_seed, seed_cpu
from utils.run_log import RunLog
from utils.schema import BACKENDS
from utils.urls import shown

from ..session import Session
from ..setup.loading import loading
from ..tasks import create_task

IMAGES = 64  # timed in each round, spread over the data set
ROUNDS = 5
LOADER_SECONDS = 5.0
RELEASED = "timm"


class Way(NamedTuple):
    """A way to load batches."""

    dataset: AnyDataset
    steps: dict[str, Callable[[Sample], Sample]]  # each takes what the one before gives
    collate: Callable[[Sequence[Item]], tuple[Any, list[str]]]
    finish: Callable[[Any], Any]  # what the training process does with a batch


def benchmark_data(session: Session, images_per_second: float) -> None:
    """Times the loading of training images by each backend, in turns, and by the config's workers; writes nothing.

    Args:
        images_per_second: what all GPUs together take; 0: not known.

    Raises:
        ConfigError: several processes.
        DataError: the data set cannot be used.
    """
    cfg, device, log, processes = session.cfg, session.device, session.log, session.launch.world_size
    if processes > 1:
        raise ConfigError(
            f"--benchmark-data: times one process, but {processes} were started; start main.py without a launcher"
        )
    torch.set_num_threads(1)  # as in a worker
    finish = loading(cfg, device).finish
    ways = open_ways(cfg, finish, log)
    chosen = ways[cfg.DATA.BACKEND].dataset
    cores = len(os.sched_getaffinity(0))
    log.info(
        f"{shown(cfg.DATA.DATA_PATH) or cfg.DATA.DATASET}: {len(chosen)} training images, {size_text(cfg.DATA.IMG_SIZE)} px; "
        f"{cores} cores; one process, medians of {ROUNDS} rounds of {min(IMAGES, len(chosen))} images, in turns"
    )
    seconds = {}
    for name, profile in profile_in_turns(ways, cfg.SEED, cfg.DATA.TIMEOUT).items():
        in_training = profile.pop("finish")
        seconds[name] = sum(profile.values())
        compared = name != RELEASED and RELEASED in seconds
        faster = f", {seconds[RELEASED] / seconds[name]:.2f} times {RELEASED}'s speed" if compared else ""
        log.info(f"{name}: {1 / seconds[name]:.0f} images/s/core{faster}; {describe(profile)}")
        if name == cfg.DATA.BACKEND:
            took = f"{1000 * in_training:.2f} ms per image"
            log.info(f"{name}: beside that, the training process needs {took} to normalise and erase on {device}")
        by_pillow = getattr(getattr(ways[name].dataset.source, "decode", None), "by_pillow", 0)
        if by_pillow:
            loaded = (ROUNDS + 1) * min(IMAGES, len(chosen))
            log.info(f"{name}: {by_pillow} of {loaded} were decoded by Pillow, as they are no plain JPEGs")
    measure_loader(cfg, device, chosen, log)
    say_workers(seconds, images_per_second, cores, log)


def open_ways(cfg: CfgNode, finish: Finish, log: RunLog) -> dict[str, Way]:
    """The training set as timm loads it, and with each backend that can be had here; says why another cannot.

    Raises:
        ConfigError: the config's own backend cannot be had.
    """
    ways = {}
    for name in BACKENDS:
        changed = cfg.clone()
        changed.defrost()
        changed.DATA.BACKEND = name
        try:
            require_no_conflict(changed, "benchmark_data")
            dataset = create_task(changed).train_dataset()
        except ConfigError as error:
            if name == cfg.DATA.BACKEND:
                raise
            log.warning(f"{name}: left out ({error})")
            continue
        if name == "pil" and is_rgb(cfg) and not cfg.AUG.SPLITS and isinstance(dataset.transform, Transform):
            ways[RELEASED] = as_released(dataset, dataset.transform, cfg.DATA.MEAN, cfg.DATA.STD)
        ways[name] = Way(
            dataset, named_steps(dataset.transform), partial(collate_items, collate=dataset.collate), finish
        )
    return ways


def as_released(dataset: AnyDataset, transform: Transform, mean: Sequence[float], std: Sequence[float]) -> Way:
    """timm's whole transform in the worker, and batches of float32, as in the released code."""
    steps = {name: step for name, step in transform.steps.items() if name not in ("to array", "erase")}
    steps.update({"to tensor": transforms.ToTensor(), "normalise": transforms.Normalize(mean, std)})
    steps["erase"] = cast(Erase, transform.steps["erase"]).erasing

    def collate(items: Sequence[Item]) -> tuple[Any, list[str]]:
        pairs = [(item.sample.image, item.sample.target) for item in items if item.sample]
        return default_collate(pairs) if pairs else None, [text for item in items for text in item.failures]

    return Way(dataset, {name: on_image(step) for name, step in steps.items()}, collate, lambda batch: batch)


def named_steps(transform: Callable[[Sample], Sample]) -> dict[str, Callable[[Sample], Sample]]:
    """A transform's steps, if it tells them apart."""
    if isinstance(transform, Transform):
        return {name: on_image(step) for name, step in transform.steps.items()}
    return {"transform": transform}


def on_image(step: Callable[[Any], Any]) -> Callable[[Sample], Sample]:
    """A step that changes a sample's image alone."""
    return lambda sample: sample._replace(image=step(sample.image))


def profile_in_turns(ways: dict[str, Way], seed: int, timeout: float) -> dict[str, dict[str, float]]:
    """Seconds of this process' CPU time per image by step, the median over rounds in which each way has its turn."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    lines = Lines(0)
    lines.take(0)
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            with patience(timeout, lambda: describe_wait(lines, [])):
                rounds[name].append(profile(way, seed, number))
    # the first warms up
    return {
        name: {step: median(r[step] for r in timings[1:]) for step in timings[1]} for name, timings in rounds.items()
    }


def profile(way: Way, seed: int, number: int) -> dict[str, float]:
    """Seconds of CPU time per image of each step of loading a batch, and of its `finish`, for whose GPU nobody waits.

    Raises:
        DataError: an image cannot be read and the set's `on_error` is 'raise'; or none can be read.
    """
    seconds: dict[str, float] = defaultdict(float)
    last = time.process_time()

    def lap(step: str) -> None:
        nonlocal last
        now = time.process_time()
        seconds[step] += now - last
        last = now

    def read_then_decode(file) -> Any:
        data = file.read()
        lap("read")
        image = decode(io.BytesIO(data))
        lap("decode")
        return image

    dataset = way.dataset
    source = dataset.source
    decode: Callable[[BinaryIO], Any] = getattr(source, "decode", decode_image)  # a source without one reads no files
    if hasattr(source, "decode"):
        source.decode = read_then_decode
    items = []
    wanted = min(IMAGES, len(dataset))
    try:
        for index, load in enumerate(dataset.loads(wanted)):
            lap("read")
            seed_cpu(derive_seed(seed, number, index))
            lap("seed")
            try:
                sample = load()
            except DataError as error:
                if dataset.on_error == "raise":
                    raise
                items.append(Item(None, (str(error),)))
                continue
            lap("read")
            for name, step in way.steps.items():
                sample = step(sample)
                lap(name)
            items.append(Item(sample))
    finally:
        if hasattr(source, "decode"):
            source.decode = decode
    batch, failures = way.collate(items)
    if batch is None:
        raise DataError(f"{failures[0]}; none of {len(failures)} images could be read")
    lap("collate")
    way.finish(batch)
    lap("finish")
    return {step: value / len(batch[1]) for step, value in seconds.items()}


def describe(profile: dict[str, float]) -> str:
    steps = ", ".join(f"{step} {1000 * seconds:.2f}" for step, seconds in profile.items())
    return f"{1000 * sum(profile.values()):.2f} ms per image: {steps}"


def measure_loader(cfg: CfgNode, device: torch.device, dataset, log: RunLog) -> None:
    """Says how many images per second the config's workers load; the first batches, of their start, are not counted."""
    workers = cfg.DATA.NUM_WORKERS
    if not workers:
        log.info("loader: DATA.NUM_WORKERS is 0, the training process loads by itself")
        return
    size = batch_size_of(cfg)
    batches = endless_batches(dataset, size, cfg.SEED, cfg.DATA.SHUFFLE_BUFFER, loading(cfg, device))
    for _ in range(workers):
        next(batches)
    started, count = time.perf_counter(), 0
    while count % workers or time.perf_counter() - started < LOADER_SECONDS:
        next(batches)
        count += 1
    rate = count * size / (time.perf_counter() - started)
    log.info(
        f"loader: {rate:.0f} images/s with DATA.BACKEND {cfg.DATA.BACKEND}, DATA.NUM_WORKERS {workers}, batches of {size}"
    )


def say_workers(seconds: dict[str, float], images_per_second: float, cores: int, log: RunLog) -> None:
    """Says how many workers, each with a core of its own, load so many images per second."""
    target = images_per_second or 1000.0
    needed = {name: math.ceil(target * each) for name, each in seconds.items()}
    counts = ", ".join(f"{count} with {name}" for name, count in needed.items())
    note = "" if images_per_second else "; --benchmark-data 2500 says it for 2500 images/s of all GPUs together"
    log.info(f"workers for {target:g} images/s, a core each: {counts} ({cores} cores are here){note}")
