"""Hosts of a cluster, pretended on this machine: each has a network, a name, processes and a boot of its own.

They share the disk, as a cluster's network file system, the clock and the processors. A switch joins them, from which a host
can be cut off, or be joined by a slow link. It needs root, `ip` and the right to make namespaces.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_FILES, NEW_NAME, NEW_PROCESSES, NEW_NETWORK = 0x00020000, 0x04000000, 0x20000000, 0x40000000  # clone(2)
BIND, PRIVATE_BELOW = 0x1000, 0x4000 | 0x40000  # mount(2)
NETWORK = "10.98.0"


class Hosts:
    """So many hosts node1, node2, ... at 10.98.0.1, 10.98.0.2, ...

    Args:
        made: undoes at its end what is made here.
    """

    def __init__(self, count: int, made: contextlib.ExitStack):
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self.spaces = {name: f"fat{os.getpid()}{name}" for name in self.names}
        self.switch = f"fat{os.getpid()}switch"
        self.folder = Path(tempfile.mkdtemp())
        made.callback(shutil.rmtree, self.folder)
        lines = [f"{NETWORK}.{number} {name}" for number, name in enumerate(self.names, 1)]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
        for space in [self.switch, *self.spaces.values()]:
            ip("netns", "add", space)
            made.callback(ip, "netns", "del", space)
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        for number, (name, space) in enumerate(self.spaces.items(), 1):
            ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", name, "netns", self.switch)
            ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", self.switch, "link", "set", name, "master", "switch", "up")

    def cut(self, name: str) -> None:
        """Nothing passes any more, and nobody is told: as a cable that is pulled between two switches."""
        ip("-n", self.switch, "link", "set", name, "nomaster")

    def join(self, name: str) -> None:
        ip("-n", self.switch, "link", "set", name, "master", "switch")

    def slow(self, name: str, rate: str) -> None:
        """A link of so many bits a second, both ways."""
        limit = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "200ms"]
        for space, device in ((self.spaces[name], "eth0"), (self.switch, name)):
            subprocess.run(["tc", "-n", space, "qdisc", "replace", "dev", device, *limit], check=True)

    def give_up_after(self, name: str, retries: int) -> None:
        """So often its kernel sends a packet again to a host that does not answer; Linux's 15 times last a quarter of an hour."""
        setting = f"net.ipv4.tcp_retries2={retries}"
        ip("netns", "exec", self.spaces[name], "sysctl", "-qw", setting)

    def enter(self, name: str) -> None:
        """For a forked process: goes on as one of that host, where it begins as on a machine that has just booted.

        This process itself waits, and ends as that one; if it is killed, all processes of the host are, without a word to
        the others if the host was cut off before.
        """
        with open(f"/run/netns/{self.spaces[name]}") as space:
            done(LIBC.setns(space.fileno(), NEW_NETWORK))
        done(LIBC.unshare(NEW_FILES | NEW_NAME | NEW_PROCESSES))
        done(LIBC.mount(b"none", b"/", None, PRIVATE_BELOW, None))
        done(LIBC.mount(bytes(self.folder / "hosts"), b"/etc/hosts", None, BIND, None))
        socket.sethostname(name)
        first = os.fork()
        if first:
            os._exit(exit_status(os.waitpid(first, 0)[1]))
        done(LIBC.prctl(1, signal.SIGKILL))  # with the one that waits; the first process takes all others with it
        done(LIBC.mount(b"proc", b"/proc", b"proc", 0, None))
        program = os.fork()
        if program:
            status = 0
            with contextlib.suppress(ChildProcessError):  # none is left
                while True:
                    pid, ended = os.wait()
                    status = exit_status(ended) if pid == program else status
            os._exit(status)


@contextlib.contextmanager
def hosts(count: int):
    """`Hosts`; where they cannot be, the test is skipped, with the reason."""
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    if os.getuid() or missing:
        pytest.skip(f"needs root, and {' and '.join(missing) or '`ip netns`'} (Debian's iproute2)")
    with contextlib.ExitStack() as made:
        try:
            there = Hosts(count, made)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to make network namespaces and bridges: {error.stderr.decode().strip()}")
        yield there


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
