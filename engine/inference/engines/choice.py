"""The engine that a user has asked for."""

import torch
from torch import nn

import models
from utils.cli import importing
from utils.errors import ConfigError
from utils.image_size import Size, height_and_width

from ...setup.model import deploy_model
from ...setup.precision import Precision
from .cuda_graphs import CudaGraphEngine
from .inference_engine import EXPORTING, InferenceEngine
from .onnx_engine import OnnxruntimeEngine, to_onnx
from .openvino_engine import OpenVinoEngine, require_native, to_openvino
from .torch_engine import TorchEngine
from .tracing import ConversionError, trace


def require_engine(name: str, device: torch.device, precision: Precision) -> None:
    """Finds out at once, before a model is exported, whether this machine has the engine.

    Raises:
        ConfigError: a package is missing, or the engine does not compute on this device or in this precision.
    """
    if name == "torch":
        return
    if name == "cudagraphs":
        if device.type != "cuda":
            raise ConfigError(
                f"--engine cudagraphs: is for GPUs, and the device is {device}; leave it out, or use a GPU"
            )
        return
    if device.type != "cpu":
        raise ConfigError(
            f"--engine {name}: computes on the CPU here, and the device is {device}; set DEVICE to cpu (predict.py: --device cpu)"
        )
    if name == "onnxruntime":
        with importing("onnx onnxscript onnxruntime"):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    else:
        require_native(number_format(precision))


def open_engine(
    name: str, model: nn.Module, precision: Precision, size: Size, fused: bool = False, in_chans: int = 3
) -> InferenceEngine:
    """A model in an engine. Those of `EXPORTING` get a copy, exported in memory: of a FAT the deployed form.

    Args:
        name: one of `ENGINES`.
        model: with its weights, on its device.
        size: of the images, which an exported model has fixed; the number of images is free.
        fused: whether torch, also in CUDA graphs, computes the deployed form.
        in_chans: channels of the images.

    Raises:
        ConfigError: the engine does not take this model.
    """
    if name not in EXPORTING:
        engine = TorchEngine(model, precision, fused)
        return CudaGraphEngine(engine) if name == "cudagraphs" else engine
    # of any precision: the engine rounds, as it knows which sums need more digits
    exported = deploy_model(model, None) if isinstance(model, models.FAT) else model.eval()
    try:
        program = trace(exported, size, in_chans=in_chans)
        if name == "onnxruntime":
            return OnnxruntimeEngine(to_onnx(program).SerializeToString())
        compiled = OpenVinoEngine(to_openvino(program), number_format(precision))
        compiled.request((1, in_chans, *height_and_width(size)))  # or it refuses now
        return compiled
    except ConversionError as error:
        raise ConfigError(
            f"--engine {name}: {type(model).__name__} cannot be used in it ({error}); use torch"
        ) from error


def describe(name: str, model: nn.Module, fused: bool) -> str:
    """What computes, for the log: '' for the model as it was trained."""
    parts = ["fused"] * is_deployed(name, model, fused)
    if name != "torch":
        parts.append(f"{name}, exported in memory" if name in EXPORTING else name)
    return "".join(f" | {part}" for part in parts)


def is_deployed(name: str, model: nn.Module, fused: bool) -> bool:
    """Whether the engine computes the deployed form, of which only FATs have one."""
    return fused or (name in EXPORTING and isinstance(model, models.FAT))


def number_format(precision: Precision) -> str:
    return str(precision.dtype or torch.float32).removeprefix("torch.")
