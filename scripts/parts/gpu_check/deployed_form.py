"""Stage: the deployed form (`--fused`) has the model's logits, and a CUDA graph (`--engine cudagraphs`) those of what it captured."""

from typing import Iterator

import torch
from torch import nn

import models
from engine.inference.engines.cuda_graphs import CudaGraphEngine
from engine.inference.engines.torch_engine import TorchEngine
from engine.setup.precision import NativePrecision
from models.fuse import is_native_on_cpu
from utils.device import choose_arithmetic

from .setting import Check, Setting, below, distance, logits_of

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# The kernels are the same; cuDNN and cuBLAS may choose others in a capture. Another batch's logits are 1 away.
GRAPH_BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}


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
    for dtype in BOUNDS if not setting.dry_run else ():
        yield graph_check(model, dtype, images)


def graph_check(model: nn.Module, dtype: torch.dtype, images: torch.Tensor) -> Check:
    """Batches of several sizes, of which one comes again, through graphs under autocast.

    Logits are compared by what they differ between images, as those of another batch must not pass.

    Args:
        images: (4, 3, H, W).
    """
    precision = NativePrecision(images.device, None if dtype is torch.float32 else dtype)
    engine = TorchEngine(model, precision, fused=False)
    graphs, batches = CudaGraphEngine(engine), (images[:2], images[:1], 1 - 3 * images[2:])
    with torch.inference_mode(), precision.autocast():  # as evaluation calls it
        found = torch.cat([graphs(batch) for batch in batches]).float()
        expected = torch.cat([engine(batch) for batch in batches]).float()
    error = distance([found - expected.mean(0)], [expected - expected.mean(0)])
    name = f"{str(dtype).removeprefix('torch.')} differences between images, CUDA graphs"
    return below(name, error, GRAPH_BOUNDS[dtype])


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
