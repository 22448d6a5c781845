"""`--benchmark-data`: how fast training images are loaded, where the time goes, and how many workers a speed takes."""

import io
import itertools
import math
import os
import time
from collections import defaultdict
from statistics import median
from typing import Any, Callable, Iterator

import torch
from yacs.config import CfgNode

from data.batches import Item, collate_items
from data.dataset import ImageDataset, SeededIndex
from data.loader import Loader
from utils.defaults import BACKENDS
from utils.distributed import Launch
from utils.errors import ConfigError, DataError
from utils.rng import derive_seed, seed_cpu
from utils.run_log import RunLog

from .build import loading, run_directory
from .tasks import create_task

IMAGES = 64  # timed in each round, spread over the data set
ROUNDS = 5
LOADER_SECONDS = 5.0


def benchmark_data(cfg: CfgNode, launch: Launch, device: torch.device, images_per_second: float) -> None:
    """Times the loading of training images by each backend, in turns, and by the config's workers; writes nothing.

    Args:
        images_per_second: what all GPUs together take; 0: not known.

    Raises:
        ConfigError: several processes.
        DataError: the data set cannot be used.
    """
    if launch.world_size > 1:
        raise ConfigError(f"--benchmark-data: times one process, but {launch.world_size} were started; start main.py without a launcher")
    log = RunLog(run_directory(cfg), enabled=True)
    torch.set_num_threads(1)  # as in a worker
    datasets = open_datasets(cfg, log)
    chosen = datasets[cfg.DATA.BACKEND]
    cores = len(os.sched_getaffinity(0))
    log.info(
        f"{cfg.DATA.DATA_PATH or cfg.DATA.DATASET}: {len(chosen)} training images, {cfg.DATA.IMG_SIZE} px; "
        f"{cores} cores; one process, medians of {ROUNDS} rounds of {min(IMAGES, len(chosen))} images, in turns"
    )
    finish = loading(cfg, device)["finish"]
    profiles = profile_in_turns(datasets, cfg.SEED, lambda batch: synchronised(finish, batch, device))
    seconds = {}
    for name, profile in profiles.items():
        in_training = profile.pop("finish")
        seconds[name] = sum(profile.values())
        faster = f", {seconds['pil'] / seconds[name]:.2f} times pil's speed" if name != "pil" and "pil" in seconds else ""
        log.info(f"{name}: {1 / seconds[name]:.0f} images/s/core{faster}; {describe(profile)}")
        log.info(f"{name}: beside that {1000 * in_training:.2f} ms in the training process, normalise and erase on {device}")
        by_pillow = getattr(datasets[name].transform.decode, "by_pillow", 0)
        if by_pillow:
            log.info(f"{name}: {by_pillow} of {(ROUNDS + 1) * min(IMAGES, len(chosen))} were decoded by Pillow, as they are no plain JPEGs")
    measure_loader(cfg, device, chosen, log)
    say_workers(seconds, images_per_second, cores, log)


def open_datasets(cfg: CfgNode, log: RunLog) -> dict[str, ImageDataset]:
    """The training set with each backend that can be had here; says why another cannot.

    Raises:
        ConfigError: the config's own backend cannot be had.
    """
    datasets = {}
    for name in BACKENDS:
        changed = cfg.clone()
        changed.defrost()
        changed.DATA.BACKEND = name
        try:
            datasets[name] = create_task(changed).train_dataset()
        except ConfigError as error:
            if name == cfg.DATA.BACKEND:
                raise
            log.warning(f"{name}: left out ({error})")
    return datasets


def profile_in_turns(datasets: dict[str, ImageDataset], seed: int, finish: Callable[[Any], Any]) -> dict[str, dict[str, float]]:
    """Seconds of this process' CPU time per image by step, the median over rounds in which each backend has its turn."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in datasets}
    for number in range(ROUNDS + 1):
        for name, dataset in datasets.items():
            rounds[name].append(profile(dataset, seed, number, finish))
    return {name: {step: median(r[step] for r in found[1:]) for step in found[1]} for name, found in rounds.items()}  # the first warms up


def profile(dataset: ImageDataset, seed: int, number: int, finish: Callable[[Any], Any]) -> dict[str, float]:
    """Seconds per image of each step of loading a batch, and of its `finish`.

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

    source, transform = dataset.source, dataset.transform
    decode = transform.decode
    if hasattr(source, "decode"):
        source.decode = read_then_decode
    items = []
    wanted = min(IMAGES, len(dataset))
    try:
        for index in range(0, wanted * (len(dataset) // wanted), len(dataset) // wanted):
            seed_cpu(derive_seed(seed, number, index))
            lap("seed")
            try:
                image, label = source.load(index)
            except DataError as error:
                if dataset.on_error == "raise":
                    raise
                items.append(Item(None, (str(error),)))
                continue
            lap("read")
            for name, step in transform.steps.items():
                image = step(image)
                lap(name)
            items.append(Item((image, label)))
    finally:
        if hasattr(source, "decode"):
            source.decode = decode
    batch, failures = collate_items(items)
    if batch is None:
        raise DataError(f"{failures[0]}; none of {len(failures)} images could be read")
    lap("collate")
    finish(batch)
    lap("finish")
    return {step: value / len(batch.images) for step, value in seconds.items()}


def synchronised(finish: Callable[[Any], Any], batch: Any, device: torch.device) -> None:
    finish(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(profile: dict[str, float]) -> str:
    steps = ", ".join(f"{step} {1000 * seconds:.2f}" for step, seconds in profile.items())
    return f"{1000 * sum(profile.values()):.2f} ms per image: {steps}"


def measure_loader(cfg: CfgNode, device: torch.device, dataset: ImageDataset, log: RunLog) -> None:
    """Says how many images per second the config's workers load; the first batches, of their start, are not counted."""
    workers = cfg.DATA.NUM_WORKERS
    if not workers:
        log.info("loader: DATA.NUM_WORKERS is 0, the training process loads by itself")
        return
    size = cfg.DATA.BATCH_SIZE

    def endless() -> Iterator[list[SeededIndex]]:
        for start in itertools.count(0, size):
            yield [SeededIndex(i % len(dataset), derive_seed(cfg.SEED, i)) for i in range(start, start + size)]

    batches = Loader(dataset, batch_sampler=endless(), **loading(cfg, device)).batches()
    for _ in range(workers):
        next(batches)
    started, count = time.perf_counter(), 0
    while count % workers or time.perf_counter() - started < LOADER_SECONDS:
        next(batches)
        count += 1
    rate = count * size / (time.perf_counter() - started)
    log.info(f"loader: {rate:.0f} images/s with DATA.BACKEND {cfg.DATA.BACKEND}, DATA.NUM_WORKERS {workers}, batches of {size}")


def say_workers(seconds: dict[str, float], images_per_second: float, cores: int, log: RunLog) -> None:
    """Says how many workers, each with a core of its own, load so many images per second."""
    target = images_per_second or 1000.0
    needed = {name: math.ceil(target * each) for name, each in seconds.items()}
    counts = ", ".join(f"{count} with {name}" for name, count in needed.items())
    note = "" if images_per_second else "; --benchmark-data 2500 says it for 2500 images/s of all GPUs together"
    log.info(f"workers for {target:g} images/s, a core each: {counts} ({cores} cores are here){note}")
