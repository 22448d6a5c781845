"""OpenVINO, on this machine's CPU."""

from pathlib import Path
from typing import Any, Union

import torch
from torch import nn
from torch.export import ExportedProgram

from utils.cli import importing
from utils.errors import ConfigError

from .tracing import ConversionError, first_line

# Our names of number formats, and OpenVINO's hint for each. Without the hint it takes bfloat16 wherever the processor has it.
HINTS = {"float32": "f32", "bfloat16": "bf16"}


def to_openvino(program: ExportedProgram) -> Any:
    """The program as an `openvino.Model`, from `images` to `logits`, with float32 weights.

    Raises:
        ConfigError: the package is missing.
        ConversionError: it cannot be converted.
    """
    with importing("openvino"):
        import openvino
    try:
        model = openvino.convert_model(program)
    except Exception as error:  # of the converter's many kinds
        raise ConversionError(f"cannot be converted to OpenVINO ({first_line(error)})") from error
    model.input(0).tensor.set_names({"images"})
    model.output(0).tensor.set_names({"logits"})
    return model


def require_native(precision: str) -> None:
    """Raises ConfigError: the package is missing, or this processor has no such number format and OpenVINO emulates it."""
    with importing("openvino"):
        import openvino
    if precision == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("openvino: this processor has no bfloat16, and it would be emulated; use float32")


class OpenVinoEngine(nn.Module):
    """See `InferenceEngine`. It has as many threads as torch.

    Args:
        model: an `openvino.Model`, or the .xml file of one.
        precision: 'float32' or 'bfloat16' of maps and products; images, weights and logits are float32.

    Raises:
        ConfigError: the package is missing.
        ConversionError: OpenVINO cannot compile the model.
    """

    name = "openvino"

    def __init__(self, model: Union[Path, Any], precision: str = "float32"):
        super().__init__()
        self.precision = precision
        with importing("openvino"):
            import openvino
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # several processes would all take the first cores
        }
        try:
            compiled = openvino.Core().compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO's own kinds
            raise ConversionError(f"OpenVINO cannot compile it ({first_line(error)})") from error
        self.request = compiled.create_infer_request()
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.request.infer({0: images.contiguous().numpy()})[0])
