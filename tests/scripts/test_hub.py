"""torch.hub's entry points."""

import json
import sys

import pytest
import safetensors.torch
import timm
import torch

from conftest import ROOT, rest
from fresh_python import FreshPython
from known_weights import realistic
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
    content = {
        "model": raw.state_dict(),
        "ema": ema.state_dict(),
        "config": config(NAME="fat_tiny"),
        "classes": ["a", "b", "c"],
    }
    content["config"]["MODEL"]["FAT"]["interaction"] = "add"
    for best, model in (("raw", raw), ("ema", ema)):
        content["progress"] = {"epoch": 2, "best": {"acc1": 1.0, "weights": best, "epoch": 1}}
        torch.save(content, tmp_path / "best.pth")
        assert torch.equal(logits(hub("fat_tiny", checkpoint=tmp_path / "best.pth")), logits(model))
    tuned = hub("fat_tiny", checkpoint=str(tmp_path / "best.pth"), num_classes=7)
    assert tuned.head.out_features == 7 and torch.equal(
        tuned.patch_embed.conv1.conv[0].weight, ema.patch_embed.conv1.conv[0].weight
    )


def test_timm_knows_how_images_are_prepared(tmp_path):
    content = {
        "model": realistic(num_classes=3).state_dict(),
        "config": config(NAME="fat_tiny"),
        "classes": ["a", "b", "c"],
    }
    content["config"]["DATA"] |= {"IMG_SIZE": 96, "INTERPOLATION": "bilinear", "MEAN": [0.1, 0.2, 0.3]}
    content["config"]["TEST"]["CROP_PCT"] = 1.0
    torch.save(content, tmp_path / "best.pth")
    model = hub("fat_tiny", checkpoint=tmp_path / "best.pth")
    found = timm.data.resolve_model_data_config(model)
    assert (
        found["input_size"] == (3, 96, 96)
        and found["interpolation"] == "bilinear"
        and found["crop_pct"] == 1.0
        and found["mean"] == (0.1, 0.2, 0.3)
    )
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c"] and model.pretrained_cfg["num_classes"] == 3
    assert timm.create_model("fat_tiny").pretrained_cfg["input_size"] == (3, 224, 224)  # another model's is its own


@pytest.mark.parametrize("settings", [{}, {"distilled": True}])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 300}])
def test_bare_weights(tmp_path, settings, wrap):
    """A state dict, and a checkpoint as the released code writes it."""
    model = realistic(num_classes=4, **settings)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    assert torch.equal(logits(hub("fat_tiny", checkpoint=tmp_path / "weights.pth")), logits(model))


def test_a_folder_of_the_hub(tmp_path):
    """Its config.json has the run's config, which tells the form of FAT and its images."""
    model = realistic(num_classes=3, interaction="concat")
    told = config(NAME="fat_tiny")
    told["MODEL"]["FAT"]["interaction"], told["DATA"]["IMG_SIZE"] = "concat", 96
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["a", "b", "c"], "training_config": told}))
    loaded = hub("fat_tiny", checkpoint=tmp_path)
    assert torch.equal(logits(loaded), logits(model)) and loaded.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert timm.data.resolve_model_data_config(loaded)["input_size"] == (3, 96, 96)


@pytest.mark.parametrize("make, message", [
    (lambda path: {"pretrained": True}, "no weights of fat_tiny are published"),
    (lambda path: {"checkpoint": path / "none.pth"}, "none.pth: cannot be read"),
    (lambda path: {"checkpoint": path / "b.pth"}, "b.pth: is of another model"),
    (lambda path: {"checkpoint": path / "run.pth"}, "run.pth: is of fat_b0, not fat_tiny"),
    (lambda path: {"checkpoint": path / "run.pth", "weights": "ema"}, "run.pth: has no ema weights; use weights raw"),
    (lambda path: {"weights": "ema"}, "weights: is a choice among those of a checkpoint"),
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
    with pytest.raises(
        ValueError, match="^checkpoint: yacs.config cannot be imported .* pip install -r .*requirements.txt$"
    ):
        hub("fat_tiny", checkpoint=tmp_path / "x.pth")
    assert hub("fat_tiny", num_classes=2).num_classes == 2


# A program with packages of its own. Each part of it ends with nothing left of FAT's but the models under their own name.
START = """
import contextlib, copy, io, pickle, sys
import pytest, timm, torch

ROOT = sys.argv[1]
NAMES = ("engine", "data", "utils", "models")

def imported():
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] in NAMES}

@contextlib.contextmanager
def nothing_left():
    modules, path = imported(), list(sys.path)
    yield
    assert imported() == modules and sys.path == path
    files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
    ours = [name for name, file in files.items() if file.startswith(ROOT + "/") and "site-packages" not in file]
    assert ours and all(name.split(".")[0] == "fat_hub_models" for name in ours), ours

def load(checkpoint="weights.pth", **settings):
    with nothing_left():
        return torch.hub.load(ROOT, "fat_tiny", source="local", checkpoint=checkpoint, **settings)

def check(model):
    images = torch.randn(2, 3, 64, 64)
    assert model.training
    model(images).sum().backward()
    model = load()
    expected = timm.create_model("fat_tiny", num_classes=4)
    expected.load_state_dict(torch.load("weights.pth"))
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected.eval()(images))

def load_other():
    model = torch.hub.load("other", "net", source="local")
    assert model.whose == "other's"
"""
OWN = """
import engine.sub, models.fat, utils, data
check(load())
assert engine.sub.WHOSE == models.fat.WHOSE == utils.WHOSE == data.WHOSE == "mine"
import models.layers
assert models.layers.WHOSE == "mine"
"""
OWN_LATER = """
check(load())
import engine.sub, models.fat, utils, data
assert engine.sub.WHOSE == models.fat.WHOSE == utils.WHOSE == data.WHOSE == "mine"
check(load())
"""
OTHER_AFTER = "check(load()); load_other()"
OTHER_BEFORE = "load_other(); check(load()); load_other()"
TWICE = """
first, second = load(None, num_classes=4), load()
assert type(first) is type(second) and type(first).__module__ == "fat_hub_models.fat"
assert type(timm.create_model("fat_tiny")) is type(first)
"""
USED = """
model, images = load().eval(), torch.randn(2, 3, 64, 64)
with torch.no_grad():
    logits = model(images)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.compile(model, backend="eager", fullgraph=True)]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    assert all(torch.equal(other(images), logits) for other in copies)
    import fat_hub_models
    assert torch.allclose(fat_hub_models.fuse(model)(images), logits, atol=1e-4)
    maps = timm.create_model("fat_tiny", features_only=True)(images)
assert [m.shape[1] for m in maps] == [16, 32, 64, 128]
"""
REFUSED = """
load(None)
for wrong in ({"checkpoint": "none.pth"}, {"checkpoint": "weights.pth", "weights": "ema"}, {"checkpoint": None, "num_classes": "x"}):
    with nothing_left(), pytest.raises(ValueError):
        torch.hub.load(ROOT, "fat_tiny", source="local", **wrong)
"""
OURS = """
sys.path.insert(0, ROOT)
import models
before, path = imported(), list(sys.path)
model = torch.hub.load(ROOT, "fat_tiny", source="local", checkpoint="weights.pth")
assert type(model) is models.FAT and imported() == before and sys.path == path and "fat_hub_models" not in sys.modules
"""


@pytest.fixture(scope="module")
def fresh_python():
    python = FreshPython("pytest", "timm", "torch")
    yield python
    python.close()


@pytest.mark.parametrize("program, own", [
    (OWN, True), (OWN_LATER, True), rest(OTHER_AFTER, False), (OTHER_BEFORE, False), (TWICE, False), (USED, True), rest(USED, False),
    (REFUSED, True), rest(REFUSED, False), (OURS, False),
], ids=["own", "own later", "other after", "other before", "twice", "used, own", "used", "refused, own", "refused", "ours"])  # fmt: skip
def test_beside_packages_of_the_same_names(fresh_python, tmp_path, program, own):
    """Of the program's own, or of another hub repository; without a warning."""
    if own:
        write_packages(tmp_path, "mine")
    write_packages(tmp_path / "other", "other's")
    hubconf = "from models.fat import net\nimport utils, engine.sub, data\n"
    (tmp_path / "other" / "hubconf.py").write_text(hubconf)
    torch.save(timm.create_model("fat_tiny", num_classes=4).state_dict(), tmp_path / "weights.pth")
    status, text = fresh_python.run(tmp_path, START + program, ROOT)
    assert status == 0, text


def write_packages(folder, whose):
    """Packages `engine` and `models`, modules `utils.py` and `data.py`."""
    net = "import torch\n\ndef net():\n    model = torch.nn.Identity()\n    model.whose = WHOSE\n    return model\n"
    files = [
        "engine/__init__.py",
        "engine/sub.py",
        "models/__init__.py",
        "models/fat.py",
        "models/layers.py",
        "utils.py",
        "data.py",
    ]
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"WHOSE = {whose!r}\n{net if name == 'models/fat.py' else ''}")


def test_entry_points_are_the_models(monkeypatch):
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *_, **__: str(ROOT))
    assert sorted(torch.hub.list("someone/fat")) == ["fat_b0", "fat_b1", "fat_b2", "fat_b3", "fat_small", "fat_tiny"]


def test_what_was_taken_is_said(tmp_path, capsys):
    raw, ema = realistic(num_classes=3), realistic(num_classes=3)
    prefixed = {f"module.{key}": value for key, value in raw.state_dict().items()}
    path = tmp_path / "deit.pth"
    torch.save({"model": prefixed, "model_ema": ema.state_dict()}, path)
    for settings, line in (
        ({}, "ema weights: took model_ema"),
        ({"weights": "raw"}, "raw weights: took model, took off 'module.'"),
        (
            {"num_classes": 5},
            "ema weights: took model_ema; of another size and initialised anew: head.weight, head.bias",
        ),
    ):
        hub("fat_tiny", checkpoint=path, **settings)
        assert capsys.readouterr() == ("", f"{path}: {line}\n")


def test_the_weights_that_are_asked_for(tmp_path):
    raw, ema = realistic(num_classes=3), realistic(num_classes=3)
    with torch.no_grad():
        ema.head.bias += 1
    torch.save({"model": raw.state_dict(), "model_ema": ema.state_dict()}, tmp_path / "x.pth")
    for weights, expected in (("raw", raw), ("ema", ema), (None, ema)):
        assert torch.equal(logits(hub("fat_tiny", checkpoint=tmp_path / "x.pth", weights=weights)), logits(expected))
