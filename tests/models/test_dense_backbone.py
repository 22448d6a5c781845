"""FAT and timm's models as backbones: the released code's values, and what training asks of them."""

import json

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

import models
from conftest import ROOT
from known_weights import PARITY, fill
from models.dense.backbone import DenseBackbone

DENSE = json.loads((ROOT / "tests/models/released_dense_parity.json").read_text())


@pytest.mark.parametrize("name", DENSE)
def test_keys_and_parameters_are_the_released_backbone_s(name):
    model = timm.create_model(name, features_only=True, device="meta").model
    expected = {**PARITY["models"][name]["keys"], **DENSE[name]["keys_beyond_classification"]}
    for key in DENSE[name]["classification_keys_absent"]:
        del expected[key]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == DENSE[name]["params"]


@pytest.mark.parametrize("name", DENSE)
def test_maps_are_the_released_backbone_s(name):
    backbone = timm.create_model(name, features_only=True).double().eval()
    weights = {key: fill(key, tuple(value.shape)) for key, value in backbone.model.state_dict().items()}
    models.load_released_state_dict(backbone.model, weights)
    with torch.no_grad():
        maps = backbone(torch.as_tensor(np.random.default_rng(2306).standard_normal((1, 3, 96, 160))))
    for values, expected in zip(maps, DENSE[name]["features_96x160"], strict=True):
        assert list(values.shape) == expected["shape"]
        assert abs(values.mean() - expected["mean"]) < 1e-5
        assert abs(values.std(correction=0) - expected["std"]) < 1e-5
        for row, key in ((values[0, 0, 0], "first_channel_first_row"), (values[0, -1, -1], "last_channel_last_row")):
            assert (row - torch.tensor(expected[key], dtype=torch.float64)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(512, 2048), (800, 1333)])
def test_maps_of_large_and_odd_images_are_rounded_up(size):
    backbone = DenseBackbone("fat_b3", device="meta")
    maps = backbone(torch.empty(1, 3, *size, device="meta"))
    expected = [(1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip((64, 128, 256, 512), (4, 8, 16, 32))]
    assert [tuple(one.shape) for one in maps] == expected


def test_an_odd_size_on_real_values():
    backbone = DenseBackbone("fat_tiny").eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 100, 167))
    assert [tuple(one.shape[2:]) for one in maps] == [(25, 42), (13, 21), (7, 11), (4, 6)]
    assert all(one.isfinite().all() for one in maps)


def test_some_maps_have_no_parameters_of_others():
    """Parameters without gradient would stop DistributedDataParallel."""
    backbone = DenseBackbone("fat_tiny", strides=(8, 32), drop_path_rate=0.1).train()
    sum(one.square().sum() for one in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    assert {name.split(".")[2] for name, _ in backbone.named_parameters()} == {
        "patch_embed",
        "layers",
        "norm1",
        "norm3",
    }


def test_features_without_norms_are_timm_s_own_class_s():
    images = torch.randn(1, 3, 64, 64)
    classifier = timm.create_model("fat_tiny").eval()
    plain = timm.create_model("fat_tiny", features_only=True, feature_cls="getter").eval()
    plain.model.load_state_dict(classifier.state_dict(), strict=False)
    for one, expected in zip(plain(images), classifier.forward_intermediates(images, intermediates_only=True)):
        assert torch.equal(one, expected)


# Weights of classification


def test_classification_weights_leave_the_norms_new():
    classifier, backbone = timm.create_model("fat_tiny", num_classes=5), DenseBackbone("fat_tiny")
    new = backbone.load_classification_weights(classifier.state_dict())
    assert new == [f"network.model.norm{i}.{value}" for i in range(4) for value in ("weight", "bias")]
    loaded = backbone.network.model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in classifier.state_dict().items() if key in loaded)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_classification_weights_of_other_models_are_whole(name):
    """timm takes these apart and names their parts anew."""
    classifier, backbone = timm.create_model(name).eval(), DenseBackbone(name).eval()
    assert backbone.load_classification_weights(classifier.state_dict()) == []
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)[-4:]
        for one, values in zip(backbone(images), expected, strict=True):
            assert torch.allclose(one, values, atol=1e-5)


@pytest.mark.parametrize("change, message", [
    (lambda state: state.pop("layers.0.blocks.0.cpe.weight"), "layers.0.blocks.0.cpe.weight is missing"),
    (lambda state: state.update({"patch_embed.conv5.bias": torch.zeros(7)}), r"patch_embed.conv5.bias is \(7,\)"),
])  # fmt: skip
def test_weights_of_another_model_are_refused(change, message):
    state, backbone = timm.create_model("fat_tiny").state_dict(), DenseBackbone("fat_tiny")
    before = backbone.state_dict()["network.model.layers.3.blocks.0.cpe.weight"].clone()
    change(state)
    with pytest.raises(ValueError, match=message):
        backbone.load_classification_weights(state)
    assert torch.equal(backbone.state_dict()["network.model.layers.3.blocks.0.cpe.weight"], before)


# Other models of timm


@pytest.mark.parametrize("name, args, size", [
    ("resnet18", {}, (70, 100)),
    ("convnext_atto", {}, (64, 96)),
    ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, (128, 64)),  # its maps are NHWC
    ("vit_tiny_patch16_224", {"dynamic_img_size": True}, (64, 96)),  # all at stride 16
])  # fmt: skip
def test_models_of_timm_are_backbones(name, args, size):
    backbone = DenseBackbone(name, **args).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    expected = [(1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.channels, (4, 8, 16, 32))]
    assert [tuple(one.shape) for one in maps] == expected


@pytest.mark.parametrize("name", ["fat_tiny", "resnet18", "convnext_atto"])
def test_layers_are_those_of_the_model(name):
    """In the order in which the image meets them, the stem first, by stage and by block."""
    backbone = DenseBackbone(name)
    coarse, fine = backbone.layers(coarse=True), backbone.layers()
    names = [parameter for parameter, _ in backbone.named_parameters()]
    assert list(coarse) == list(fine) == names
    assert set(coarse.values()) == {0, 1, 2, 3, 4} and max(fine.values()) >= 4
    assert coarse[names[0]] == fine[names[0]] == 0
    if name == "fat_tiny":  # a norm belongs to its stage, and to its last block
        for layers in (coarse, fine):  # a stage has one block
            assert [layers[f"network.model.norm{i}.weight"] for i in range(4)] == [1, 2, 3, 4]


def test_checkpointing_changes_no_gradient():
    images, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        torch.manual_seed(0)
        backbone = DenseBackbone("fat_tiny").train()
        backbone.set_grad_checkpointing(enable)
        sum(one.square().mean() for one in backbone(images)).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert backbone.network.model.layers[0].grad_checkpointing
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_drop_path_reaches_the_backbone():
    modules = list(DenseBackbone("fat_tiny", drop_path_rate=0.3).modules())
    assert [m.drop_prob for m in modules if isinstance(m, DropPath)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert not any(isinstance(m, nn.Linear) for m in modules)  # no head
