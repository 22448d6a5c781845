"""Links between GPUs by name, in bytes/s of one direction, with where the figure is from."""

import argparse
import math
from typing import NamedTuple


class Link(NamedTuple):
    bytes_per_second: float
    source: str


GB = 1e9
GIVEN = "as given"
IN_NODE = {
    "nvlink4": Link(450 * GB, "NVLink 4: 900 GB/s of an H100 in both directions together (NVIDIA's H100 datasheet)"),
    "nvlink3": Link(300 * GB, "NVLink 3: 600 GB/s of an A100 in both directions together (NVIDIA's A100 datasheet)"),
    "pcie5": Link(63 * GB, "PCIe 5.0, 16 lanes of 32 GT/s in 128b/130b (PCI-SIG)"),
    "pcie4": Link(31.5 * GB, "PCIe 4.0, 16 lanes of 16 GT/s in 128b/130b (PCI-SIG)"),
}
BETWEEN_NODES = {
    "8xib400": Link(8 * 50 * GB, "eight 400 Gb/s InfiniBand (NDR) ports in a machine, as a DGX H100 has (NVIDIA's DGX H100 datasheet)"),
    "ib400": Link(50 * GB, "one 400 Gb/s InfiniBand (NDR) port in a machine"),
    "ib200": Link(25 * GB, "one 200 Gb/s InfiniBand (HDR) port in a machine"),
    "eth100": Link(12.5 * GB, "one 100 Gb/s Ethernet port in a machine"),
    "eth25": Link(3.125 * GB, "one 25 Gb/s Ethernet port in a machine"),
}  # fmt: skip


def link_of(links: dict[str, Link]):
    """A type for argparse: one of the names, or a number of GB/s."""

    def read(text: str) -> Link:
        if text in links:
            return links[text]
        try:
            speed = float(text)
        except ValueError:
            speed = math.nan
        if not 0 < speed < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number of GB/s nor one of {', '.join(links)}")
        return Link(speed * GB, GIVEN)

    return read
