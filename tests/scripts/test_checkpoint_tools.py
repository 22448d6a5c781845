"""scripts/checkpoint.py: what is made of checkpoints is what it says, and works where checkpoints do."""

import json
import os
import pickle
import subprocess

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image

import checkpoint as tools
import models
from conftest import ROOT, SMALL, error_of, load, run, run_program, smallest_model
from data.class_maps import read_class_map
from engine.inference.trained import load_trained
from known_weights import PARITY, released_weights
from parts.checkpoint import evaluation
from parts.checkpoint.average import average, greedy, shares_of
from parts.checkpoint.weight_files import open_checkpoint
from utils.config import config_from, to_dict, with_values
from utils.errors import ConfigError, OutputError, UserError
from utils.files import atomic_write


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run of four epochs: the folder of its checkpoints, and its config."""
    folder = tmp_path_factory.mktemp("trained")
    plain = {
        "SCALE": [1.0, 1.0],
        "RATIO": [1.0, 1.0],
        "AUTO_AUGMENT": "none",
        "COLOR_JITTER": 0.0,
        "REPROB": 0.0,
        "MIXUP": 0.0,
        "CUTMIX": 0.0,
    }
    config = {
        **SMALL, "OUTPUT": str(folder / "output"), "SAVE_FREQ": 1, "DATA": {**SMALL["DATA"], "DATA_PATH": str(digits)},
        "TRAIN": {"EPOCHS": 4, "WARMUP_EPOCHS": 1, "BASE_LR": 0.1, "MIN_LR": 0.1}, "AUG": {**SMALL["AUG"], **plain},
        "EMA": {"ENABLED": True, "DECAY": 0.7},
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    run("--cfg", folder / "small.yaml")
    return folder / "output/fat_tiny/default", folder / "small.yaml"


@pytest.fixture
def epochs(trained):
    return [trained[0] / f"epoch_{n}.pth" for n in (1, 2, 3, 4)]


def tool(*argv) -> int:
    return tools.main([str(arg) for arg in argv])


def refused(*argv) -> UserError:
    with pytest.raises(UserError) as caught:
        tool(*argv)
    assert str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def evaluated(trained, path, *opts) -> dict:
    """What main.py measures of a checkpoint."""
    run("--cfg", trained[1], "--tag", "evaluated", "--eval", "--resume", path, *opts)
    return json.loads((trained[0].parent / "evaluated/eval.json").read_text())


def metrics(found: dict) -> dict:
    return {key: found[key] for key in ("acc1", "acc5", "loss", "num_images")}


def altered(path, source, **changes):
    """A checkpoint like another one, with other entries; None takes one out."""
    content = {**load(source), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def same_weights(a, b) -> bool:
    return list(a) == list(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


# strip


def test_a_folder_of_the_hub(tmp_path, capsys):
    """Its file of weights is what is counted; its config and classes come with it."""
    weights, folder = timm.create_model("fat_tiny", num_classes=2).state_dict(), tmp_path / "hub"
    folder.mkdir()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    told = {"label_names": ["a", "b"], "training_config": to_dict(config_from({"MODEL": {"NAME": "fat_tiny"}}, "here"))}
    (folder / "config.json").write_text(json.dumps(told))
    assert tool("info", "--json", folder) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (folder / "model.safetensors").stat().st_size
    assert found["model"] == "fat_tiny" and found["classes"] == ["a", "b"]
    assert tool("strip", folder, "--output", tmp_path / "small.pth") == 0
    assert load(tmp_path / "small.pth")["classes"] == ["a", "b"]
    assert tool("diff", folder, tmp_path / "small.pth") == 0


def test_stripped_checkpoint_evaluates_to_the_same_figures_and_can_be_started_from(trained, tmp_path, capsys):
    best, small = trained[0] / "best.pth", tmp_path / "small.pth"
    content = load(best)
    which = content["progress"]["best"]["weights"]
    assert tool("strip", best, "--output", small) == 0
    out = capsys.readouterr().out
    assert (
        f"{best}: {best.stat().st_size / 1e6:.2f} MB" in out
        and f"{small}: {small.stat().st_size / 1e6:.2f} MB, {which} weights" in out
    )
    assert small.stat().st_size < 0.4 * best.stat().st_size and set(load(small)) == {
        "model",
        "config",
        "classes",
        "origin",
    }
    assert metrics(evaluated(trained, small)["raw"]) == metrics(evaluated(trained, best)[which])
    assert load_trained(small).classes == ["0", "1", "2"]
    run("--cfg", trained[1], "--pretrained", small, "--tag", "started", "--check")
    assert f"started from {small} (raw weights)" in capsys.readouterr().out
    error = error_of("--cfg", trained[1], "--resume", small, "--tag", "resumed")
    assert (
        error.status == 3
        and str(error)
        == f"{small}: holds weights alone, no 'ema' to resume with; start a run from them with --pretrained"
    )
    assert not (trained[0].parent / "resumed").exists()


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_stripped_weights_are_those_that_are_asked_for(trained, tmp_path, which):
    tool("strip", trained[0] / "last.pth", "--output", tmp_path / "a.pth", "--weights", which)
    tool("strip", trained[0] / "last.pth", "--output", tmp_path / "b.pth", "--weights", which)
    assert same_weights(
        load(tmp_path / "a.pth")["model"], load(trained[0] / "last.pth")[{"raw": "model", "ema": "ema"}[which]]
    )
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_view_does_not_bring_what_it_is_a_view_of(tmp_path):
    torch.save({"a": torch.zeros(10**6)[:3]}, tmp_path / "view.pth")
    tool("strip", tmp_path / "view.pth", "--output", tmp_path / "small.pth")
    assert (tmp_path / "small.pth").stat().st_size < 10_000


# average


def test_uniform_average_is_the_mean_in_float64_with_the_newest_counts(trained, epochs, tmp_path, capsys):
    output = tmp_path / "new/average.pth"
    # whatever the order
    assert tool("average", epochs[2], epochs[0], epochs[1], "--output", output, "--weights", "raw") == 0
    states = [load(path)["model"] for path in epochs[:3]]
    made = load(output)
    for key, value in made["model"].items():
        if value.is_floating_point():
            expected = np.mean([state[key].numpy().astype(np.float64) for state in states], axis=0)
            assert value.dtype == torch.float32 and np.allclose(
                value.numpy(), expected.astype(np.float32), rtol=1e-6, atol=1e-9
            ), key
        else:
            assert key.endswith("num_batches_tracked") and value == states[2][key] != states[0][key]
    assert [entry["file"] for entry in made["origin"]["of"]] == [str(path) for path in epochs[:3]]
    assert [entry["share"] for entry in made["origin"]["of"]] == [1 / 3] * 3
    assert "BatchNorm's statistics: averaged as weights are" in capsys.readouterr().out
    assert evaluated(trained, output)["num_images"] == 29
    assert load_trained(output).weights == "raw" and tool("info", output) == 0
    assert "0.3333 of" in capsys.readouterr().out


def test_exponential_average_is_the_moving_average_of_the_files_in_the_order_of_training(epochs, tmp_path):
    tool("average", *reversed(epochs), "--ema", 0.6, "--output", tmp_path / "average.pth", "--weights", "ema")
    expected = None
    for path in epochs:
        state = {key: value.double() for key, value in load(path)["ema"].items()}
        expected = {key: state[key] if expected is None else 0.6 * expected[key] + 0.4 * state[key] for key in state}
    for key, value in load(tmp_path / "average.pth")["model"].items():
        assert torch.allclose(value.double(), expected[key], rtol=1e-6, atol=1e-8) or not value.is_floating_point(), key


def test_shares_add_up_and_the_newest_has_the_largest():
    assert shares_of(4, None) == [0.25] * 4
    assert shares_of(3, 0.25) == pytest.approx([0.0625, 0.1875, 0.75]) and sum(shares_of(9, 0.3)) == pytest.approx(1)


def test_default_weights_are_the_better_ones_of_each_file(trained, epochs, tmp_path, capsys):
    best = trained[0] / "best.pth"
    other = next(
        path for path in epochs if open_checkpoint(path).progress.updates != open_checkpoint(best).progress.updates
    )
    tool("average", best, other, "--output", tmp_path / "average.pth")
    which = load(best)["progress"]["best"]["weights"]
    out = capsys.readouterr().out
    assert f"{best} ({which} weights" in out and f"{other} (raw weights" in out


def test_state_dicts_without_training_state_are_taken_in_the_order_given(tmp_path):
    for name, number in (("a", 1.0), ("b", 5.0)):
        torch.save(
            {"module.w": torch.full((2,), number), "module.n": torch.tensor(int(number))}, tmp_path / f"{name}.pth"
        )
    tool("average", tmp_path / "b.pth", tmp_path / "a.pth", "--ema", 0.25, "--output", tmp_path / "c.pth")
    made = load(tmp_path / "c.pth")
    assert set(made) == {"model", "origin"} and made["model"]["w"].tolist() == [2.0, 2.0] and made["model"]["n"] == 1


def test_sums_are_float64():
    big = {"w": torch.tensor([2.0**24])}
    one = {"w": torch.tensor([1.0])}  # float32: 2^24 + 1 is 2^24
    assert average([big, one, one, one, one], [1.0] * 5)["w"].item() == 2**24 + 4


# Greedy soup


def test_greedy_takes_in_what_makes_it_no_worse():
    scores = {(2,): 70.0, (2, 0): 69.0, (2, 1): 70.0, (2, 1, 3): 71.0}
    asked = []

    def score_of(indices):
        asked.append(tuple(indices))
        return scores[tuple(indices)]

    assert greedy([60.0, 50.0, 70.0, 10.0], score_of) == [2, 1, 3]
    assert asked == [(2, 0), (2, 1), (2, 1, 3)]
    assert greedy([50.0, 50.0], lambda indices: 0.0) == [0]


def test_soup_is_that_of_a_loop_by_hand(trained, epochs, tmp_path, capsys):
    tool("average", *epochs, "--soup", "--weights", "raw", "--output", tmp_path / "soup.pth")
    out = capsys.readouterr().out
    states = [load(path)["model"] for path in epochs]

    def acc1(indices):
        mixed = {}
        for key, value in states[max(indices)].items():
            total = np.mean([states[i][key].numpy().astype(np.float64) for i in indices], axis=0)
            mixed[key] = torch.from_numpy(np.asarray(total)).to(value.dtype) if value.is_floating_point() else value
        torch.save({"model": mixed, "classes": ["0", "1", "2"]}, tmp_path / "mixed.pth")
        return evaluated(trained, tmp_path / "mixed.pth")["raw"]["acc1"]

    alone = [acc1([i]) for i in range(4)]
    assert len(set(alone)) > 1
    soup, best, *rest = (
        *[[max(range(4), key=lambda i: alone[i])]],
        max(alone),
        *sorted(range(4), key=lambda i: -alone[i])[1:],
    )
    for i in rest:
        if (found := acc1([*soup, i])) >= best:
            soup, best = [*soup, i], found
    made = load(tmp_path / "soup.pth")
    assert [entry["file"] for entry in made["origin"]["of"]] == [str(epochs[i]) for i in sorted(soup)]
    assert made["origin"]["metrics"]["acc1"] == best == evaluated(trained, tmp_path / "soup.pth")["raw"]["acc1"]
    for path, found in zip(epochs, alone):
        assert f"{path}: acc1 {found:.3f} of 29 images" in out
    assert "these figures are optimistic" in out and f"soup of {len(soup)} of 4: acc1 {best:.3f}" in out


def test_soup_on_another_split_and_data_set(trained, epochs, tmp_path, capsys, digits):
    (tmp_path / "moved").symlink_to(digits)
    flags = [
        "--split",
        "train",
        "--data-path",
        tmp_path / "moved",
        "--batch-size",
        7,
        "--workers",
        0,
        "--device",
        "cpu",
    ]
    tool("average", *epochs[:2], "--soup", *flags, "--output", tmp_path / "soup.pth")
    out = capsys.readouterr().out
    assert "of 60 images" in out and f"chosen on these images (train of {tmp_path / 'moved'})" in out
    assert load(tmp_path / "soup.pth")["config"]["DATA"] == load(epochs[0])["config"]["DATA"]
    assert "no such" in str(
        refused("average", *epochs[:2], "--soup", "--split", "absent", "--output", tmp_path / "x.pth")
    )


# BatchNorm


def test_recomputed_statistics_are_those_of_the_training_images(trained, epochs, tmp_path, capsys, digits):
    """Of the first BatchNorm, by hand: the means over batches of all 60 images, which are not augmented here."""
    plain, again = tmp_path / "plain.pth", tmp_path / "again.pth"
    tool("average", *epochs[:2], "--output", plain)
    tool("average", *epochs[:2], "--output", again, "--recompute-bn", 6, "--batch-size", 20)  # two epochs
    assert "recomputed from 6 batches of 20 training images" in capsys.readouterr().out
    states = [load(path)["model"] for path in (plain, again)]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] if not key.endswith(statistics))
    model = load_trained(plain).model
    files = sorted((digits / "train").rglob("*.png"))
    pixels = np.stack(
        [np.array(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)) for path in files]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        maps = model.patch_embed.conv1.conv[0]((images - mean) / std)
    assert len(files) == 60 and torch.allclose(
        states[1]["patch_embed.conv1.conv.1.running_mean"], maps.mean((0, 2, 3)), atol=1e-4
    )
    assert states[1]["patch_embed.conv1.conv.1.num_batches_tracked"] == 6
    assert not torch.allclose(states[0]["patch_embed.conv1.conv.1.running_mean"], maps.mean((0, 2, 3)), atol=1e-4)
    assert evaluated(trained, again)["num_images"] == 29


def test_recomputed_statistics_are_of_images_as_the_training_draws_them(epochs, monkeypatch):
    def take(dataset, schedule, *rest, **more):
        raise ConfigError(f"balanced: {schedule.balanced}")

    monkeypatch.setattr(evaluation, "train_loader", take)
    checkpoint = open_checkpoint(epochs[0])
    cfg = with_values(checkpoint.cfg, {"DATA.SAMPLING": "balanced"}, "test")
    with pytest.raises(ConfigError, match="balanced: True"):
        evaluation.Evaluation(cfg, checkpoint.classes, epochs[0]).recompute_bn(checkpoint.states["raw"], 1)


# What cannot be averaged


def test_checkpoints_of_another_model_or_class_or_input_are_refused(epochs, tmp_path):
    content = load(epochs[0])
    other, output = tmp_path / "other.pth", tmp_path / "x.pth"

    def message(**changes) -> str:
        altered(other, epochs[1], optimizer=None, **changes)
        error = refused("average", epochs[0], other, "--output", output, "--weights", "raw")
        assert error.status == 3 and not output.exists() and str(epochs[0]) in str(error) and str(other) in str(error)
        return str(error)

    config = content["config"]
    assert "MODEL.NAME is 'fat_small' there, 'fat_tiny' here" in message(
        config={**config, "MODEL": {**config["MODEL"], "NAME": "fat_small"}}
    )
    assert "DATA.IMG_SIZE is 64 there, 32 here" in message(
        config={**config, "DATA": {**config["DATA"], "IMG_SIZE": 64}}
    )
    fat = {**config["MODEL"], "FAT": {**config["MODEL"]["FAT"], "interaction": "bidirectional"}}
    assert "MODEL.FAT.interaction is 'bidirectional' there" in message(config={**config, "MODEL": fat})
    assert "class 'x' there, '2' here" in message(classes=["0", "1", "x"])
    assert f"{other} has no config" in message(config=None)
    state = dict(content["model"])
    del state["norm.weight"]
    state["head.bias"], state["more"] = torch.zeros(4), torch.zeros(1)
    found = message(model=state)
    assert "1 missing (more), 1 unknown (norm.weight), 1 of another shape (head.bias (3,) for (4,))" in found
    bad = {**content["model"], "head.bias": torch.tensor([0.0, float("nan"), 0.0])}
    altered(other, epochs[1], model=bad)
    assert "other.pth: its head.bias holds values that are infinite or no numbers" in str(
        refused("average", epochs[0], other, "--output", output, "--weights", "raw")
    )
    # other recipes may differ
    altered(other, epochs[1], config={**config, "SEED": 7, "TRAIN": {**config["TRAIN"], "BASE_LR": 0.3}})
    assert tool("average", epochs[0], other, "--output", output) == 0


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_bad_arguments_and_files_are_one_line_and_write_nothing(trained, epochs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = epochs[:2]
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.pth").write_text("precious")
    (tmp_path / "bad.pth").write_bytes(a.read_bytes()[:-5000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    torch.save({"weights": 3}, "none.pth")
    torch.save(load(a)["model"], "plain.pth")
    torch.save({key: value + 0 for key, value in load(a)["model"].items()}, "plain2.pth")
    before = {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), *epochs]}
    x = ["--output", "x.pth"]
    for argv, status, text in [
        (["strip", a, "--output", a], 2, "is an input, which is never written over"),
        (["strip", a, "--output", a, "--force"], 2, "is an input, which is never written over"),
        (["average", a, b, "--output", b, "--force"], 2, "is an input, which is never written over"),
        (["convert", a, "--to", "released", "--output", a, "--force"], 2, "is an input"),
        (["strip", a, "--output", "there.pth"], 2, "there.pth is there already; give another name, or --force"),
        (["strip", a, "--output", "folder"], 2, "folder is a folder"),
        (["strip", a, "--output", "there.pth/x.pth"], 5, "cannot be written"),
        (["strip", "absent.pth", *x], 3, "absent.pth: cannot be read (No such file"),
        (["strip", "bad.pth", *x], 3, "bad.pth: is damaged"),
        (["info", "evil.pth"], 3, "evil.pth: refused"),
        (["diff", a, "evil.pth"], 3, "evil.pth: refused"),
        (["info", "none.pth"], 3, "none.pth: holds no model weights"),
        (["info", "folder"], 3, "folder: is a folder without weights"),
        (["strip", "plain.pth", "--weights", "ema", *x], 3, "plain.pth: has no ema weights"),
        (["strip", a], 2, "--output"),
        (["average", a, *x], 2, "one checkpoint alone"),
        (["average", a, b, a, *x], 2, "is given twice"),
        (["average", a, b, "--ema", "1.5", *x], 2, "no number between 0 and 1"),
        (["average", a, b, "--ema", "0.5", "--soup", *x], 2, "not allowed with"),
        (["average", a, b, "--data-path", "y", *x], 2, "--data-path: no such data are read"),
        (["average", a, b, "--recompute-bn", "2", "--split", "train", *x], 2, "--split: no such data are read"),
        (["average", a, b, "--recompute-bn", "0", *x], 2, "no whole number from 1"),
        (["average", "plain.pth", "plain2.pth", "--soup", *x], 3, "has no config"),
        (["average", a, b, "--soup", "--data-path", "absent", *x], 2, "absent"),
        (["convert", a, "--to", "ours", *x], 3, "is this project's already"),
        (["convert", a, "--to", "released", "--cfg", "y", *x], 2, "--cfg: the released code's files"),
        (["diff", a, b, "--tolerance", "-1"], 2, "no number of 0 or more"),
        (["sharpen", a], 2, "invalid choice: 'sharpen'"),
    ]:
        error = refused(*argv)
        assert error.status == status and text in str(error), (argv, str(error))
    assert {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), *epochs]} == before
    assert tool("strip", a, "--output", "there.pth", "--force") == 0 and "model" in load("there.pth")


# info


def test_info_of_a_run_s_checkpoint(trained, capsys):
    best = trained[0] / "best.pth"
    content = load(best)
    tool("info", best)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    lines = {key: text.strip() for key, text in lines.items()}
    sha256 = subprocess.run(["sha256sum", best], capture_output=True, text=True, check=True).stdout[:8]
    assert f"sha256 {sha256}..." in lines["file"] and lines["kind"] == "saved by main.py"
    params = sum(p.numel() for p in smallest_model(num_classes=3).parameters())
    assert (
        lines["model"] == f"fat_tiny, {params / 1e6:.2f} M parameters, images of 32 px"
        and lines["classes"] == "3: 0, 1, 2"
    )
    place, found = content["progress"], content["progress"]["best"]
    assert lines["trained"] == f"{place['epoch']} epochs, {place['updates']} updates in all"
    assert lines["best"] == f"acc1 {found['acc1']:.3f} after epoch {found['epoch'] + 1} ({found['weights']} weights)"
    assert "4 epochs, adamw, base LR 0.1" in lines["recipe"] and "EMA 0.7" in lines["recipe"]
    tool("info", best, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == params and facts["better"] == found["weights"] and facts["weights"] == ["raw", "ema"]
    size = sum(v.numel() * v.element_size() for v in content["model"].values())
    assert facts["parts"]["model"] == facts["parts"]["ema"] == size and facts["parts"]["optimizer"] > 1.5 * size


def test_info_of_other_codes_files(tmp_path, capsys):
    def facts(content) -> dict:
        torch.save(content, tmp_path / "x.pth")
        assert tool("info", tmp_path / "x.pth") == 0
        assert "no config of this project" in capsys.readouterr().out
        tool("info", tmp_path / "x.pth", "--json")
        return json.loads(capsys.readouterr().out)

    for name in PARITY["models"]:
        counts = {key for key in PARITY["models"][name]["keys"] if key.endswith("num_batches_tracked")}
        state = {
            key: torch.zeros(shape, dtype=torch.int64 if key in counts else torch.float16)
            for key, shape in PARITY["models"][name]["keys"].items()
        }
        found = facts({"model": state, "max_accuracy": 80.0, "epoch": 3})
        assert found["shapes_of"] == name and found["num_classes"] == 1000 and "released FAT code" in found["kind"]
        assert found["parameters"] == PARITY["models"][name]["params"] and found["types"] == {
            "float16": len(state) - len(counts),
            "int64": len(counts),
        }
    other = timm.create_model(
        "fat_tiny", embed_dims=(16, 32, 64, 96), num_heads=(1, 2, 4, 6), num_classes=5
    ).state_dict()
    found = facts({"state_dict": {f"module.{key}": value for key, value in other.items()}, "arch": "x"})
    assert (
        found["shapes_of"] == "a FAT of 1 1 1 1 blocks of 16 32 64 96 channels, not registered"
        and "timm" in found["kind"]
    )
    found = facts(timm.create_model("resnet10t").state_dict())
    assert "shapes_of" not in found and found["kind"] == "a plain state dict"
    assert found["parameters"] == sum(p.numel() for p in timm.create_model("resnet10t").parameters())
    assert facts({"w": torch.zeros(3), "origin": torch.zeros(1)})["tensors"] == 2


# convert


@pytest.fixture(scope="module")
def released():
    return {
        key: value.float() if value.is_floating_point() else value for key, value in released_weights("fat_b0").items()
    }


def test_released_weights_work_here_and_go_back_as_they_were(released, tmp_path, capsys):
    torch.save({"model": released, "max_accuracy": 77.6, "config": {"MODEL": {"TYPE": "fat"}}}, tmp_path / "r.pth")
    assert tool("convert", tmp_path / "r.pth", "--to", "ours", "--output", tmp_path / "ours.pth") == 0
    assert "fat_b0, " in capsys.readouterr().out
    ours = load_trained(tmp_path / "ours.pth")
    assert ours.classes == list(read_class_map("imagenet-1k")) and ours.names[1] == "goldfish" and ours.own_size == 224
    model = timm.create_model("fat_b0").eval()
    models.load_released_state_dict(model, released)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.model(images), model(images))
    tool("convert", tmp_path / "ours.pth", "--to", "released", "--output", tmp_path / "back.pth")
    back = load(tmp_path / "back.pth")["model"]
    assert [[key, list(value.shape)] for key, value in back.items()] == [
        list(entry) for entry in PARITY["models"]["fat_b0"]["keys"].items()
    ]
    assert all(torch.equal(back[key], released[key]) for key in released)


def test_wrappers_prefixes_and_a_head_without_bias(trained, tmp_path, capsys):
    torch.manual_seed(0)
    state = smallest_model(num_classes=3).state_dict()
    state["head.bias"].zero_()
    (tmp_path / "names.txt").write_text("0\n1\n2\n")
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items() if key != "head.bias"}
    flags = ["--to", "ours", "--cfg", trained[1], "--classes", tmp_path / "names.txt"]
    for number, content in enumerate(({"state_dict": wrapped}, {"model_ema": wrapped, "epoch": 3}, wrapped)):
        torch.save(content, tmp_path / "in.pth")
        tool("convert", tmp_path / "in.pth", *flags, "--output", tmp_path / f"{number}.pth")
        assert "its head has no bias; one of zeros was added" in capsys.readouterr().out
        assert same_weights(load(tmp_path / f"{number}.pth")["model"], state)
    assert evaluated(trained, tmp_path / "0.pth")["num_images"] == 29
    torch.save({"model": state, "state_dict": state}, tmp_path / "in.pth")
    error = refused("convert", tmp_path / "in.pth", *flags, "--output", tmp_path / "x.pth")
    assert "has weights under 'model' and 'state_dict'" in str(error)


def test_what_does_not_fit_is_named(trained, released, tmp_path):
    wrong = {**released, "extra": torch.zeros(1), "head.bias": torch.zeros(7)}
    del wrong["norm.weight"], wrong["norm.bias"]
    torch.save(wrong, tmp_path / "wrong.pth")
    flags = ["--to", "ours", "--output", tmp_path / "x.pth"]
    error = refused("convert", tmp_path / "wrong.pth", *flags, "--cfg", ROOT / "configs/fat_b0.yaml")
    assert error.status == 3 and str(error).startswith(
        f"{tmp_path}/wrong.pth: does not fit fat_b0 with 1000 classes: 2 missing (norm.weight, norm.bias), 1 unknown (extra), "
        "1 of another shape (head.bias (7,) for (1000,))"
    )
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    torch.save(timm.create_model("fat_tiny", num_classes=3).state_dict(), tmp_path / "tiny.pth")
    for name, text in (
        ("wrong", "is a FAT of 2 2 6 2 blocks"),
        ("resnet", "is no FAT by its tensors"),
        ("tiny", "is fat_tiny, which has no config"),
    ):
        assert text in str(refused("convert", tmp_path / f"{name}.pth", *flags))
    assert "--classes: " in str(refused("convert", tmp_path / "tiny.pth", *flags, "--cfg", trained[1]))
    assert "no registered FAT" in str(
        refused("convert", tmp_path / "resnet.pth", "--to", "released", "--output", tmp_path / "x.pth")
    )
    assert not (tmp_path / "x.pth").exists()


def test_another_form_than_the_released_one_is_refused(epochs, tmp_path):
    """Bidirectional interaction has the same tensors, so the released code would load it and compute something else."""
    config = load(epochs[0])["config"]
    fat = {**config["MODEL"], "FAT": {**config["MODEL"]["FAT"], "interaction": "bidirectional"}}
    altered(tmp_path / "two.pth", epochs[0], config={**config, "MODEL": fat})
    error = refused("convert", tmp_path / "two.pth", "--to", "released", "--output", tmp_path / "x.pth")
    assert (
        error.status == 3
        and "MODEL.FAT.interaction is 'bidirectional'; the released code has 'released' alone" in str(error)
    )
    altered(
        tmp_path / "timm.pth",
        epochs[0],
        config={**config, "MODEL": {**config["MODEL"], "TYPE": "timm", "NAME": "resnet10t"}},
    )
    assert "no FAT" in str(
        refused("convert", tmp_path / "timm.pth", "--to", "released", "--output", tmp_path / "x.pth")
    )


# diff


def test_diff_names_what_differs(epochs, tmp_path, capsys):
    assert tool("diff", epochs[0], epochs[0]) == 0
    content = load(epochs[0])
    count = len(content["model"])
    assert f"0 of config and classes and 0 tensors differ; {count} tensors are equal" in capsys.readouterr().out
    state = {key: value.clone() for key, value in content["model"].items()}
    scale = state["norm.weight"].abs().max().item()
    state["norm.weight"][3] += 0.5
    state["norm.bias"][0] += 1e-4
    state["more"] = torch.zeros(2)
    del state["head.bias"]
    config = {**content["config"], "SEED": 9}
    other = altered(tmp_path / "other.pth", epochs[0], model=state, config=config, classes=["0", "1", "two"])
    assert tool("diff", epochs[0], other) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "config SEED: 0, 9" in lines and "classes: 1 labels have another name, the first is 2: '2', 'two'" in lines
    assert f"norm.weight: max |difference| 0.5, {0.5 / scale:.2g} of the largest value" in lines
    assert "head.bias: only in the first, (3,)" in lines and "more: only in the second, (2,)" in lines
    assert lines[-1] == f"2 of config and classes and 4 tensors differ; {count - 3} tensors are equal"
    assert tool("diff", epochs[0], other, "--tensors-only", "--tolerance", 0.01) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"3 tensors differ; {count - 2} tensors are equal within 0.01"


@pytest.mark.parametrize("first, second, tolerance, status", [
    ([1.0, 2.0], [1.0, 2.25], 0, 1), ([1.0, 2.0], [1.0, 2.25], 0.25, 0), ([1.0, 2.0], [1.0, 2.25], 0.2, 1),
    ([float("nan"), float("inf")], [float("nan"), float("inf")], 0, 0), ([float("nan"), 1.0], [1.0, 1.0], 100, 1),
    ([float("inf"), 1.0], [float("-inf"), 1.0], 100, 1), ([], [], 0, 0), ([1.0], [1.0, 1.0], 100, 1),
])  # fmt: skip
def test_tolerance(tmp_path, first, second, tolerance, status):
    for name, values in (("a", first), ("b", second)):
        torch.save({"w": torch.tensor(values), "n": torch.tensor(1)}, tmp_path / f"{name}.pth")
    assert tool("diff", tmp_path / "a.pth", tmp_path / "b.pth", "--tolerance", tolerance) == status


def test_diff_compares_the_weights_that_are_asked_for(epochs, tmp_path):
    for weights in ("raw", "ema"):
        tool("strip", epochs[1], "--weights", weights, "--output", tmp_path / f"{weights}.pth")
    assert tool("diff", epochs[1], tmp_path / "raw.pth") == 0 and tool("diff", epochs[1], tmp_path / "ema.pth") == 1
    assert tool("diff", tmp_path / "raw.pth", tmp_path / "ema.pth", "--weights", "raw") == 1


def test_as_a_command(epochs, tmp_path):
    done = run_program("scripts/checkpoint.py", "diff", epochs[0], epochs[1], folder=tmp_path)
    assert done.returncode == 1 and done.stdout.splitlines()[-1].endswith("tensors differ; 0 tensors are equal")


def test_tensors_without_a_name_and_too_large_ones(tmp_path, trained):
    """A stored tensor of a few bytes may say that it is of any size."""
    torch.save({"model": {1: torch.zeros(2)}}, tmp_path / "numbers.pth")
    assert "numbers.pth: holds no model weights" in str(refused("info", tmp_path / "numbers.pth"))
    torch.save({"head.weight": torch.zeros(1).expand(10**8, 10**8)}, tmp_path / "large.pth")
    error = refused("strip", tmp_path / "large.pth", "--output", tmp_path / "small.pth")
    assert error.status == 3 and "too large for the memory" in str(error) and not (tmp_path / "small.pth").exists()


def test_devices_pipes_and_links_are_not_replaced(tmp_path, trained):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        error = refused("strip", trained[0] / "best.pth", "--output", tmp_path / name, "--force")
        assert "no regular file" in str(error)
        with pytest.raises(OutputError, match="is no regular file"), atomic_write(tmp_path / name):
            pass
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink() and len(os.listdir(tmp_path)) == 2


def test_info_of_a_folder_of_the_hub(tmp_path, capsys):
    model = timm.create_model("fat_tiny", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"label_names": ["a", "b", "c"]}')
    assert tool("info", tmp_path) == 0
    said = capsys.readouterr().out
    assert "fat_tiny" in said and "classes  3" in said
