"""--engine cudagraphs, on a stand-in of CUDA graphs: what a graph reads and writes, which are kept, and what is refused."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import error_of
from engine.inference.engines import describe, open_engine, require_engine
from engine.inference.engines.cuda_graphs import KEPT, WARM_UP_CALLS
from engine.setup.precision import NativePrecision
from known_weights import realistic
from parts.gpu_check import deployed_form, model_speed
from parts.gpu_check.setting import Setting
from utils.errors import ConfigError

CPU = torch.device("cpu")
TWO_STAGES = {
    "embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "kernel_sizes": [3, 3], "window_sizes": [4, 1], "mlp_ratios": [2, 2], "mlp_kernel_sizes": [3, 3],
}  # fmt: skip


class RecordedGraph(TorchDispatchMode):
    """As a CUDA graph: the operators of a capture, done again with the same memory when it is replayed."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, results))
        return results

    def replay(self):
        self.replays += 1
        for operator, args, kwargs, results in self.calls:
            for written, value in zip(tree_leaves(results), tree_leaves(operator(*args, **kwargs))):
                if isinstance(written, torch.Tensor):
                    written.copy_(value)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were captured, in their order."""
    captured = []

    @contextlib.contextmanager
    def capture(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        captured.append(graph)
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    return captured


class Counting(torch.nn.Module):
    """Logits (B, 3) of a layer, and how often Python came by."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        self.cast_weights_are_kept = torch.is_autocast_cache_enabled()
        return self.layer(images.mean((2, 3)))


@pytest.mark.parametrize("fused", [False, True])
def test_logits_are_the_model_s_in_any_order_of_sizes(graphs, fused):
    model = realistic("fat_b0", num_classes=3, **TWO_STAGES).eval()
    engine = open_engine("cudagraphs", model, NativePrecision(CPU, None), 32, fused)
    assert (engine.name, engine.training) == ("cudagraphs", False)
    batches = [torch.randn(count, 3, 32, 32) for count in (4, 4, 1, 4, 1)]
    batches[3] = batches[3].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = [engine(batch) for batch in batches]  # kept, as views of an image are
        for logits, batch in zip(found, batches):
            expected = model(batch)
            assert (logits - expected).abs().max() < 1e-4 * expected.std()
    assert [graph.replays for graph in graphs] == [3, 2]


def test_a_size_is_captured_once_and_the_last_ones_are_kept(graphs):
    model = Counting().eval()
    engine = open_engine("cudagraphs", model, NativePrecision(CPU, None), 4)
    sizes = list(range(1, KEPT + 1))
    for count in [*sizes, *sizes]:
        engine(torch.randn(count, 3, 4, 4))
    assert len(graphs) == KEPT and model.calls == KEPT * (WARM_UP_CALLS + 1)
    engine(torch.randn(KEPT + 1, 3, 4, 4))
    assert list(engine.captured) == [(count, 3, 4, 4) for count in range(2, KEPT + 2)]
    images = torch.randn(1, 3, 4, 4)
    assert torch.equal(engine(images), model(images).detach()) and len(graphs) == KEPT + 2


def test_a_caller_s_autocast_leaves_nothing_in_the_graph(graphs):
    """Its 16-bit weights are freed at its end: a graph that reads them would compute with what lies there then."""
    model = Counting().eval()
    precision = NativePrecision(CPU, torch.bfloat16)
    engine = open_engine("cudagraphs", model, precision, 4)
    images = torch.randn(2, 3, 4, 4)
    with torch.inference_mode(), precision.autocast():
        model(images)
        assert model.cast_weights_are_kept
        engine(images)
        assert not model.cast_weights_are_kept
    for _ in range(2):
        with torch.inference_mode(), precision.autocast():
            found, expected = engine(images), model(images)
        assert found.dtype is torch.bfloat16 and torch.equal(found, expected)
        with torch.no_grad():
            model.layer.weight.mul_(-2)  # which both see
    assert len(graphs) == 1


def test_what_cannot_be_captured_is_one_line(graphs, monkeypatch):
    class Reading(Counting):
        def forward(self, images):
            if isinstance(torch.utils._python_dispatch._get_current_dispatch_mode(), RecordedGraph):
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
            return super().forward(images)

    engine = open_engine("cudagraphs", Reading().eval(), NativePrecision(CPU, None), 4)
    with pytest.raises(
        ConfigError, match="^--engine cudagraphs: Reading cannot be captured .*is capturing.; use torch$"
    ):
        engine(torch.randn(1, 3, 4, 4))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: out_of_memory())
    with pytest.raises(torch.OutOfMemoryError):
        engine(torch.randn(1, 3, 4, 4))


@contextlib.contextmanager
def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")
    yield


@pytest.mark.parametrize("command", ["--eval", "--throughput"])
def test_a_cpu_is_refused(command, write_config, tmp_path):
    checkpoint = tmp_path / "x.pth"
    torch.save({"model": realistic("fat_tiny", num_classes=3).state_dict(), "classes": ["0", "1", "2"]}, checkpoint)
    argv = [
        "--cfg",
        write_config(),
        command,
        "--engine",
        "cudagraphs",
        *["--resume", checkpoint] * (command == "--eval"),
    ]
    message = str(error_of(*argv))
    assert message == "--engine cudagraphs: is for GPUs, and the device is cpu; leave it out, or use a GPU"
    require_engine("cudagraphs", torch.device("cuda", 0), NativePrecision(CPU, None))
    assert describe("cudagraphs", Counting(), fused=False) == " | cudagraphs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_of_a_gpu_compares_graphs(graphs, dtype, monkeypatch):
    model, images = realistic("fat_b0", num_classes=3, **TWO_STAGES).eval(), torch.randn(4, 3, 32, 32)
    assert deployed_form.graph_check(model, dtype, images).passed
    monkeypatch.setattr(RecordedGraph, "replay", lambda graph: None)  # the first batch's logits remain
    assert not deployed_form.graph_check(model, dtype, images).passed


@pytest.mark.parametrize("name, form", [("fat_tiny", "graph"), ("fat_b0", "repvit_m1")])
def test_speed_is_taken_of_graphs(graphs, name, form, monkeypatch, tmp_path):
    monkeypatch.setattr(model_speed, "number_format", lambda setting: torch.float32)  # which every CPU has
    setting = Setting(dry_run=True, folder=tmp_path, until=0.0)
    timed = model_speed.inference_form(setting, name, form, setting.images(1))
    for _ in range(2):
        assert timed().shape == (1, 1000)
    assert [graph.replays for graph in graphs] == [2]
