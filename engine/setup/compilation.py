"""torch.compile: whether a run uses it (TRAIN.COMPILE), and how."""

import importlib.util
import os
import shutil
from typing import Callable, NamedTuple, Sequence

import torch
from torch import nn
from yacs.config import CfgNode

RECOMPILE_LIMIT = 8  # torch's own default, of graphs of one function


class Compilation(NamedTuple):
    mode: str  # of torch.compile; '' without it
    reason: str  # for the start line; '' where there is nothing to say


def decide_compilation(cfg: CfgNode, device: torch.device) -> Compilation:
    """What TRAIN.COMPILE means here: 'auto' compiles on a GPU where nothing is in the way."""
    mode = cfg.TRAIN.COMPILE_MODE
    if not cfg.TRAIN.COMPILE:
        return Compilation("", "")
    if cfg.TRAIN.COMPILE == "auto":
        for is_there, what in OBSTACLES:
            if is_there(cfg, device):
                return Compilation("", f"not compiled ({what})")
    return Compilation(mode, f"torch.compile ({mode})")


def lacks_c_compiler() -> bool:
    """Triton builds a launcher for each kernel, with CC or the first of these."""
    return not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc"))))


# What keeps 'auto' from compiling, the first that holds: none of it has been tried on a GPU, or it does not work there.
OBSTACLES: Sequence[tuple[Callable[[CfgNode, torch.device], bool], str]] = (
    (lambda cfg, device: device.type != "cuda", "on CPUs it does not pay"),
    (lambda cfg, device: cfg.TRAIN.USE_CHECKPOINT, "TRAIN.USE_CHECKPOINT"),
    (lambda cfg, device: cfg.DETERMINISTIC, "DETERMINISTIC"),
    (lambda cfg, device: cfg.MODEL.TYPE != "fat", "a timm model"),
    (lambda cfg, device: cfg.TRAIN.SYNC_BN == "torch", "TRAIN.SYNC_BN torch"),
    (lambda cfg, device: torch.cuda.get_device_capability(device) < (7, 0), "the GPU is too old"),
    (lambda cfg, device: not importlib.util.find_spec("triton"), "triton is not installed"),
    (lambda cfg, device: lacks_c_compiler(), "there is no C compiler"),
)


def compile_model(model: nn.Module, mode: str, num_sizes: int = 1) -> None:
    """Compiles the model's calls, each image size for itself: a graph for any size would be slower with each of them.

    Args:
        num_sizes: image sizes, and numbers of images, that it will see, each in training and in evaluation.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, 2 * num_sizes + 2)
    model.compile(mode=mode, dynamic=False)
