"""What happens when a loss or a gradient is infinite or not a number: TRAIN.NONFINITE."""

import math
from typing import Any, Iterable, Mapping, Optional

import torch
from torch import nn

from utils.errors import NonFiniteError
from utils.processes.collectives import min_over_ranks, sum_over_ranks

NEVER = 2**62  # later than any update
MAX_IN_A_ROW = 50  # left-out updates after which a run no longer learns
MAX_ROLLBACKS = 10


class FiniteGuard:
    """Watches the loss and the gradient of every update.

    With 'raise' and 'rollback' nothing waits for the device: an update that is not finite is remembered there and
    found at the next log line, and before every save. With 'skip' each update is looked at before its optimizer step,
    and the weights, the optimizer and the model's buffers (BatchNorm's statistics) stay as they were before it.

    float16's gradient scaler leaves out updates with infinite gradients under each policy, as it needs them to find its
    scale. All left-out updates are counted.

    Args:
        policy: 'raise', 'skip' or 'rollback'.
        scales: whether a gradient scaler handles gradients that are not finite.
    """

    def __init__(self, policy: str, scales: bool, model: nn.Module, device: torch.device):
        self.policy = policy
        self.scales = scales
        self.buffers = list(model.buffers()) if policy == "skip" else []
        self.first_bad = torch.full((2,), NEVER, dtype=torch.int64, device=device)  # step of the first loss, gradient
        self.left_out = torch.zeros(2, dtype=torch.int64, device=device)  # updates in all, and in a row up to now

    def start(self, left_out: Iterable[int]) -> None:
        """Takes the counts over from a checkpoint."""
        self.first_bad.fill_(NEVER)
        self.left_out.copy_(torch.tensor(list(left_out)))

    def before_update(self) -> None:
        if self.buffers:
            self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def accepts(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        """Whether the optimizer may step; called once per update of an epoch, on all processes.

        Args:
            loss: this process' summed loss of the update, ().
            grad_norm: norm of the gradient, the same on all processes, ().
        """
        bad = torch.stack([~torch.isfinite(loss), ~torch.isfinite(grad_norm).to(loss.device)])
        if self.policy == "skip" and sum_over_ranks(bad.sum()).item():
            for buffer, kept in zip(self.buffers, self.kept):
                buffer.copy_(kept)
            self.left_out += 1
            return False
        overflow = bad[1] if self.scales else torch.zeros_like(bad[1])
        self.left_out[0] += overflow
        self.left_out[1] = (self.left_out[1] + 1) * overflow
        bad = torch.stack([bad[0], bad[1] & ~overflow])
        self.first_bad = torch.minimum(self.first_bad, torch.where(bad, step, NEVER))
        return True

    def check(self, in_a_row: int) -> Optional[tuple[int, str]]:
        """(step, 'loss' or 'gradient') of the first update that was not finite on any process, None if all were.

        Args:
            in_a_row: the second of `counts`.

        Raises:
            NonFiniteError: so many updates in a row were left out that the run no longer learns.
        """
        if in_a_row >= MAX_IN_A_ROW:
            raise NonFiniteError(
                f"TRAIN.NONFINITE: {in_a_row} updates in a row had a loss or gradient that is not finite and were left "
                "out; checkpoints are kept as they were. Try a smaller TRAIN.BASE_LR or AMP.DTYPE bfloat16"
            )
        steps = min_over_ranks(self.first_bad).tolist()
        if min(steps) == NEVER:
            return None
        return min(steps), "loss" if steps[0] <= steps[1] else "gradient"

    def counts(self) -> list[int]:
        """Updates left out: in all, and in a row up to the last one. Waits for the device."""
        return self.left_out.tolist()


class NonFinite(Exception):
    """A loss or gradient that is not finite was found; `place` is the update's [epoch, step]."""

    def __init__(self, message: str, place: list[int]):
        super().__init__(message)
        self.place = place


def require_finite_results(results: Mapping[str, Mapping[str, Any]], epoch: int) -> None:
    """Refuses weights that are not worth keeping.

    Args:
        results: an evaluation's figures by weights.

    Raises:
        NonFiniteError: a figure, such as the loss, is infinite or not a number.
    """
    for name, figures in results.items():
        for key, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise NonFiniteError(
                    f"epoch {epoch}, validation: the {key} of the {name} weights is {value}; checkpoints are kept as "
                    "they were. Try a smaller TRAIN.BASE_LR, AMP.DTYPE bfloat16 or --disable_amp"
                )
