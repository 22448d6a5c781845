"""Checkpoints: whole or absent, harmless to read, of this model or refused; runs go on from them exactly."""

import os
import pickle
import shutil

import pytest
import timm
import torch

from conftest import (
    Job,
    Stop,
    assert_same_run,
    config_writer,
    error_of,
    history,
    hold_at_update,
    launch,
    load,
    rest,
    run,
    stop_at_update,
    watch,
)
from engine.checkpoints.file import interpret, open_checkpoint, read_checkpoint
from engine.checkpoints.load import load_pretrained
from engine.checkpoints.progress import Progress
from utils.errors import CheckpointError, OutputError
from utils.files import atomic_write
from utils.schema import DEFAULTS


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, digits):
    """A folder with `output/` in which a run of two epochs has ended."""
    folder = tmp_path_factory.mktemp("finished")
    run("--cfg", config_writer(folder, digits)())
    return folder


@pytest.fixture
def finished(finished_run, write_config, tmp_path):
    """Its config, and the folder of a copy, in which nothing but the place is another one."""
    shutil.copytree(finished_run / "output", tmp_path / "output")
    return write_config(), tmp_path / "output/fat_tiny/default"


@pytest.mark.parametrize("options", [
    [],
    ["DATA.NUM_WORKERS", "2", "AMP.DTYPE", "bfloat16"],
    ["TRAIN.ACCUMULATION_STEPS", "2", "AMP.DTYPE", "float16", "AUG.MIXUP_MODE", "elem"],
], ids=["plain", "workers-bfloat16", "accumulated-float16"])  # fmt: skip
def test_resumes_within_an_epoch_to_the_same_bits(write_config, tmp_path, monkeypatch, options):
    path = write_config(TRAIN={"EPOCHS": 3, "SAVE_EVERY_STEPS": 2}, MODEL={"DROP_PATH_RATE": 0.2, "DROP_RATE": 0.1})
    opts = ["--opts", *options] if options else []
    folder = tmp_path / "output/fat_tiny"
    run("--cfg", path, "--tag", "whole", *opts)
    restore = stop_at_update(monkeypatch, 7)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut", *opts)
    restore()
    assert load(folder / "cut/last.pth")["progress"]["epoch"] < 3
    run("--cfg", path, "--tag", "cut", *opts)
    assert_same_run(folder / "whole", folder / "cut")


def _cut(argv):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at_update(monkeypatch, 5)
        with pytest.raises(Stop):
            run(*argv)


def test_two_processes_resume_to_the_same_bits(write_config, tmp_path):
    from conftest import run_processes

    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 2}, DATA={"BATCH_SIZE": 4})
    folder = tmp_path / "output/fat_tiny"
    launch(2, "--cfg", path, "--tag", "whole")
    run_processes(2, _cut, ["--cfg", path, "--tag", "cut"])
    assert load(folder / "cut/last.pth")["progress"]["step"] == 4
    launch(2, "--cfg", path, "--tag", "cut")
    assert_same_run(folder / "whole", folder / "cut")


def test_killed_and_started_again(write_config, tmp_path):
    """A real process, a real SIGKILL while it trains, the same command again."""
    path = write_config(TRAIN={"EPOCHS": 3, "SAVE_EVERY_STEPS": 1})
    folder = tmp_path / "output/fat_tiny"
    run("--cfg", path, "--tag", "whole")
    job = Job("--cfg", path, "--tag", "killed", prepare=hold_at_update(15))
    last = folder / "killed/last.pth"
    job.until(last.exists)
    assert job.kill() == [137]
    assert Job("--cfg", path, "--tag", "killed").wait() == [0]
    assert_same_run(folder / "whole", folder / "killed")


def test_finished_run_is_left_alone(finished, capsys):
    path, folder = finished
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    run("--cfg", path)
    assert "is finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_changed_settings_take_effect_on_resume_and_are_said(finished, tmp_path, capsys):
    path, _ = finished
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 3, "TRAIN.WEIGHT_DECAY", 0.3)
    out = capsys.readouterr().out
    assert "TRAIN.EPOCHS changed from 2 to 3" in out and "TRAIN.WEIGHT_DECAY changed from 0.05 to 0.3" in out
    checkpoint = load(tmp_path / "output/fat_tiny/default/last.pth")
    assert checkpoint["progress"]["epoch"] == 3
    assert {group["weight_decay"] for group in checkpoint["optimizer"]["param_groups"]} == {0.0, 0.3}


def test_another_batch_is_refused_within_an_epoch_and_taken_between_epochs(write_config, tmp_path, monkeypatch):
    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 3})
    restore = stop_at_update(monkeypatch, 4)
    with pytest.raises(Stop):
        run("--cfg", path)
    restore()
    error = error_of("--cfg", path, "--batch-size", 10)
    assert error.status == 2 and "total_batch_size 8; now it is 10, of which 24 is no multiple" in str(error)
    error = error_of("--cfg", path, "--opts", "SEED", 1)
    assert error.status == 2 and "seed 0; now it is 1" in str(error)
    run("--cfg", path, "--batch-size", 4, "--accumulation-steps", 2)  # the same images per update
    run("--cfg", path, "--batch-size", 4, "--opts", "TRAIN.EPOCHS", 3)
    assert load(tmp_path / "output/fat_tiny/default/last.pth")["progress"]["epoch"] == 3
    assert [r["epoch"] for r in history(tmp_path / "output/fat_tiny/default") if r["kind"] == "epoch"] == [0, 1, 2]


def test_other_classes_or_another_optimizer_are_refused(finished, write_config, tmp_path, digits):
    last = finished[1] / "last.pth"
    before = last.read_bytes()
    shutil.copytree(digits, tmp_path / "renamed")
    for split in ("train", "val"):
        (tmp_path / "renamed" / split / "0").rename(tmp_path / "renamed" / split / "z")
    more = {"EPOCHS": 3}
    error = error_of("--cfg", write_config(TRAIN=more, DATA={"DATA_PATH": str(tmp_path / "renamed")}))
    assert error.status == 2 and "other classes ('0' is now '1'" in str(error)
    error = error_of("--cfg", write_config(TRAIN={**more, "OPTIMIZER": {"NAME": "sgd"}}))
    assert error.status == 3 and "it is of AdamW, this one is SGD" in str(error)
    assert last.read_bytes() == before


@pytest.mark.parametrize("change", [
    dict(progress=5), dict(progress={"epoch": "x"}), dict(rng=None), dict(optimizer=5), dict(config=None), dict(model=5),
    dict(model={"a": "b"}), dict(ema=None), dict(plan=None),
])  # fmt: skip
def test_wrong_parts_are_one_line_before_anything_is_written(finished, write_config, change):
    _, folder = finished
    content = {**load(folder / "last.pth"), **change}
    torch.save({key: value for key, value in content.items() if value is not None}, folder / "last.pth")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert error_of("--cfg", write_config(TRAIN={"EPOCHS": 3})).status == 3
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_finished_run_of_other_settings_says_so(finished_run, capsys):
    path = finished_run / "small.yaml"
    for command in ((), ("--check",)):
        capsys.readouterr()
        run("--cfg", path, *command)
        assert "warning" not in capsys.readouterr().out
        run("--cfg", path, *command, "--opts", "TRAIN.WEIGHT_DECAY", "0.3")
        said = capsys.readouterr().out
        assert "is finished" in said and "TRAIN.WEIGHT_DECAY changed from 0.05 to 0.3" in said and "--tag" in said


def test_finished_run_of_another_folder_cannot_be_resumed(finished, write_config):
    last = finished[1] / "last.pth"
    assert "is finished, epoch 2 of TRAIN.EPOCHS 2" in str(
        error_of("--cfg", write_config(), "--resume", last, "--tag", "new")
    )


def test_history_of_a_run_cut_before_its_first_save_is_not_kept(write_config, tmp_path, monkeypatch):
    path = write_config()
    folder = tmp_path / "output/fat_tiny"
    restore = stop_at_update(monkeypatch, 3)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut")
    restore()
    run("--cfg", path, "--tag", "cut")
    run("--cfg", path, "--tag", "whole")
    assert_same_run(folder / "whole", folder / "cut")
    starts = [line for line in (folder / "cut/metrics.jsonl").read_text().splitlines() if '"start"' in line]
    assert len(starts) == 1


def test_epoch_loss_after_resume_with_other_micro_batches(write_config, tmp_path, monkeypatch):
    """8 images, then 4 x 2 accumulated: the epoch's loss stays the mean over its images."""
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 1})
    restore = stop_at_update(monkeypatch, 4)
    with pytest.raises(Stop):
        run("--cfg", path)
    restore()
    run("--cfg", path, "--batch-size", 4, "--accumulation-steps", 2)
    records = history(tmp_path / "output/fat_tiny/default")
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    images = [8] * 7 + [4] if len(losses) == 8 else [8] * 7
    expected = sum(n * loss for n, loss in zip(images, losses)) / sum(images)
    assert records[-1]["train_loss"] == pytest.approx(expected)


def test_content_and_files_of_a_run(write_config, tmp_path):
    path = write_config(SAVE_FREQ=1)
    run("--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    names = {
        ".lock",
        "last.pth",
        "previous.pth",
        "best.pth",
        "epoch_1.pth",
        "epoch_2.pth",
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "mistakes.json",
        "report.html",
        "result.json",
        "tensorboard",
        "train_batch.png",
    }
    assert {file.name for file in folder.iterdir()} == names
    checkpoint = load(folder / "last.pth")
    assert set(checkpoint) == {
        "model",
        "ema",
        "optimizer",
        "lr_scheduler",
        "scaler",
        "rng",
        "progress",
        "config",
        "classes",
        "plan",
    }
    assert checkpoint["classes"] == ["0", "1", "2"] and checkpoint["config"]["MODEL"]["NAME"] == "fat_tiny"
    assert not torch.equal(checkpoint["model"]["head.weight"], checkpoint["ema"]["head.weight"])


def test_best_is_the_best_and_a_worse_one_never_replaces_it(write_config, tmp_path, monkeypatch):
    scores = iter([(40.0, 30.0), (35.0, 50.0), (45.0, 50.0), (10.0, 20.0)])  # raw, ema

    def scored(trainer, results):
        for figures, acc1 in zip(results.values(), next(scores), strict=True):
            figures["acc1"] = acc1

    watch(monkeypatch, after_evaluation=scored)
    path = write_config()
    best = tmp_path / "output/fat_tiny/default/best.pth"
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 3)
    assert load(best)["progress"]["best"] == {"acc1": 50.0, "weights": "ema", "epoch": 1}
    assert load(best)["progress"]["epoch"] == 2
    before = best.read_bytes()
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 4)  # resumed, and worse
    assert best.read_bytes() == before
    assert load(best.with_name("last.pth"))["progress"]["best"]["acc1"] == 50.0


# Writing


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.pth"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="x.pth: cannot be written .*No space left"), atomic_write(tmp_path / "x.pth"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_no_folder(write_config, tmp_path):
    (tmp_path / "output").write_text("")
    error = error_of("--cfg", write_config())
    assert error.status == 5 and "--output" in str(error)


# Reading


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("flags", [["--resume"], ["--pretrained"], ["--eval", "--resume"]])
def test_code_in_a_pickle_is_refused_and_not_run(write_config, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    for name in ("zip.pth", "plain.pth"):
        error = error_of("--cfg", write_config(), *flags, name)
        assert error.status == 3 and f"{name}: refused" in str(error)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "output").exists()


def test_a_flipped_bit_is_found(write_config, tmp_path):
    """torch.load alone would read the file and go on with a wrong weight."""
    torch.save(timm.create_model("fat_tiny", num_classes=3).state_dict(), tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    for flags in (["--resume"], ["--pretrained"], ["--eval", "--resume"]):
        error = error_of("--cfg", write_config(), *flags, tmp_path / "x.pth")
        assert error.status == 3 and "checksum" in str(error)


@pytest.mark.parametrize("bits", ["one of each byte", rest("all")])
def test_any_flipped_bit_is_found_or_harmless(tmp_path, bits):
    """Every byte of the zip file's directory, some of the rest, and of the older format; with --all every bit of these."""
    torch.manual_seed(0)
    state = {"a": torch.randn(3), "b": torch.arange(4)}
    for name, options in (("zip.pth", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        torch.save(state, tmp_path / name, **options)
        whole = (tmp_path / name).read_bytes()
        for position in (
            range(0, len(whole))
            if len(whole) < 1500
            else [*range(0, len(whole) - 700, 13), *range(len(whole) - 700, len(whole))]
        ):
            for bit in range(8) if bits == "all" else [position % 8]:
                content = bytearray(whole)
                content[position] ^= 1 << bit
                (tmp_path / "x.pth").write_bytes(content)
                try:
                    found = read_checkpoint(tmp_path / "x.pth")
                except CheckpointError as error:
                    assert "\n" not in str(error)
                    continue
                if name == "zip.pth":  # the older format has no checksums
                    assert list(found) == list(state) and all(torch.equal(found[key], state[key]) for key in state), (
                        position,
                        bit,
                    )


def test_settings_of_other_tools_in_a_checkpoint_are_read(tmp_path):
    """timm saves an argparse.Namespace beside the weights, Swin and the released code a yacs CfgNode."""
    from argparse import Namespace

    from yacs.config import CfgNode

    state = {"a": torch.zeros(1)}
    torch.save({"state_dict": state, "args": Namespace(lr=0.1)}, tmp_path / "timm.pth")
    torch.save({"model": state, "config": CfgNode({"A": {"B": 1}})}, tmp_path / "swin.pth")
    for name in ("timm.pth", "swin.pth"):
        assert list(open_checkpoint(tmp_path / name).states) == ["raw"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_damaged_files(write_config, tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    error = error_of("--cfg", write_config(), "--resume", tmp_path / "x.pth")
    assert error.status == 3 and "damaged" in str(error)


def test_missing_file_and_file_without_weights(write_config, tmp_path):
    assert "x.pth: cannot be read" in str(error_of("--cfg", write_config(), "--resume", tmp_path / "x.pth"))
    torch.save({"weights": 3}, tmp_path / "y.pth")
    assert "holds no model weights" in str(error_of("--cfg", write_config(), "--pretrained", tmp_path / "y.pth"))
    torch.save([1], tmp_path / "z.pth")
    assert "holds a list" in str(error_of("--cfg", write_config(), "--pretrained", tmp_path / "z.pth"))


def test_checkpoint_of_another_model(write_config, tmp_path):
    torch.save(timm.create_model("fat_small", num_classes=3).state_dict(), tmp_path / "small.pth")
    differences = {  # weights to start from may be of images with other channels
        ("--pretrained",): "patch_embed.conv1.conv.0.bias is (16,), the model's (8,)",
        ("--eval", "--resume"): "patch_embed.conv1.conv.0.weight is (16, 3, 3, 3), the model's (8, 3, 3, 3)",
    }
    for flags, difference in differences.items():
        message = str(error_of("--cfg", write_config(MODEL={"FAT": {}}), *flags, tmp_path / "small.pth"))
        assert difference in message
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "resnet.pth")
    message = str(error_of("--cfg", write_config(MODEL={"FAT": {}}), "--pretrained", tmp_path / "resnet.pth"))
    assert "the model's patch_embed.conv1.conv.0.weight (8, 3, 3, 3) is missing" in message


def test_weights_without_training_state_cannot_be_resumed(write_config, tmp_path):
    torch.save({"model": timm.create_model("fat_tiny", num_classes=3).state_dict()}, tmp_path / "w.pth")
    error = error_of("--cfg", write_config(), "--resume", tmp_path / "w.pth")
    assert error.status == 3 and "no 'ema' to resume with" in str(error)


def test_a_run_s_checkpoint_of_another_model_stops_it(finished, write_config):
    last = finished[1] / "last.pth"
    before = last.read_bytes()
    config = write_config(
        MODEL={"FAT": {"embed_dims": [16, 32, 64, 96], "num_heads": [1, 2, 4, 6]}}, TRAIN={"EPOCHS": 5}
    )
    error = error_of("--cfg", config)
    assert error.status == 3 and "is of another model" in str(error) and last.read_bytes() == before


# Starting from weights


def test_fine_tuning_takes_all_but_a_head_of_another_size(write_config, tmp_path, capsys):
    torch.manual_seed(0)
    source = timm.create_model("fat_tiny", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "ten.pth")
    path = write_config(
        MODEL={"FAT": {}},
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "BASE_LR": 1e-30, "MIN_LR": 0.0, "WARMUP_LR": 0.0, "WEIGHT_DECAY": 0.0},
    )
    run("--cfg", path, "--pretrained", tmp_path / "ten.pth")
    out = capsys.readouterr().out
    assert "initialised anew: head.weight, head.bias" in out
    model = load(tmp_path / "output/fat_tiny/default/last.pth")["model"]
    assert model["head.weight"].shape == (3, 128)
    for name, parameter in source.named_parameters():
        if not name.startswith("head"):
            assert torch.allclose(parameter.detach(), model[name], atol=1e-12), name


def test_same_head_is_loaded_and_the_better_weights_of_a_checkpoint_are_taken(tmp_path):
    torch.manual_seed(0)
    raw, ema, model = (timm.create_model("fat_tiny", num_classes=4) for _ in range(3))
    assert load_pretrained(model, interpret(raw.state_dict(), tmp_path), "raw") == ([], "")
    assert torch.equal(model.head.weight, raw.head.weight)
    from engine.training.build import start_from

    best = {"acc1": 50.0, "weights": "ema", "epoch": 4}
    for epoch, expected in ((5, ema), (9, raw)):  # the best checkpoint, and a later one of the same run
        progress = Progress(epoch=epoch, best=best).state_dict()
        torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "progress": progress}, tmp_path / "x.pth")
        start_from(model, str(tmp_path / "x.pth"), DEFAULTS)
        assert torch.equal(model.head.weight, expected.head.weight)
    torch.save({"model": raw.state_dict(), "progress": {**progress, "epoch": 5}}, tmp_path / "x.pth")
    assert "raw weights" in start_from(model, str(tmp_path / "x.pth"), DEFAULTS)[0]


def test_weights_of_other_tools_files():
    state = {"a": torch.zeros(1)}
    assert interpret(state, "x").states == {"raw": state}
    assert interpret({"state_dict": state, "state_dict_ema": state}, "x").states == {"raw": state, "ema": state}
    assert interpret({"model": state, "epoch": 3}, "x").states == {"raw": state}
    with pytest.raises(CheckpointError):
        interpret({}, "x")


def test_checkpoints_of_the_released_code_load(tmp_path):
    """{"model": ..., "optimizer": ..., "config": plain values}"""
    torch.save({"model": {"a": torch.zeros(1)}, "max_accuracy": 77.6, "epoch": 299}, tmp_path / "r.pth")
    assert list(open_checkpoint(tmp_path / "r.pth").states) == ["raw"]
