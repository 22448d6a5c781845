"""Stage: the deployed form (`--fused`) has the model's logits."""

from typing import Iterator

import torch
from torch import nn

import models
from models.fuse import is_native_on_cpu
from utils.device import choose_arithmetic

from .setting import Check, Setting, below, distance, logits_of

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def checks(setting: Setting) -> Iterator[Check]:
    choose_arithmetic(setting.device, exact=True, deterministic=False, fixed_sizes=False)
    model = trained_looking(setting.new_model()).eval().to(setting.device, memory_format=torch.channels_last)
    images = setting.images(4).to(setting.device, memory_format=torch.channels_last)
    logits = logits_of(model, images)
    for dtype, bound in BOUNDS.items():
        if setting.dry_run and not is_native_on_cpu(dtype):
            continue
        error = distance([logits_of(models.fuse(model, dtype), images)], [logits])
        yield below(f"{str(dtype).removeprefix('torch.')} logits", error, bound)


def trained_looking(model: nn.Module) -> nn.Module:
    """The model with norms that do something, or folding them would show nothing."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model
