"""timm models of each kind that is not like most: built, counted, frozen, trained. docs/timm_models.md has the others."""

import json

import pytest
import timm
import torch

from conftest import error_of, run
from engine.setup.model import create_model, has_drop_path, place
from engine.training import freeze
from engine.training.optim import create_optimizer
from utils import macs
from utils.macs import measure_complexity

ON_NOISE = [
    "DATA.DATASET", "synthetic", "DATA.SYNTHETIC_IMAGES", "8", "DATA.NUM_WORKERS", "0", "TRAIN.TOTAL_BATCH_SIZE", "4", "DEVICE", "cpu",
    "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "MODEL.NUM_CLASSES", "3", "MODEL.TYPE", "timm",
]  # fmt: skip


def on_meta(name, num_classes=3):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=num_classes)


# Freezing and layer decay


KINDS = {  # model: how many stages it has
    "poolformerv2_s12": 0, "pit_ti_224": 0, "csatv2": 0,  # no group_matcher, a norm in the head
    "rdnet_tiny": 0,  # a group_matcher without coarse groups
    "caformer_s18": 0,  # a head of two layers
    "efficientvim_m1": 3,  # several heads
    "levit_128s": 3, "repvit_m1": 4,  # two heads, with BatchNorms
    "inception_next_atto": 4, "mobilenetv3_small_050": 6, "hgnetv2_b0": 4,  # other layers in the head
    "resnet10t": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_all_but_what_makes_the_logits_can_be_frozen(name):
    """What makes them are the layers whose shape follows the number of classes."""
    model = on_meta(name)
    parts = freeze.parts_of(model)
    assert list(parts) == ["stem"] * bool(KINDS[name]) + [str(i) for i in range(1, KINDS[name] + 1)] + ["backbone"]
    others = dict(on_meta(name, num_classes=4).named_parameters())
    of_classes = {key for key, value in model.named_parameters() if value.shape != others[key].shape}
    freeze.freeze(model, ["backbone"])
    assert {key for key, value in model.named_parameters() if value.requires_grad} == of_classes and of_classes
    freeze.train(model)
    classifiers = {key.rpartition(".")[0] for key in of_classes}
    assert {
        key
        for key, module in model.named_modules()
        if module.training and not list(module.children()) and list(module.parameters())
    } == classifiers


def check_of(name, output) -> list:
    """--check of a model on noise; more --opts may follow."""
    flags = ["--cfg", "configs/fat_b0.yaml", "--check", "--output", output, "--batch-size", 4]
    return [*flags, "--opts", *ON_NOISE, "MODEL.NAME", name]


@pytest.mark.parametrize("name", ["rdnet_tiny", "pit_ti_224"])
def test_stages_that_a_model_does_not_say_are_one_line(name, tmp_path):
    error = error_of(*check_of(name, tmp_path), "TRAIN.FREEZE", "[stem]")
    assert str(error).startswith("TRAIN.FREEZE: ") and "has no part 'stem'; it has backbone" in str(error)


@pytest.mark.parametrize("name", KINDS)
def test_layer_decay_of_every_kind(name):
    """The classifier learns at the full rate, what is below it at no larger ones, down to the first layers."""
    model = on_meta(name)
    optimizer = create_optimizer(
        model, "adamw", lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999), momentum=0.9, layer_decay=0.5
    )
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    backbone = freeze.parts_of(model)["backbone"]
    assert set(scales) == set(names.values())
    assert {scales[key] for key in scales if key not in backbone} == {1.0}
    assert len(set(scales.values())) > 3 and min(scales.values()) < 0.3


# Drop path


def test_a_model_without_drop_path_trains_by_the_command_of_the_others(tmp_path, capsys):
    run(
        "--cfg", "configs/fat_b0.yaml", "--output", tmp_path, "--batch-size", 4,
        "--opts", *ON_NOISE, "MODEL.NAME", "repvit_m1", "DATA.IMG_SIZE", 64,
    )  # fmt: skip
    assert (
        "warning: MODEL.DROP_PATH_RATE is 0.05, but repvit_m1 has no drop path: it is left out"
        in capsys.readouterr().out
    )
    result = json.loads((tmp_path / "repvit_m1" / "default" / "result.json").read_text())
    assert result["epochs"] == 1 and (tmp_path / "repvit_m1" / "default" / "last.pth").is_file()


@pytest.mark.parametrize("name, has", [("shvit_s1", False), ("ghostnet_050", False), ("test_vit", True)])
def test_drop_path_goes_where_there_is_one(name, has):
    settings = dict(num_classes=3, drop_rate=0.0, img_size=160, fat={})
    with torch.device("meta"):
        assert has_drop_path(create_model("timm", name, drop_path_rate=0.2, **settings)) is has
        assert not has_drop_path(create_model("timm", name, drop_path_rate=0.0, **settings))


def test_a_model_with_drop_path_is_not_warned_about(tmp_path, capsys):
    common = ["--cfg", "configs/fat_b0.yaml", "--check", "--output", tmp_path, "--batch-size", 4, "--opts", *ON_NOISE]
    run(*common, "MODEL.NAME", "test_vit", "DATA.IMG_SIZE", 32)
    run(*common, "MODEL.NAME", "ghostnet_050", "DATA.IMG_SIZE", 32, "MODEL.DROP_PATH_RATE", 0)
    assert "drop path" not in capsys.readouterr().out


# NHWC


def test_weights_of_five_dimensions_stay_as_they_are():
    with torch.device("meta"):
        model = timm.create_model("lambda_resnet26t", num_classes=3)
    plain = place(timm.create_model("test_resnet"), torch.device("cpu"), channels_last=True)
    expected = timm.create_model("test_resnet").to(memory_format=torch.channels_last)
    strides = {key: value.stride() for key, value in expected.state_dict().items()}
    assert {key: value.stride() for key, value in plain.state_dict().items()} == strides
    placed = place(model, torch.device("meta"), channels_last=True)
    assert any(value.ndim == 5 for value in placed.parameters())
    assert placed.get_parameter("stem.conv1.conv.weight").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8"])
def test_what_would_end_the_process_is_one_line(name, tmp_path):
    few = check_of(name, tmp_path)
    assert "TRAIN.CHANNELS_LAST: torch on CPUs cannot train" in str(error_of(*few, "DATA.IMG_SIZE", 64))
    run(*few, "DATA.IMG_SIZE", 64, "TRAIN.CHANNELS_LAST", "False")


# MACs


def test_a_class_token_can_be_counted():
    """torch's counter alone refuses a parameter that is a layer's input."""
    model = timm.create_model("test_vit3")
    frozen = next(key for key, _ in model.named_parameters())
    model.get_parameter(frozen).requires_grad_(False)
    complexity = measure_complexity(model, (3, 160, 160))
    assert complexity.macs > complexity.conv_macs > 0 and model.training
    assert [key for key, value in model.named_parameters() if not value.requires_grad] == [frozen]  # as it was


@pytest.fixture
def uncountable(monkeypatch):
    class Counter(macs.FlopCounterMode):
        def __exit__(self, *error):
            super().__exit__(*error)
            raise RuntimeError("cannot count\nthis")

    monkeypatch.setattr(macs, "FlopCounterMode", Counter)


def test_what_cannot_be_counted_is_said_not_refused(uncountable, tmp_path, capsys):
    said = " parameters, MACs not counted (RuntimeError: cannot count this)"
    few = ["--opts", *ON_NOISE, "MODEL.NAME", "test_vit", "DATA.IMG_SIZE", 32]
    for command in ("--check", "--throughput"):
        run("--cfg", "configs/fat_b0.yaml", command, "--output", tmp_path, "--batch-size", 4, *few)
        out = capsys.readouterr().out
        assert said in out, out
    run("--cfg", "configs/fat_b0.yaml", "--output", tmp_path, "--batch-size", 4, *few)
    folder = tmp_path / "test_vit" / "default"
    start = next(
        record for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if record.get("model")
    )
    assert start["macs"] is None and start["conv_macs"] is None and start["params"] > 3e5
    assert said in capsys.readouterr().out and "Parameters" in (folder / "report.html").read_text()


def test_a_size_that_a_model_does_not_take_is_refused_all_the_same(uncountable, tmp_path):
    error = error_of(
        "--cfg",
        "configs/fat_b0.yaml",
        "--throughput",
        "--opts",
        *ON_NOISE,
        "MODEL.NAME",
        "coatnet_pico_rw_224",
        "DATA.IMG_SIZE",
        100,
    )
    assert str(error).startswith(
        (
            "DATA.IMG_SIZE: coatnet_pico_rw_224 cannot take images of 100 px",
            "MODEL.NAME: coatnet_pico_rw_224 cannot be built",
        )
    )
