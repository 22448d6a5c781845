"""What a trained model sees of images before its head: a vector of each, in the order of the files."""

import os
from typing import Any, Callable, Sequence

import numpy as np
import torch

from data.batches import Examples
from data.dataset import ImageDataset
from data.sources.image_paths import FileSource
from utils.errors import CheckpointError
from utils.image_size import Size
from utils.processes.collectives import gather_rows
from utils.processes.peers import Peers

from ..setup.model import PooledFeatures
from .embedding_files import UNKNOWN, Embeddings
from .examination import Examination
from .trained import Trained


def embed(trained: Trained, paths: Sequence[str], examination: Examination, img_size: Size = 0) -> Embeddings:
    """The pooled features of image files, as the classifier gets them, of one view each.

    The processes of the examination share the files; what comes back is the same for any number of them, of loading
    processes and of images at a time, but for the rounding of sums. All processes call this.

    Args:
        trained: the model that the examination is of, and its transform.
        paths: each once.
        img_size: 0: what the model was evaluated on.

    Returns:
        Those of the files that could be read, in their order; on all processes.

    Raises:
        ConfigError: the model's features and its head are not apart.
        CheckpointError: the features are not finite.
        DataError: no file could be read.
        Stopped: a signal has ended the work.
    """
    transform = trained.transform(img_size, crops=1)
    dataset = ImageDataset(FileSource(paths, transform.decode), transform, on_error="skip")
    vectors = Vectors(examination.device, examination.peers)
    examination.run(examination.loader(dataset), vectors, PooledFeatures(examination.model, "--embeddings"))
    place = {path: number for number, path in enumerate(paths)}
    order = np.array(sorted(range(len(vectors.keys)), key=lambda row: place[vectors.keys[row]]))
    matrix = vectors.matrix[order]
    if not np.isfinite(matrix).all():
        raise CheckpointError(str(trained.path), "the model's features are not finite", "use another checkpoint")
    read = [vectors.keys[row] for row in order]
    facts = {
        "checkpoint": str(trained.path), "model": trained.cfg.MODEL.NAME, "weights": trained.weights,
        "img_size": img_size or trained.own_size, "precision": str(examination.precision),
    }  # fmt: skip
    return Embeddings(read, labels_of(read, trained.classes), matrix, list(trained.classes), facts)


def labels_of(paths: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """int64 (N,): the class that a file's folder is named after, as in a data set of folders; `UNKNOWN` for another folder."""
    numbers = {name: number for number, name in enumerate(classes)}
    folders = (os.path.basename(os.path.dirname(os.path.abspath(path))) for path in paths)
    return np.array([numbers.get(folder, UNKNOWN) for folder in folders], dtype=np.int64)


class Vectors:
    """An evaluator that keeps what the model says of each image, on its device until all are there."""

    def __init__(self, device: torch.device, peers: Peers):
        self.device, self.peers = device, peers
        self.rows: list[torch.Tensor] = []
        self.keys: list[str] = []
        self.matrix = np.empty((0, 0), dtype=np.float32)

    def step(self, model: Callable[[Any], Any], batch: Examples) -> None:
        self.rows.append(model(batch.images).float())  # (B, D)
        self.keys += batch.keys

    def compute(self) -> dict[str, Any]:
        """Brings together what the processes have; all call it."""
        width = max(self.peers.gather(self.rows[0].shape[1] if self.rows else 0))
        rows = torch.cat([torch.empty(0, width, device=self.device), *self.rows])
        self.rows = []
        self.matrix = gather_rows(rows).cpu().numpy()
        self.keys = sum(self.peers.gather(self.keys), [])
        return {"num_images": len(self.keys)}
