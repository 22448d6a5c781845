"""Processes that do not find each other: what NCCL, gloo and the store say is kept, and gloo gets an interface that leads out."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist

from conftest import ROOT, Job, free_port, watch
from utils.errors import ProcessError, ShortageError
from utils.processes import backend_errors, interface
from utils.processes.interface import gloo_interface
from utils.processes.launch import Launch

ON_TWO_MACHINES = Launch(0, 2, 0, 1)
PLACE = {"MASTER_ADDR": "node1", "MASTER_PORT": "12345"}
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, {kind}, NCCL version 2.29.3\n"
    "{explained}\nLast error:\n{cause}\nException raised from create at /pytorch/x.cpp:5 (most recent call first):\nframe #0"
)
DUPLICATE = NCCL.format(
    kind="invalid usage (run with NCCL_DEBUG=WARN for details)",
    explained="ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
    cause="Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000",
)
DRIVER = NCCL.format(
    kind="unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    explained="ncclUnhandledCudaError: Call to CUDA function failed.",
    cause="Cuda failure 35 'CUDA driver version is insufficient for CUDA runtime version'",
)
INFINIBAND = NCCL.format(
    kind="remote process exited or there was a network error",
    explained="ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    cause="NET/IB: Got completion from peer 10.0.0.2<40001> with status=12 opcode=0 vendor err 129 (Send)",
)
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error handling, connect to [127.0.1.1]:41233 refused"
TAKEN = "The server socket has failed to listen on any local network address. port: 12345, EADDRINUSE: address already in use"


@pytest.mark.parametrize("error, parts", [
    (dist.DistBackendError(DUPLICATE), ["NCCL: ", "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000", "start one process per GPU", "NCCL_DEBUG=INFO"]),
    (dist.DistBackendError(DRIVER), ["NCCL: ", "CUDA driver version is insufficient", "NCCL_DEBUG=INFO makes it say"]),
    (dist.DistBackendError(INFINIBAND), ["NCCL: ", "NET/IB: Got completion from peer", "NCCL_DEBUG=INFO makes it say"]),
    (RuntimeError(GLOO), ["gloo: ", "connect to [127.0.1.1]:41233 refused", "set GLOO_SOCKET_IFNAME"]),
])  # fmt: skip
def test_what_nccl_and_gloo_say_is_kept(error, parts):
    for line in (backend_errors.of_meeting(error, PLACE), backend_errors.of_backend(error, PLACE)):
        assert isinstance(line, ShortageError) and line.retry
        text = str(line)
        assert all(part in text for part in parts) and "\n" not in text
        assert "is the port free" not in text and "frame #0" not in text


def test_the_interface_of_gloo_is_named():
    assert "its interface is ib0:" in str(backend_errors.of_backend(RuntimeError(GLOO), {"GLOO_SOCKET_IFNAME": "ib0"}))


@pytest.mark.parametrize("text", [TAKEN, "rank 3, 7 did not come", "The client socket has timed out after 600000ms while trying to connect to (node1, 12345)"])  # fmt: skip
def test_the_port_is_asked_about_where_it_may_be_the_reason(text):
    line = str(backend_errors.of_meeting(RuntimeError(text), PLACE))
    assert line.startswith("MASTER_ADDR, MASTER_PORT: the processes do not find each other at node1:12345")
    assert text in line and "is the port free" in line


def test_another_error_as_the_processes_meet_is_no_question_of_ports():
    line = str(backend_errors.of_meeting(ValueError("trying to initialize the default process group twice!"), PLACE))
    assert "process group twice" in line and "port free" not in line


def test_an_error_of_other_things_is_nobody_s():
    assert backend_errors.of_backend(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), {}) is None


def test_a_port_that_is_taken_is_one_line(write_config):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        job = Job("--cfg", write_config(), environment=place)
        assert job.wait() == [2]
    assert f"error: MASTER_ADDR, MASTER_PORT: the processes do not find each other at 127.0.0.1:{port}" in job.text()
    assert "EADDRINUSE" in job.text() and "Traceback" not in job.text()


def test_an_error_of_nccl_within_a_run_is_one_line(write_config, monkeypatch):
    """All processes live, and all meet it."""

    def failing(trainer, step):
        raise dist.DistBackendError(INFINIBAND)

    watch(monkeypatch, before_update=failing)
    monkeypatch.setattr("utils.processes.watch.FAREWELL", 1.0)
    job = Job("--cfg", write_config(DATA={"BATCH_SIZE": 4}), world_size=2)
    assert job.wait() == [2, 2]
    assert "error: NCCL: " in job.text() and "NET/IB: Got completion" in job.text() and "Traceback" not in job.text()


def test_who_was_behind_is_said_with_the_operation_that_was_given_up(monkeypatch):
    from engine.session import raise_as_backend_s
    from utils.processes.peers import Peers

    peers = Peers(Launch())
    monkeypatch.setattr(Peers, "behind", "no progress for 180 s: rank 3 (process 9 on b) is behind, at: forward")
    with pytest.raises(
        ProcessError, match=r"no progress for 180 s: rank 3 .*; NCCL: .*timeout.*; start the same command"
    ):
        raise_as_backend_s(dist.DistBackendError("NCCL watchdog: timeout of 1800000 ms"), peers)


# gloo's interface


@pytest.fixture
def interfaces(monkeypatch):
    """A machine whose name stands for 127.0.1.1, with three interfaces; eth1 leads to 10.0.0.x."""
    known = {"lo": "127.0.0.1", "eth0": "192.0.2.7", "eth1": "10.0.0.7", "ib0": "10.1.0.7"}
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(known, start=1)))
    monkeypatch.setattr(interface, "_addresses", lambda: known)
    monkeypatch.setattr(interface, "_resolved", lambda name: "127.0.1.1")
    monkeypatch.setattr(interface, "_default_routes", lambda: ["eth0"])
    routes = {"10.0.0.1": "10.0.0.7", "node1": "127.0.0.1"}  # node1 is this machine itself

    class Probe(socket.socket):
        def connect(self, address):
            self.source = routes[address[0]]

        def getsockname(self):
            return (self.source, 40000)

    monkeypatch.setattr(interface.socket, "socket", Probe)


@pytest.mark.parametrize("environ, address, name", [
    ({}, "10.0.0.1", "eth1"),
    ({}, "node1", "eth0"),
    ({"NCCL_SOCKET_IFNAME": "ib"}, "10.0.0.1", "ib0"),
    ({"NCCL_SOCKET_IFNAME": "=eth0,ib0"}, "10.0.0.1", "eth0"),
    ({"NCCL_SOCKET_IFNAME": "=eth"}, "10.0.0.1", "eth1"),  # none is called so
    ({"NCCL_SOCKET_IFNAME": "^docker,lo"}, "10.0.0.1", "eth1"),
    ({"GLOO_SOCKET_IFNAME": "ib0"}, "10.0.0.1", ""),  # as set
])  # fmt: skip
def test_the_interface_that_leads_to_the_others(interfaces, environ, address, name):
    assert gloo_interface(ON_TWO_MACHINES, address, environ) == name


def test_gloo_is_left_alone_where_it_finds_its_way(interfaces, monkeypatch):
    assert gloo_interface(Launch(0, 2, 0, 2), "10.0.0.1", {}) == ""  # one machine
    monkeypatch.setattr(interface, "_resolved", lambda name: "10.0.0.7")
    assert gloo_interface(ON_TWO_MACHINES, "10.0.0.1", {}) == ""


def test_the_addresses_of_this_machine_s_interfaces():
    assert interface._addresses()["lo"] == "127.0.0.1"
    assert all(re.fullmatch(r"[\d.]+", address) for address in interface._addresses().values())


@pytest.fixture
def two_machines():
    """Two network namespaces with a link, each a machine whose own name stands for 127.0.1.1, as Debian has it."""
    if os.getuid() or not shutil.which("ip") or subprocess.run(["ip", "netns", "list"], capture_output=True).returncode:
        pytest.skip("needs root and `ip netns`")
    names = [f"fat{os.getpid()}{side}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with contextlib.ExitStack() as made:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"needs the right to make network namespaces: {error.stderr.decode().strip()}")
            made.callback(ip, "netns", "del", name)
            folder = f"/etc/netns/{name}"
            os.makedirs(folder)
            made.callback(shutil.rmtree, folder)
            with open(f"{folder}/hosts", "w") as hosts:
                hosts.write(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        ip("link", "add", "to0", "netns", names[0], "type", "veth", "peer", "name", "to1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.99.0.{number + 1}/24", "dev", f"to{number}")
            for device in ("lo", f"to{number}"):
                ip("-n", name, "link", "set", device, "up")
        yield names


def test_two_machines_whose_names_lead_nowhere_train(write_config, two_machines):
    """Without an interface, gloo would tell the other machine 127.0.1.1."""
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 4})
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "10.99.0.1"}
    place |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "main.py", "--cfg", str(path)]
    runs = []
    for rank, name in enumerate(two_machines):
        inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
        environment = {**os.environ, **place, "RANK": str(rank)}
        runs.append(
            subprocess.Popen([*inside, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        )  # fmt: skip
    try:
        said = [run.communicate(timeout=240)[0] for run in runs]
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert [run.returncode for run in runs] == [0, 0], said
    assert "| 2 processes |" in said[0]
