"""Slurm on this machine: its own daemons, for two nodes.

A job that is put back into the queue waits there until its credentials have expired; so these last 5 s in place of 120.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

OF_LAUNCHERS = re.compile(r"(OMPI|PMI|PMIX|SLURM|MPI|TORCHELASTIC)_|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$")
CLEAN = {**{k: v for k, v in os.environ.items() if not OF_LAUNCHERS.match(k)}, "OMP_NUM_THREADS": "1"}

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=30
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{nodes}] CPUs=2 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@contextlib.contextmanager
def slurm(folder: Path):
    """Slurm's own daemons for two nodes on this machine; the environment of its commands. Skips where they are missing."""
    missing = [name for name in ("srun", "slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing or os.getuid():
        pytest.skip("needs root, and slurmctld, slurmd, slurm-client and munge (Debian's packages)")
    environment = {**CLEAN, "SLURM_CONF": str(folder / "slurm.conf")}
    port = 13000 + 3 * (os.getpid() % 4000)
    text = SLURM_CONF.format(folder=folder, host=os.uname().nodename, port=port, nodes=f"{port + 1}-{port + 2}")
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # one, which nobody uses
    for name in ("state", "spool-127.0.0.1", "spool-127.0.0.2"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    daemons = [
        ["munged", "--force", "--foreground", f"--key-file={folder}/key", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
         f"--seed-file={folder}/seed", f"--log-file={folder}/munge.log"],
        ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
        *(slurmd(environment, f"127.0.0.{node}") for node in (1, 2)),
    ]  # fmt: skip
    with contextlib.ExitStack() as running, open(folder / "daemons", "w") as said:
        for daemon in daemons:
            process = subprocess.Popen(daemon, env=environment, stdout=said, stderr=said)
            running.callback(process.wait)
            running.callback(process.terminate)
            time.sleep(0.5)  # the next one asks it
        deadline = time.monotonic() + 60
        ready = ["srun", "-N2", "-n2", "--immediate=5", "true"]
        while subprocess.run(ready, env=environment, capture_output=True).returncode:
            if time.monotonic() > deadline:
                pytest.skip("Slurm's daemons do not come up here: " + (folder / "slurmctld.log").read_text()[-500:])
            time.sleep(0.5)
        yield environment


def slurmd(environment: dict[str, str], node: str) -> list[str]:
    """The command of a node's daemon."""
    return ["slurmd", "-D", "-N", node, "-f", environment["SLURM_CONF"]]


def kill_node(environment: dict[str, str], node: int) -> None:
    """Ends a node's daemon and all that it has started for jobs, as a loss of power does; nodes count from 0."""
    conf = environment["SLURM_CONF"].encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, variables = ((path / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if command[0] == b"slurmd" and f"127.0.0.{node + 1}".encode() in command and conf in command:
                os.kill(int(path.name), signal.SIGKILL)
            if (
                f"SLURM_NODEID={node}".encode() in variables
                and b"SLURM_CONF=" + conf in variables
                and b"main.py" in command
            ):
                os.kill(parent, signal.SIGKILL)  # slurmstepd
                os.kill(int(path.name), signal.SIGKILL)
