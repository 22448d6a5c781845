"""The average of the weights is timm's, to the bit."""

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch.utils._python_dispatch import TorchDispatchMode

import models  # noqa: F401
from engine.training.model_ema import WeightAverage


class Launches(TorchDispatchMode):
    """Counts operators."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        Launches.number += 1
        return function(*args, **(kwargs or {}))


def launches(function, *args) -> int:
    Launches.number = 0
    with Launches():
        function(*args)
    return Launches.number


@pytest.mark.parametrize("use_warmup", [False, True])
def test_the_average_has_timm_s_bits(use_warmup):
    torch.manual_seed(0)
    model = timm.create_model("fat_tiny", num_classes=3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    theirs, ours = ModelEmaV3(model, decay=0.9, use_warmup=use_warmup), WeightAverage(model, 0.9, use_warmup)
    for step in range(1, 5):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        if step == 3:  # as a run that goes back to its checkpoint does
            state = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(state), ours.module.load_state_dict(theirs.module.state_dict())
        theirs.update(model, step=step)
        ours.update(model, step=step)
        for (name, value), own in zip(theirs.module.state_dict().items(), ours.module.state_dict().values()):
            assert torch.equal(value, own), name
    counters = sum(name.endswith("num_batches_tracked") for name in model.state_dict())
    assert counters > 5 and launches(ours.update, model, 5) == 2 < counters
