"""The models give the released code's numbers, and work with timm."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import models
from known_weights import PARITY, released_weights
from models.layers import FASA, INTERACTIONS, FATBlock
from models.sync_batchnorm import synchronise_batchnorm

SIZES = ["fat_b0", "fat_b1", "fat_b2", "fat_b3"]


@pytest.mark.parametrize("name", SIZES)
def test_keys_shapes_and_parameters_are_the_released_ones(name):
    model = timm.create_model(name)
    own = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert own == [[key, shape] for key, shape in PARITY["models"][name]["keys"].items()]
    assert sum(p.numel() for p in model.parameters()) == PARITY["models"][name]["params"]


@pytest.mark.parametrize("name", SIZES)
def test_logits_are_the_released_ones(name):
    model = timm.create_model(name).double().eval()
    models.load_released_state_dict(model, released_weights(name))
    images = torch.as_tensor(np.random.default_rng(2306).standard_normal((2, 3, 224, 224)))
    with torch.no_grad():
        logits = model(images)
    expected = torch.tensor(PARITY["models"][name]["logits"], dtype=torch.float64)  # every 20th class
    assert (logits[:, ::20] - expected).abs().max() < 1e-5


def test_released_state_dict_is_loaded_strictly():
    weights = released_weights("fat_b0")
    model = timm.create_model("fat_b0").double()
    models.load_released_state_dict(model, {"model": weights, "epoch": 3})
    assert torch.equal(model.head.weight.detach(), weights["head.weight"])
    before = model.head.bias.detach().clone()
    wrong = {**weights, "extra": torch.zeros(1), "head.bias": torch.zeros(7)}
    del wrong["norm.weight"]
    with pytest.raises(ValueError, match="missing key norm.weight.*unknown key extra.*head.bias has shape"):
        models.load_released_state_dict(model, wrong)
    assert torch.equal(model.head.bias.detach(), before)


def test_small_members():
    count = {name: sum(p.numel() for p in timm.create_model(name).parameters()) for name in ("fat_tiny", "fat_small")}
    blocks = {name: sum(isinstance(m, FATBlock) for m in timm.create_model(name).modules()) for name in count}
    assert blocks == {"fat_tiny": 4, "fat_small": 8}
    assert count["fat_tiny"] < 1e6 and count["fat_tiny"] < count["fat_small"] < PARITY["models"]["fat_b0"]["params"]


# FASA, written again as plain as the paper's equations are


def reference_fasa(layer: FASA, x: torch.Tensor, interaction: str) -> torch.Tensor:
    batch, dim, height, width = x.shape
    q = layer.q(x)
    out = local = context = None
    if interaction != "global":
        local = layer.local_mixer(q)
        local = local * torch.sigmoid(local)
    if interaction != "local":
        k, v = layer.kv(layer.pool(x)).split(dim, dim=1)
        context = torch.zeros_like(q)
        d = dim // layer.num_heads
        for b in range(batch):
            for h in range(layer.num_heads):
                part = slice(h * d, (h + 1) * d)
                queries, keys, values = (t[b, part].reshape(d, -1).T for t in (q, k, v))
                attention = torch.softmax(queries @ keys.T / math.sqrt(d), dim=-1)
                context[b, part] = (attention @ values).T.reshape(d, height, width)
    if interaction == "released":
        out = local * torch.sigmoid(context) * context
    elif interaction == "bidirectional":
        out = local * torch.sigmoid(context) * context * torch.sigmoid(local)
    elif interaction == "add":
        out = local + context
    elif interaction == "concat":
        out = torch.cat([local, context], 1)
    else:
        out = local if interaction == "local" else context
    return layer.mixer(out)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_fasa_is_the_paper_s_equation(interaction):
    torch.manual_seed(0)
    layer = FASA(12, num_heads=3, kernel_size=5, window_size=4, interaction=interaction).double().eval()
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    assert torch.allclose(layer(x), reference_fasa(layer, x, interaction), atol=1e-12)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_every_parameter_learns(interaction):
    """A parameter without gradient would stop DistributedDataParallel, and be a dead one."""
    model = timm.create_model("fat_tiny", num_classes=3, interaction=interaction)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_released_and_bidirectional_have_the_same_parameters():
    shapes = [
        {key: value.shape for key, value in timm.create_model("fat_tiny", interaction=name).state_dict().items()}
        for name in ("released", "bidirectional")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("arguments, message", [
    (dict(interaction="both"), "interaction is 'both'.*released"),
    (dict(dim=10, num_heads=3), "10 is not divisible by num_heads 3"),
    (dict(kernel_size=4), "kernel_size 4 is even"),
    (dict(window_size=3), "window_size is 3.*power of two"),
])  # fmt: skip
def test_fasa_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        FASA(**{**dict(dim=16, num_heads=2, kernel_size=3, window_size=2), **arguments})


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 32), (70, 224)])
def test_any_image_size(size):
    model = timm.create_model("fat_tiny", num_classes=5).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 5)


# timm's interface


def test_features():
    model = timm.create_model("fat_b0", features_only=True).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    images = torch.randn(1, 3, 64, 96)
    features = model(images)
    assert [tuple(f.shape) for f in features] == [(1, 32, 16, 24), (1, 80, 8, 12), (1, 160, 4, 6), (1, 256, 2, 3)]
    some = timm.create_model("fat_b0", features_only=True, out_indices=(0, 2)).eval()
    some.load_state_dict(model.state_dict(), strict=False)
    for index, feature in zip((0, 2), some(images)):
        assert torch.equal(feature, features[index])


def test_intermediates_agree_with_forward_features():
    model = timm.create_model("fat_tiny").eval()
    images = torch.randn(2, 3, 64, 64)
    final, intermediates = model.forward_intermediates(images, norm=True)
    assert torch.equal(final, model.forward_features(images)) and torch.equal(intermediates[-1], final)
    assert torch.equal(model.forward_head(final), model(images))
    assert model.forward_head(final, pre_logits=True).shape == (2, model.num_features)


def test_classifier():
    model = timm.create_model("fat_tiny", num_classes=10, drop_path_rate=0.05)
    assert model.get_classifier().out_features == 10
    model.reset_classifier(4)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(ValueError, match="num_classes to 0"):
        model.reset_classifier(4, "")
    model.reset_classifier(0, "")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 128, 2, 2)


def test_drop_path_grows_linearly_to_the_last_block():
    model = timm.create_model("fat_b0", drop_path_rate=0.11)
    rates = [m.drop_path.drop_prob for m in model.modules() if isinstance(m, FATBlock)]
    assert rates == pytest.approx([0.11 * i / 11 for i in range(12)])


def test_layer_decay_groups():
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("fat_tiny")
    scales = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    stem, first, last = (
        model.patch_embed.conv1.conv[0].weight, model.layers[0].blocks[0].cpe.weight, model.layers[3].blocks[0].cpe.weight
    )  # fmt: skip
    assert scales[id(stem)] < scales[id(first)] < scales[id(last)] < scales[id(model.head.weight)] == 1
    assert scales[id(first)] == 0.125 * scales[id(last)]


def test_activation_checkpointing_changes_nothing():
    """Neither gradients, nor BatchNorm's running statistics, nor drop path's draws."""
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("fat_small", num_classes=3, drop_path_rate=0.3).double().train()
        model.set_grad_checkpointing(enable)
        images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
        torch.manual_seed(1)
        model(images).square().sum().backward()
        assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        results.append(({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())))
    for name, gradient in results[0][0].items():
        assert torch.allclose(gradient, results[1][0][name], rtol=1e-10, atol=1e-12), name
    for name, buffer in results[0][1].items():
        assert torch.equal(buffer, results[1][1][name]), name


@pytest.mark.parametrize("convert", [convert_sync_batchnorm, synchronise_batchnorm], ids=["torch", "ours"])
def test_activation_checkpointing_with_synchronised_batchnorm(convert):
    """torch's layer asserts that it has its counter. To the bit; the counters count each batch once."""
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = convert(timm.create_model("fat_tiny", num_classes=3).train())
        model.set_grad_checkpointing(enable)
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        model(images).square().sum().backward()
        assert all(m.num_batches_tracked == 1 for m in model.modules() if isinstance(m, _BatchNorm))
        results.append({**{n: p.grad for n, p in model.named_parameters()}, **dict(model.named_buffers())})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_channels_last_gives_the_same_logits():
    model = timm.create_model("fat_tiny").double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    logits = model(images)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images.to(memory_format=torch.channels_last)), logits, atol=1e-12)
