"""Semantic FPN and UperNet: the published sizes, their shapes, and what training asks of them."""

import math
from types import SimpleNamespace

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from conftest import SMALLEST_DENSE, rest
from engine.training.freeze import freeze, parts_of
from models import create_segmenter
from models.dense import SEGMENTERS
from models.dense.semantic_fpn import FeaturePyramid, SemanticFPNHead
from utils.macs import layer_macs, measure_complexity

pytestmark = pytest.mark.usefixtures("narrow_heads")

PUBLISHED = [  # the authors' segmentation README: parameters (in full in parity's), GFLOPs at an input
    ("semantic_fpn", "fat_b0", 8_377_702, "25.0", (512, 512)),
    ("semantic_fpn", "fat_b1", 11_624_214, "27.5", (512, 512)),
    ("semantic_fpn", "fat_b2", 17_204_886, "32.2", (512, 512)),
    ("semantic_fpn", "fat_b3", 32_934_422, "179", (512, 2048)),
    ("upernet", "fat_b3", 58_991_788, "936", (512, 2048)),
]


@pytest.mark.parametrize("name, backbone, params, gflops, size", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(published_heads, name, backbone, params, gflops, size):
    model = create_segmenter(name, backbone, 150, device="meta").to("meta")
    complexity = measure_complexity(model, (3, *size))
    assert complexity.params == params
    counted = layer_macs(model, (3, *size)) / 1e9
    assert f"{counted:.{len(gflops.partition('.')[2])}f}" == gflops
    assert complexity.conv_macs / 1e9 == pytest.approx(float(gflops), rel=0.006)  # without biases, norms and ReLU
    assert complexity.macs > complexity.conv_macs


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("size", [(64, 96), (67, 101)])
def test_logits_have_the_images_size(name, size):
    model = create_segmenter(name, "fat_tiny", 5).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_parameter_learns(name):
    model = create_segmenter(name, "fat_tiny", 5, drop_path_rate=0.1).train()
    model.set_grad_checkpointing()
    outputs = model(torch.randn(2, 3, 64, 64))
    outputs = outputs if model.auxiliary_weight else (outputs,)
    assert len(outputs) == (2 if name == "upernet" else 1)
    assert all(one.shape == (2, 5, 64, 64) for one in outputs)
    sum(one.square().sum() for one in outputs).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_small_set_is_learned():
    """Left half one class, right half another: what is only right if logits lie where their pixels are."""
    torch.manual_seed(0)
    model = create_segmenter("semantic_fpn", "fat_tiny", 2).train()
    labels = (torch.arange(64) >= 32).long().expand(2, 64, 64)
    images = labels[:, None].float().expand(2, 3, 64, 64) + 0.1 * torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("name, settings", [
    ("semantic_fpn", {"interaction": "local"}),  # without attention, which takes most of the time
    rest("semantic_fpn", {}), rest("upernet", {}),
])  # fmt: skip
def test_one_exported_program_is_for_all_sizes(name, settings):
    model, auto = create_segmenter(name, "fat_tiny", 5, **SMALLEST_DENSE, **settings).eval(), torch.export.Dim.AUTO
    program = torch.export.export(
        model, (torch.randn(2, 3, 96, 128),), dynamic_shapes={"images": {0: auto, 2: auto, 3: auto}}
    )
    images = torch.randn(3, 3, 100, 170)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), model(images), atol=1e-5)


def test_the_pyramid_is_the_sum_of_its_levels():
    """Against the layout's words, written again level by level."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 4 * 2**i, 16 // 2**i, 24 // 2**i) for i in range(4)]
    neck, head = FeaturePyramid([4, 8, 16, 32], 32).eval(), SemanticFPNHead((4, 8, 16, 32), 5, 32, 16).eval()
    down = neck.laterals[3](maps[3])
    levels = [neck.outputs[3](down)]
    for i in (2, 1, 0):
        down = neck.laterals[i](maps[i]) + down.repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels.insert(0, neck.outputs[i](down))
    summed = torch.zeros(1, 16, 16, 24)
    for i, x in enumerate(levels):
        convolutions = [layer for layer in head.levels[i] if isinstance(layer, nn.Sequential)]
        assert len(convolutions) == max(1, int(math.log2(2**i)))
        for convolution in convolutions:
            x = convolution(x)
            x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear") if i else x
        summed += x
    with torch.no_grad():
        assert torch.allclose(head(neck(maps)), head.classifier[1](summed), atol=1e-5)


def test_parts_and_layer_decay():
    """Frozen by stage as a classifier's backbone is; the heads learn at the full rate."""
    model = create_segmenter("upernet", "fat_tiny", 5)
    parts = parts_of(model)
    assert list(parts) == ["stem", "1", "2", "3", "4", "backbone"]
    assert all(name.startswith("backbone.") for name in parts["backbone"])
    scales = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        scales.update({id(parameter): group["lr_scale"] for parameter in group["params"]})
    scale = SimpleNamespace(**{part: scales[id(p)] for part, p in (
        ("stem", model.backbone.network.model.patch_embed.conv5.weight),
        ("last", model.backbone.network.model.norm3.weight),
        ("head", model.head.fuse[0].weight),
    )})  # fmt: skip
    assert (scale.stem, scale.last, scale.head) == (0.5**5, 0.5, 1)
    freeze(model, ["stem", 1])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(parts["stem"] + parts["1"]) and "backbone.network.model.norm0.weight" in frozen


def test_unknown_segmenter():
    with pytest.raises(ValueError, match="segmenter is 'fcn'; known: semantic_fpn, upernet"):
        create_segmenter("fcn", "fat_tiny", 5)
