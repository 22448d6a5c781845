"""What a model got wrong: which classes it took for which, and the images that it was most wrong about."""

from collections import Counter
from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from utils.metrics import ClassificationMetrics, top_classes
from utils.pictures import pixels_of
from utils.processes.peers import Peers


@dataclass(frozen=True)
class Mistake:
    """An image whose likeliest class is not its target."""

    loss: float  # cross-entropy
    key: str  # which image, see `data.batches.Item`
    target: int
    predicted: int
    probability: float  # of the predicted class
    pixels: np.ndarray  # uint8 (H, W, 3), as the model saw it, see `utils.pictures.three_bands`


@dataclass(frozen=True)
class Errors:
    """Of all images of all processes."""

    pairs: Counter  # images by (target, predicted), right ones too
    worst: list[Mistake]  # by falling loss

    def confusion(self, num_classes: int) -> np.ndarray:
        """Images by target (rows) and predicted class (columns): (num_classes, num_classes), int64."""
        matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        for (target, predicted), images in self.pairs.items():
            matrix[target, predicted] = images
        return matrix


class Mistakes(ClassificationMetrics):
    """The metrics of a set, with what was wrong.

    Args:
        device: of the sums.
        mean, std: of the images' normalisation.
        most: images that are kept, those with the largest loss.
    """

    def __init__(self, device: torch.device, mean: Sequence[float], std: Sequence[float], most: int = 24):
        super().__init__(device)
        self.mean, self.std = mean, std
        self.most = most
        self.pairs: Counter = Counter()
        self.worst: list[Mistake] = []

    def update(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        keys: Sequence[str] = (),
        images: Optional[torch.Tensor] = None,
    ) -> None:
        """As `ClassificationMetrics`, with the images' keys (B) and the normalised images (B, C, H, W)."""
        super().update(logits, targets)
        logits = logits.float()
        predicted = top_classes(logits)[:, 0]  # of equal logits, which 16 bits often give, the one that acc1 counts
        probabilities = logits.softmax(dim=1).gather(1, predicted[:, None])[:, 0]
        losses = F.cross_entropy(logits, targets, reduction="none")
        columns = [values.tolist() for values in (targets, predicted, probabilities, losses)]
        self.pairs.update(zip(*columns[:2]))
        wrong = [
            (loss, key, i, t, p, share) for i, (key, t, p, share, loss) in enumerate(zip(keys, *columns)) if t != p
        ]
        for loss, key, i, target, guess, share in sorted(wrong, key=_by_loss)[: self.most]:
            if len(self.worst) < self.most or _by_loss((loss, key)) < _by_loss(
                (self.worst[-1].loss, self.worst[-1].key)
            ):
                assert images is not None  # whoever wants mistakes gives them
                pixels = pixels_of(images[i], self.mean, self.std)
                self.worst.append(Mistake(loss, key, target, guess, share, pixels))
                self._keep_the_worst()

    def _keep_the_worst(self) -> None:
        self.worst.sort(key=lambda mistake: _by_loss((mistake.loss, mistake.key)))
        del self.worst[self.most :]

    def gather(self, peers: Peers) -> Errors:
        """What all processes saw, whatever their number; all of them call this."""
        parts = peers.gather((self.pairs, self.worst))
        self.pairs = sum((pairs for pairs, _ in parts), Counter())
        self.worst = [mistake for _, worst in parts for mistake in worst]
        self._keep_the_worst()
        return Errors(self.pairs, self.worst)


def _by_loss(mistake: tuple) -> tuple[float, str]:
    """Sorts (loss, key, ...) by falling loss; of equal ones by key, in which no process and no batch has a part."""
    return -mistake[0], mistake[1]
