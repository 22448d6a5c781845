"""When a run ends: TRAIN.PATIENCE and TRAIN.MAX_HOURS."""

import json

import pytest
import torch

from conftest import Stop, assert_same, history, launch, load, run, stop_at_update
from engine.checkpoints.progress import Length, Progress
from engine.training import run_length
from engine.training.optim import LearningRate, create_lr_scheduler
from engine.training.run_length import RunLength
from utils.errors import ConfigError

UPDATES = 7  # of an epoch


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is a second later."""

    class Clock:
        now = 0.0

        def __call__(self):
            self.now += 1.0
            return self.now

    monkeypatch.setattr(run_length, "clock", Clock())
    return run_length.clock


def state_of(folder):
    """The newest checkpoint without what a change of the config, and the clock, leave in it."""
    checkpoint = load(folder / "last.pth")
    del checkpoint["config"], checkpoint["progress"]["changes"], checkpoint["progress"]["length"]["seconds"]
    return checkpoint


def test_without_a_better_epoch_a_run_ends_and_goes_on_to_the_same_bits(write_config, tmp_path, capsys):
    """Of three classes one of the likeliest five is always right, so that no epoch is better than the first."""
    path = write_config(TRAIN={"EPOCHS": 3, "BEST_METRIC": "acc5"}, EMA={"ENABLED": False})
    run("--cfg", path, "--tag", "whole")
    patience = ["--cfg", path, "--tag", "patience", "--opts", "TRAIN.PATIENCE"]
    folder = tmp_path / "output/fat_tiny/patience"
    run(*patience, 1)
    said = "no better epoch among the last one (TRAIN.PATIENCE 1; a larger one, or 0, goes on)"
    result = json.loads((folder / "result.json").read_text())
    assert (result["ended"], result["last"]["epoch"], result["best"]["epoch"]) == (said, 1, 0)
    assert f"finished, {said}: best acc5" in capsys.readouterr().out
    assert f"finished after 2 epochs: {said}" in (folder / "report.html").read_text()
    assert json.loads((folder / "mistakes.json").read_text())["epoch"] == 1
    before = (folder / "last.pth").read_bytes()
    run(*patience, 1)
    assert f"is finished: {said}" in capsys.readouterr().out and (folder / "last.pth").read_bytes() == before
    run(*patience, 0)
    whole = folder.with_name("whole")
    assert_same(state_of(folder), state_of(whole))
    assert history(folder) == history(whole)
    result = json.loads((folder / "result.json").read_text())
    assert "ended" not in result and result["last"]["epoch"] == 2
    assert "finished after 3 epochs<" in (folder / "report.html").read_text()


def test_another_metric_begins_to_wait_anew():
    progress = Progress(epoch=5, best={"acc1": 50.0, "weights": "raw", "epoch": 1}, best_metrics={"loss": 1.0})
    progress.length.stale = 3
    length = RunLength(10, 3, 0.0, progress)
    assert length.ended_by(5) and length.may_end(6)
    progress.judge_by("loss")
    assert not length.ended_by(5) and not length.may_end(6)
    again = Progress()
    again.load_state_dict(progress.state_dict())
    assert again == progress


def test_a_time_chooses_the_epochs_once_and_a_resumed_run_keeps_to_it(
    write_config, tmp_path, monkeypatch, clock, capsys
):
    """Of 50 epochs a few are left, and the learning rate ends with them; cut off in the third, to the same bits."""
    train = {"EPOCHS": 50, "WARMUP_EPOCHS": 5, "SAVE_EVERY_STEPS": 2, "MAX_HOURS": 100 / 3600}
    path = write_config(TRAIN=train, EMA={"ENABLED": False})
    run("--cfg", path, "--tag", "whole")
    out = capsys.readouterr().out
    whole, cut = (tmp_path / "output/fat_tiny" / tag for tag in ("whole", "cut"))
    length = load(whole / "last.pth")["progress"]["length"]
    assert 3 < length["epochs"] < 12 and 0 < length["decided_at"] < 1 and length["seconds"] <= 100
    assert f"{length['epochs']} of TRAIN.EPOCHS 50 fit" in out
    assert (
        f"finished after {length['epochs']} epochs: epoch {length['epochs']} of" in (whole / "report.html").read_text()
    )
    rates = [record["lr"] for record in history(whole) if record["kind"] == "train"]
    assert len(rates) == UPDATES * length["epochs"] and rates[-1] < 0.05 * max(rates) < max(rates) == pytest.approx(
        3e-4, rel=0.1
    )
    clock.now = 0.0
    restore = stop_at_update(monkeypatch, 2 * UPDATES + 3)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut")
    restore()
    clock.now = 1e6  # what goes by between two starts does not count
    run("--cfg", path, "--tag", "cut")
    assert_same(state_of(cut), state_of(whole))
    assert history(cut) == history(whole)
    assert load(cut / "last.pth")["progress"]["length"]["seconds"] == pytest.approx(length["seconds"], abs=15)


def test_all_processes_choose_as_the_first_one_s_clock_says(write_config, tmp_path, clock):
    """Though their answers come an update later than with one process."""
    path = write_config(TRAIN={"EPOCHS": 50, "MAX_HOURS": 50 / 3600}, DATA={"BATCH_SIZE": 2}, EMA={"ENABLED": False})
    launch(2, "--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    length = load(folder / "last.pth")["progress"]["length"]
    assert length["epochs"] in (1, 2) and length["decided_at"] == (run_length.UPDATES + 2) / 15
    assert json.loads((folder / "result.json").read_text())["last"]["epoch"] + 1 == length["epochs"]


@pytest.mark.parametrize("form", ["cosine", "linear", "step"])
@pytest.mark.parametrize("decided_at", [0.4, 1.0])
def test_the_schedule_goes_on_where_it_was_and_ends_with_the_run(form, decided_at):
    """As a whole one looked at less often: nothing jumps, and the last rate is as near to the end's as the steps are long."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = create_lr_scheduler(
        optimizer, LearningRate(form, 40, warmup_epochs=4, warmup_prefix=True, decay_epochs=9), 10
    )

    def rates(length, updates):
        found = []
        for update in updates:
            scheduler.step_update(length.place(update // 10, update % 10, 10))
            found.append(optimizer.param_groups[0]["lr"])
        return found

    whole = rates(RunLength(40, 0, 0.0, Progress()), range(400))
    progress = Progress(length=Length(epochs=8, decided_at=decided_at))
    short = RunLength(40, 0, 1.0, progress)
    assert short.epochs == 8 and short.ended_by(8) and not short.ended_by(7)
    begin = round(10 * decided_at)
    found = rates(short, range(begin, 80))
    assert found[0] == pytest.approx(whole[begin])
    pace = (400 - begin) / (80 - begin)
    places = [begin + (update - begin) * pace for update in range(begin, 80)]
    assert found == pytest.approx([whole[round(place)] for place in places], abs=0.16 if form == "step" else 0.02)
    assert max(found) > 0.9 and found[-1] == pytest.approx(whole[-1], abs=0.05)


def test_a_time_for_all_epochs_changes_nothing(clock):
    progress = Progress()
    length = RunLength(10, 0, 1.0, progress)
    assert length.is_open and length.fitting(1.0, 5.0) == 10
    assert "all 10 fit" in length.choose(10, 1.0, 5.0) and not length.is_open
    assert [length.place(3, 4, 7), type(length.place(3, 4, 7))] == [25, int]


def test_the_time_of_former_starts_counts_and_too_little_is_refused(clock):
    progress = Progress(length=Length(seconds=1800.0))
    length = RunLength(300, 0, 1.0, progress)
    assert not length.is_due()  # the first update of a start is not measured
    assert [length.is_due() for _ in range(run_length.UPDATES)] == [False] * (run_length.UPDATES - 1) + [True]
    assert length.seconds_per_update() == pytest.approx(2.0, abs=1.0)
    other = RunLength(300, 0, 1.0, progress, keeps_time=False)  # of another process
    assert not any(other.is_due() for _ in range(2 * run_length.UPDATES))
    used = progress.length.seconds
    assert 1800 < used < 1820
    fitting = length.fitting(0.25, 400.0)
    assert fitting == int(0.25 + (0.97 * 3600 - used) / 400) == 4
    with pytest.raises(ConfigError) as caught:
        length.choose(length.fitting(0.25, 2400.0), 0.25, 2400.0)
    assert str(caught.value).startswith(
        "TRAIN.MAX_HOURS: an epoch takes about 2400.0 s, so that 1.0 h end before epoch 0 does"
    )
    assert length.is_open
