"""An ONNX file, compared in onnxruntime."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Callable

import torch
from torch import nn

from utils.errors import ConfigError

from .export_job import ExportError, Job, first_line, needed
from .program import trace

OPSETS = (18, 23)  # that torch's exporter writes
# px of dynamic sizes: less is less than a position at FAT's stride of 32, of which onnxruntime makes something else
SMALLEST = 20


def export(job: Job) -> None:
    """Raises:
    ConfigError: a package is missing, or an opset that cannot be written.
    ExportError: the model cannot be exported, or gives other logits.
    """
    file = f"{job.name}.onnx"
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
    program = trace(job, {"min": 33, "max": 4096})
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                opset_version=job.options.opset,
                verbose=False,
            )
        model = exported.model_proto
    except Exception as error:  # of the exporter's many kinds
        raise ExportError(
            f"--checkpoint: {job.cfg.MODEL.NAME} cannot be written as ONNX ({first_line(error)})"
        ) from error
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != job.options.opset:
        raise ConfigError(f"--opset is {job.options.opset}, and this model can only be written in {written}; give that")
    description = job.description()
    properties = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


class Session(nn.Module):
    """An ONNX file in onnxruntime: images (B, 3, H, W) -> logits (B, classes)."""

    def __init__(self, run: Callable):
        super().__init__()
        self.run = run

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run(["logits"], {"images": images.contiguous().numpy()})[0])


def session(path: Path) -> Session:
    """An ONNX file on this machine's CPU, with as many threads as torch has."""
    (onnxruntime,) = needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run
    except Exception as error:  # onnxruntime's own kinds
        raise ExportError(
            f"--opset: onnxruntime {onnxruntime.__version__} cannot read the file ({first_line(error)}); give an older one"
        ) from error
    return Session(run)
