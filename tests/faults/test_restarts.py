"""torchrun starts a run again: `--max_restarts`, agents that come and go, and the ends that no restart mends."""

import itertools
import os
import re
import signal
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

import main as cli
from conftest import Job, assert_same_run, free_port, launch, load, rest
from engine.observer import Observer
from launcher import on_this_machine, torchrun
from utils.errors import DataError
from utils.processes.meeting import meet
from utils.processes.restarts import restarts_left
from utils.signals import requested_stop

RUNS = Path("output/fat_tiny")
# 7 updates an epoch
SHORT = {"TRAIN": {"EPOCHS": 3, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2}, "DATA": {"BATCH_SIZE": 4}}


def note(path: Path, *words) -> None:
    with open(path, "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class Launched:
    """torchrun over two processes of main.py that meet with faults, from start to end.

    Args:
        folder: of the test.
        faults: what happens by attempt, rank and update: a signal, "error" (of the images) or "disk".
        argv: of main.py.
    """

    def __init__(self, folder: Path, faults: dict, *argv, restarts: int = 3):
        def program():
            faulty(folder / "starts", faults, argv)

        job = torchrun(program, *on_this_machine(2), "--max_restarts", restarts)
        (self.status,), self.text = job.wait(300), job.text()
        self.starts = sorted((folder / "starts").read_text().splitlines())

    def said(self, part: str) -> list[str]:
        return [line for line in self.text.splitlines() if part in line]


def faulty(starts: Path, faults: dict, argv) -> None:
    """main.py, and what happens to this rank before an update of this attempt. It notes its start."""
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    note(starts, attempt, rank)

    class Faults(Observer):
        def before_update(self, trainer, step):
            trainer.saver.wait()  # so that it is known from where the next start goes on
            happens = faults.get((attempt, rank, trainer.progress.updates))
            if happens == "error":
                raise DataError("x.png: cannot be read; replace it")
            if happens == "disk":
                raise OSError(5, "Input/output error", "x.png")
            if happens:
                os.kill(os.getpid(), happens)

    cli.run_and_leave([str(arg) for arg in argv], [Faults()])


def test_restarts_go_on_to_the_same_bits(write_config, tmp_path):
    """Rank 1 killed, rank 0 killed, and a disk that fails once, each within an epoch; the fourth attempt is the last."""
    path = write_config(**SHORT)
    launch(2, "--cfg", path, "--tag", "whole")
    faults = {(0, 1, 3): signal.SIGKILL, (1, 0, 9): signal.SIGKILL, (2, 1, 12): "disk"}
    ended = Launched(tmp_path, faults, "--cfg", path, "--tag", "restarted")
    assert ended.status == 0, ended.text
    assert ended.starts == [f"{attempt} {rank}" for attempt in range(4) for rank in range(2)]
    resumed = [line.split("last.pth: ")[1] for line in ended.said("resumed from ")]
    assert resumed == ["epoch 0, update 2", "epoch 1, update 2", "epoch 1, update 4"], ended.text
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "restarted")


@pytest.mark.parametrize("faults, flags, message", [
    ({(0, 1, 3): "error"}, [], "error: x.png: cannot be read; replace it (no restart mends this: the launcher is told to end)"),
    ({}, ["--opts", "TRAIN.EPOCS", "3"], "error: --opts: unknown key TRAIN.EPOCS; did you mean 'TRAIN.EPOCHS'? (no restart mends this"),
    ({(0, 1, 3): signal.SIGUSR1}, [], "warning: stopped by SIGUSR1: saved at epoch 0, update "),
], ids=["data", "config", "signal"])  # fmt: skip
def test_what_no_restart_mends_is_not_tried_again(write_config, tmp_path, faults, flags, message):
    ended = Launched(tmp_path, faults, "--cfg", write_config(**SHORT), *flags)
    assert ended.status == 1, ended.text
    assert ended.starts == ["0 0", "0 1"], ended.text
    assert len(ended.said(message)) == 1, ended.text


def test_a_start_reads_nothing_of_the_one_before():
    """One store for all starts, as the agent keeps it: with a start that nobody finished, of more and of as many processes."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)

    def start(world_size: int, ranks: list[int], seconds: float) -> dict:
        results: dict = {}

        def process(rank: int) -> None:
            store = dist.TCPStore("127.0.0.1", server.port, is_master=False)
            try:
                store = meet(store, rank, world_size, timedelta(seconds=seconds))
            except RuntimeError as error:
                results[rank] = str(error)
                return
            store.set(f"address{rank}", "new")
            results[rank] = store

        threads = [threading.Thread(target=process, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    assert start(3, [0, 2], 0.5) == {0: "rank 1 did not come", 2: "others did not come"}
    assert start(3, [1], 0.5) == {1: "rank 0 did not come"}
    stores = [start(size, list(range(size)), 60) for size in (3, 3, 2, 3)]
    for number, members in enumerate(stores):
        members[0].set("number", str(number))
    for number, members in enumerate(stores):
        assert [store.get("number").decode() for store in members.values()] == [str(number)] * len(members)


def test_restarts_left(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert restarts_left() == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert restarts_left() == 0
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarts_left() == 2


def leaving(node: str, starts: Path, killed: Path, alone: Path, argv) -> None:
    """main.py on a node that comes and goes. It notes the images of each update that it has been in.

    One process alone waits: before the other node was killed, and again after some updates of its own, until its agent
    ends it to let the other node in. Then there is a file `alone`.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    note(starts, node, world_size)

    class Leaving(Observer):
        def before_update(self, trainer, step):
            updates = trainer.progress.updates
            while world_size == 1 and not requested_stop() and (updates == 12 or not killed.exists()):
                if updates == 12:
                    alone.touch()
                time.sleep(0.05)
            if world_size == 2 and updates == 9:
                trainer.saver.wait()  # what it writes beside the run
                trainer.session.peers.meet()  # rank 0, which may be the other one, has saved
            if world_size == 2 and node == "comes and goes" and updates == 9:
                killed.touch()
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        def on_batch(self, trainer, batch):
            note(starts.with_name("seen"), trainer.progress.updates, *batch.keys)

    cli.run_and_leave(argv, [Leaving()])


class Nodes:
    """Agents of torchrun with a process each, one or two of which make up a run."""

    def __init__(self, folder: Path, *argv):
        self.starts, self.killed, self.alone = (folder / name for name in ("starts", "killed", "alone"))
        self.port = free_port()
        self.argv = [str(arg) for arg in argv]
        self.agents: list[Job] = []

    def start(self, node: str) -> Job:
        quick = "join_timeout=600,last_call_timeout=2,keep_alive_interval=2"
        flags = [
            "--nnodes", "1:2", "--nproc_per_node", 1, "--max_restarts", 3, "--rdzv_backend", "c10d",
            "--rdzv_endpoint", f"127.0.0.1:{self.port}", "--rdzv_id", "run", "--rdzv_conf", quick,
        ]  # fmt: skip
        self.agents.append(
            torchrun(
                lambda: leaving(node, self.starts, self.killed, self.alone, self.argv),
                *flags,
                environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            )
        )
        return self.agents[-1]

    def text(self) -> str:
        return "".join(agent.text() for agent in self.agents)

    def sizes(self, node: str) -> list[int]:
        """Of how many processes the node's was one, start by start."""
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        return [int(line[-1]) for line in lines if line.startswith(node)]

    def until(self, condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("kind", ["files", rest("shards")])
def test_nodes_come_and_go(write_config, tmp_path, digit_shards, kind):
    """One of two agents is killed with its process, within an epoch, and started again."""
    shards = {"DATASET": "wds", "DATA_PATH": str(digit_shards), "NUM_WORKERS": 1} if kind == "shards" else {}
    settings = {"TRAIN": {**SHORT["TRAIN"], "TOTAL_BATCH_SIZE": 8}, "DATA": {**SHORT["DATA"], **shards}}
    nodes = Nodes(tmp_path, "--cfg", write_config(**settings))
    try:
        stays = nodes.start("stays")
        nodes.until(lambda: is_taken(nodes.port))  # it holds the rendezvous, as it is the first at the port
        nodes.start("comes and goes")
        nodes.until(nodes.killed.exists)
        nodes.until(nodes.alone.exists)
        again = nodes.start("comes and goes")
        assert [*stays.wait(120), *again.wait(120)] == [0, 0], nodes.text()
    finally:
        for agent in nodes.agents:
            agent.kill()
    sizes = [size for size, _ in itertools.groupby(nodes.sizes("stays"))]
    assert sizes[-3:] == [2, 1, 2], nodes.text()
    resumed = re.findall(r"resumed from \S+last.pth: (.*)", nodes.text())
    assert [place for place, _ in itertools.groupby(resumed)][-2:] == ["epoch 1, update 2", "epoch 1, update 6"], (
        nodes.text()
    )
    progress = load(tmp_path / RUNS / "default/last.pth")["progress"]
    assert (progress["epoch"], progress["updates"]) == (3, 21)
    updates: dict[int, set[str]] = {}
    for update, *images in map(str.split, (tmp_path / "seen").read_text().splitlines()):
        updates.setdefault(int(update), set()).update(images)
    # What was lost with a process is done again, with the same images; no image is in two updates of an epoch.
    assert [len(updates[number]) for number in range(21)] == [8] * 21
    assert [len(set.union(*(updates[7 * epoch + step] for step in range(7)))) for epoch in range(3)] == [56] * 3
    keeps = "epoch 1 keeps the order of the 2 x 1 loading processes that it began with"
    assert (keeps in nodes.text()) == (kind == "shards"), nodes.text()
