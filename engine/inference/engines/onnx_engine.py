"""onnxruntime, on this machine's CPU."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Union

import torch
from torch.export import ExportedProgram

from utils.cli import importing

from .inference_engine import InferenceEngine
from .tracing import ConversionError, first_line

OPSET = 20  # that is written where nobody asks for another


def to_onnx(program: ExportedProgram, opset: int = OPSET) -> Any:
    """The program as an `onnx.ModelProto`, from `images` to `logits`.

    Raises:
        ConfigError: a package is missing.
        ConversionError: it cannot be written as ONNX.
    """
    with importing("onnx onnxscript"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    written = io.StringIO()
    try:
        with redirect_stdout(written), redirect_stderr(written):
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
        assert exported is not None  # as it is without dynamo
        return exported.model_proto
    except Exception as error:  # of the exporter's many kinds
        raise ConversionError(f"cannot be written as ONNX ({first_line(error)})") from error


class OnnxruntimeEngine(InferenceEngine):
    """See `InferenceEngine`. It has as many threads as torch.

    Args:
        model: a file, or the bytes of one.

    Raises:
        ConfigError: the package is missing.
        ConversionError: onnxruntime cannot read the model.
    """

    name = "onnxruntime"
    precision = "float32"

    def __init__(self, model: Union[Path, bytes]):
        super().__init__()
        with importing("onnxruntime"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        source = model if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds
            raise ConversionError(
                f"onnxruntime {onnxruntime.__version__} cannot read the file ({first_line(error)})"
            ) from error
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"images": images.contiguous().numpy()})[0])
