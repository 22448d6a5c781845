"""Stage: what the machine is, and what the fast path needs of it."""

import shutil
import subprocess
from typing import Iterator

import torch

from engine.setup.compilation import lacks_c_compiler
from utils import provenance
from utils.device import choose_arithmetic

from .setting import Check, Setting, at_least, below, distance, equal, measured


def checks(setting: Setting) -> Iterator[Check]:
    device = setting.device
    yield measured("machine", "; ".join(provenance.environment(device)), **versions())
    yield equal("C compiler", not lacks_c_compiler(), True)
    yield from arithmetic(setting)
    if setting.dry_run:
        return
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    yield at_least("compute capability", float(f"{properties.major}.{properties.minor}"), 7.0)
    yield measured("bfloat16", torch.cuda.is_bf16_supported(including_emulation=False))
    yield at_least(
        "free memory, GiB", round(free / 2**30, 1), 30.0, total=total, processors=properties.multi_processor_count
    )
    yield equal("NCCL", torch.distributed.is_nccl_available(), True, version=str(torch.cuda.nccl.version()))


def versions() -> dict:
    names = {"triton": "", "torchvision": "", "numpy": ""}
    for name in names:
        try:
            names[name] = __import__(name).__version__
        except ImportError as error:
            names[name] = str(error)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv"]
        names["nvidia-smi"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
    return names


def arithmetic(setting: Setting) -> Iterator[Check]:
    """`choose_arithmetic` decides what products and convolutions of float32 are."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    images, kernels = (torch.randn(4, 64, side, side, generator=generator) for side in (16, 3))
    exact = [a.double() @ b.double(), torch.conv2d(images.double(), kernels.double())]
    for name, settings in (
        ("exact", (True, False, False)),
        ("TF32", (False, False, True)),
        ("deterministic", (False, True, True)),
    ):
        choose_arithmetic(setting.device, *settings)
        a, b, images, kernels = (t.to(setting.device) for t in (a, b, images, kernels))
        for what, result, reference in zip(("product", "convolution"), (a @ b, torch.conv2d(images, kernels)), exact):
            yield below(f"{name} {what}", distance([result], [reference]), 2e-3 if name == "TF32" else 1e-6)
