"""A run goes on within an epoch with another number of processes: TRAIN.TOTAL_BATCH_SIZE."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from conftest import Job, load, rest, watch
from data.lanes import Lanes
from data.loader import Loading, TrainLoader, TrainStreamLoader, dataset_of
from data.schedule import Schedule
from data.sources.synthetic import SyntheticSource
from engine.checkpoints.progress import Progress
from engine.checkpoints.resume import fit_progress
from engine.training.plan import plan_batches
from utils.errors import ConfigError

RUN = Path("output/fat_tiny/default")
TRAIN = {"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2, "TOTAL_BATCH_SIZE": 8}


def images_of(path: Path) -> dict[int, list[str]]:
    """The images that updates had, as `note` has written them down."""
    updates: dict[int, list[str]] = {}
    for step, *keys in map(str.split, path.read_text().splitlines()):
        updates.setdefault(int(step), []).extend(keys)
    return updates


@pytest.mark.parametrize("kind", ["files", rest("shards")])
def test_another_number_of_processes_sees_the_rest_of_the_epoch(
    write_config, tmp_path, digit_shards, monkeypatch, kind
):
    """Two processes are killed before update 5 of 7; one, and three with 4, 2 and 2 images, go on after update 4."""
    shards = {"DATASET": "wds", "DATA_PATH": str(digit_shards), "NUM_WORKERS": 1} if kind == "shards" else {}
    path = write_config(TRAIN=TRAIN, DATA={"BATCH_SIZE": 4, **shards})

    def note(trainer, batch):
        with open(os.environ["SEEN"], "a") as file:
            file.write(" ".join([str(trainer.progress.step), *batch.keys]) + "\n")

    def kill(trainer, step):
        if str(step) == os.environ.get("KILLED"):
            trainer.saver.wait()
            trainer.session.peers.meet()  # rank 0 has saved
            os.kill(os.getpid(), signal.SIGKILL)

    watch(monkeypatch, before_update=kill, on_batch=note)
    before = tmp_path / "two"
    Job("--cfg", path, world_size=2, environment={"SEEN": str(before), "KILLED": "5"}).wait()
    saved = tmp_path / "saved"
    (tmp_path / RUN).rename(saved)
    seen = images_of(before)
    assert [*seen] == [0, 1, 2, 3, 4] and load(saved / "last.pth")["progress"]["step"] == 4
    for world_size in (1, 3):
        shutil.copytree(saved, tmp_path / RUN, dirs_exist_ok=True)
        after = tmp_path / f"then_{world_size}"
        job = Job("--cfg", path, world_size=world_size, environment={"SEEN": str(after)})
        assert job.wait() == [0] * world_size, job.text()
        others = images_of(after)
        assert [*others] == [4, 5, 6] and sorted(others[4]) == sorted(seen[4])  # which was not saved
        whole = {**seen, **others}
        assert [len(images) for images in whole.values()] == [8] * 7 and len(set(sum(whole.values(), []))) == 56
        said = (
            f"the number of processes changed from 2 to {world_size}; the epoch goes on with its next image, update 5"
        )
        assert f"warning: since that checkpoint {said}" in job.text()
        keeps = f"epoch 0 keeps the order of the 2 x 1 loading processes that it began with: until it ends, each of {world_size} x 1 "
        assert job.text().count(keeps) == (kind == "shards"), job.text()
        shutil.rmtree(tmp_path / RUN)


def entry(order: str, world_size: int) -> dict:
    plan = plan_batches(60, 4, world_size, 1, 8)
    return {
        "classes": ["a"],
        "plan": {
            "num_images": 60, "images": order, "seed": 0, "total_batch_size": 8, "updates_per_epoch": plan.updates_per_epoch,
            "world_size": world_size, "repeats": 1,
        },
    }  # fmt: skip


def order_of(kind: str, world_size: int) -> str:
    dataset = dataset_of(SyntheticSource(60, 2, 32), None)
    schedule, loading = Schedule(7, 4, 0, world_size, seed=0), Loading(None, 0, 2, False)
    if kind == "shards":
        return TrainStreamLoader(dataset, schedule, loading, buffer=10).order
    return TrainLoader(dataset, schedule, loading, shares=kind == "shares").order


@pytest.mark.parametrize("kind", ["shards", "shares", "files"])
def test_with_shares_of_the_images_an_epoch_is_finished_with_as_many_processes(kind):
    """DATA.CACHE_MODE part; of other files, and of shards, an epoch goes on with any number."""
    old, new = entry(order_of(kind, 2), 2), entry(order_of(kind, 1), 1)
    between = fit_progress(Progress(epoch=3), old, new, Path("x.pth"))
    assert between[-1] == "the number of processes changed from 2 to 1"
    if kind != "shares":
        within = fit_progress(Progress(epoch=3, step=4), old, new, Path("x.pth"))
        assert within == [between[-1] + "; the epoch goes on with its next image, update 5"]
        return
    with pytest.raises(ConfigError, match="from within epoch 3, .* images of its own: finish the epoch with as many"):
        fit_progress(Progress(epoch=3, step=4), old, new, Path("x.pth"))


def test_a_checkpoint_of_before_lanes_were_noted_tells_them():
    """Its order of images did, by which it was refused then."""
    order = order_of("shards", 2)
    old = entry(order.replace(" among", " by 2 x 3 readers of 4 among"), 2)
    progress = Progress(epoch=3, step=4)
    assert len(fit_progress(progress, old, entry(order, 1), Path("x.pth"))) == 1
    assert progress.this_epoch.lanes == Lanes(2, 3, 4)


def test_the_lanes_of_an_epoch_are_saved_with_it():
    progress, loaded = Progress(epoch=3, step=4), Progress()
    assert "lanes" not in progress.state_dict()
    progress.this_epoch.lanes = Lanes(3, 2, 8, 20, 2, 8)
    loaded.load_state_dict(progress.state_dict())
    assert loaded == progress
    loaded.start_epoch(4)
    assert loaded.this_epoch.lanes is None
    for changes in ({"workers": 0}, {"total": 4}, {"unit": 9}, {"batch_size": 8.0}):
        state = {**progress.state_dict(), "lanes": {**progress.state_dict()["lanes"], **changes}}
        with pytest.raises(ValueError, match="no such lanes"):
            loaded.load_state_dict(state)
