"""OpenVINO, on this machine's CPU."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Union
from xml.etree import ElementTree

import torch
from torch.export import ExportedProgram

from utils.cli import importing
from utils.errors import ConfigError

from .inference_engine import InferenceEngine
from .tracing import ConversionError, first_line

# Our names of number formats, and OpenVINO's hint for each. Without the hint it takes bfloat16 wherever the processor has it.
HINTS = {"float32": "f32", "bfloat16": "bf16"}
KEPT = 4  # forms for a shape of images: a full batch, a last one, and the same of another set
# On processors with AVX2 and no AVX-512, as measured in docs/performance.md:
IMAGES_PER_THREAD = 4  # at a time, whose maps stay in the caches
# Instead of brgconv_avx2_dw, which reads a map again for each weight. The first is for one that has AVX-512 after all.
DEPTHWISE_KERNELS = "cpu:brgconv_avx512_dw,cpu:jit_avx2_dw"


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


def has_avx2_only() -> bool:
    """Whether the processor has AVX2 and no AVX-512, or torch was told so (ATEN_CPU_CAPABILITY)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def with_depthwise_kernels(core: Any, model: Any) -> Any:
    """The model with `DEPTHWISE_KERNELS` as the first choices of its depthwise convolutions; the function is the same.

    OpenVINO reads such choices from a model's file only.
    """
    import openvino

    layers = [layer for layer in model.get_ops() if layer.get_type_name() == "GroupConvolution"]
    # of weights (groups, out, in, height, width)
    depthwise = {layer.get_friendly_name() for layer in layers if list(layer.input(1).get_shape())[1:3] == [1, 1]}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        openvino.save_model(model, str(file), compress_to_fp16=False)
        tree = ElementTree.parse(file)
        for layer in tree.iter("layer"):
            settings = layer.find("data")
            if settings is not None and layer.get("name") in depthwise:
                settings.set("PrimitivesPriority", DEPTHWISE_KERNELS)
        tree.write(file)
        return core.read_model(str(file))


def require_native(precision: str) -> None:
    """Raises ConfigError: the package is missing, or this processor has no such number format and OpenVINO emulates it."""
    with importing("openvino"):
        import openvino
    if precision == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("openvino: this processor has no bfloat16, and it would be emulated; use float32")


class OpenVinoEngine(InferenceEngine):
    """See `InferenceEngine`. It has as many threads as torch.

    OpenVINO compiles once for each shape of images, or once for all, which was seen to take 1.3 to 1.5 times as long for a batch.
    On a processor with AVX2 and no AVX-512, a compiled shape also has other depthwise kernels and a batch is computed in parts.

    Args:
        model: an `openvino.Model`, or the .xml file of one.
        precision: 'float32' or 'bfloat16' of maps and products; images, weights and logits are float32.
        by_shape: whether it compiles for each shape, of which it keeps the last `KEPT`.

    Raises:
        ConfigError: the package is missing.
        ConversionError: OpenVINO cannot read or compile the model.
    """

    name = "openvino"

    def __init__(self, model: Union[Path, Any], precision: str = "float32", by_shape: bool = True):
        super().__init__()
        self.precision, self.by_shape = precision, by_shape
        with importing("openvino"):
            import openvino
        self.core = openvino.Core()
        self.settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # several processes would all take the first cores
        }
        try:
            self.source = self.core.read_model(str(model)) if isinstance(model, Path) else model
        except Exception as error:  # OpenVINO's own kinds
            raise ConversionError(f"OpenVINO cannot read it ({first_line(error)})") from error
        self.images_at_a_time = 0  # 0: all
        if by_shape and has_avx2_only():
            self.source = with_depthwise_kernels(self.core, self.source)
            self.images_at_a_time = IMAGES_PER_THREAD * torch.get_num_threads()
        self.requests: dict[tuple[int, ...], Any] = {}  # by shape of images; () for all
        if not by_shape:
            self.request(())
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.infer(part) for part in images.split(self.images_at_a_time or len(images))])

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        request = self.request(tuple(images.shape) if self.by_shape else ())
        return torch.from_numpy(request.infer({0: images.contiguous().numpy()})[0])

    def request(self, shape: tuple[int, ...]) -> Any:
        """What computes images of a shape, compiled when it is first asked for."""
        if shape not in self.requests:
            model = self.source
            try:
                if shape:
                    model = model.clone()
                    model.reshape(list(shape))
                compiled = self.core.compile_model(model, "CPU", self.settings)
            except Exception as error:
                raise ConversionError(f"OpenVINO cannot compile it ({first_line(error)})") from error
            if len(self.requests) == KEPT:
                del self.requests[next(iter(self.requests))]
            self.requests[shape] = compiled.create_infer_request()
        return self.requests[shape]
