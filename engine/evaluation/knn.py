"""How good features are without any training: a k-nearest-neighbour vote."""

from abc import ABC, abstractmethod
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F

from data.batches import Examples
from utils.errors import ConfigError
from utils.processes.collectives import gather_rows, sum_over_ranks
from utils.processes.peers import Peers

CHUNK = 2**26  # similarities that are held at a time: 256 MiB


def require_neighbours(ks: Sequence[int], num_images: int) -> None:
    """Raises ConfigError if there are fewer images than neighbours."""
    if max(ks) > num_images:
        raise ConfigError(
            f"TEST.KNN: {max(ks)} neighbours are asked for, but there are {num_images} training images; ask for fewer"
        )


class ByFeatures(ABC):
    """An evaluator of images' features instead of their classes."""

    def step(self, model: Callable[[Any], Any], batch: Examples) -> None:
        self.update(F.normalize(model(batch.images).float()), batch.targets, batch.keys)

    @abstractmethod
    def update(self, features: torch.Tensor, labels: torch.Tensor, keys: Sequence[str]) -> None:
        """Adds images: features (B, D) of length 1, labels (B,)."""


class Bank(ByFeatures):
    """All processes' training images: features (N, D) of length 1 and labels (N,), ordered by key, in which no process
    and no batch has a part.

    Each process holds all of it, 4 N D bytes (ImageNet-1k with FAT-B0's D = 256: 1.3 GB), and for a moment three times that.
    """

    def __init__(self, device: torch.device, peers: Peers):
        self.peers = peers
        self.features: list[torch.Tensor] = []
        self.labels = [torch.empty(0, dtype=torch.int64, device=device)]
        self.keys: list[str] = []

    def update(self, features: torch.Tensor, labels: torch.Tensor, keys: Sequence[str]) -> None:
        self.features.append(features)
        self.labels.append(labels)
        self.keys += keys

    def compute(self) -> dict[str, Any]:
        """Gathers what the processes have; all call it."""
        labels = torch.cat(self.labels)
        dim = max(self.peers.gather(self.features[0].shape[1] if self.features else 0))
        features = torch.cat(self.features) if self.features else torch.empty(0, dim, device=labels.device)
        self.features = []
        keys: list[str] = sum(self.peers.gather(self.keys), [])
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), device=labels.device)
        self.matrix, self.targets = gather_rows(features)[order], gather_rows(labels)[order]
        return {"num_images": len(keys)}


class Neighbours(ByFeatures):
    """The weighted vote of Wu et al. (CVPR 2018, arXiv 1805.01978) as DINO uses it (Caron et al., ICCV 2021, arXiv
    2104.14294): with features f of length 1, the k training images N_k(x) nearest to an image x by s_i = f_i . f(x),
    their labels y_i and a temperature tau,

        class of x = argmax over c of sum over i in N_k(x) of exp(s_i / tau) [y_i = c]

    Args:
        bank: of the training images, computed.
        ks: numbers of neighbours.
        temperature: tau.
        num_classes: that the labels are of.

    Raises:
        ConfigError: the bank has fewer images than neighbours.
    """

    def __init__(self, bank: Bank, ks: Sequence[int], temperature: float, num_classes: int):
        require_neighbours(ks, len(bank.matrix))
        self.bank, self.ks, self.temperature, self.num_classes = bank, ks, temperature, num_classes
        self.sums = torch.zeros(len(ks) + 1, dtype=torch.float64, device=bank.matrix.device)  # correct by k, images

    def update(self, features: torch.Tensor, labels: torch.Tensor, keys: Sequence[str] = ()) -> None:
        """Adds validation images."""
        for part, wanted in zip(
            *(values.split(max(CHUNK // len(self.bank.matrix), 1)) for values in (features, labels))
        ):
            correct = [(classes == wanted).sum() for classes in self.classes(part)]
            self.sums += torch.stack([*correct, torch.tensor(len(wanted), device=features.device)])

    def classes(self, features: torch.Tensor) -> list[torch.Tensor]:
        """For each k the classes (B,) of images with features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):  # 16 bits cannot tell near neighbours apart
            # (B, K), the nearest first
            similarities, nearest = (features @ self.bank.matrix.T).topk(max(self.ks), dim=1)
        weights = ((similarities - 1) / self.temperature).exp()  # / exp(1 / tau), which changes no argmax: at most 1
        labels = self.bank.targets[nearest]
        votes = features.new_zeros(len(features), self.num_classes)
        return [votes.zero_().scatter_add_(1, labels[:, :k], weights[:, :k]).argmax(1) for k in self.ks]

    def compute(self) -> dict[str, Any]:
        """Top-1 accuracy in percent by k, over all processes, and the number of images."""
        *correct, num_images = sum_over_ranks(self.sums).tolist()
        accuracies = {f"knn{k}_acc1": 100 * hits / num_images for k, hits in zip(self.ks, correct)}
        return {**accuracies, "num_images": int(num_images)}
