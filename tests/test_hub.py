"""torch.hub's entry points."""

import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT
from test_fuse import realistic

from utils.config import config_from, to_dict


def hub(name, **settings):
    return torch.hub.load(str(ROOT), name, source="local", **settings)


def config(**model):
    found = to_dict(config_from({}, "test"))
    found["MODEL"].update(model)
    return found


def logits(model, images=torch.randn(2, 3, 64, 64)):
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("name", ["fat_tiny", "fat_small", "fat_b0", "fat_b1", "fat_b2", "fat_b3"])
def test_every_model(name):
    with torch.device("meta"):
        expected = [(key, value.shape) for key, value in timm.create_model(name, num_classes=5).state_dict().items()]
        assert [(key, value.shape) for key, value in hub(name, num_classes=5).state_dict().items()] == expected


def test_a_runs_checkpoint(tmp_path):
    """Its config is applied; its average is taken where that was what was best."""
    raw, ema = (realistic(num_classes=3, interaction="add", cpe=cpe) for cpe in (True, True))
    with torch.no_grad():
        ema.head.bias += 1
    content = {"model": raw.state_dict(), "ema": ema.state_dict(), "config": config(NAME="fat_tiny"), "classes": ["a", "b", "c"]}
    content["config"]["MODEL"]["FAT"]["interaction"] = "add"
    for best, model in (("raw", raw), ("ema", ema)):
        content["progress"] = {"epoch": 2, "best": {"acc1": 1.0, "weights": best, "epoch": 1}}
        torch.save(content, tmp_path / "best.pth")
        assert torch.equal(logits(hub("fat_tiny", checkpoint=tmp_path / "best.pth")), logits(model))
    tuned = hub("fat_tiny", checkpoint=str(tmp_path / "best.pth"), num_classes=7)
    assert tuned.head.out_features == 7 and torch.equal(tuned.patch_embed.conv1.conv[0].weight, ema.patch_embed.conv1.conv[0].weight)


def test_timm_knows_how_images_are_prepared(tmp_path):
    content = {"model": realistic(num_classes=3).state_dict(), "config": config(NAME="fat_tiny"), "classes": ["a", "b", "c"]}
    content["config"]["DATA"] |= {"IMG_SIZE": 96, "INTERPOLATION": "bilinear", "MEAN": [0.1, 0.2, 0.3]}
    content["config"]["TEST"]["CROP_PCT"] = 1.0
    torch.save(content, tmp_path / "best.pth")
    model = hub("fat_tiny", checkpoint=tmp_path / "best.pth")
    found = timm.data.resolve_model_data_config(model)
    assert found["input_size"] == (3, 96, 96) and found["interpolation"] == "bilinear" and found["crop_pct"] == 1.0 and found["mean"] == (0.1, 0.2, 0.3)
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c"] and model.pretrained_cfg["num_classes"] == 3
    assert timm.create_model("fat_tiny").pretrained_cfg["input_size"] == (3, 224, 224)  # another model's is its own


@pytest.mark.parametrize("settings", [{}, {"distilled": True}])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 300}])
def test_bare_weights(tmp_path, settings, wrap):
    """A state dict, and a checkpoint as the released code writes it."""
    model = realistic(num_classes=4, **settings)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    assert torch.equal(logits(hub("fat_tiny", checkpoint=tmp_path / "weights.pth")), logits(model))


@pytest.mark.parametrize("make, message", [
    (lambda path: {"pretrained": True}, "no weights of fat_tiny are published"),
    (lambda path: {"checkpoint": path / "none.pth"}, "none.pth: cannot be read"),
    (lambda path: {"checkpoint": path / "b.pth"}, "b.pth: is of another model"),
    (lambda path: {"checkpoint": path / "run.pth"}, "run.pth: is of fat_b0, not fat_tiny"),
    (lambda path: {"checkpoint": 5}, "fat_tiny: the arguments are refused"),
    (lambda path: {"bogus": 1}, "fat_tiny: the arguments are refused"),
    (lambda path: {"num_classes": "x"}, "fat_tiny: the arguments are refused"),
])  # fmt: skip
def test_refused(tmp_path, make, message):
    small = timm.create_model("fat_small", num_classes=2).state_dict()
    torch.save(small, tmp_path / "b.pth")
    torch.save({"model": small, "config": config(NAME="fat_b0")}, tmp_path / "run.pth")
    with pytest.raises(ValueError) as caught:
        hub("fat_tiny", **make(tmp_path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    """That of a checkpoint alone; a new model needs timm and torch."""
    for part in ("engine", "data", "utils"):  # imported anew
        for name in [name for name in sys.modules if name.split(".")[0] == part]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "yacs.config", None)
    torch.save(timm.create_model("fat_tiny", num_classes=2).state_dict(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="^checkpoint: yacs.config cannot be imported .* pip install -r .*requirements.txt$"):
        hub("fat_tiny", checkpoint=tmp_path / "x.pth")
    assert hub("fat_tiny", num_classes=2).num_classes == 2


PROGRAM = """
import sys, torch
model = torch.hub.load(sys.argv[1], "fat_tiny", source="local", checkpoint="weights.pth")
assert model.num_classes == 4
import utils
assert utils.WHOSE == "mine"
try:
    torch.hub.load(sys.argv[1], "fat_tiny", source="local", checkpoint="weights.pth")
except ValueError as error:
    print(error)
"""


def test_from_another_folder_with_a_utils_of_its_own(tmp_path):
    (tmp_path / "utils.py").write_text("WHOSE = 'mine'")
    (tmp_path / "program.py").write_text(PROGRAM)
    torch.save(timm.create_model("fat_tiny", num_classes=4).state_dict(), tmp_path / "weights.pth")
    done = subprocess.run([sys.executable, "program.py", ROOT], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"utils: another package of this name is imported already ({tmp_path}/utils.py); load FAT before it, or in another process\n"
