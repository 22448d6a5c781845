"""Metrics as sums and counts, divided once at the end, so that any split of the images gives the same numbers."""

import torch
import torch.nn.functional as F

from .distributed import sum_over_ranks


class ClassificationMetrics:
    """Top-1 and top-5 accuracy in percent, and mean cross-entropy.

    With fewer than 5 classes, top-5 is top-`num_classes`, that is 100 %.
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # correct@1, correct@5, loss, images

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds a batch: logits (B, classes), targets (B,) class indices."""
        logits = logits.float()
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = top5 == targets[:, None]
        losses = F.cross_entropy(logits, targets, reduction="none").double()
        count = torch.tensor(len(targets), device=logits.device)
        self.sums += torch.stack([hits[:, 0].sum(), hits.sum(), losses.sum(), count]).to(self.sums.dtype)

    def compute(self) -> dict[str, float]:
        """Metrics over all processes: acc1 and acc5 (percent), loss, num_images.

        The loss is rounded to 1e-6: a sum of rounded floats is only that exact over different splits.
        """
        correct1, correct5, loss, num_images = sum_over_ranks(self.sums).tolist()
        return {
            "acc1": 100 * correct1 / num_images,
            "acc5": 100 * correct5 / num_images,
            "loss": round(loss / num_images, 6),
            "num_images": int(num_images),
        }
