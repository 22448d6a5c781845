"""What may be told of a training run while it goes on: `Observer`."""

from typing import TYPE_CHECKING, Any, Sequence

if TYPE_CHECKING:
    from .training.trainer import Trainer


class Observer:
    """Is told of a run's events, on every process; a subclass has those that it wants. An exception ends the run as any other.

    `main(argv, observers=[...])` takes them. The engine's own are in `engine.training.observers`.
    """

    def before_update(self, trainer: "Trainer", step: int) -> None:
        """Update `step` of the epoch comes next; `trainer.progress` is where the run stands before it."""

    def on_batch(self, trainer: "Trainer", batch: Any) -> None:
        """A micro-batch is on the device, and its loss comes next."""

    def after_update(self, trainer: "Trainer", step: int) -> None:
        """Update `step` is done: the weights have changed, unless it was left out as not finite. `trainer.progress` does not
        count it yet.
        """

    def before_save(self, trainer: "Trainer", names: Sequence[str]) -> None:
        """`trainer.progress` is what checkpoints of these file names will say."""

    def after_evaluation(self, trainer: "Trainer", results: dict[str, dict[str, Any]]) -> None:
        """An epoch's figures by weights, 'raw' and 'ema', before anything is made of them."""
