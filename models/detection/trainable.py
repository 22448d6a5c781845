"""What training asks of a detector beside its losses."""

from typing import Any, Callable, Sequence

import torch
from torch import nn

from ..dense.backbone import backbone_of, group_matcher


class TrainableDetector:
    """Mixed into torchvision's detectors: the part of timm's interface that training uses."""

    def describe_heads(self, heads: Sequence[str]) -> None:
        """Says, as timm's models do, which parts a checkpoint of classification does not have."""
        self.pretrained_cfg = {**backbone_of(self).network.pretrained_cfg, "classifier": tuple(heads)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Activation checkpointing of the backbone."""
        backbone_of(self).set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """timm's, for layer decay and for freezing: the backbone's layers, then everything else."""
        return group_matcher(self, coarse)


def keep_float32(module: nn.Module) -> None:
    """Makes a head's outputs at least float32, as boxes of hundreds of px and losses need it under autocast."""
    module.register_forward_hook(_widened)


def _widened(module: nn.Module, inputs: tuple, outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if isinstance(outputs, dict):
        return {name: _widened(module, inputs, one) for name, one in outputs.items()}
    return type(outputs)(_widened(module, inputs, one) for one in outputs)
