"""Weights of the authors' released code."""

from typing import Mapping

import torch
from torch import nn


def load_released_state_dict(model: nn.Module, state_dict: Mapping) -> None:
    """Loads a state dict with the released keys into a FAT model, strictly.

    This project's modules carry the released names, so every tensor goes to the parameter or buffer of its own key.
    A training checkpoint of the released code, `{"model": state_dict, ...}`, is taken as well.

    Raises:
        ValueError: keys are missing or unknown, or shapes clash; the message lists them. The model is then unchanged.
    """
    if isinstance(state_dict.get("model"), Mapping):
        state_dict = state_dict["model"]
    own = model.state_dict()
    problems = [f"missing key {key}" for key in own if key not in state_dict]
    problems += [f"unknown key {key}" for key in state_dict if key not in own]
    problems += [
        f"{key} has shape {tuple(state_dict[key].shape)}, the model {tuple(value.shape)}"
        for key, value in own.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    if problems:
        raise ValueError(f"the released weights do not fit {type(model).__name__}: " + "; ".join(problems))
    with torch.no_grad():
        model.load_state_dict(state_dict)
