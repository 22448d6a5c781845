"""The processes of a run to one another, as the rest of the program sees them."""

import os
import time
from datetime import timedelta
from typing import Any, Callable, Mapping, Optional, Sequence, cast

import torch.distributed as dist

from ..errors import ProcessError, one_line
from ..signals import StopRequest
from .exchange import Exchange
from .interface import gloo_address
from .launch import Launch
from .members import Beat, Member, Members, this_process
from .place import Place
from .watch import Sign, Watch


class Peers:
    """All processes of a run: small exchanges between them, a request to stop for all, and a watch over who is alive.

    Args:
        launch: this process.
        parent: the process that started it.
        store: as `torch.distributed.rendezvous` gives it; None for one process.
        timeout: seconds of silence after which a process counts as gone.
        on_loss: called from a thread with the ProcessError; it does not return.
        on_stall: called from a thread of rank 0 with what is to be said of processes that are behind.
        facts: what must be the same for all, see sameness.py.

    Raises:
        ProcessError: a process ended before all had met.
    """

    def __init__(
        self,
        launch: Launch,
        parent: int = 0,
        store: Optional[dist.Store] = None,
        timeout: float = 60.0,
        on_loss: Callable[[ProcessError], None] = lambda error: None,
        on_stall: Callable[[str], None] = lambda text: None,
        facts: Optional[Mapping[str, str]] = None,
    ):
        self.launch = launch
        self.stop = StopRequest()
        self.place = Place()
        self.exchange = Exchange(launch, self.place)
        me = this_process(dict(facts or {}), gloo_address(os.environ) if launch.spans_machines else "")
        sign = Sign(launch.rank, self.stop, self.place)
        members = None if store is None else self._introduce(me, sign.beat(0), store, timeout)
        self.members: list[Member] = members.members if members else [me]
        self.watch = Watch(launch, sign, members, timeout, parent, on_loss, on_stall)
        self.watch.start()

    def _introduce(self, me: Member, first: Beat, store: dist.Store, timeout: float) -> Members:
        """Who the others are: one exchange, after which each one's first sign of life is in the store."""
        try:
            self.exchange.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))  # of all, so of this one too
            own_store = dist.PrefixStore("peers", store.clone())  # calls on one store wait for one another
            own_store.set_timeout(timedelta(seconds=timeout))
            members = Members(own_store, [me])
            members.write(self.launch.rank, first)
            me = me._replace(clock=time.time())  # all have just met in the group
            members.members = [Member(*member) for member in self.gather(tuple(me))]
        except RuntimeError as error:
            raise ProcessError(
                f"the processes did not meet ({one_line(error, 200)}); one has ended, start all again"
            ) from error
        return members

    def agree(self, flags: Sequence[bool], now: bool = False) -> list[bool]:
        """See `Exchange.agree`."""
        return self.exchange.agree(flags, now)

    def gather(self, value: Any) -> list[Any]:
        """Every process' small plain value, by rank."""
        return self.exchange.gather(value)

    def from_first(self, value: Any) -> Any:
        """Rank 0's small plain value."""
        return self.exchange.from_first(value)

    def meet(self) -> None:
        """Waits for all processes."""
        self.exchange.meet()

    def exchange_beside(self) -> Exchange:
        """An exchange for a thread beside the training, over connections of its own. All processes call this."""
        exchange = Exchange(self.launch, Place())
        if self.exchange.group is not None:
            exchange.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        return exchange

    def at(self, doing: str, may_last: bool = False) -> None:
        """Says what this process does from now on, for the others to see who is behind; see `Place`."""
        self.place.mark(doing, may_last)

    def name_lost(self) -> None:
        """See `Watch.name_lost`."""
        self.watch.name_lost()

    @property
    def behind(self) -> str:
        """What was said last of processes that are behind, on rank 0, if they still are; else ''."""
        return self.watch.progress.behind if self.watch.members else ""

    def close(self, good: bool) -> None:
        """See `Watch.close`."""
        self.watch.close(good)
