"""What learns in a run: the model in its forms."""

import contextlib
from dataclasses import dataclass
from typing import Any, ContextManager, Optional

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..setup.compilation import compile_model
from . import freeze
from .graphs import replayed
from .model_ema import WeightAverage


@dataclass
class Networks:
    """A model, as it is called in training, and the average of its weights."""

    model: nn.Module  # without wrappers: what is evaluated, averaged and saved
    wrapped: nn.Module  # as it is called in training
    average: Optional[WeightAverage] = None
    compile_mode: str = ""  # of torch.compile; empty: not compiled
    compiles_next: bool = False  # the next update begins with that

    def evaluated(self) -> dict[str, nn.Module]:
        """What an evaluation measures, by the names that records and checkpoints have for it."""
        return {"raw": self.model, **({"ema": self.average.module} if self.average else {})}

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps, by its keys there."""
        return {"model": self.model, "ema": self.average and self.average.module}

    def compile(self, num_sizes: int) -> None:
        """Has the models compiled, if that is asked for, for so many sizes of images and numbers of them."""
        self.compiles_next = bool(self.compile_mode)
        if self.compiles_next:
            for model in self.evaluated().values():  # both share one graph, and training has another
                compile_model(model, self.compile_mode, num_sizes)

    def replayed(self, keep_gradients: bool) -> ContextManager:
        """See `graphs.replayed`."""
        return replayed(self.model, self.compile_mode, keep_gradients)

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
