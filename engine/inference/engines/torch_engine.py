"""torch itself: the model as it is trained, or its deployed form."""

import torch
from torch import nn

from ...setup.model import deploy_model
from ...setup.precision import Precision
from .inference_engine import InferenceEngine


class TorchEngine(InferenceEngine):
    """See `InferenceEngine`.

    Args:
        model: on its device; it is used, not copied.
        precision: autocast, or of a deployed form the dtype of weights and maps.
        fused: whether the deployed form computes, see `models.fuse`.

    Raises:
        ConfigError: there is no deployed form of this model, or not in this precision on this machine.
    """

    name = "torch"

    def __init__(self, model: nn.Module, precision: Precision, fused: bool):
        super().__init__()
        self.model = deploy_model(model, precision.dtype) if fused else model
        self.number_format = precision
        self.precision = str(precision)
        self.training = self.model.training  # a deployed form is never trained

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.number_format.autocast():
            return self.model(images)
