"""What learns in a run: the model in its forms."""

import contextlib
from dataclasses import dataclass
from typing import Any, ContextManager, Optional

from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import freeze


@dataclass
class Networks:
    """A model, as it is called in training, and the average of its weights."""

    model: nn.Module  # without wrappers: what is evaluated, averaged and saved
    wrapped: nn.Module  # as it is called in training
    average: Optional[ModelEmaV3] = None
    compile_mode: str = ""  # of torch.compile; empty: not compiled

    def evaluated(self) -> dict[str, nn.Module]:
        """What an evaluation measures, by the names that records and checkpoints have for it."""
        return {"raw": self.model, **({"ema": self.average.module} if self.average else {})}

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps, by its keys there."""
        return {"model": self.model, "ema": self.average and self.average.module}

    def compile(self) -> None:
        if self.compile_mode:
            for model in self.evaluated().values():
                model.compile(mode=self.compile_mode)  # both share one graph, and training has another

    def train(self) -> None:
        freeze.train(self.wrapped)

    def synchronised(self, last: bool) -> ContextManager:
        """Gradients are averaged over processes once per update, with its last micro-batch."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def update_average(self, updates: int) -> None:
        """Takes the new weights into the average; `updates` are those of the run so far."""
        if self.average:
            self.average.update(self.model, step=updates)
