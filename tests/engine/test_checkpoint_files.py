"""Files with weights as training codes write them: each gives the logits of the model that they were taken from."""

import argparse
import json
import pathlib
import pickle
import tarfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch.optim.swa_utils import AveragedModel
from yacs.config import CfgNode

import engine.checkpoints
from conftest import ROOT, error_of, run
from engine.checkpoints.file import open_checkpoint, read_checkpoint
from engine.checkpoints.load import load_pretrained, require_fit
from utils.errors import CheckpointError


def model_of(seed: int, name: str = "fat_tiny", **settings) -> torch.nn.Module:
    """A model whose every tensor depends on the seed, BatchNorm's statistics too."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=3, **settings).eval()
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model


RAW, AVERAGE = model_of(0), model_of(1)


def prefixed(prefix: str, model: torch.nn.Module = RAW) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in model.state_dict().items()}


def without_counts(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}


SETTINGS = {  # what training codes put beside the weights
    "args": argparse.Namespace(lr=0.1, output=pathlib.Path("out"), best=np.float64(77.5)),
    "config": CfgNode({"MODEL": CfgNode({"NAME": "swin"})}),
    "best_acc": np.float32(77.5),
    "scores": np.arange(3),
    "meters": defaultdict(list, a=[1]),
    "epoch": 3,
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
}
LIGHTNING = {"pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.1}, "epoch": 3}
# name: (content, the model whose weights are to be used, words of the line that says what was done)
LAYOUTS = {
    "bare": (RAW.state_dict(), RAW, ""),
    "model": ({"model": RAW.state_dict(), **SETTINGS}, RAW, ""),
    "state_dict": ({"state_dict": RAW.state_dict(), "arch": "fat_tiny"}, RAW, ""),
    "DeiT, ConvNeXt": ({"model": RAW.state_dict(), "model_ema": AVERAGE.state_dict(), **SETTINGS}, AVERAGE, "took model_ema"),
    "model_ema alone": ({"model_ema": AVERAGE.state_dict()}, AVERAGE, "took model_ema"),
    "timm": ({"state_dict": RAW.state_dict(), "state_dict_ema": AVERAGE.state_dict(), **SETTINGS}, AVERAGE, "took state_dict_ema"),
    "ema": ({"ema": AVERAGE.state_dict(), "epoch": 2}, AVERAGE, "took ema"),
    "module": ({"module": RAW.state_dict()}, RAW, "took module"),
    "in an average's wrapper": ({"ema": {"module": AVERAGE.state_dict(), "updates": 7}}, AVERAGE, "took ema.module"),
    "DDP": (prefixed("module."), RAW, "took off 'module.'"),
    "compile": (prefixed("_orig_mod."), RAW, "took off '_orig_mod.'"),
    "compile of DDP": ({"model": prefixed("_orig_mod.module.")}, RAW, "took off '_orig_mod.module.'"),
    "DDP of compile": ({"model": prefixed("module._orig_mod.")}, RAW, "took off 'module._orig_mod.'"),
    "Lightning": (
        {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}, **LIGHTNING}, RAW, "left out criterion.weight",
    ),
    "Lightning of compile": ({"state_dict": prefixed("model._orig_mod."), **LIGHTNING}, RAW, "took off 'model._orig_mod.'"),
    "Lightning of another name": ({"state_dict": {**prefixed("net."), "loss.w": torch.ones(1)}, **LIGHTNING}, RAW, "took off 'net.'"),
    "SWA": (AveragedModel(RAW).state_dict(), RAW, "left out n_averaged"),
    "no counts": ({"model": without_counts(RAW)}, RAW, "num_batches_tracked"),
    "an average of all tensors": ({"ema": {key: value.float() for key, value in AVERAGE.state_dict().items()}}, AVERAGE, "took ema"),
    "ordered": (OrderedDict(model=OrderedDict(RAW.state_dict())), RAW, ""),
}  # fmt: skip


def saved(content, path: pathlib.Path) -> pathlib.Path:
    torch.save(content, path)
    return path


def same_logits(model: torch.nn.Module, expected: torch.nn.Module) -> bool:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return torch.equal(model.eval()(images), expected(images))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_every_layout_are_found(layout, tmp_path):
    content, expected, words = LAYOUTS[layout]
    checkpoint = open_checkpoint(saved(content, tmp_path / "x.pth"))
    model = model_of(9)
    fitted = require_fit(model, checkpoint, checkpoint.better)
    model.load_state_dict(fitted.state)
    assert same_logits(model, expected)
    assert words in fitted.note and bool(words) == bool(fitted.note)
    other = model_of(9)
    skipped, note = load_pretrained(other, checkpoint, checkpoint.better)
    assert not skipped and note == fitted.note and same_logits(other, expected)


def test_names_of_a_model_s_own_that_look_like_a_wrapper_s_stay(tmp_path):
    model = torch.nn.Sequential(OrderedDict(model=torch.nn.Linear(2, 2)))
    checkpoint = open_checkpoint(saved(model.state_dict(), tmp_path / "x.pth"))
    assert require_fit(model, checkpoint, "raw").difference is None


def test_of_two_that_fit_none_is_guessed(tmp_path):
    path = saved({"student": RAW.state_dict(), "teacher": AVERAGE.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has weights under 'student' and 'teacher'; save those that you mean"):
        open_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_pickle_protocols(tmp_path, protocol, zipped):
    """What torch.load's safe way does not know: the weights and settings are those of the same file in protocol 2."""
    content = {
        "model": {key: torch.nn.Parameter(value) if key == "head.bias" else value for key, value in RAW.state_dict().items()},
        "twice": [RAW.head.weight, RAW.head.weight, "head.bias", "head.bias", torch.float16, torch.Size([2])],
        "bytes": b"\x00\xffabc", "long": 2**70, "sets": [{1}, frozenset([2])], "umlaut": "\u00e4" * 300, **SETTINGS,
    }  # fmt: skip
    plain, newer = tmp_path / "plain.pth", tmp_path / "newer.pth"
    torch.save(content, plain, _use_new_zipfile_serialization=zipped)
    torch.save(content, newer, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    expected, found = read_checkpoint(plain), read_checkpoint(newer)
    assert expected.keys() == found.keys() == content.keys()
    assert protocol < 4 or found["sets"] == [[1], (2,)]
    for key in ("bytes", "long", "umlaut", "epoch", "optimizer", "config", "meters"):
        assert found[key] == expected[key] and type(found[key]) is type(expected[key])
    assert found["args"].lr == 0.1 and found["bytes"] == content["bytes"]
    assert torch.equal(found["twice"][0], RAW.head.weight) and found["twice"][2:] == content["twice"][2:]
    assert found["twice"][0].data_ptr() == found["twice"][1].data_ptr()
    checkpoint, model = open_checkpoint(newer), model_of(9)
    model.load_state_dict(require_fit(model, checkpoint, "raw").state)
    assert same_logits(model, RAW)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_no_protocol_brings_is_refused(tmp_path, protocol):
    """Code, whatever the protocol; and an object of protocol 4, for which 2 has no like."""
    path = tmp_path / "x.pth"
    torch.save({"model": RAW.state_dict(), "x": Bomb()}, path, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        open_checkpoint(path)
    assert not Bomb.ran
    torch.save({"model": RAW.state_dict(), "x": Keywords()}, path, pickle_protocol=4)
    with pytest.raises(
        CheckpointError, match="newer pickle protocol, whose NEWOBJ_EX .*without pickle_protocol"
    ) as caught:
        open_checkpoint(path)
    assert "damaged" not in str(caught.value)
    path.write_bytes(b"\x80\x04\x95 cut")
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(path)


def test_safetensors_and_a_hub_folder(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    safetensors.torch.save_file(RAW.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "fat_tiny", "label_names": ["a", "b", "c"]}')
    for path, classes in ((folder / "model.safetensors", None), (folder, ["a", "b", "c"])):
        checkpoint = open_checkpoint(path)
        model = model_of(9)
        load_pretrained(model, checkpoint, checkpoint.better)
        assert same_logits(model, RAW) and checkpoint.classes == classes


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_parts_are_joined(tmp_path, kind):
    state, save = RAW.state_dict(), safetensors.torch.save_file if kind == "safetensors" else torch.save
    places = {key: f"part-{number % 2}.{kind}" for number, key in enumerate(state)}
    for part in set(places.values()):
        save({key: state[key].contiguous() for key in state if places[key] == part}, tmp_path / part)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (index, tmp_path):
        model = model_of(9)
        load_pretrained(model, open_checkpoint(path), "raw")
        assert same_logits(model, RAW)
    save({"other": torch.ones(1)}, tmp_path / f"part-0.{kind}")
    with pytest.raises(CheckpointError, match=f"in part-0.{kind}, which does not hold it"):
        open_checkpoint(tmp_path)
    (tmp_path / f"part-0.{kind}").unlink()
    with pytest.raises(CheckpointError, match=f"part-0.{kind}: cannot be read"):
        open_checkpoint(tmp_path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    np.savez(tmp_path / "weights.npz", a=np.ones(2))
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>sign in</html>")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64))
    (tmp_path / "empty.pth").touch()
    with tarfile.open(tmp_path / "best.pth.tar", "w") as archive:
        archive.add(tmp_path / "page.pth", "best.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pth").touch()
    kinds = {
        "script.pt": "a TorchScript file", "weights.npz": "a NumPy archive", "page.pth": "an HTML page", "pointer.pth": "a Git LFS pointer",
        "keras.h5": "an HDF5 file", "model.onnx": "an ONNX file", "run": "the folder of a run",
        "empty.pth": "empty", "best.pth.tar": "a tar archive",
    }  # fmt: skip
    for name, kind in kinds.items():
        with pytest.raises(CheckpointError, match=f"is {kind}.*;") as caught:
            open_checkpoint(tmp_path / name)
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_training_does_not_start_from_what_is_no_number(tmp_path, value):
    state = {key: tensor.clone() for key, tensor in RAW.state_dict().items()}
    state["head.bias"][0] = float(value)
    with pytest.raises(CheckpointError, match="its head.bias holds values that are infinite or no numbers"):
        load_pretrained(model_of(9), open_checkpoint(saved(state, tmp_path / "x.pth")), "raw")
    state["head.bias"] = torch.full((5,), float(value))  # of a head that is initialised anew
    state["head.weight"] = torch.zeros(5, *RAW.head.weight.shape[1:])
    model = model_of(9)
    assert load_pretrained(model, open_checkpoint(saved(state, tmp_path / "y.pth")), "raw")[0] == [
        "head.weight",
        "head.bias",
    ]
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


class Bomb:
    ran = False

    def __reduce__(self):
        return setattr, (Bomb, "ran", True)


class Keywords:
    def __getnewargs_ex__(self):
        return (), {"a": 1}


@pytest.mark.parametrize("place", ["beside the weights", "in settings that are read"])
def test_nothing_of_a_file_is_run(tmp_path, place):
    content = {"model": RAW.state_dict()}
    content |= {"x": Bomb()} if place == "beside the weights" else {"args": argparse.Namespace(x=Bomb())}
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        open_checkpoint(saved(content, tmp_path / "x.pth"))
    assert not Bomb.ran
    pickle.loads(pickle.dumps(Bomb()))  # it would have
    assert Bomb.ran
    Bomb.ran = False


def test_timm_s_own_conversion_of_another_size(tmp_path):
    small, large = (model_of(seed, "test_vit", img_size=size) for seed, size in ((0, 32), (1, 64)))
    path = saved(small.state_dict(), tmp_path / "x.pth")
    fitted = require_fit(large, open_checkpoint(path), "raw")
    expected = timm.create_model(
        "test_vit",
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": small.state_dict(), "num_classes": 3},
        num_classes=3,
        img_size=64,
    ).state_dict()
    assert "converted by timm's code for test_vit" in fitted.note
    assert all(torch.equal(value, expected[key]) for key, value in fitted.state.items())


def test_eval_says_what_it_took_and_measures_both(write_config, tmp_path, capsys):
    config = write_config(EMA={"ENABLED": False}, MODEL={"FAT": {}})
    path = saved(
        {"model": prefixed("module."), "model_ema": AVERAGE.state_dict(), "args": argparse.Namespace(lr=1)},
        tmp_path / "deit.pth",
    )
    run("--cfg", config, "--eval", "--resume", path)
    output = capsys.readouterr().out
    assert "raw: took model, took off 'module.'; ema: took model_ema" in output
    assert error_of("--cfg", config, "--eval", "--resume", tmp_path).status == 3


def test_files_are_read_in_one_place():
    package = pathlib.Path(engine.checkpoints.__file__).parent
    readers = [
        path
        for part in ("engine", "scripts", "data", "utils", "models")
        for path in sorted((ROOT / part).rglob("*.py"))
    ]
    assert [path for path in readers if "torch.load(" in path.read_text()] == [package / "unpickle.py"]


def test_a_path_may_be_a_string(tmp_path):
    """As `load_trained("best.pth")` of the pages."""
    torch.save(timm.create_model("fat_tiny", num_classes=3).state_dict(), tmp_path / "weights.pth")
    assert open_checkpoint(str(tmp_path / "weights.pth")).states.keys() == {"raw"}
    assert read_checkpoint(str(tmp_path / "weights.pth")).keys() == timm.create_model("fat_tiny").state_dict().keys()
    (tmp_path / "folder").mkdir()
    (tmp_path / "weights.pth").rename(tmp_path / "folder/pytorch_model.bin")
    assert open_checkpoint(str(tmp_path / "folder")).states.keys() == {"raw"}
