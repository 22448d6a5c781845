"""TRAIN.COMPILE: when a run is compiled, for which sizes, and gradients in the memory of CUDA graphs."""

import pytest
import torch
from test_engine import CPU, data, linear, make_trainer
from torch import nn

import models  # noqa: F401
from conftest import error_of, run, run_processes
from engine.checkpoints.progress import Progress, Window
from engine.setup import compilation
from engine.setup.compilation import compile_model, decide_compilation
from engine.training.networks import Networks
from models.sync_batchnorm import SyncBatchNorm
from utils.config import load_config
from utils.processes.launch import Launch

GPU = torch.device("cuda", 0)


@pytest.fixture
def capable_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(compilation, "lacks_c_compiler", lambda: False)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize("device, opts, mode, reason", [
    (GPU, ["TRAIN.COMPILE", "False"], "", ""),
    (CPU, ["TRAIN.COMPILE", "True"], "default", "torch.compile (default)"),
    (GPU, ["TRAIN.COMPILE", "auto"], "default", "torch.compile (default)"),
    (GPU, ["TRAIN.COMPILE", "auto", "TRAIN.COMPILE_MODE", "reduce-overhead"], "reduce-overhead", "torch.compile (reduce-overhead)"),
    (CPU, ["TRAIN.COMPILE", "auto"], "", "not compiled (on CPUs it does not pay)"),
    (GPU, ["TRAIN.COMPILE", "auto", "TRAIN.USE_CHECKPOINT", "True"], "", "not compiled (TRAIN.USE_CHECKPOINT)"),
    (GPU, ["TRAIN.COMPILE", "auto", "DETERMINISTIC", "True"], "", "not compiled (DETERMINISTIC)"),
    (GPU, ["TRAIN.COMPILE", "auto", "MODEL.TYPE", "timm"], "", "not compiled (a timm model)"),
    (GPU, ["TRAIN.COMPILE", "auto", "TRAIN.SYNC_BN", "torch"], "", "not compiled (TRAIN.SYNC_BN torch)"),
])  # fmt: skip
def test_what_auto_means(device, opts, mode, reason, write_config, capable_machine):
    assert decide_compilation(load_config(write_config(), opts), device) == (mode, reason)


def test_machines_that_cannot_compile(write_config, capable_machine, monkeypatch):
    cfg = load_config(write_config(), ["TRAIN.COMPILE", "auto"])
    monkeypatch.setattr(compilation, "lacks_c_compiler", lambda: True)
    assert decide_compilation(cfg, GPU).reason == "not compiled (there is no C compiler)"
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    assert decide_compilation(cfg, GPU).reason == "not compiled (triton is not installed)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert decide_compilation(cfg, GPU).reason == "not compiled (the GPU is too old)"


def test_the_start_line_says_so(write_config, capsys):
    path = write_config()
    run("--cfg", path, "--check", "--opts", "TRAIN.COMPILE", "auto")
    assert "| float32 | not compiled (on CPUs it does not pay) | global batch" in capsys.readouterr().out
    run("--cfg", path, "--check")
    assert "| float32 | global batch" in capsys.readouterr().out
    assert "TRAIN.COMPILE is 'sometimes'; it must be True, False or auto" in str(
        error_of("--cfg", path, "--opts", "TRAIN.COMPILE", "sometimes")
    )


def test_each_size_has_its_graph(monkeypatch):
    """None for all sizes, and none too many for torch, which would go on without compiling."""
    torch._dynamo.reset()
    shapes = []
    model = nn.Sequential(nn.Flatten(2))
    original = nn.Module.compile

    def backend(graph, inputs):
        shapes.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)])
        return graph

    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **how: original(self, backend=backend, **how))
    sides = range(3, 13)  # in training and in evaluation
    with torch._dynamo.config.patch(recompile_limit=2):
        compile_model(model, "default", num_sizes=5)
        for side in sides:
            model(torch.zeros(1, 1, side, side))
    assert shapes == [[(1, 1, side, side)] for side in sides]


# CUDA graphs


class InOnePlace(torch.autograd.Function):
    """x w^T whose weight gradient lies in the same memory each time, as a graph's results do."""

    place = torch.zeros(1, 48, dtype=torch.float64)

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        torch.mm(grad.t(), ctx.saved_tensors[0], out=InOnePlace.place)
        return None, InOnePlace.place.detach()


class GraphedLinear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, images):
        return InOnePlace.apply(images.flatten(1), self.weight)


@pytest.mark.parametrize("compile_mode", ["reduce-overhead", "max-autotune"])
def test_gradients_of_several_replays_add_up(compile_mode):
    images, targets = (t.double() for t in data(24))
    reference = linear()
    nn.init.zeros_(reference[1].bias)
    reference[1].bias.requires_grad_(False)
    model = GraphedLinear(reference[1].weight.detach())
    norms = []
    for each, mode in ((reference, ""), (model, compile_mode)):
        trainer = make_trainer(each, 4, 3, 24, networks=Networks(each, each, compile_mode=mode))
        batches = iter(zip(images.split(4), targets.split(4)))
        norms.append([trainer.update(step, batches, Window(CPU, Progress(), Launch())).item() for step in range(2)])
    assert norms[1] == pytest.approx(norms[0], rel=1e-12)
    torch.testing.assert_close(model.weight, reference[1].weight, rtol=1e-12, atol=0)


# Several processes


def compile_with_synchronised_batchnorm():
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), SyncBatchNorm.of(nn.BatchNorm2d(4)), nn.ReLU(), SyncBatchNorm.of(nn.BatchNorm2d(4))]
    model = nn.Sequential(*layers)
    images = torch.randn(2, 3, 8, 8) + torch.distributed.get_rank()
    eager = model(images)
    torch._dynamo.reset()  # what other tests have compiled counts to the limit of recompilations
    torch._dynamo.utils.counters.clear()
    model.compile(backend="eager", fullgraph=True, dynamic=False)  # a break would be an error
    torch.testing.assert_close(model(images), eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_synchronised_batchnorm_does_not_break_the_graph():
    run_processes(2, compile_with_synchronised_batchnorm)
