"""What timm's models see here is what they see in timm, and a difference is said."""

import json

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config

from conftest import error_of, run
from data.loader import eval_loader
from engine.inference.trained import load_trained
from engine.setup.loading import loading
from engine.setup.preprocessing import can_be_taken, differences, input_warnings, of_model, take_from_model
from engine.tasks import create_task
from utils.config import load_config, to_dict
from utils.schema import DEFAULTS, INPUT_KEYS

CPU = torch.device("cpu")
NAME = "test_vit"  # 160 px; mean and std 0.5, crop 0.95
ODD = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # mean and std 0.5, crop 0.9
BY_HAND = [
    "DATA.IMG_SIZE", "160", "DATA.INTERPOLATION", "bicubic", "DATA.MEAN", "[0.5, 0.5, 0.5]", "DATA.STD", "[0.5, 0.5, 0.5]",
    "TEST.CROP_PCT", "0.95",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights as another tool leaves it: a bare state dict."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=3)
    with torch.no_grad():  # logits that tell images apart
        model.head.weight.normal_()
    path = tmp_path_factory.mktemp("timm") / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def config(write_config):
    return write_config(
        MODEL={"TYPE": "timm", "NAME": NAME, "DROP_PATH_RATE": 0.0}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}
    )


def model_of(weights):
    model = timm.create_model(NAME, num_classes=3)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def timm_s_images(model, root):
    """As timm's validate.py reads them."""
    settings = resolve_data_config({}, model=model, use_test_size=True)
    dataset = create_dataset("", root=str(root / "val"), split="val")
    loader = create_loader(dataset, batch_size=8, use_prefetcher=False, num_workers=0, pin_memory=False, **settings)
    return torch.cat([images for images, _ in loader])


def our_images(cfg):
    batches = eval_loader(create_task(cfg).val_dataset(), 8, rank=0, world_size=1, loading=loading(cfg, CPU))
    return torch.cat([batch.images for batch in batches])


def logits_of(model, images):
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images.split(8)])


@pytest.mark.parametrize("opts", [BY_HAND, ["DATA.FROM_MODEL", "True"]], ids=["by hand", "from the model"])
def test_the_images_are_timm_s_to_the_last_digit(weights, config, digits, opts):
    """So are the logits, where a processor rounds the same images alike twice; the layout of a batch may change that."""
    cfg = take_from_model(load_config(config, opts))
    model = model_of(weights)
    theirs = timm_s_images(model, digits)
    assert torch.equal(our_images(cfg), theirs) and len(theirs) == 29
    assert torch.allclose(logits_of(model, our_images(cfg)), logits_of(model, theirs), rtol=1e-5, atol=1e-5)
    assert not torch.equal(our_images(load_config(config, ["DATA.IMG_SIZE", "160"])), theirs)


def test_eval_of_timm_s_weights(weights, config, digits, tmp_path, capsys):
    """Without the key, a warning with both values; with it, timm's figure."""
    run("--cfg", config, "--eval", "--pretrained", weights, "--opts", "DATA.IMG_SIZE", "160")
    said = [line for line in capsys.readouterr().out.splitlines() if "otherwise than timm" in line]
    assert (
        len(said) == 1
        and f"does for {NAME}: DATA.MEAN [0.485, 0.456, 0.406] (there [0.5, 0.5, 0.5]), DATA.STD " in said[0]
    )
    assert (
        "TEST.CROP_PCT 0.875 (there 0.95); DATA.FROM_MODEL True takes the model's" in said[0]
        and "IMG_SIZE" not in said[0]
    )

    run("--cfg", config, "--eval", "--pretrained", weights, "--opts", "DATA.FROM_MODEL", "True")
    out = capsys.readouterr().out
    assert "otherwise than timm" not in out
    assert (
        f"images: mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], bicubic, 160 px, crop 0.95, as timm has them for {NAME}"
        in out
    )
    figures = json.loads((tmp_path / "output" / NAME / "default" / "eval.json").read_text())
    targets = torch.tensor([0] * 10 + [1] * 10 + [2] * 9)
    right = (logits_of(model_of(weights), timm_s_images(model_of(weights), digits)).argmax(1) == targets).sum().item()
    assert figures["acc1"] == pytest.approx(100 * right / 29, abs=1e-4) and figures["img_size"] == 160


def test_training_from_timm_s_weights_says_it_and_a_run_of_one_s_own_does_not(weights, config, capsys, tmp_path):
    few = ["--opts", "DATA.IMG_SIZE", "160", "EMA.ENABLED", "False", "TAG", "a", "TEST.CROP_PCT", "1.0"]
    run("--cfg", config, "--pretrained", weights, *few)
    said = [line for line in capsys.readouterr().out.splitlines() if "otherwise than timm" in line]
    assert len(said) == 1 and "DATA.MEAN" in said[0] and "CROP_PCT" not in said[0]  # a recipe's choice

    best = tmp_path / "output" / NAME / "a" / "best.pth"
    run("--cfg", config, "--eval", "--resume", best, *few)
    assert "otherwise than timm" not in capsys.readouterr().out
    run("--cfg", config, "--check", "--pretrained", best, *few[:-2], "TAG", "b", "DATA.MEAN", "[0.1, 0.2, 0.3]")
    out = capsys.readouterr().out
    assert (
        "warning: since training DATA.MEAN changed from [0.485, 0.456, 0.406] to [0.1, 0.2, 0.3]" in out
        and "otherwise" not in out
    )


def test_opts_win_and_yaml_does_not(write_config):
    path = write_config(
        MODEL={"TYPE": "timm", "NAME": ODD}, DATA={"FROM_MODEL": True, "MEAN": [0.1, 0.1, 0.1]}, TEST={"CROP_PCT": 1.0}
    )
    cfg = load_config(path, ["TEST.CROP_PCT", "0.8"])
    before = to_dict(cfg)
    taken = take_from_model(cfg, given=["TEST.CROP_PCT"])
    assert to_dict(cfg) == before and taken.is_frozen()
    assert taken.DATA.MEAN == [0.5, 0.5, 0.5] and taken.DATA.IMG_SIZE == 224 and taken.TEST.CROP_PCT == 0.8
    assert list(differences(taken)) == ["TEST.CROP_PCT"]
    assert take_from_model(taken) is taken  # a config.yaml that is used again keeps what it says
    assert take_from_model(load_config(path)).TEST.CROP_PCT == 0.9


def test_evaluation_takes_timm_s_test_size_and_crop(write_config):
    cfg = take_from_model(
        load_config(write_config(MODEL={"TYPE": "timm", "NAME": "resnet10t"}, DATA={"FROM_MODEL": True}))
    )
    known = timm.get_pretrained_cfg("resnet10t")
    assert (cfg.DATA.IMG_SIZE, cfg.TEST.IMG_SIZE) == (known.input_size[1], known.test_input_size[1]) == (176, 224)
    assert cfg.TEST.CROP_PCT == known.test_crop_pct == 0.95


@pytest.mark.parametrize("name, part", [
    ("vit_base_patch16_clip_224.openai", None), ("convnext_tiny.in12k_ft_in1k_384", None),
    ("volo_d5_512", "TEST.CROP_PCT 0.875 (there 1.15), which is not built here"),
    ("vit_base_patch16_sapiens2", None),
])  # fmt: skip
def test_what_cannot_be_taken_is_said(write_config, name, part):
    cfg = take_from_model(load_config(write_config(MODEL={"TYPE": "timm", "NAME": name}, DATA={"FROM_MODEL": True})))
    said = input_warnings(None, cfg)
    assert len(said) == (part is not None)
    if part:
        assert part in said[0] and "FROM_MODEL" not in said[0]


@pytest.mark.parametrize("key", ["MODEL.NAME", "DISTILL.TEACHER"])
def test_a_tag_that_timm_does_not_know_is_one_line(write_config, key):
    path = write_config(MODEL={"TYPE": "timm", "NAME": NAME}, DATA={"FROM_MODEL": key == "MODEL.NAME"})
    for name, part in [
        ("vit_tiny_patch16_224.nonsense", "Invalid pretrained tag (nonsense)"),
        ("vit_tinny", "unknown to timm; did you mean"),
    ]:
        message = str(error_of("--cfg", path, "--check", "--opts", key, name))
        assert message.startswith(f"{key} is {name!r}") and part in message


@pytest.mark.parametrize("name, part", [
    ("timm/vit_tiny_patch16_224.augreg_in21k", "timm's own is 'vit_tiny_patch16_224.augreg_in21k'"),
    ("hf_hub:timm/resnet10t.c3_in1k", "timm's own is 'resnet10t.c3_in1k'"), ("hf-hub:timm/resnet10t", "timm's own is 'resnet10t'"),
    ("vit_tiny.augreg_in21k", "timm has vit_tiny_patch16_224"), ("resnet10tt.c3_in1k", "did you mean 'resnet10t'?"),
])  # fmt: skip
def test_names_as_other_places_have_them(write_config, name, part):
    assert part in str(error_of("--cfg", write_config(MODEL={"TYPE": "timm", "NAME": name}), "--check"))


def test_fat_has_nothing_to_take(write_config):
    assert "DATA.FROM_MODEL: fat_tiny is no timm model" in str(
        error_of("--cfg", write_config(), "--check", "--opts", "DATA.FROM_MODEL", "True")
    )
    assert input_warnings(None, load_config(write_config())) == []


def test_scripts_read_a_config_as_main_does(weights, write_config, tmp_path):
    """predict.py, export.py and visualize.py open a file of another tool with a config."""
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    given = write_config(MODEL={"TYPE": "timm", "NAME": NAME}, DATA={"IMG_SIZE": 160})
    plain = load_trained(weights, given, str(tmp_path / "names.txt"))
    assert len(plain.warnings) == 1 and "otherwise than timm" in plain.warnings[0]
    path = write_config("taken.yaml", MODEL={"TYPE": "timm", "NAME": NAME}, DATA={"FROM_MODEL": True})
    taken = load_trained(weights, path, str(tmp_path / "names.txt"))
    assert taken.warnings == () and taken.own_size == 160 and taken.cfg.DATA.MEAN == [0.5, 0.5, 0.5]


# Keys that shape what a model sees


def test_what_shapes_the_images_that_a_model_sees():
    data = {"DATA.IMG_SIZE", "DATA.INTERPOLATION", "DATA.MEAN", "DATA.STD", "DATA.EXIF", "DATA.IN_CHANS"}
    segmentation = {"SEG.SCALE", "SEG.MODE", "SEG.STRIDE", "SEG.SCALES"}
    assert {*INPUT_KEYS} == data | segmentation | {
        f"TEST.{name}" for name in ("IMG_SIZE", "CROP_PCT", "CROP_MODE", "CROPS", "FLIP")
    }


def test_a_change_of_any_of_them_is_said():
    from parts.checkpoint.average import SEEN

    assert {*INPUT_KEYS} <= {*SEEN}
    other = {float: 0.5, int: 5, bool: None, str: "nearest", list: [0.1, 0.2, 0.3]}
    for key in INPUT_KEYS:
        section, name = key.split(".")
        values, default = to_dict(DEFAULTS), DEFAULTS[section][name]
        values[section] = {**values[section], name: (not default) if type(default) is bool else other[type(default)]}
        assert [line.split()[2] for line in input_warnings(values, DEFAULTS)] == [key]


def test_what_timm_says_of_all_its_models_fits_the_keys():
    """Mean, std and interpolation of each can be taken; sizes and crops of all but a few."""
    left = set()
    for name in timm.list_models():
        cfg = DEFAULTS.clone()
        cfg.MODEL.TYPE, cfg.MODEL.NAME = "timm", name
        left |= {(key, name.split("_")[0]) for key, value in of_model(cfg).items() if not can_be_taken(key, value)}
    assert {key for key, _ in left} <= {"DATA.IMG_SIZE", "TEST.IMG_SIZE", "TEST.CROP_PCT"} and len(left) < 10
