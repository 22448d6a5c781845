"""Stage: maps stay channels_last from the stem to the head, and attention copies none."""

from typing import Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.layers import FASA

from .setting import Check, Setting, at_least, equal, logits_of

COPIES = ("clone", "copy", "contiguous")


class Copies(TorchDispatchMode):
    """Notes operators that copy a map within attention; those that change its type alone (autocast) do not count."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.inside = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        if self.inside and any(word in name for word in COPIES) and args[0].ndim == 4 and args[0].dtype is result.dtype:
            self.found.append(f"{name} {tuple(args[0].shape)}")
        return result


def checks(setting: Setting) -> Iterator[Check]:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        turned, num_leaves, copies = look(setting, dtype)
        yield equal(f"{name} leaves not channels_last", len(turned), 0, leaves=turned)
        yield at_least(f"{name} leaves seen", num_leaves, 50)
        yield equal(f"{name} copies in attention", len(copies), 0, copies=copies)


def look(setting: Setting, dtype: torch.dtype) -> tuple[list[str], int, list[str]]:
    """Leaves whose map is not channels_last, the number of leaves, and copies, of one pass."""
    model = setting.new_model().to(setting.device, memory_format=torch.channels_last)
    images = setting.images(2).to(setting.device, memory_format=torch.channels_last)
    turned: list[str] = []
    num_leaves = 0
    copies = Copies()

    def look_at(name: str, module: nn.Module) -> None:
        def hook(module, inputs, output):
            nonlocal num_leaves
            if isinstance(output, torch.Tensor) and output.ndim == 4:
                num_leaves += 1
                if not output.is_contiguous(memory_format=torch.channels_last):
                    turned.append(name)

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if not list(module.children()):
            look_at(name, module)
        if isinstance(module, FASA):
            module.register_forward_pre_hook(lambda *_: setattr(copies, "inside", True))
            module.register_forward_hook(lambda *_: setattr(copies, "inside", False))
    with copies:
        logits_of(model, images, dtype)
    return turned, num_leaves, copies.found
