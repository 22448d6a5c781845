"""The training form against the plain one, its memory layout, and what the compiler makes of it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import smallest_model
from engine.evaluation.loop import fill_up
from models.layers import DepthwiseConv2d, LayerNorm, depthwise
from models.layers.depthwise import DepthwiseConvolution
from models.layers.norm import norm_channels_last
from parts.benchmark.plain_fat import PlainFAT
from utils import malloc


def pair(name="fat_tiny", **settings):
    torch.manual_seed(0)
    model = timm.create_model(name, **settings)
    return model, PlainFAT(model)


@pytest.mark.parametrize("name", ["fat_tiny", "fat_b0"])
def test_gradients_are_those_of_the_plain_form(name):
    """In float64, as ReLU's gates flip where float32 rounds; batch statistics, as in training."""
    model, plain = (m.double() for m in pair(name, num_classes=5))
    model.to(memory_format=torch.channels_last)
    images, targets = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 2, 4])
    for form in (model, plain):
        F.cross_entropy(form(images.to(memory_format=torch.channels_last)), targets).backward()
    others = dict(plain.named_parameters())
    for key, parameter in model.named_parameters():
        assert (parameter.grad - others[key].grad).abs().max() <= 1e-9 * (1 + others[key].grad.abs().max()), key
    for (key, buffer), other in zip(model.state_dict().items(), plain.state_dict().values()):
        assert torch.allclose(buffer, other, atol=1e-12), key


def test_a_step_in_float32_is_that_of_the_plain_form():
    """With the weight gradient of the CPU's own way, which float64 does not take."""
    model, plain = pair(num_classes=5)
    model.to(memory_format=torch.channels_last)
    images, targets = torch.randn(16, 3, 64, 64), torch.arange(16) % 5
    for form in (model, plain):
        F.cross_entropy(form(images), targets).backward()
    norms = [torch.stack([p.grad.norm() for p in form.parameters()]).norm() for form in (model, plain)]
    assert abs(norms[0] / norms[1] - 1) < 1e-3
    assert isinstance(model.layers[0].blocks[0].cpe, DepthwiseConv2d)


# Depthwise convolutions


@pytest.mark.parametrize("small_side", [0, 20], ids=["image by image", "all at once"])
@pytest.mark.parametrize(
    "kernel_size, stride, height, width",
    [(5, 1, 9, 12), (5, 2, 9, 12), (5, 2, 12, 9), (7, 1, 7, 7), (9, 1, 7, 5), (5, 1, 3, 2)],
)
def test_the_weight_gradient_is_the_convolution_s(kernel_size, stride, height, width, small_side, monkeypatch):
    monkeypatch.setattr(depthwise, "SMALL_SIDE", small_side)
    torch.manual_seed(0)
    layer = DepthwiseConv2d(6, kernel_size, stride)
    calls, apply = [], DepthwiseConvolution.apply
    monkeypatch.setattr(DepthwiseConvolution, "apply", lambda *args: calls.append(1) or apply(*args))
    x = torch.randn(3, 6, height, width).to(memory_format=torch.channels_last).requires_grad_()
    reference = x.detach().clone().requires_grad_()
    y = layer(x)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    assert calls
    ours = [x.grad, layer.weight.grad, layer.bias.grad]
    layer.zero_grad()
    (F.conv2d(reference, layer.weight, layer.bias, stride, kernel_size // 2, 1, 6) * weights).sum().backward()
    for mine, theirs in zip(ours, [reference.grad, layer.weight.grad, layer.bias.grad]):
        assert mine.shape == theirs.shape and torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("small_side", [0, 20], ids=["image by image", "all at once"])
def test_the_weight_gradient_by_finite_differences(small_side, monkeypatch):
    monkeypatch.setattr(depthwise, "SMALL_SIDE", small_side)
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 2, 6, 5), (2, 1, 5, 5), (2,)]
    )
    for stride in (1, 2):
        assert torch.autograd.gradcheck(
            lambda x, w, b: DepthwiseConvolution.apply(x, w, b, (stride, stride), (2, 2), (1, 1), 2), (x, weight, bias)
        )


def test_a_sum_with_the_identity_is_one_convolution():
    torch.manual_seed(0)
    layer, summed, x = DepthwiseConv2d(4, 5), DepthwiseConv2d(4, 5, residual=True), torch.randn(2, 4, 8, 8)
    summed.load_state_dict(layer.state_dict())
    assert torch.allclose(summed(x), layer(x) + x, atol=1e-6) and not torch.equal(summed(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(summed(x), layer(x) + x)


def test_other_ways_to_differentiate_and_trace():
    """Per-sample gradients, forward mode, an empty batch, graphs, meta tensors: what plain convolutions can."""
    torch.manual_seed(0)
    layer, x = DepthwiseConv2d(4, 5, residual=True), torch.randn(3, 4, 8, 8)
    per_sample = torch.func.vmap(
        torch.func.grad(lambda w, x: F.conv2d(x[None], w, padding=2, groups=4).square().sum()), (None, 0)
    )
    ours = torch.func.vmap(
        torch.func.grad(lambda w, x: torch.func.functional_call(layer, {"weight": w, "bias": torch.zeros(4)}, (x[None],)).square().sum()), (None, 0)
    )  # fmt: skip
    middle = torch.zeros(4, 1, 5, 5)
    middle[..., 2, 2] = 1
    assert torch.allclose(ours(layer.weight.detach(), x), per_sample(layer.weight.detach() + middle, x), atol=1e-4)
    assert torch.allclose(torch.func.jvp(layer, (x,), (x,))[1], layer(x) - layer(torch.zeros_like(x)), atol=1e-5)
    layer(x[:0]).sum().backward()
    assert not layer.weight.grad.any()
    model = timm.create_model("fat_tiny").eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))
    assert timm.create_model("fat_tiny").to("meta")(images.to("meta")).shape == (1, 1000)


def test_a_model_made_without_memory():
    with torch.device("meta"):
        model = timm.create_model("fat_tiny")
    model.to_empty(device="cpu")
    whole = timm.create_model("fat_tiny")
    model.load_state_dict(whole.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), whole.eval()(images))


# Memory layout


def test_maps_stay_channels_last_and_nothing_is_copied():
    model = timm.create_model("fat_tiny").to(memory_format=torch.channels_last)
    seen = []

    def look(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        module.register_forward_hook(look)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    for training in (True, False):
        with Copies() as copies:
            model.train(training)(images)
        assert not copies.found
    assert len(seen) > 100 and all(seen)


class Copies(TorchDispatchMode):
    """Notes operators that copy a map to change its layout."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in ("clone", "copy", "contiguous")) and args[0].numel() > 100:
            self.found.append((str(function), args[0].shape))
        return function(*args, **(kwargs or {}))


def test_the_gpu_s_norm_is_group_norm_and_keeps_the_layout():
    torch.manual_seed(0)
    norm = LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 6, 5, 7).to(memory_format=torch.channels_last)
    y = norm_channels_last(x, norm.weight, norm.bias, norm.eps)
    assert torch.allclose(y, F.group_norm(x, 1, norm.weight, norm.bias, norm.eps), atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


# The compiler


def test_no_graph_breaks():
    """In training with drop path, in evaluation, and the deployed form."""
    import models

    images = torch.randn(2, 3, 64, 64)
    model = smallest_model(drop_path_rate=0.1)
    for form in (model.train(), model.eval(), models.fuse(model.eval())):
        torch._dynamo.reset()
        explained = torch._dynamo.explain(form)(images)
        assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


def test_the_last_batch_is_filled_up():
    seen = []

    def model(images):
        seen.append(images.shape[0])
        return images.sum((1, 2, 3))

    images = torch.randn(3, 3, 8, 8).to(memory_format=torch.channels_last)
    assert torch.equal(fill_up(model, 8)(images), images.sum((1, 2, 3)))
    assert torch.equal(fill_up(model, 0)(images), images.sum((1, 2, 3)))
    assert torch.equal(fill_up(model, 3)(images), images.sum((1, 2, 3))) and seen == [8, 3, 3]


# Memory of the C library


def test_who_set_the_allocator_is_left_alone(monkeypatch):
    for name in [name for name in malloc.os.environ if name.startswith("MALLOC_") or name == "LD_PRELOAD"]:
        monkeypatch.delenv(name)
    assert malloc.keep_freed_memory()
    calls = []
    library = type("Library", (), {"mallopt": staticmethod(lambda *call: calls.append(call) or 1)})
    with monkeypatch.context() as patch:
        patch.setattr(malloc.ctypes, "CDLL", lambda _: library)
        # no mappings, never trimmed
        assert malloc.keep_freed_memory() and dict(calls)[-4] == 0 and dict(calls)[-1] == -1
    for name in ("MALLOC_ARENA_MAX", "LD_PRELOAD"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert not malloc.keep_freed_memory()


def test_gradients_lie_as_the_weights_do():
    """Else DDP copies them, and says so in the log."""
    model = timm.create_model("fat_tiny", num_classes=3).to(memory_format=torch.channels_last)
    model(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    assert {
        name for name, parameter in model.named_parameters() if parameter.grad.stride() != parameter.stride()
    } == set()
