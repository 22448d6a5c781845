"""What is timed: the forms of FAT and of timm's models, each as a function that handles a batch."""

import functools
from dataclasses import dataclass, field
from typing import Callable, Iterator, Sequence

import timm
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import nn

import models
from engine.inference.engines import open_engine
from engine.setup.precision import NativePrecision

from .plain_fat import PlainFAT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAIN = "plain"
LABELS = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}  # of engines in forms' names


@dataclass
class Candidate:
    """Something to be timed: `run()` handles a batch once."""

    model: str
    form: str
    precision: str
    run: Callable[[], object]
    first_seconds: float = 0.0  # of the first call, with what is compiled in it
    memory_mib: float = float("nan")  # not measured
    seconds: list[float] = field(default_factory=list)  # per batch


def inference_candidates(
    names: Sequence[str], images: torch.Tensor, precisions: Sequence[str], mode: str, engines: Sequence[str] = ()
) -> Iterator[Candidate]:
    """Every form of every model in evaluation mode, and in other `engines`; FAT's plain form first."""
    for name in names:
        model = timm.create_model(name).eval().to(images.device)
        fat = isinstance(model, models.FAT)
        if not fat:
            model = reparameterize_model(model)
        for precision in precisions:
            dtype = DTYPES[precision]
            if fat:
                yield Candidate(name, PLAIN, precision, call(PlainFAT(model).eval().to(images.device), images, dtype))
            for layout in ("NCHW", "NHWC"):
                yield Candidate(
                    name, f"eager {layout}", precision, call(in_layout(model, layout), images, dtype, layout)
                )
            if fat:
                fused = models.fuse(model, dtype)
                yield Candidate(name, "fused", precision, call(fused, images, torch.float32, "NHWC"))
                if mode:
                    yield Candidate(
                        name,
                        "compiled",
                        precision,
                        call(compiled(in_layout(model, "NHWC"), mode), images, dtype, "NHWC"),
                    )
                    fused = compiled(models.fuse(model, dtype), mode)
                    yield Candidate(name, "fused, compiled", precision, call(fused, images, torch.float32, "NHWC"))
            for engine in engines:
                if precision == "float32" or engine == "openvino":
                    form = f"{'fused' if fat else 'exported'}, {LABELS[engine]}"
                    yield Candidate(name, form, precision, in_engine(engine, model, images, precision))


def train_candidates(
    names: Sequence[str], images: torch.Tensor, precisions: Sequence[str], mode: str
) -> Iterator[Candidate]:
    """A training step (forward, backward, AdamW) of every form of every FAT model, and of the peers as they are."""
    for name in names:
        for precision in precisions:
            dtype = DTYPES[precision]
            model = timm.create_model(name).to(images.device)
            if isinstance(model, models.FAT):
                yield Candidate(
                    name, PLAIN, precision, step(PlainFAT(model).to(images.device), images, dtype, fused=False)
                )
            for layout in ("NCHW", "NHWC"):
                yield Candidate(
                    name, f"eager {layout}", precision, step(in_layout(model, layout), images, dtype, layout)
                )
            if isinstance(model, models.FAT):
                frugal = in_layout(model, "NHWC")
                frugal.set_grad_checkpointing(True)
                yield Candidate(name, "activation checkpointing", precision, step(frugal, images, dtype, "NHWC"))
                if mode:
                    yield Candidate(
                        name,
                        "compiled",
                        precision,
                        step(compiled(in_layout(model, "NHWC"), mode), images, dtype, "NHWC"),
                    )


def in_engine(name: str, model: nn.Module, images: torch.Tensor, precision: str) -> Callable[[], object]:
    """A forward pass by another engine than torch, as `main.py --engine` has it."""
    dtype = None if precision == "float32" else DTYPES[precision]
    engine = open_engine(name, model, NativePrecision(images.device, dtype), images.shape[-1])
    return functools.partial(engine, images)


def in_layout(model: nn.Module, layout: str) -> nn.Module:
    """A copy of the model in that memory layout."""
    copied = timm.create_model(model.default_cfg["architecture"])
    if not model.training:
        copied = reparameterize_model(copied.eval())
    copied.load_state_dict(model.state_dict())
    copied.train(model.training).to(next(model.parameters()).device)
    return copied.to(memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format)


def compiled(model: nn.Module, mode: str) -> nn.Module:
    model.compile(mode=mode)
    return model


def laid_out(images: torch.Tensor, layout: str) -> torch.Tensor:
    return images.to(memory_format=torch.channels_last) if layout == "NHWC" else images


def call(
    model: nn.Module, images: torch.Tensor, dtype: torch.dtype, layout: str = "NCHW"
) -> Callable[[], torch.Tensor]:
    """A forward pass; in 16 bits under autocast, as a model is used that was not made for them."""
    images = laid_out(images, layout)

    def run() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            return model(images)

    run.parts = (model,)
    return run


def step(
    model: nn.Module, images: torch.Tensor, dtype: torch.dtype, layout: str = "NCHW", fused: bool = True
) -> Callable[[], None]:
    """A training step on one batch; the plain form steps with AdamW as PyTorch sets it up by default."""
    images = laid_out(images, layout)
    targets = torch.arange(len(images), device=images.device) % 1000
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused or None)
    scaler = torch.amp.GradScaler(images.device.type, enabled=dtype is torch.float16)

    def run() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            loss = F.cross_entropy(model(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    run.parts = (model, optimizer)
    return run
