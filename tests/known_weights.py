"""Models with weights that many tests take: the released ones of `released_parity.json`, and ones in which every value counts."""

import json
import math
import zlib

import numpy as np
import timm
import torch
from torch import nn

import models  # noqa: F401  (registers FAT with timm)
from conftest import ROOT

PARITY = json.loads((ROOT / "tests/models/released_parity.json").read_text())


def fill(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule by which the reference logits' weights were made: a function of the key and the shape."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        values = np.array(7)
    elif key.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return torch.as_tensor(values)


def released_weights(name: str) -> dict[str, torch.Tensor]:
    return {key: fill(key, tuple(shape)) for key, shape in PARITY["models"][name]["keys"].items()}


def draw_norm(module: nn.Module) -> None:
    """Gives a norm statistics, scales and shifts that change something; leaves other modules alone."""
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.normal_(0, 0.3)
        module.running_var.uniform_(0.3, 2)
    if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0, 0.3)


def realistic(name="fat_tiny", **settings):
    """A model in evaluation mode whose norms have statistics, scales and shifts that change something."""
    torch.manual_seed(0)
    model = timm.create_model(name, **settings).eval()
    for module in model.modules():
        draw_norm(module)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def difference(a, b):
    """The largest one, in units of the second's spread."""
    return ((a.float() - b).abs().max() / b.std()).item()
