"""torch on a GPU, whose kernels are started once for a whole batch: the model as a CUDA graph for each shape of images."""

from typing import NamedTuple

import torch

from utils.device import is_out_of_memory
from utils.errors import ConfigError

from .inference_engine import InferenceEngine
from .torch_engine import TorchEngine
from .tracing import first_line

KEPT = 4  # graphs: of a full batch, a last one, and the same of another set
WARM_UP_CALLS = 3  # in which cuDNN, cuBLAS and Triton choose and load what a capture must not


class Captured(NamedTuple):
    """A graph, and where in memory it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: torch.Tensor
    logits: torch.Tensor


class CudaGraphEngine(InferenceEngine):
    """See `InferenceEngine`: the numbers of a `TorchEngine`, without the CPU's time for each operator.

    A shape of images that it has not seen is captured, which takes some calls' time, and memory for all maps of a batch. The
    last `KEPT` shapes are kept. Weights that are changed in place are seen by the graphs.

    Args:
        engine: on a GPU.

    Raises:
        ConfigError: when it is called: the model does what no graph can, such as reading a result on the CPU.
    """

    name = "cudagraphs"

    def __init__(self, engine: TorchEngine):
        super().__init__()
        self.engine = engine
        self.precision = engine.precision
        self.training = engine.training
        self.captured: dict[torch.Size, Captured] = {}

    @torch.inference_mode()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape not in self.captured:
            if len(self.captured) == KEPT:
                torch.cuda.synchronize(images.device)  # the graph may still be computing
                del self.captured[next(iter(self.captured))]
            self.captured[images.shape] = self.capture(images)
        captured = self.captured[images.shape]
        captured.images.copy_(images)
        captured.graph.replay()
        return captured.logits.clone()  # the next batch is written to the same place

    def capture(self, images: torch.Tensor) -> Captured:
        """The graph of images of this shape, not yet replayed. Raises ConfigError: there can be none."""
        images = images.clone()
        # Weights that a caller's autocast has kept in 16 bits are freed at its end, and a graph would go on reading them.
        with torch.autocast(images.device.type, enabled=False, cache_enabled=False):
            self.warm_up(images)
            graph = torch.cuda.CUDAGraph()
            try:
                # other threads, such as the one that pins batches, may go on allocating
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    logits = self.engine(images)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                model = type(self.engine.model).__name__
                raise ConfigError(
                    f"--engine cudagraphs: {model} cannot be captured ({first_line(error)}); use torch"
                ) from error
        return Captured(graph, images, logits)

    def warm_up(self, images: torch.Tensor) -> None:
        """The first calls, on a stream of their own, as torch asks for it before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                self.engine(images)
        torch.cuda.current_stream().wait_stream(stream)
