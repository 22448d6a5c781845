"""What several processes say at their start of where they are, of clocks that differ, and later of one that is slow."""

import os
import re
import time

import pytest
import torch

from conftest import Job
from engine.tasks.classification import Classification
from engine.training import slow_rank
from engine.training.slow_rank import SPAN, SlowRank, Spent, describe_slowest
from utils.processes import machines, members
from utils.processes.machines import clock_skew, describe_machines
from utils.processes.members import Member
from utils.stopwatch import Stopwatch

FACTS = {"torch": "2.15.0", "config": "c0ffee", "code": "f00d"}


def on(host: str, clock: float = 1000.0, address: str = "") -> Member:
    return Member(host, 7, "1", f"boot of {host}", FACTS, clock, address)


def test_machines_are_listed_with_their_ranks_and_addresses():
    there = [on("a", address="eth0 10.0.0.1"), on("a"), on("b", address="eth0 10.0.0.2"), on("a"), on("c")]
    assert describe_machines(there) == (
        "3 machines: a (ranks 0-1,3, eth0 10.0.0.1), b (rank 2, eth0 10.0.0.2), c (rank 4); "
        "all have torch 2.15.0, config c0ffee, code f00d"
    )
    assert describe_machines(there[:2]).startswith("1 machine: a (ranks 0-1); all have")
    assert ", n7 (rank 7), 92 more; all" in describe_machines([on(f"n{rank}") for rank in range(100)])


def test_a_clock_that_differs_is_named():
    assert clock_skew([on("a", 1000.0), on("b", 1000.0 + machines.SKEW), on("c", 998.0)]) == ""
    line = clock_skew([on("a", 1000.0), on("b", 1037.2), on("b", 1037.3), on("c", 900.0), on("d", 1001.0)])
    assert "that of a (rank 0): b (rank 1) is 37 s ahead, c (rank 3) is 100 s behind. Training" in line


@pytest.mark.parametrize("spent, parts", [
    ([Spent(10, 0, 2), Spent(10, 0.1, 5.9), Spent(10, 0, 2.2)], ["rank 1 (process 7 on b)", "0.600 s (60%) of its update of 1.000 s", "images 1%", "median is 0.220 s (22%)", "processor"]),
    ([Spent(10, 0, 2), Spent(10, 0.1, 2), Spent(10, 6, 2)], ["rank 2 (", "0.800 s (80%)", "images 60%", "disk or loading"]),
    ([Spent(10, 0, 2), Spent(10, 0, 2.9)], None),  # not so much more
    ([Spent(10, 0, 0.4), Spent(10, 0, 0.9)], None),  # not so much of an update
])  # fmt: skip
def test_who_is_slow(spent, parts):
    line = describe_slowest(spent, 10, [on("a"), on("b"), on("c")])
    assert line is None if parts is None else all(part in line for part in parts), line


def test_a_slow_process_is_named_once_in_an_epoch_and_after_some_time(monkeypatch):
    slow = SlowRank([on("a"), on("b")], None)
    rows = [Spent(SPAN / 2, 0, 1), Spent(SPAN / 2, 0, SPAN / 3)]
    monkeypatch.setattr(slow_rank.torch, "tensor", lambda *args, **kwargs: None)
    monkeypatch.setattr(slow_rank, "gather_rows", lambda values: values_of(rows))
    assert [bool(slow.add(rows[0], 5)) for _ in range(6)] == [False, True, False, False, False, False]
    slow.start_epoch()
    assert [bool(slow.add(rows[0], 5)) for _ in range(3)] == [False, True, False]


def test_a_gpu_s_seconds_are_those_between_its_events(monkeypatch):
    """A stand-in for events: each is a place in the GPU's time, which runs on as it works."""

    class Event:
        now = 0.0  # ms

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = Event.now

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    stopwatch = Stopwatch(torch.device("cuda"))
    for milliseconds in (200, 300):
        with stopwatch.running():
            Event.now += milliseconds
        Event.now += 1000  # of the backward pass
    assert stopwatch.seconds() == 0.5


def values_of(rows):
    class Rows:
        def tolist(self):
            return [[row.passed, row.waiting, row.forward] for row in rows]

    return Rows()


def test_two_processes_say_where_they_are_whose_clock_differs_and_who_is_slow(write_config, monkeypatch):
    loss, clock = Classification.loss, time.time

    def slow_loss(self, *args):
        time.sleep(0.4 if os.environ["RANK"] == "1" else 0)
        return loss(self, *args)

    monkeypatch.setattr(Classification, "loss", slow_loss)
    monkeypatch.setattr(slow_rank, "SPAN", 0.3)
    monkeypatch.setattr(members, "this_machine", lambda: f"the boot of rank {os.environ['RANK']}")
    monkeypatch.setattr(time, "time", lambda: clock() + 37 * (os.environ.get("RANK") == "1"))
    path = write_config(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    job = Job("--cfg", path, world_size=2)
    assert job.wait() == [0, 0], job.text()
    host, text = re.escape(os.uname().nodename), job.text()
    assert re.search(
        rf"2 machines: {host} \(rank 0\), {host} \(rank 1\); all have Python \S+, torch \S+, config \w{{16}}, code \w{{16}}\n",
        text,
    )
    assert re.search(r"the clocks differ from .*\(rank 0\): \S+ \(rank 1\) is 37 s ahead", text), text
    named = re.findall(
        rf"all wait for rank 1 \(process {job.pids[1]} on {host}\): .* take (\d+\.\d+) s \(\d+%\) of its", text
    )
    assert len(named) == 1 and float(named[0]) > 0.4, text
