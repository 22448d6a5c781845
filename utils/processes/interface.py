"""Which network interface gloo uses where the machine's own name leads nowhere.

gloo tells the other processes the address that the host name stands for. On many systems that is 127.0.1.1, which on
each machine is the machine itself. NCCL looks for an interface by itself; gloo has to be told.
"""

import contextlib
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path
from typing import Mapping

from .launch import Launch

SIOCGIFADDR = 0x8915  # netdevice(7): an interface's IPv4 address


def gloo_interface(launch: Launch, address: str, environ: Mapping[str, str]) -> str:
    """What GLOO_SOCKET_IFNAME should be; empty: nothing, as gloo finds its way or no way is known.

    Args:
        address: MASTER_ADDR.
    """
    if not launch.spans_machines or environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    if not _is_loopback(_resolved(socket.gethostname())):
        return ""
    return _as_nccl(environ.get("NCCL_SOCKET_IFNAME", "")) or _on_the_way_to(address)


def gloo_address(environ: Mapping[str, str]) -> str:
    """The interface that gloo uses and its address, `eth0 10.0.0.1`; one or both are missing where they are not known."""
    name, addresses = environ.get("GLOO_SOCKET_IFNAME", ""), _addresses()
    if name:
        return f"{name} {addresses.get(name, '')}".strip()
    address = _resolved(socket.gethostname())
    return " ".join([*(name for name, own in addresses.items() if own == address), address])


def _as_nccl(wanted: str) -> str:
    """The first interface that NCCL_SOCKET_IFNAME allows: prefixes, or names after `=`. What it excludes (^) says no name."""
    if not wanted or wanted.startswith("^"):
        return ""
    interfaces = [name for _, name in socket.if_nameindex()]
    exact = wanted.startswith("=")
    for part in wanted.lstrip("=").split(","):
        part = part.split(":")[0]  # a port may follow
        for name in interfaces:
            if name == part or (not exact and name.startswith(part)):
                return name
    return ""


def _on_the_way_to(address: str) -> str:
    """The interface by which this machine reaches that one; on that one itself, that of its address or of the default route."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing, only looks up the route
        source = probe.getsockname()[0]
        if not _is_loopback(source):
            return next((name for name, own in _addresses().items() if own == source), "")
    outward = {name: own for name, own in _addresses().items() if not _is_loopback(own)}
    by_default = [name for name in _default_routes() if name in outward]
    return by_default[0] if by_default else next(iter(outward), "") if len(outward) == 1 else ""


def _addresses() -> dict[str, str]:
    """The IPv4 addresses of this machine's interfaces by their names."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                addresses[name] = socket.inet_ntoa(reply[20:24])
    return addresses


def _default_routes() -> list[str]:
    try:
        lines = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.split()[1] == "00000000"]


def _resolved(name: str) -> str:
    """The address that gloo would take for the name; empty if there is none."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def _is_loopback(address: str) -> bool:
    """Also of a name without an address: gloo takes the loopback interface then."""
    return not address or ipaddress.ip_address(address.split("%")[0]).is_loopback
