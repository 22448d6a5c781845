"""An optimizer whose state is shared out over the processes: ZeRO's first stage (Rajbhandari et al. 2020, arXiv 1910.02054)."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """torch's ZeroRedundancyOptimizer over an optimizer that has not stepped yet, with states of its kind.

    Each process keeps the state of some parameters, about one in as many as there are processes, steps these, and gets the
    new values of the others. So a parameter's step must depend on nothing but its gradient, value and state.

    States are numbered as the whole optimizer's: the number of processes may change, or be one. torch's own `state_dict` sends
    all of it to one process, and its `load_state_dict` puts step counts of fused optimizers, which belong to the GPU, on the
    CPU, and keeps the state twice.
    """

    def __init__(self, whole: Optimizer):
        def of_this_process(groups: list[dict[str, Any]], **_: Any) -> Optimizer:
            whole.param_groups = groups
            return whole

        super().__init__(whole.param_groups, of_this_process, **whole.defaults)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The whole optimizer's, but for the state of the parameters that other processes keep."""
        own = self.optim.state
        state = {number: own[parameter] for number, parameter in enumerate(self.parameters()) if parameter in own}
        return {**Optimizer.state_dict(self), "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes this process' part of a whole optimizer's state."""
        numbers = {parameter: number for number, parameter in enumerate(self.parameters())}
        kept = [numbers[parameter] for group in self.optim.param_groups for parameter in group["params"]]
        state = {i: state_dict["state"][number] for i, number in enumerate(kept) if number in state_dict["state"]}
        groups = [
            {**saved, "params": local["params"]}
            for saved, local in zip(state_dict["param_groups"], self.optim.state_dict()["param_groups"])
        ]
        self.optim.load_state_dict({"state": state, "param_groups": groups})
        for group, local in zip(self.param_groups, self.optim.param_groups):
            group.update({key: value for key, value in local.items() if key != "params"})

    def parameters(self) -> list[torch.nn.Parameter]:
        """Of all processes, in the whole optimizer's order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]


def share_out(optimizer: Optimizer) -> Optimizer:
    """The optimizer, which has not stepped yet, with its state shared out over the processes, if there are several."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    return ShardedOptimizer(optimizer) if several else optimizer


def local_part(optimizer: Optimizer) -> Optimizer:
    """The optimizer of the parameters whose state this process keeps."""
    return optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer


def describe_share(optimizer: Optimizer) -> str:
    """Of how many parameters this process keeps the state, for the log; '' if of all."""
    if not isinstance(optimizer, ShardedOptimizer):
        return ""
    kept, total = (
        sum(parameter.numel() for group in part.param_groups for parameter in group["params"])
        for part in (optimizer.optim, optimizer)
    )
    return (
        f"TRAIN.SHARD: this process keeps the optimizer's state of {kept / total:.1%} of {total / 1e6:.2f} M parameters"
    )
