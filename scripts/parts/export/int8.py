"""An ONNX file whose convolutions and head are in 8 bits, calibrated on training images; attention and norms stay float32.

On x86 processors without VNNI, onnxruntime adds two products of an activation (0 to 255) and a weight in 16 bits, and what is
over 32767 is cut off (saturates): the logits are wrong there, and right on the machine that made the file. Weights from -64
to 64 cannot reach that, so the file has no others, which is checked in the file itself, not in what this processor computes.
"""

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
from torch import nn

from engine.tasks import create_task
from utils.errors import DataError, UserError

from .export_job import CPU, ExportError, Job, first_line, needed
from .onnx import session, write

QUANTISED = ["Conv", "Gemm"]
LARGEST_WEIGHT = 64  # 2 products of 255 * 64 are 32640, within 16 bits


def export(job: Job) -> None:
    """Raises:
    DataError: the training or validation images are not there.
    ExportError: the model cannot be quantised, or loses more than `max_drop` points of top-1 accuracy.
    """
    needed("onnxruntime", "onnx", "onnxscript")
    file, images = f"{job.name}_int8.onnx", training_images(job)
    with job.staged() as folder:
        with contextlib.ExitStack() as scratch:
            plain = folder / f"{job.name}.onnx"
            scratch.callback(plain.unlink, missing_ok=True)
            write(job, plain)
            quantise(plain, folder / file, images)
            check_weights(folder / file)
            sizes = {"bytes": (folder / file).stat().st_size, "bytes_float32": plain.stat().st_size}
        before, after = figures(job, job.trained.model), figures(job, session(folder / file))
        drop = before["acc1"] - after["acc1"]
        print(
            f"  top-1 {before['acc1']:.2f} % before, {after['acc1']:.2f} % after, on {after['num_images']} validation "
            f"images; calibrated on {len(images)} training images"
        )
        if not drop <= job.options.max_drop:
            raise ExportError(
                f"--max-drop: 8 bits lose {drop:.2f} points of top-1 accuracy, more than {job.options.max_drop:g}; nothing "
                "is written"
            )
        print(f"  {sizes['bytes'] / 2**20:.2f} MiB, {sizes['bytes_float32'] / 2**20:.2f} MiB in float32")
        quantised = {
            "operators": QUANTISED,
            "weights": f"int8 per channel, -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}",
            "activations": "uint8 per tensor",
            "calibration_images": len(images),
        }
        compared = {
            "before": before,
            "after": after,
            "drop": drop,
            "max_drop": job.options.max_drop,
            "split": job.cfg.DATA.VAL_SPLIT,
        }
        job.describe(folder, file, compared, quantised=quantised, opset=job.options.opset, **sizes)


def training_images(job: Job) -> torch.Tensor:
    """Real training images, as the evaluation would see them: (N, 3, H, W)."""
    try:
        return job.first(job.cfg.DATA.TRAIN_SPLIT, job.options.calibration_images)
    except UserError as error:
        raise DataError(f"--data-path: int8 needs training images to calibrate on ({error})") from error


def quantise(source: Path, target: Path, images: torch.Tensor) -> None:
    """Writes the 8-bit form of an ONNX file, with its metadata; what values take is measured on the images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (onnx,) = needed("onnx")

    class Images(CalibrationDataReader):
        def __init__(self):
            self.batches: Iterator[torch.Tensor] = iter(images.split(32))

        def get_next(self) -> Optional[dict]:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared = source.with_name("prepared.onnx")
    try:
        logging.getLogger().disabled = True  # onnxruntime advises to do what is done here
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(str(source), str(prepared))
            quantize_static(
                str(prepared), str(target), Images(), quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTISED, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True,
            )  # fmt: skip
    except OSError:
        raise
    except Exception as error:  # of onnxruntime's many kinds
        raise ExportError(f"--checkpoint: the model cannot be quantised ({first_line(error)})") from error
    finally:
        logging.getLogger().disabled = False
        prepared.unlink(missing_ok=True)
    model = onnx.load(str(target))
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise ExportError("--checkpoint: the model has no convolutions to quantise; export to onnx")
    properties = {entry.key: entry.value for entry in onnx.load(str(source), load_external_data=False).metadata_props}
    onnx.helper.set_model_props(model, {**properties, "quantised": json.dumps(QUANTISED)})
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def check_weights(path: Path) -> None:
    """Refuses a file whose products could be cut off on some processor, whichever one this is.

    Raises:
        ExportError: a convolution or head has a weight beyond `LARGEST_WEIGHT`, or one that is not int8.
    """
    (onnx,) = needed("onnx")
    graph = onnx.load(str(path)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dequantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type not in QUANTISED or node.input[1] not in dequantised:
            continue  # a float32 one
        weight = values[dequantised[node.input[1]]]
        largest = abs(weight.astype(int)).max()
        if weight.dtype != "int8" or largest > LARGEST_WEIGHT:
            raise ExportError(
                f"--checkpoint: {node.name} has {weight.dtype} weights up to {largest}; sums of their products would be cut off on processors "
                f"without VNNI (int8 up to {LARGEST_WEIGHT} is right on all); nothing is written, export to onnx"
            )


def figures(job: Job, model: nn.Module) -> dict[str, Any]:
    """The task's figures of the validation split.

    Raises:
        UserError: its images are not there.
    """
    examination, task = job.examination(model), create_task(job.cfg)
    return examination.run(job.loader(job.cfg.DATA.VAL_SPLIT), task.evaluator("figures", CPU))
