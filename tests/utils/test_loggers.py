"""Curves in CSV files and at Weights & Biases, offline."""

import csv
import importlib.util
import json
import signal
import struct
import sys
import types

import numpy as np
import pytest

from conftest import Job, Stop, error_of, hold_at_update, run, stop_at_update, watch
from utils.errors import ConfigError, OutputError
from utils.loggers import wandb_run
from utils.loggers.csv_files import row_of
from utils.metrics import MACRO
from utils.run_log import RunLog

needs_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
QUICK = {"DATA": {"BATCH_SIZE": 8}, "EMA": {"ENABLED": False}}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def records(folder, kind):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row_of(record) for record in found if record["kind"] == kind]


def as_csv(records):
    return [{key: "" if value is None else str(value) for key, value in record.items()} for record in records]


def test_csv_files_have_what_metrics_jsonl_has_also_after_a_crash(write_config, tmp_path, monkeypatch):
    path = write_config(LOGGERS=["csv"], TRAIN={"SAVE_EVERY_STEPS": 2})
    folder = tmp_path / "output/fat_tiny/default"
    go_on = stop_at_update(monkeypatch, 10)  # in the second of two epochs of 7; saved after 9
    with pytest.raises(Stop):
        run("--cfg", path)
    assert [row["update"] for row in rows(folder / "train.csv")] == [str(n) for n in range(1, 11)]
    with open(folder / "train.csv", "a") as file:
        file.write("11,1,0.5\0\0")  # cut short
    go_on()
    run("--cfg", path)
    train, epochs = rows(folder / "train.csv"), rows(folder / "epochs.csv")
    assert train == as_csv(records(folder, "train")) and len(train) == 14
    assert epochs == as_csv(records(folder, "epoch")) and len(epochs) == 2
    assert list(epochs[0]) == [
        "update",
        "epoch",
        "train_loss",
        *(
            f"{w}_{m}"
            for w in ("raw", "ema")
            for m in ("acc1", "acc5", "loss", "num_images", *(metric.key for metric in MACRO))
        ),
    ]


def test_a_figure_that_comes_later_gets_a_column(tmp_path):
    log = RunLog(tmp_path, True, ["csv"])
    log.open_records(-1, 0)
    log.record("epoch", 1, {"epoch": 0, "raw": {"acc1": 50.0}})
    log.record("epoch", 2, {"epoch": 1, "raw": {"acc1": 60.0, "unreadable": 2}})
    log.record("epoch", 3, {"epoch": 2, "raw": {"acc1": 70.0}})
    text = "update,epoch,raw_acc1,raw_unreadable\n1,0,50.0,\n2,1,60.0,2\n3,2,70.0,\n"
    assert (tmp_path / "epochs.csv").read_text() == text and not (tmp_path / "train.csv").exists()
    log.close()


def test_a_rewound_run_takes_its_rows_back(tmp_path):
    log = RunLog(tmp_path, True, ["csv"])
    log.open_records(-1, 0)
    for update in range(1, 5):
        log.record("train", update, {"epoch": (update - 1) // 2, "loss": None if update == 3 else update / 2})
    log.record("epoch", 2, {"epoch": 0, "train_loss": 1.0, "raw": {"acc1": 50.0}})
    log.record("epoch", 4, {"epoch": 1, "train_loss": 1.0, "raw": {"acc1": 60.0}})
    log.rewind(3, 1)
    assert [row["loss"] for row in rows(tmp_path / "train.csv")] == ["0.5", "1.0", ""]
    assert [row["raw_acc1"] for row in rows(tmp_path / "epochs.csv")] == ["50.0"]
    log.rewind(2, 0)  # of the same update: an epoch whose evaluation is done again
    assert not (tmp_path / "epochs.csv").exists() and len(rows(tmp_path / "train.csv")) == 2
    log.close()


def test_a_new_run_has_rows_of_its_own_alone(tmp_path):
    (tmp_path / "train.csv").write_text("update,epoch,loss\n1,0,0.5\n")
    log = RunLog(tmp_path, True, ["csv"])
    log.open_records(-1, 0)
    assert not (tmp_path / "train.csv").exists()
    log.record("train", 1, {"epoch": 0, "loss": 2.0})
    log.close()
    assert rows(tmp_path / "train.csv") == [{"update": "1", "epoch": "0", "loss": "2.0"}]


@pytest.mark.parametrize("value", ["[cvs]", "[csv, csv]", "[1]", "[[csv]]"])
def test_what_is_no_logger_is_one_line(write_config, value):
    error = error_of("--cfg", write_config(), "--check", "--opts", "LOGGERS", value)
    assert "LOGGERS" in str(error) and "csv, wandb" in str(error) and error.status == 2


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_without_the_package_nothing_is_begun(write_config, tmp_path, monkeypatch, check):
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = error_of("--cfg", write_config(LOGGERS=["wandb"]), *check)
    assert "pip install wandb" in str(error) and not (tmp_path / "output").exists()


class Broken:
    """A W&B run whose process goes away after some calls."""

    def __init__(self, calls: int):
        self.calls, self.summary = calls, {}
        self.logged, self.finished = [], []

    def define_metric(self, *names, **how):
        pass

    def log(self, values):
        if not self.calls:
            raise BrokenPipeError("its process is gone")
        self.calls -= 1
        self.logged.append(values)

    def finish(self, exit_code):
        self.finished.append(exit_code)


def fake_wandb(monkeypatch, init):
    errors = types.SimpleNamespace(
        UsageError=type("UsageError", (Exception,), {}),
        AuthenticationError=type("AuthenticationError", (Exception,), {}),
    )
    module = types.SimpleNamespace(init=init, errors=errors, Settings=dict, Image=lambda picture: "picture")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_failure_on_the_way_is_said_once_and_ends_no_training(write_config, tmp_path, monkeypatch, capsys):
    broken = Broken(calls=3)
    fake_wandb(monkeypatch, lambda **how: broken)
    run("--cfg", write_config(LOGGERS=["wandb"], TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, **QUICK))
    out = capsys.readouterr().out
    assert out.count("wandb: BrokenPipeError: its process is gone") == 1 and "finished: best" in out
    assert (
        broken.logged[0] == {"train_batch": "picture"}
        and broken.logged[1]["update"] == 1
        and "train/loss" in broken.logged[1]
    )
    assert (tmp_path / "output/fat_tiny/default/result.json").is_file()


def test_a_network_that_is_down_at_the_start_ends_no_training_and_a_refusal_does(tmp_path, monkeypatch):
    def init(**how):
        raise failure

    module = fake_wandb(monkeypatch, init)
    said = []
    log = RunLog(tmp_path, True, ["wandb"])
    monkeypatch.setattr(log.known[1], "warn", said.append)
    failure = TimeoutError("no answer")
    log.open_records(-1, 0)
    log.scalars(1, {"train/loss": 1.0})
    log.close()
    assert len(said) == 1 and "no answer" in said[0]
    failure = module.errors.UsageError("no API key\nconfigured")
    with pytest.raises(ConfigError, match="no API key configured.*wandb login"):
        RunLog(tmp_path, True, ["wandb"]).open_records(-1, 0)


def test_a_full_disk_does_not_hide_another_error(tmp_path):
    """The warning cannot be written either: what ended the run is said, not that."""

    def warn(line):
        raise OutputError("log.txt: cannot be written")

    wandb_run.WandbRun(tmp_path, {}, warn)._lost(RuntimeError("gone"))


def test_an_error_ends_the_run_at_w_and_b_too(write_config, monkeypatch):
    whole = Broken(calls=10**9)
    fake_wandb(monkeypatch, lambda **how: whole)
    watch(monkeypatch, after_evaluation=lambda trainer, results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--cfg", write_config(LOGGERS=["wandb"], **QUICK))
    assert whole.finished == [1]


def test_an_upload_that_takes_too_long_is_left(tmp_path, monkeypatch):
    import threading

    from utils.loggers import wandb_run

    class Slow(Broken):
        dir = "folder"

        def finish(self, exit_code):
            threading.Event().wait(20)

    fake_wandb(monkeypatch, lambda **how: Slow(0))
    monkeypatch.setattr(wandb_run, "PATIENCE", 0.1)
    said = []
    logger = wandb_run.WandbRun(tmp_path, {}, said.append)
    logger.open(-1, 0)
    logger.close()
    assert len(said) == 1 and "wandb sync" in said[0]


# The real package, offline


def logged(path):
    """The records of an offline run's file, which is a LevelDB log: blocks of 32 KiB, records cut at their ends."""
    from wandb.proto import wandb_internal_pb2

    data, place, found, part = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def history_of(path):
    """What was logged, and what of the rest is looked at."""
    steps, facts = [], {"exit": [], "config": {}, "ids": set(), "summary": {}}
    for record in logged(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            steps.append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "exit":
            facts["exit"].append(record.exit.exit_code)
        elif kind == "run":
            facts["ids"].add(record.run.run_id)
            facts["project"] = record.run.project
            facts["config"].update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "summary":
            facts["summary"].update(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update}
            )
    return steps, facts


@needs_wandb
def test_an_offline_run_at_w_and_b_goes_on_as_the_same(write_config, tmp_path, monkeypatch):
    """Two loading processes are forked while W&B runs; the first part is stopped by a signal."""
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"WANDB_MODE": "offline", "HOME": str(home)}
    path = write_config(LOGGERS=["wandb"], TRAIN={"EPOCHS": 3}, DATA={"NUM_WORKERS": 2}, EMA={"ENABLED": False})
    folder = tmp_path / "output/fat_tiny/default"
    job = Job("--cfg", path, environment=environment, prepare=hold_at_update(10))
    job.until(job.said("epoch 0 done"))
    job.send(signal.SIGTERM, rank=0)
    assert job.wait() == [143], job.text()
    assert "wandb" not in job.text()
    job = Job("--cfg", path, environment=environment)
    assert job.wait() == [0], job.text()
    parts = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(parts) == 2
    (first, before), (second, after) = (history_of(part) for part in parts)
    steps = first + second
    assert before["ids"] == after["ids"] == {(folder / "wandb_id.txt").read_text()} and after["project"] == "fat"
    assert before["exit"] == after["exit"] == [0]
    assert after["config"]["TRAIN"]["EPOCHS"] == 3 and after["config"]["MODEL"]["NAME"] == "fat_tiny"
    losses = {step["update"]: step["train/loss"] for step in steps if "train/loss" in step}
    assert losses == {record["update"]: record["loss"] for record in records(folder, "train")} and len(losses) == 21
    accuracy = {step["update"]: step["val/acc1"] for step in steps if "val/acc1" in step}
    assert accuracy == {record["update"]: record["raw_acc1"] for record in records(folder, "epoch")}
    assert (
        first[0]["train_batch"]["_type"] == "image-file"
        if isinstance(first[0].get("train_batch"), dict)
        else "train_batch" in str(first[0])
    )
    best = json.loads((folder / "result.json").read_text())["best"]
    assert {**before["summary"], **after["summary"]}["best/acc1"] == best["acc1"]


@needs_wandb
def test_killed_with_w_and_b_the_run_goes_on(write_config, tmp_path):
    path = write_config(LOGGERS=["wandb", "csv"], TRAIN={"SAVE_EVERY_STEPS": 1}, **QUICK)
    folder = tmp_path / "output/fat_tiny/default"
    job = Job("--cfg", path, environment={"WANDB_MODE": "offline"}, prepare=hold_at_update(5))
    job.until(job.said("[4/7]"))
    assert job.kill() == [137]
    assert Job("--cfg", path, environment={"WANDB_MODE": "offline"}).wait() == [0]
    assert rows(folder / "train.csv") == as_csv(records(folder, "train")) and len(rows(folder / "train.csv")) == 14


def test_pictures_reach_every_logger(tmp_path, monkeypatch):
    whole = Broken(calls=10)
    fake_wandb(monkeypatch, lambda **how: whole)
    log = RunLog(tmp_path, True, ["wandb", "csv"])
    log.open_records(-1, 0)
    log.picture("name", np.zeros((4, 4, 3), np.uint8))
    log.best({"acc1": 5.0, "weights": "raw", "epoch": 0})
    log.close()
    assert (tmp_path / "name.png").is_file() and whole.logged == [{"name": "picture"}]
    assert whole.summary == {"best/acc1": 5.0, "best/weights": "raw", "best/epoch": 0} and whole.finished == [0]
