"""`--embeddings`: a vector of each image in one file, by any number of processes."""

import argparse
import os
from pathlib import Path
from typing import Callable, Iterable, Iterator

from tqdm import tqdm

from data.sources.image_paths import Files
from engine.inference.embedding_files import UNKNOWN, Embeddings, write_embeddings
from engine.inference.embeddings import embed
from engine.inference.examination import Examination
from engine.inference.trained import Trained, load_trained
from engine.session import Session, open_session
from utils.config import with_values
from utils.errors import ConfigError
from utils.files import atomic_write
from utils.processes.launch import available_cores, read_launch
from utils.signals import stop_signals

from ..collecting_log import CollectingLog
from .places import say


class Bar(CollectingLog):
    """Of batches, on standard error."""

    def progress(self, items: Iterable, total: int, label: str, done: int = 0) -> Iterator:
        return iter(tqdm(items, label, total, initial=done, leave=False, disable=None if self.enabled else True))

    def _line(self, message: str, color: object) -> None:
        """An evaluation's warnings are of figures; what could not be read is said at the end."""


def predict_embeddings(args: argparse.Namespace, find: Callable[[], Files]) -> list[str]:
    """Writes args.embeddings.

    Args:
        find: gives the images; called by the first process alone, whose standard input may list them.

    Returns:
        What is to be said of what has no image, on the first process.

    Raises:
        ConfigError: the model is for another task, or its features are not apart from its head.
        CheckpointError: the checkpoint cannot be used.
        OutputError: the file cannot be written.
    """
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    if trained.cfg.TASK != "classification":
        raise ConfigError(
            f"--embeddings: is for classification, and the checkpoint is of TASK {trained.cfg.TASK}; leave it out"
        )
    processes = read_launch(os.environ, args.local_rank).local_size
    computing = {
        "DEVICE": args.device,
        "DATA.BATCH_SIZE": args.batch_size,
        "DATA.NUM_WORKERS": min(8, available_cores(processes)) if args.workers is None else args.workers,
        "AMP.ENABLED": args.amp,
        "AMP.DTYPE": "auto",
    }
    with open_session(with_values(trained.cfg, computing, "flags"), list(computing), args.local_rank) as session:
        return _embed_all(args, find, trained, session)


def _embed_all(args: argparse.Namespace, find: Callable[[], Files], trained: Trained, session: Session) -> list[str]:
    tell = say if session.is_first else lambda line: None
    files = Files(*session.peers.from_first(tuple(find()) if session.is_first else None))
    for line in [*(f"warning: {text}" for text in trained.warnings), *(f"note: {text}" for text in files.notes)]:
        tell(line)
    if not files.paths:
        return files.problems
    tell(f"{trained.cfg.MODEL.NAME}, {trained.weights} weights of {args.checkpoint}: {session.placement}")
    log = Bar(enabled=session.is_first)
    examination = Examination(session.cfg, trained.model, session.device, log, session.peers)
    with stop_signals(session.peers.stop):
        values = embed(trained, files.paths, examination, args.img_size)
    if session.is_first:
        path = Path(args.embeddings)
        with atomic_write(path, flag="--embeddings") as file:
            write_embeddings(values, path.suffix, file)
        tell(f"wrote {path}: {describe(values)}")
    return [*files.problems, *log.unreadable]


def describe(values: Embeddings) -> str:
    """How many images, and of how many of them the class is known, and by what."""
    labelled = int((values.labels != UNKNOWN).sum())
    images, width = values.vectors.shape
    labels = f"{labelled} labels, of folders that are named as the model's classes" if labelled else "no labels"
    return f"{images} images, {width} numbers each; {labels}"
