"""What the processes know of one another: who is behind, who has another config, and how many calls that takes."""

import os
import re
import shutil
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from conftest import Job, free_port, run_processes
from data.sources.folder import FolderSource
from engine.evaluation.evaluators import ClassEvaluator
from engine.tasks.classification import Classification
from engine.training.saver import Saver
from utils.processes import exchange, group, meeting, sameness, silence
from utils.processes.launch import Launch
from utils.processes.members import Beat, Member, Members
from utils.processes.peers import Peers
from utils.processes.place import Place
from utils.processes.silence import NO_PROGRESS, Progress
from utils.processes.watch import Sign, Watch

# One that hangs


def test_a_process_that_hangs_while_all_live_is_named(write_config, monkeypatch):
    """Rank 1 hangs in the model; rank 0 waits for its gradients, until gloo gives up. Both give signs of life."""
    original = Classification.loss
    calls = iter(range(1000))

    def hanging(self, *args):
        if os.environ["RANK"] == "1" and next(calls) == 4:  # after one of the rehearsal
            time.sleep(600)
        return original(self, *args)

    monkeypatch.setattr(Classification, "loss", hanging)
    monkeypatch.setattr(silence, "NO_PROGRESS", 12.0)
    monkeypatch.setattr(group, "COLLECTIVE_TIMEOUT", timedelta(seconds=40))
    job = Job("--cfg", write_config(DATA={"BATCH_SIZE": 4}), world_size=2)
    job.until(job.said("no progress for"), 120)
    assert job.wait(180) == [5, 5]
    line, last = [line for line in job.text().splitlines() if "no progress for" in line]
    assert "warning: no progress for" in line
    assert last.startswith("error: no progress for") and "; gloo: " in last and "start the same command again" in last
    assert f"rank 1 (process {job.pids[1]} on " in line and "rank 0 (" not in line
    place = re.search(r"is behind, at: epoch 0, update (\d): forward \((\S+):\d+\), the first are at: (.*)", line)
    assert place, line
    assert place[2] == "tests/faults/test_watch.py"  # where it hangs
    assert place[3].startswith(f"epoch 0, update {place[1]}: backward (engine/")


def test_what_may_last_is_no_hang(write_config, monkeypatch):
    """An image, an evaluation and a save that each take longer than the limit, on one of two processes."""
    monkeypatch.setattr(silence, "NO_PROGRESS", 2.5)
    save, load_image, step = Saver.save, FolderSource.load, ClassEvaluator.step
    calls = iter(range(10000))

    def slow_image(self, index):
        time.sleep(4 if os.environ["RANK"] == "1" and next(calls) == 20 else 0)
        return load_image(self, index)

    def slow_step(self, *args):
        time.sleep(0.7 if os.environ["RANK"] == "1" else 0)
        return step(self, *args)

    monkeypatch.setattr(FolderSource, "load", slow_image)
    monkeypatch.setattr(ClassEvaluator, "step", slow_step)
    monkeypatch.setattr(
        Saver, "save", lambda self, *names: (time.sleep(0 if self.peers.launch.rank else 4), save(self, *names))
    )
    train = {"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 5}
    job = Job("--cfg", write_config(DATA={"BATCH_SIZE": 4}, TRAIN=train), world_size=2)
    assert job.wait(240) == [0, 0], job.text()
    assert "no progress" not in job.text()


def pretended(world_size: int) -> list[Member]:
    """Of another machine, so that nobody looks for them here."""
    return [Member("elsewhere", 100 + rank, "1", "another machine", {}) for rank in range(world_size)]


def beat(exchanges: int, marks: int, doing: str = "update 7", may_last: bool = False, state: str = "running") -> Beat:
    return Beat(1, state, "", None, (exchanges, marks), doing, may_last)


@pytest.mark.parametrize("beats, parts", [
    ([beat(9, 1), beat(8, 3, "forward"), beat(9, 1)], ["rank 1 (process 101 on elsewhere) is behind, at: forward", "the first are at: update 7"]),
    ([beat(9, 2), beat(9, 1), beat(9, 1)], ["rank 1 (process 101 on elsewhere) is behind", "rank 2 (process 102 on elsewhere) is behind"]),
    ([beat(9, 1)] * 3, ["all are at the same place (update 7)"]),
    ([beat(9, 1)] + [beat(8, 1)] * 9, ["rank 4 (", ", 5 more are behind, "]),
    ([beat(9, 1), beat(8, 1, may_last=True)], None),
    ([beat(9, 1), beat(8, 1, state="failed")], None),
])  # fmt: skip
def test_who_is_behind(beats, parts):
    progress = Progress(Members(None, pretended(len(beats))))
    rounds = [progress.look(dict(enumerate(beats)), 1.0) for _ in range(int(3 * NO_PROGRESS))]
    said = [line for line in rounds if line]
    if parts is None:
        assert not said and not progress.behind
        return
    assert len(said) == 1 and rounds.index(said[0]) == NO_PROGRESS  # the first look finds no place to compare with
    assert all(part in said[0] for part in parts)
    moved = {**dict(enumerate(beats)), 0: beat(99, 0)}
    assert not progress.look(moved, 1.0) and not progress.behind


# How many calls


class CountingStore:
    """A store in memory that counts calls and the values that they move."""

    def __init__(self):
        self.values: dict[str, bytes] = {}
        self.calls = self.moved = 0

    def set(self, key, value):
        self.multi_set([key], [value])

    def get(self, key):
        return self.multi_get([key])[0]

    def append(self, key, value):
        self.set(key, self.values.get(key, b"").decode() + value)

    def check(self, keys):
        self.calls += 1
        return all(key in self.values for key in keys)

    def multi_set(self, keys, values):
        self.calls += 1
        self.moved += len(keys)
        self.values.update({key: value.encode() for key, value in zip(keys, values)})

    def multi_get(self, keys):
        self.calls += 1
        self.moved += len(keys)
        return [self.values[key] for key in keys]


@pytest.mark.parametrize("world_size", [2, 256, 1024])
def test_calls_of_the_store_in_each_second(world_size):
    """Two for each process, whatever their number."""
    store = CountingStore()
    members = Members(store, pretended(world_size))
    watches = []
    for rank in range(world_size):
        peers = Peers(Launch(rank, 1))
        sign = Sign(rank, peers.stop, Place())
        members.write(rank, sign.beat(0))
        watches.append(Watch(Launch(rank, world_size), sign, members, 60.0, 0, print, print))
    store.calls = store.moved = 0
    watches[-1].sign.stop.make("SIGTERM")
    for watch in reversed(watches):
        assert watch._round(watch.members, 1) is None
    assert store.calls == 2 * world_size
    assert store.moved == 3 * world_size - 2  # each its own and rank 0's, and rank 0 those of all others
    assert watches[0].sign.stop.reason == "SIGTERM"


@pytest.mark.parametrize("world_size", [2, 256, 1024])
def test_calls_of_rank_0_as_the_processes_meet(monkeypatch, world_size):
    """All others are there and answer at once, as pretended between two rounds: a few calls of rank 0 in all."""
    store = CountingStore()
    names = {f"name{rank}": rank for rank in range(1, world_size)}
    stale = [f"former{rank} {rank};" for rank in range(1, world_size)]
    store.values["here"] = "".join([*stale, *(f"{name} {rank};" for name, rank in names.items())]).encode()

    def others_answer(*args):
        store.values["joined/start"] = "".join(f"{name};" for name in names).encode()

    monkeypatch.setattr(meeting, "_wait", others_answer)
    assert meeting._gather(store, "start", world_size, time.monotonic() + 60) == "start"
    assert store.calls <= 10
    assert all(store.values[f"start/{name}"] == b"start" for name in names)
    assert store.values["members/start"].decode().count("name") == world_size - 1


def test_the_start_has_one_exchange(monkeypatch):
    """Who is who and whether all have the same config: no process reads the others' entries in the store."""
    calls = []

    def all_gather(values, value, group):
        calls.append(value)
        values[:] = [value] * len(values)

    monkeypatch.setattr(dist, "all_gather_object", all_gather)
    monkeypatch.setattr(dist, "new_group", lambda backend: "group")
    monkeypatch.setattr(dist, "PrefixStore", lambda name, store: store)
    store = CountingStore()
    store.clone, store.set_timeout = lambda: store, lambda timeout: None
    store.values["beat0"] = b'[1, "running", "", null]'
    peers = Peers(Launch(5, 256), store=store, facts={"torch": "2"}, timeout=1e6)
    sameness.require_same_start(peers, None)
    assert len(calls) == 1 and len(peers.members) == 256
    assert store.calls <= 3  # of the first sign of life, and one round if a second has passed
    peers.watch.closing.set()


# Agreements


def _agreeing(every, folder):
    launch = Launch(int(os.environ["RANK"]), 2)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    peers = Peers(launch, store=dist.distributed_c10d._get_default_store())
    peers.exchange.every = every
    answers = [peers.agree([launch.rank == 1 and call == 5, False])[0] for call in range(1, 13)]
    now = peers.agree([launch.rank == 1], now=True)
    after = [peers.agree([False])[0] for _ in range(2 * every)]
    (folder / str(launch.rank)).write_text(f"{answers.index(True) + 1} {sum(answers)} {now} {sum(after)}")
    peers.meet()
    peers.close(True)


@pytest.mark.parametrize("every, told_at", [(1, 6), (4, 12)])
def test_all_stop_at_one_step(tmp_path, every, told_at):
    """A request in the fifth step is known after the sixth; where four steps share a sum, that of steps 5 to 8 is known at the twelfth."""
    run_processes(2, _agreeing, every, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == [f"{told_at} 1 [True] 0"] * 2


def test_very_many_processes_share_a_sum_over_some_steps():
    assert [exchange.calls_between_answers(size) for size in (1, 2, 8, 64, 127, 256, 1024)] == [1, 1, 1, 1, 1, 4, 16]


# Others than the first


def two(path, second=lambda: None, more=()):
    """Two processes; `second` is called in rank 1, which has the arguments `more` besides."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = []
    for rank, (prepare, flags) in enumerate([(lambda: None, ()), (second, more)]):
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        jobs.append(Job("--cfg", path, *flags, environment=environment, prepare=prepare))
    statuses = [job.wait()[0] for job in jobs]
    return statuses, jobs[0].text()


def test_a_rank_with_another_config_is_named(write_config):
    statuses, text = two(write_config(), more=["--opts", "TRAIN.BASE_LR", "0.5"])
    assert statuses == [2, 2]
    assert re.search(
        r"error: rank 1 \(on \S+\): TRAIN.BASE_LR is 0.5, that of rank 0 is 0.02; start every process", text
    )


def test_a_rank_with_other_code_is_named(write_config, monkeypatch):
    hashes = sameness.code_hashes()
    other = {**hashes, "engine/training/trainer.py": "other"}
    statuses, text = two(write_config(), second=lambda: monkeypatch.setattr(sameness, "code_hashes", lambda: other))
    assert statuses == [2, 2]
    assert re.search(r"error: rank 1 \(on \S+\): engine/training/trainer.py differs from rank 0's; bring all", text), (
        text
    )


def test_a_rank_with_another_torch_is_named(write_config, monkeypatch):
    statuses, text = two(write_config(), second=lambda: monkeypatch.setattr("torch.__version__", "2.11.0"))
    assert statuses == [2, 2]
    assert re.search(r"error: rank 1 \(on \S+\): has torch 2.11.0, rank 0 \S+; give all machines the same", text), text


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_rank_with_other_images_is_named(write_config, digits, tmp_path, split):
    """A copy at another place is the same; one that lacks an image is not."""
    copy = tmp_path / "copy"
    shutil.copytree(digits, copy)
    settings = dict(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 4})
    assert two(write_config(TAG="same", **settings), more=["--data-path", copy])[0] == [0, 0]
    next((copy / split / "1").iterdir()).unlink()
    statuses, text = two(write_config(TAG="other", **settings), more=["--data-path", copy])
    assert statuses == [2, 2]
    assert f"its {'training' if split == 'train' else 'validation'} images are others than rank 0's" in text


def test_the_program_s_own_files_are_compared():
    hashes = sameness.code_hashes()
    assert {"main.py", "engine/session.py", "utils/processes/peers.py"} <= set(hashes)
    assert not [name for name in hashes if not name.endswith(".py") or name.startswith(("tests", "scripts"))]
