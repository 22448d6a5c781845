"""What the processes tell one another between two steps: small values, on the CPU."""

from typing import Any, Optional, Sequence

import torch
import torch.distributed as dist

from .launch import Launch
from .place import Place


class Exchange:
    """Small exchanges over a group of gloo; without a group this process is alone.

    Args:
        launch: this process.
        place: where this process is, which each exchange moves on.
    """

    def __init__(self, launch: Launch, place: Place):
        self.launch = launch
        self.group: Optional[dist.ProcessGroup] = None  # of all processes, once they have met
        self.place = place
        self.every = calls_between_answers(launch.world_size)
        self.calls = 0  # of `agree`
        self.raised: list[bool] = []  # flags of the calls since the last that asked the others
        self.pending: Optional[tuple[Any, torch.Tensor]] = None  # an answer under way

    def agree(self, flags: Sequence[bool], now: bool = False) -> list[bool]:
        """For each flag, whether any process raised it. All processes call this equally often, and have the same answers.

        With several processes no step waits for the answer: it is about the call before and, with very many
        processes, about some calls before that; the calls in between answer False. With `now` it is about this call
        and all before it that had no answer yet.
        """
        if self.group is None:
            return [bool(flag) for flag in flags]
        with self.place.exchanging("agrees with the others"):
            self._raise(flags)
            self.calls += 1
            answer = [False] * len(flags)
            if now or self.calls % self.every == 0:
                answer = _either(answer, self._answer())
                values = torch.tensor(self.raised, dtype=torch.int32)
                self.pending = (dist.all_reduce(values, dist.ReduceOp.MAX, self.group, async_op=True), values)
                self.raised = []
            if now:
                answer = _either(answer, self._answer())
            return answer

    def gather(self, value: Any) -> list[Any]:
        """Every process' small plain value, by rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.launch.world_size
        with self.place.exchanging("waits for what the others say"):
            dist.all_gather_object(values, value, self.group)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's small plain value."""
        values = [value]
        if self.group is not None:
            with self.place.exchanging("waits for rank 0"):
                dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def meet(self) -> None:
        """Waits for all processes."""
        if self.group is not None:
            with self.place.exchanging("waits for all"):
                self._answer()
                dist.barrier(self.group)

    def _raise(self, flags: Sequence[bool]) -> None:
        before = self.raised + [False] * (len(flags) - len(self.raised))
        # callers with fewer flags than others ask for an answer now, after which the rest has no use
        self.raised = [bool(flag) or earlier for flag, earlier in zip(flags, before)]

    def _answer(self) -> list[bool]:
        """That of the call under way, if there is one."""
        if self.pending is None:
            return []
        work, values = self.pending
        work.wait()
        self.pending = None
        return [bool(value) for value in values.tolist()]


def calls_between_answers(world_size: int) -> int:
    """How many calls of `agree` share one sum over all processes: its messages grow with their number, a step does not.

    The same for all processes, so that they ask one another at the same step.
    """
    return max(1, world_size // 64)


def _either(answer: list[bool], other: list[bool]) -> list[bool]:
    return [a or b for a, b in zip(answer, other + [False] * len(answer))]
