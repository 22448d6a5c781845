"""The average of the weights (EMA), brought forward in a few launches."""

from typing import Optional

import torch
from timm.utils import ModelEmaV3
from torch import nn


class WeightAverage(ModelEmaV3):
    """timm's, with the same bits. timm's gathers all tensors of both models anew in each update and copies BatchNorm's
    counters one by one; here the tensors are gathered once, and the counters copied together.

    The model's tensors must stay the same objects' memory: loading a state dict, which copies into them, is fine.
    """

    def __init__(self, model: nn.Module, decay: float, use_warmup: bool):
        super().__init__(model, decay=decay, use_warmup=use_warmup)
        self.pairs: Optional[tuple[list[torch.Tensor], ...]] = None

    @torch.no_grad()
    def update(self, model: nn.Module, step: Optional[int] = None) -> None:
        if self.pairs is None:
            self.pairs = self._gather(model)
        averaged, values, copied, counters = self.pairs
        self._foreach_lerp_(averaged, values, weight=1.0 - self.get_decay(step))
        if copied:
            torch._foreach_copy_(copied, counters)

    def _gather(self, model: nn.Module) -> tuple[list[torch.Tensor], ...]:
        """The tensors that are averaged, and the model's; those that are copied, and the model's."""
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        return tuple([pair[side] for pair in of] for of in (averaged, copied) for side in (0, 1))
