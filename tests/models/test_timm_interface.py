"""What timm and its users expect of every model, of FAT: its own tests ask for the same."""

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from timm.models._manipulate import group_parameters
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import models  # noqa: F401 (registers them)
from conftest import smallest_model

SIZES = ["fat_tiny", "fat_b0", "fat_b3"]
FORMS = [
    {},
    {"drop_path_rate": 0.3, "drop_rate": 0.1},
    {"distilled": True},
    {"interaction": "local"},
    {"interaction": "global", "downsampling": "avg_pool"},
    {
        "interaction": "concat",
        "downsampling": "avg_pool_strided_conv",
        "ffn": "mlp",
        "cpe": False,
        "self_modulation": False,
    },
]


def near(a, b) -> bool:
    """The same function, in another order of its sums."""
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-4 * b.abs().max())


@pytest.mark.parametrize("name", SIZES)
def test_the_default_config_is_of_the_model(name):
    model = timm.create_model(name, device="meta").eval()
    cfg, images = model.default_cfg, torch.empty(1, *model.default_cfg["input_size"], device="meta")
    features = model.forward_features(images)
    assert cfg["input_size"][1:] == (224, 224) and features.shape == (1, model.num_features, *cfg["pool_size"])
    assert cfg["pool_size"] == (7, 7) and model.in_chans == 3
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= set(model.state_dict())
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert model(images).shape == (1, model.head_hidden_size) and model.num_classes == 0
    model.reset_classifier(0, "")
    assert model(images).shape == features.shape
    for pooling, shape in (("avg", (1, model.head_hidden_size)), ("", features.shape)):
        other = timm.create_model(name, num_classes=0, global_pool=pooling, device="meta").eval()
        assert other(images).shape == shape


def test_device_and_dtype():
    """Of the whole model at its creation, and of a head that comes later, which is in the model's mode."""
    model = timm.create_model("fat_tiny", device="meta", dtype=torch.bfloat16).eval()
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert all(buffer.device.type == "meta" for buffer in model.buffers())
    model.to(torch.float64).requires_grad_(False)
    model.layers[0].train()  # a module's mode is its user's
    model.reset_classifier(3)
    assert model.head.weight.dtype is torch.float64 and model.head.weight.device.type == "meta"
    assert not model.head.training and model.layers[0].training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    model = timm.create_model("fat_tiny", distilled=True).eval()
    model.reset_classifier(3)
    assert not any(module.training for module in model.modules())


def test_pooling_and_heads():
    model = timm.create_model("fat_tiny").eval()
    with pytest.raises(ValueError, match="global_pool '' leaves a map"):
        model.reset_classifier(3, "")
    model.reset_classifier(0, "")
    model.reset_classifier(3)  # keeps the pooling
    with pytest.raises(ValueError, match="global_pool '' leaves a map"):
        model(torch.randn(1, 3, 32, 32))
    model.reset_classifier(3, "avg")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(TypeError):
        timm.create_model("fat_tiny", no_such_argument=1)


def test_groups_of_parameters():
    model = timm.create_model("fat_tiny")
    assert len(set(group_parameters(model, model.group_matcher(), reverse=True).values())) == 6


# TorchScript and fx


@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript(settings):
    """In both modes; a file of it has the same logits, too."""
    torch.manual_seed(0)
    model, images = smallest_model(num_classes=5, **settings).eval(), torch.randn(2, 3, 64, 47)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        assert near(scripted(images), model(images))
    scripted.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in scripted.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_of_deeper_models():
    model, images = timm.create_model("fat_b0", num_classes=5).eval(), torch.randn(1, 3, 64, 64)
    backbone = timm.create_model("fat_b0", features_only=True, out_indices=(0, 2)).eval()
    with torch.no_grad():
        assert near(torch.jit.script(model)(images), model(images))
        for map_, expected in zip(torch.jit.script(backbone)(images), backbone(images), strict=True):
            assert near(map_, expected)


def traced(model):
    """By torchvision's feature extractor, with the output alone."""
    settings = {
        "leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions(), "param_shapes_constant": True,
    }  # fmt: skip
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=settings)
    return create_feature_extractor(
        model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]], tracer_kwargs=settings
    )


@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:NOTE. The nodes")
def test_fx_and_torchscript_after_it(settings):
    model, images = smallest_model(num_classes=5, **settings).eval(), torch.randn(2, 3, 64, 64)
    graph = traced(model)
    with torch.no_grad():
        expected = model(images)
        (logits,) = graph.eval()(images).values()
        (scripted,) = torch.jit.script(graph)(images).values()
    assert near(logits, expected) and near(scripted, expected)
    (logits,) = graph.train()(images).values()
    logits.sum().backward()
    assert logits.shape == (2, 5) and all(parameter.grad is not None for parameter in graph.parameters())


# Backbones


@pytest.mark.parametrize("index", range(4))
def test_a_shortened_model_ends_at_its_feature(index):
    """The same maps, and no parameter that has no part in them."""
    torch.manual_seed(0)
    model, images = timm.create_model("fat_tiny").eval(), torch.randn(2, 3, 64, 64)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)[index]
        early = model.forward_intermediates(images, indices=[index], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], expected)
        last, _ = model.forward_intermediates(images, indices=[index], stop_early=True)
        assert torch.equal(last, model.forward_features(images)) == (index == 3)
    assert expected.shape == (2, info.channels()[index], 64 // info.reduction()[index], 64 // info.reduction()[index])
    indices = model.prune_intermediate_layers([index], prune_norm=True)
    assert torch.equal(model.forward_features(images), expected)
    model.train()
    (feature,) = model.forward_intermediates(images, indices=indices, intermediates_only=True)
    feature.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_that_keeps_its_head_keeps_its_logits():
    model, images = timm.create_model("fat_tiny").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        model.prune_intermediate_layers([3], prune_head=False)
        assert torch.equal(model(images), expected)


def test_checkpointed_backbones_have_the_same_gradients():
    images, gradients = torch.randn(2, 3, 64, 64), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("fat_tiny", features_only=True, out_indices=(0, 1, 2)).train()
        model.model.set_grad_checkpointing(checkpointing)
        sum(feature.square().mean() for feature in model(images)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
