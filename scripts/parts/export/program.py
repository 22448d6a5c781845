"""A program of torch.export, which torch loads without this project's code: `torch.export.load("x.pt2").module()(images)`."""

import json
import warnings
from typing import Any

import torch
from torch.export import ExportedProgram

from engine.inference.engines import tracing
from utils.image_size import height_and_width, size_text

from .export_job import MAX_BATCH, SIZES, ExportError, Job


def export(job: Job) -> None:
    """Raises ExportError: the model cannot be exported, or gives other logits."""
    file = f"{job.name}.pt2"
    with job.staged() as folder:
        program = traced(job)
        with warnings.catch_warnings():
            # of weights that are not contiguous, which is harmless
            warnings.filterwarnings("ignore", "No complete tensor found")
            torch.export.save(program, folder / file, extra_files={"description.json": json.dumps(job.description())})
        program = torch.export.load(folder / file).module()
        job.describe(folder, file, job.compare(program), **limits(job))


def traced(job: Job) -> ExportedProgram:
    """The model's program for any number of images and, with `dynamic_size`, any size.

    Raises:
        DataError: there are no images to compare logits of.
        ExportError: the model cannot be traced, or its own size is none of the dynamic ones.
    """
    if job.options.dynamic_size and min(height_and_width(job.size)) < SIZES[0]:
        raise ExportError(
            f"--dynamic-size: a program takes images from {SIZES[0]} px on, and the model's own have {size_text(job.size)}; leave it out, or export to onnx"
        )
    job.require_images()
    return trace(job, dict(zip(("min", "max"), SIZES)))


def trace(job: Job, sizes: dict[str, int]) -> ExportedProgram:
    """As `traced`, with given limits of the sizes."""
    try:
        return tracing.trace(job.model, job.size, sizes if job.options.dynamic_size else None, job.cfg.DATA.IN_CHANS)
    except tracing.ConversionError as error:
        raise ExportError(f"--checkpoint: {job.cfg.MODEL.NAME} {error}") from error


def limits(job: Job) -> dict[str, Any]:
    """The numbers and sizes of images that a program takes."""
    return {
        "batch": [1, MAX_BATCH],
        "sizes": list(SIZES) if job.options.dynamic_size else [*height_and_width(job.size)],
    }
