"""An ONNX file, compared in onnxruntime."""

import json
from pathlib import Path
from typing import Callable

import torch

from engine.inference.engines.onnx_engine import OnnxruntimeEngine, to_onnx
from engine.inference.engines.tracing import ConversionError
from utils.errors import ConfigError

from .export_job import ExportError, Job, needed
from .program import trace

OPSETS = (18, 23)  # that torch's exporter writes
# px of dynamic sizes: less is less than a position at FAT's stride of 32, of which onnxruntime makes something else
SMALLEST = 20


def export(job: Job) -> None:
    """Raises:
    ConfigError: a package is missing, or an opset that cannot be written.
    DataError: there are no images to compare logits of.
    ExportError: the model cannot be exported, or gives other logits.
    """
    file = f"{job.name}.onnx"
    job.require_images()
    with job.staged() as folder:
        write(job, folder / file)
        job.describe(folder, file, job.compare(session(folder / file), SMALLEST), opset=job.options.opset)


def write(job: Job, path: Path) -> None:
    """Writes the model with its description in its metadata; onnx has checked it."""
    onnx, _ = needed("onnx", "onnxscript")
    least, most = OPSETS
    if not least <= job.options.opset <= most:
        raise ConfigError(
            f"--opset is {job.options.opset}, and can be {least} to {most}; leave it out, or give one of them"
        )
    try:
        model = to_onnx(trace(job, {"min": 33, "max": 4096}), job.options.opset)
    except ConversionError as error:
        raise ExportError(f"--checkpoint: {job.cfg.MODEL.NAME} {error}") from error
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != job.options.opset:
        raise ConfigError(f"--opset is {job.options.opset}, and this model can only be written in {written}; give that")
    description = job.description()
    properties = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def session(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """An ONNX file as a function of images, by onnxruntime on this machine's CPU with as many threads as torch has."""
    try:
        return OnnxruntimeEngine(path)
    except ConversionError as error:
        raise ExportError(f"--opset: {error}; give an older one") from error
