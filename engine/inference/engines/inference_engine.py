"""What an inference engine is: all that evaluation, timing and predictions ask of it."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from utils.schema import ENGINES, EXPORTING  # noqa: F401  (their names)


class InferenceEngine(nn.Module, ABC):
    """A trained model, ready to be called: it stands wherever a model does."""

    name: str  # one of `ENGINES`
    precision: str  # what it computes in, for logs and results

    @abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes), float32, of normalised images (B, C, H, W), any B. Those of `EXPORTING` take images on the CPU."""
