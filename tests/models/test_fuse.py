"""The deployed form: the same logits as the model it is made of."""

import copy
import gc
import io
import json
import weakref

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

import models
from conftest import SMALLEST, error_of, run
from known_weights import difference, realistic
from models.fuse import FusedConv2d, is_native_on_cpu
from models.layers import DOWNSAMPLINGS, FFNS, INTERACTIONS


def pruned():
    model = timm.create_model("fat_tiny").eval()
    model.prune_intermediate_layers(1, prune_norm=True)
    return model


@pytest.mark.parametrize("name", ["fat_tiny", "fat_small", "fat_b0", "fat_b1", "fat_b2", "fat_b3"])
def test_every_size_has_the_same_logits(name):
    model = realistic(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(models.fuse(model)(images), model(images)) < 2e-5
        if is_native_on_cpu(torch.bfloat16):
            assert 1e-5 < difference(models.fuse(model, torch.bfloat16)(images), model(images)) < 0.1


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_every_interaction(interaction):
    model = realistic(interaction=interaction)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert difference(models.fuse(model)(images), model(images)) < 1e-5


ABLATIONS = [
    *(
        {"downsampling": name, "interaction": interaction}
        for name in DOWNSAMPLINGS
        for interaction in ("released", "global")
    ),
    {"downsampling": "avg_pool_strided_conv", "window_sizes": (1, 2, 1, 1)},
    *({"ffn": name, "cpe": cpe, "self_modulation": not cpe} for name in FFNS for cpe in (True, False)),
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=lambda s: "_".join(map(str, s.values())))
def test_every_ablation(settings):
    """Maps of one position and maps that windows do not divide too; in 16 bits only their rounding differs."""
    model = realistic("fat_small", **settings)
    fused = models.fuse(model)
    with torch.no_grad():
        for shape in [(2, 3, 64, 96), (1, 3, 32, 32), (2, 3, 75, 50)]:
            images = torch.randn(shape)
            assert difference(fused(images), model(images)) < 1e-5, shape
        if is_native_on_cpu(torch.bfloat16):
            assert 1e-5 < difference(models.fuse(model, torch.bfloat16)(images), model(images)) < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"num_classes": 0},
        {"num_classes": 0, "global_pool": ""},
        {"window_sizes": (1, 1, 1, 1)},
        {"kernel_sizes": (1, 3, 1, 3)},
    ],
)
def test_other_settings(settings):
    model = realistic(**settings)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(models.fuse(model)(images), model(images)) < 1e-5


def test_other_sizes_and_batches_after_the_first():
    """The weights are put into oneDNN's order for the first images; others must not depend on that."""
    model = realistic()
    fused = models.fuse(model)
    with torch.no_grad():
        for shape in [(4, 3, 64, 64), (1, 3, 64, 64), (3, 3, 75, 50), (16, 3, 32, 32)]:
            images = torch.randn(shape)
            assert difference(fused(images), model(images)) < 1e-5, shape
            assert difference(fused(images.to(memory_format=torch.channels_last)), model(images)) < 1e-5, shape


@pytest.mark.parametrize("downsampling", DOWNSAMPLINGS)
def test_without_onednn(monkeypatch, downsampling):
    """As on a GPU or under a compiler: torch's own convolutions."""
    model, images = realistic(downsampling=downsampling), torch.randn(2, 3, 64, 64)
    monkeypatch.setattr(FusedConv2d, "_packed", lambda self, x: None)
    with torch.no_grad():
        assert difference(models.fuse(model)(images), model(images)) < 1e-5


def test_it_is_smaller_and_leaves_the_model_alone():
    model = realistic()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = models.fuse(model)
    fused(torch.randn(1, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    kept = {buffer.data_ptr() for buffer in fused.buffers()} & {
        parameter.data_ptr() for parameter in model.parameters()
    }
    assert not kept


def test_copies_and_files_and_new_weights():
    fused, images = models.fuse(realistic()), torch.randn(2, 3, 64, 64)
    logits = fused(images)
    assert torch.equal(copy.deepcopy(fused)(images), logits)
    buffer = io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    other = models.fuse(timm.create_model("fat_tiny").eval())
    assert not torch.allclose(other(images), logits)
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(other(images), logits)


def test_changed_weights_are_used():
    """In place, for one call, and again their own."""
    fused, images = models.fuse(realistic()), torch.randn(2, 3, 64, 64)
    state = {key: value.clone() for key, value in fused.state_dict().items()}
    doubled = {key: 2 * value for key, value in state.items()}
    other = copy.deepcopy(fused)
    expected = torch.func.functional_call(other, doubled, (images,))
    logits = fused(images)
    assert torch.equal(torch.func.functional_call(fused, doubled, (images,)), expected) and torch.equal(
        fused(images), logits
    )
    assert torch.equal(other(images), logits) and not torch.allclose(expected, logits)
    with torch.no_grad():
        for key, value in fused.state_dict().items():
            value.copy_(doubled[key])
    assert torch.equal(fused(images), expected)


def test_synchronised_norms_and_what_is_done_with_it_later():
    """As on several GPUs; the model itself is not kept alive; empty batches; exporting after a call."""
    model, images = realistic(**SMALLEST), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
    fused = models.fuse(convert_sync_batchnorm(model))
    assert difference(fused(images), logits) < 1e-5
    alive = weakref.ref(model.layers[0].blocks[0].attn)
    del model
    gc.collect()
    assert alive() is None
    assert fused(images[:0]).shape == (0, 1000)
    assert difference(torch.export.export(fused, (images,)).module()(images), logits) < 1e-5


@pytest.mark.parametrize("downsampling", DOWNSAMPLINGS)
def test_maps_stay_channels_last(downsampling):
    fused, seen = models.fuse(realistic(downsampling=downsampling)), []
    for module in fused.modules():
        module.register_forward_hook(
            lambda _, inputs, y: (
                seen.append(y.is_contiguous(memory_format=torch.channels_last)) if y.ndim == 4 else None
            )
        )
    fused(torch.randn(2, 3, 64, 64))
    assert len(seen) > 60 and all(seen)


def test_autocast_changes_nothing():
    fused, images = models.fuse(realistic()), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused(images), fused(images)) and fused(images).dtype is torch.float32


def test_what_cannot_be_fused_is_said(monkeypatch):
    model = realistic()
    for make, message in [
        (lambda: models.fuse(model.train()), "evaluation mode"),
        (lambda: models.fuse(timm.create_model("resnet10t").eval()), "not ResNet"),
        (lambda: models.fuse(model.eval(), torch.float64), "not torch.float64"),
        (lambda: models.fuse(model.eval()).train(), "cannot be trained"),
        (lambda: models.fuse(model.eval()).double(), "keeps its dtype, torch.float32"),
        (lambda: models.fuse(pruned()), "has been pruned"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="bfloat16 is emulated on this CPU"):
        models.fuse(model.eval(), torch.bfloat16)


# In the command line


def test_evaluation_of_the_deployed_form(write_config, tmp_path, capsys):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    results = []
    for more in ([], ["--fused"]):
        run("--cfg", path, "--eval", "--resume", folder / "best.pth", *more)
        results.append((folder / "eval.json").read_text())
    assert "| fused" in capsys.readouterr().out
    plain, fused = map(json.loads, results)
    assert (plain.pop("fused"), fused.pop("fused")) == (False, True)
    assert plain["acc1"] == fused["acc1"] and abs(plain["loss"] - fused["loss"]) < 2e-5
    run("--cfg", path, "--throughput", "--fused")
    assert "| fused | batch 8" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    (["--fused"], "--fused: the deployed form cannot be trained"),
    (["--fused", "--throughput", "--opts", "MODEL.TYPE", "timm", "MODEL.NAME", "resnet10t"], "TEST.FUSED (--fused): fuse takes"),
    (["--opts", "TRAIN.COMPILE_MODE", "fast"], "TRAIN.COMPILE_MODE"),
])  # fmt: skip
def test_refused(write_config, argv, message):
    assert message in str(error_of("--cfg", write_config(), *argv))
