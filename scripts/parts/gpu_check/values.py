"""Stage: logits and gradients are the CPU's, in each precision and memory layout; pixels are the CPU's to the bit."""

from typing import Iterator

import torch
from torch import nn

from data.batches import Batch, Finish
from utils.device import choose_arithmetic

from .setting import Check, Setting, below, distance, equal, gradients_of, logits_of

NCHW, NHWC = torch.contiguous_format, torch.channels_last
# Distances to the CPU's float32, of logits and of all gradients together. Autocast on a CPU has 0.006 and 0.067 with
# bfloat16, 0.0008 and 0.021 with float16, and TF32 has float16's ten bits.
BOUNDS = {
    "float32": (torch.float32, 1e-5, 1e-5),
    "TF32": (torch.float32, 2e-3, 5e-2),
    "bfloat16": (torch.bfloat16, 3e-2, 0.15),
    "float16": (torch.float16, 5e-3, 5e-2),
}
STEM_BOUND = 2e-3  # on a CPU, NHWC and NCHW can be 3e-4 apart in FAT-B0's stem at 224 px, and 4e-6 behind it
SCALE = 1024.0  # of the loss, as small gradients are 0 in float16
PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def checks(setting: Setting) -> Iterator[Check]:
    yield finished_pixels(setting)
    choose_arithmetic(setting.device, exact=True, deterministic=True, fixed_sizes=False)
    images = setting.images(2 if setting.dry_run else 8)
    reference = setting.new_model()
    logits, gradients = logits_of(reference, images), by_name(reference, gradients_of(reference, images))
    for name, (dtype, logit_bound, gradient_bound) in BOUNDS.items():
        choose_arithmetic(setting.device, exact=name != "TF32", deterministic=False, fixed_sizes=False)
        ours = {layout: results(setting, images, layout, dtype) for layout in (NCHW, NHWC)}
        for layout, (our_logits, our_gradients) in ours.items():
            place = "NHWC" if layout is NHWC else "NCHW"
            yield below(f"{name} {place} logits", distance([our_logits], [logits]), logit_bound)
            yield from compare(f"{name} {place}", our_gradients, gradients, gradient_bound)
        if name == "float32":
            yield below("NHWC against NCHW logits", distance([ours[NHWC][0]], [ours[NCHW][0]]), logit_bound)
            yield from compare("NHWC against NCHW", ours[NHWC][1], ours[NCHW][1], gradient_bound)


def compare(name: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], bound: float) -> Iterator[Check]:
    """The stem's gradients apart: a number before a ReLU that rounds to the other side of 0 changes them by a step."""
    for what, in_stem, limit in (("gradients", False, bound), ("stem gradients", True, max(bound, STEM_BOUND))):
        names = [key for key in theirs if key.startswith("patch_embed.") is in_stem]
        yield below(f"{name} {what}", distance([ours[key] for key in names], [theirs[key] for key in names]), limit)


def results(
    setting: Setting, images: torch.Tensor, layout: torch.memory_format, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of the same model on the device."""
    model: nn.Module = setting.new_model().to(setting.device, memory_format=layout)
    images = images.to(setting.device, memory_format=layout)
    return logits_of(model, images, dtype), by_name(model, gradients_of(model, images, dtype, SCALE))


def by_name(model: nn.Module, gradients: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip((name for name, _ in model.named_parameters()), gradients, strict=True))


def finished_pixels(setting: Setting) -> Check:
    """Normalising and erasing give the CPU's bits; boxes lie over one another, one is of a single colour."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    boxes = [(0, 2, 3, 8, 9, 8, 9), (0, 5, 5, 9, 8, 9, 8), (2, 0, 0, 16, 7, 1, 1), (3, 20, 11, 12, 21, 12, 21)]
    fills = torch.randn(sum(3 * box[5] * box[6] for box in boxes), generator=generator)
    batch = Batch(images, torch.arange(4), list("abcd"), boxes, fills)
    here, there = (
        Finish(*PIXELS, device, channels_last=True)(batch) for device in (torch.device("cpu"), setting.device)
    )
    return equal("pixels that differ", int((here.images != there.images.cpu()).sum()), 0)
