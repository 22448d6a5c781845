"""Hosts that are lost, cut off and slow, in network namespaces on this machine: what comes of a run, and that nothing is lost."""

import functools
import re
import time
from pathlib import Path

import pytest

import conftest
import main as cli
from conftest import Job, assert_same_run, launch, load, watch
from hosts import hosts
from launcher import torchrun
from utils.signals import requested_stop

PORT = "29500"  # each test has networks of its own
RUNS = Path("output/fat_tiny")
# 7 updates an epoch
SHORT = {
    "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2},
    "DATA": {"BATCH_SIZE": 4},
    "RANK_TIMEOUT": 8,
}


@pytest.fixture
def stops(monkeypatch, tmp_path):
    """`stops(3, 9)`: before these updates the first rank waits until `go(update)` is called; `at(update)` says that it is there."""

    class Stops:
        def __call__(self, *updates):
            def wait(trainer, step):
                update = trainer.progress.updates
                if update in updates and trainer.session.is_first and not self.path(update, "went").exists():
                    self.path(update, "at").touch()
                    while not self.path(update, "went").exists():
                        time.sleep(0.02)

            watch(monkeypatch, before_update=wait)

        def path(self, update, name):
            return tmp_path / f"{name}_{update}"

        def at(self, update):
            return self.path(update, "at").exists

        def go(self, update):
            self.path(update, "went").touch()

    return Stops()


class Run:
    """main.py, a process on each host, as srun starts it: without a launcher that would watch them."""

    def __init__(self, there, *argv):
        size = len(there.names)
        place = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "node1",
            "MASTER_PORT": PORT,
        }
        self.jobs = []
        for rank, name in enumerate(there.names):
            prepare = functools.partial(there.enter, name)
            self.jobs.append(Job(*argv, environment={**place, "RANK": str(rank)}, prepare=prepare))

    def wait(self, timeout: float = 180) -> list[int]:
        return [job.wait(timeout)[0] for job in self.jobs]

    def text(self) -> str:
        return "".join(job.text() for job in self.jobs)

    def last_lines(self) -> list[str]:
        return [job.text().splitlines()[-1] for job in self.jobs]


def test_a_link_cut_for_5_s_is_waited_for_and_one_cut_for_long_ends_in_a_line(write_config, tmp_path, stops):
    path = write_config(**SHORT)
    launch(2, "--cfg", path, "--tag", "whole")
    stops(3, 9)
    with hosts(2) as there:
        run = Run(there, "--cfg", path, "--tag", "cut")
        run.jobs[0].until(stops.at(3))
        there.cut("node2")
        stops.go(3)
        time.sleep(5)
        there.join("node2")
        run.jobs[0].until(stops.at(9))
        there.cut("node2")
        stops.go(9)
        assert run.wait() == [5, 5], run.text()
        by_first, by_second = run.last_lines()
        assert re.search(
            r"error: rank 1 \(process \d+ on node2\): no sign of life for \d+ s, it is stopped or its machine is gone; start the same",
            by_first,
        )
        assert re.search(
            r"error: rank 0 \(process \d+ on node1\): the store that it or its launcher holds has not answered for 8 s; start the same",
            by_second,
        )
        there.join("node2")
        again = Run(there, "--cfg", path, "--tag", "cut")
        assert again.wait() == [0, 0], again.text()
        assert "2 machines: node1 (rank 0, eth0 10.98.0.1), node2 (rank 1, eth0 10.98.0.2); all have" in again.text()
        assert "resumed from" in again.text() and "last.pth: epoch 1, update 2" in again.text()
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "cut")


@pytest.mark.only_all
def test_three_hosts_train(write_config, tmp_path):
    path = write_config(**SHORT)
    launch(3, "--cfg", path, "--tag", "whole")
    with hosts(3) as there:
        run = Run(there, "--cfg", path, "--tag", "hosts")
        assert run.wait() == [0, 0, 0], run.text()
    assert "3 machines: node1 (rank 0, eth0 10.98.0.1), node2 (rank 1, " in run.text()
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "hosts")


@pytest.mark.only_all
def test_a_slow_link_is_only_slow(write_config, tmp_path):
    """2 Mbit/s for 95 kB of gradients: half a second for an update."""
    path = write_config(**SHORT)
    launch(2, "--cfg", path, "--tag", "whole")
    with hosts(2) as there:
        there.slow("node2", "2mbit")
        run = Run(there, "--cfg", path, "--tag", "slow")
        assert run.wait() == [0, 0], run.text()
    assert float(re.findall(r" (\S+) images/s", run.text())[3]) < 25, run.text()
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "slow")


class Agents:
    """torchrun's agents by host, with a process of main.py each; the first one's host holds the rendezvous."""

    def __init__(self, there, nnodes: str, *argv):
        self.there, self.nnodes, self.argv = there, nnodes, [str(arg) for arg in argv]
        self.jobs: dict[str, Job] = {}
        self.said = ""  # by those that were killed

    def __enter__(self) -> "Agents":
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        print(self.text())

    def start(self, *names: str) -> None:
        flags = ["--nnodes", self.nnodes, "--nproc_per_node", 1, "--max_restarts", 3, "--rdzv_backend", "c10d"]
        flags += [
            "--rdzv_endpoint",
            f"node1:{PORT}",
            "--rdzv_id",
            "run",
            "--rdzv_conf",
            "join_timeout=120,last_call_timeout=2",
        ]
        for name in names:
            self.jobs[name] = torchrun(
                lambda: cli.run_and_leave(self.argv, conftest.observers),
                *flags,
                environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                prepare=functools.partial(self.there.enter, name),
            )

    def lose(self, name: str) -> None:
        """Its power is off: nobody is told."""
        self.there.cut(name)
        job = self.jobs.pop(name)
        job.kill()
        self.said += job.text()

    def text(self) -> str:
        return self.said + "".join(job.text() for job in self.jobs.values())

    def wait(self) -> dict[str, int]:
        return {name: job.wait(240)[0] for name, job in self.jobs.items()}

    def kill(self) -> None:
        for job in self.jobs.values():
            job.kill()

    def until(self, condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)


@pytest.mark.only_all
def test_a_host_that_is_lost_and_returns_is_waited_for(write_config, tmp_path, stops):
    path = write_config(**SHORT)
    launch(2, "--cfg", path, "--tag", "whole")
    stops(9)
    with hosts(2) as there, Agents(there, "2", "--cfg", path, "--tag", "lost") as agents:
        agents.start("node1", "node2")
        agents.until(stops.at(9))
        agents.lose("node2")
        stops.go(9)
        agents.until(lambda: "no sign of life" in agents.text())
        time.sleep(3)
        there.join("node2")
        agents.start("node2")
        assert agents.wait() == {"node1": 0, "node2": 0}, agents.text()
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "lost")


@pytest.mark.only_all
def test_a_run_goes_on_with_fewer_hosts_and_with_all_again(write_config, tmp_path, monkeypatch):
    """`--nnodes 1:2`; the one left goes on alone, and waits before update 12 to be ended for the other to come in."""
    alone = tmp_path / "alone"

    def pause(trainer, step):
        size, updates = trainer.session.launch.world_size, trainer.progress.updates
        if updates == 9 and size == 2 and not alone.exists():
            (tmp_path / "both").touch()
            time.sleep(600)
        if updates == 12 and size == 1:
            alone.touch()
            while not requested_stop():
                time.sleep(0.05)

    watch(monkeypatch, before_update=pause)
    path = write_config(**{**SHORT, "TRAIN": {**SHORT["TRAIN"], "TOTAL_BATCH_SIZE": 8}})
    with hosts(2) as there, Agents(there, "1:2", "--cfg", path) as agents:
        agents.start("node1")
        time.sleep(3)
        agents.start("node2")
        agents.until((tmp_path / "both").exists)
        agents.lose("node2")
        agents.until(alone.exists)
        there.join("node2")
        agents.start("node2")
        assert agents.wait() == {"node1": 0, "node2": 0}, agents.text()
    sizes = re.findall(r"\| (\d) process", agents.text())
    assert sizes[-3:] == ["2", "1", "2"], agents.text()
    assert re.findall(r"resumed from \S+last.pth: (.*)", agents.text())[-2:] == [
        "epoch 1, update 2",
        "epoch 1, update 6",
    ]
    progress = load(tmp_path / RUNS / "default/last.pth")["progress"]
    assert (progress["epoch"], progress["updates"]) == (2, 14)


@pytest.mark.only_all
def test_the_loss_of_the_rendezvous_s_host_ends_the_run_which_goes_on_when_started_again(write_config, tmp_path, stops):
    """torchrun's agent waits for the store of a host that does not answer as long as the kernel does."""
    path = write_config(**SHORT)
    launch(2, "--cfg", path, "--tag", "whole")
    stops(9)
    with hosts(2) as there, Agents(there, "2", "--cfg", path, "--tag", "lost") as agents:
        there.give_up_after("node2", 5)
        agents.start("node1", "node2")
        agents.until(stops.at(9))
        agents.lose("node1")
        assert agents.wait() == {"node2": 1}
        assert re.search(r"error: rank 0 \(process \d+ on node1\): .*has not answered for 8 s", agents.text()), (
            agents.text()
        )
        stops.go(9)
        there.join("node1")
        agents.start("node1", "node2")
        assert agents.wait() == {"node1": 0, "node2": 0}, agents.text()
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "lost")


@pytest.mark.only_all
@pytest.mark.parametrize("long", [False, True])
def test_torchrun_goes_on_after_a_link_that_was_cut(write_config, tmp_path, stops, long):
    """For 5 s, or until the processes of both sides have ended, and 8 s more."""
    path = write_config(**SHORT)
    launch(2, "--cfg", path, "--tag", "whole")
    stops(9)
    with hosts(2) as there, Agents(there, "2", "--cfg", path, "--tag", "cut") as agents:
        agents.start("node1", "node2")
        agents.until(stops.at(9))
        there.cut("node2")
        stops.go(9)
        if long:
            agents.until(lambda: "no sign of life" in agents.text() and "has not answered for" in agents.text())
        time.sleep(8 if long else 5)
        there.join("node2")
        assert agents.wait() == {"node1": 0, "node2": 0}, agents.text()
    assert agents.text().count("resumed from") == long, agents.text()
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "cut")
