"""Cut-outs of real photographs with their alpha masks: the stamps of Debian's package tuxpaint-stamps-default (GPL).

The package is fetched when it is asked for, and nothing of it lies in this repository.
"""

import hashlib
import io
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
from PIL import Image

from utils.errors import DataError

PACKAGE = "tuxpaint-stamps-default"
ADDRESS = f"http://deb.debian.org/debian/pool/main/t/tuxpaint-stamps/{PACKAGE}_2022.06.04-1_all.deb"
SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
ROOT = "./usr/share/tuxpaint/stamps/"
DRAWN = ("cartoon",)  # folders of drawings
SECONDS = 60  # without a byte, after which the network is given up


class Stamp(NamedTuple):
    """A photograph of one thing."""

    kind: str  # its folder in the package, such as 'animals'
    name: str  # its path there
    pixels: np.ndarray  # uint8 (H, W, 4), cut to what is not transparent


def stamps(kinds: tuple[str, ...], side: int) -> list[Stamp]:
    """The photographs of these kinds, sorted by name, with sides of at most `side` px.

    Raises:
        DataError: the package cannot be fetched, or is another one than is known.
    """
    with tarfile.open(fileobj=io.BytesIO(_member(_package(), b"data.tar"))) as archive:
        found = [
            Stamp(kind, entry.name.removeprefix(ROOT), pixels)
            for entry in archive
            if (kind := entry.name.removeprefix(ROOT).partition("/")[0]) in kinds
            and entry.name.endswith(".png")
            and not set(DRAWN) & set(entry.name.split("/"))
            for pixels in _cut_out(archive.extractfile(entry).read(), side)
        ]
    return sorted(found, key=lambda stamp: stamp.name)


def _cut_out(data: bytes, side: int) -> Iterator[np.ndarray]:
    """The opaque part of a picture; nothing where all of it is opaque, or next to nothing."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    box = image.getchannel("A").point(lambda level: 255 * (level > 127)).getbbox()
    if not box or min(box[2] - box[0], box[3] - box[1]) < 32:
        return
    image = image.crop(box)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    if (pixels[..., 3] > 127).mean() < 0.98:
        yield pixels


def _package() -> bytes:
    """The .deb file: from Debian's mirror, or by apt-get where only that has a way to one."""
    reasons = []
    for fetch in (_by_http, _by_apt):
        try:
            data = fetch()
        except (OSError, urllib.error.URLError, subprocess.SubprocessError) as error:
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        if hashlib.sha256(data).hexdigest() == SHA256:
            return data
        reasons.append("it is another version than is known")
    raise DataError(
        f"{PACKAGE}: cannot be fetched ({'; '.join(' '.join(reason.split())[:120] for reason in reasons)}); check the network, "
        "or take --stand-in, which needs none"
    )


def _by_http() -> bytes:
    with urllib.request.urlopen(ADDRESS, timeout=SECONDS) as answer:
        return answer.read()


def _by_apt() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, capture_output=True, timeout=600)
        return next(Path(folder).glob("*.deb")).read_bytes()


def _member(package: bytes, name: bytes) -> bytes:
    """A file in an `ar` archive, by the beginning of its name."""
    place = 8  # after '!<arch>\n'
    while place < len(package):
        head = package[place : place + 60]
        size = int(head[48:58])
        if head.startswith(name):
            return package[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise DataError(f"{PACKAGE}: holds no {name.decode()}; fetch it again")
