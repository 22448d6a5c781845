"""scripts/train_nodes.sh: torchrun on several machines, each a host in a network namespace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Job
from hosts import hosts

SCRIPT = "scripts/train_nodes.sh"


def on(there, name: str, *argv, **environment: str) -> Job:
    """The script on a host."""

    def become():
        there.enter(name)
        os.environ.update(
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", OMP_NUM_THREADS="1", **environment
        )
        os.execvp("bash", ["bash", str(ROOT / SCRIPT), *map(str, argv)])

    return Job(prepare=become)


@pytest.mark.parametrize("argv, line", [
    (["x.yaml", "2", "node1:29500"], "error: usage: bash scripts/train_nodes.sh CONFIG"),
    (["x.yaml", "2", "2:", "node1:29500"], "error: usage: "),
    (["x.yaml", "2", "2", "node1"], "error: usage: "),
    (["x.yaml", "2", "2", "no.such.host.invalid:29500"], "error: no.such.host.invalid: this machine ("),
])  # fmt: skip
def test_what_is_wrong_is_one_line(argv, line):
    ended = subprocess.run(["bash", SCRIPT, *argv], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(line) and ended.stderr.count("\n") == 1, ended.stderr


def test_a_rendezvous_that_does_not_answer_is_named():
    with hosts(2) as there:
        job = on(there, "node2", "x.yaml", 1, 2, "node1:29500", MEETING="1")
        assert job.wait() == [2]
        there.cut("node2")  # then nobody says that the port is closed
        cut_off = on(there, "node2", "x.yaml", 1, 2, "10.98.0.1:29500", MEETING="1")
        assert cut_off.wait() == [2]
    assert job.text().startswith("error: node1:29500: does not answer node2 after 1 s; has that machine started"), (
        job.text()
    )
    assert cut_off.text().startswith("error: 10.98.0.1:29500: does not answer node2 after 1 s;"), cut_off.text()


@pytest.mark.only_all
@pytest.mark.parametrize("nodes", ["2", "1:2"])
def test_two_hosts_train(write_config, nodes):
    path = write_config(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    with hosts(2) as there:
        second = on(there, "node2", path, 2, nodes, "node1:29500", "--tag", "nodes")  # before the first one: it waits
        first = on(there, "node1", path, 2, nodes, "node1:29500", "--tag", "nodes")
        assert [*first.wait(240), *second.wait(240)] == [0, 0], first.text() + second.text()
    text = first.text() + second.text()
    assert "| 4 processes |" in text and "2 machines: node" in text and "(ranks 2-3, eth0 10.98.0." in text, text
