"""Weights named by a URL: by https only, and only with a checksum that the file must have."""

import hashlib
import http.client
import re
import ssl
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import torch
from tqdm import tqdm

from utils.errors import CheckpointError, ConfigError
from utils.files import atomic_write, sha256_of
from utils.processes.launch import Launch
from utils.processes.peers import Peers

CHUNK = 2**20
HELP = "end it with #sha256=<64 digits>, or download the file, check it, and give its path"


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"is redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def local_file(source: str, launch: Launch, peers: Peers) -> str:
    """`source` itself if it is a path; a URL is downloaded, once per machine, into torch.hub's folder.

    A URL's checksum is its fragment, https://host/file.pth#sha256=<64 hexadecimal digits>, or, as in torch.hub, at
    least 8 of them at the end of the file's name, file-<digits>.pth. A file that was downloaded before is checked again.

    Raises:
        ConfigError: not https, or no checksum.
        CheckpointError: it cannot be downloaded, or the checksum is wrong; nothing is kept.
    """
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
        parts.port
    except ValueError as error:
        raise ConfigError(f"{source}: is no URL ({error}); correct it") from error
    name = Path(parts.path).name
    if parts.scheme != "https":
        raise ConfigError(f"{source}: is no https URL; only those are downloaded")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", parts.fragment) or re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if not match:
        raise ConfigError(f"{source}: has no checksum; {HELP}")
    checksum = match[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{checksum[:16]}-{name}"
    if launch.local_rank == 0 and not (path.exists() and sha256_of(path).startswith(checksum)):
        _download(source.split("#")[0], path, checksum)
    peers.gather(None)  # the other processes wait for it
    return str(path)


def _download(url: str, path: Path, checksum: str) -> None:
    opener = urllib.request.build_opener(_HttpsOnly())
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as spool:
        try:
            with opener.open(url, timeout=60) as response:
                total = int(response.headers.get("Content-Length") or 0) or None
                with tqdm(total=total, unit="B", unit_scale=True, desc=path.name, leave=False, disable=None) as bar:
                    while chunk := response.read(CHUNK):
                        spool.write(chunk)
                        digest.update(chunk)
                        bar.update(len(chunk))
        except (
            urllib.error.URLError,
            ssl.SSLError,
            TimeoutError,
            ConnectionError,
            ValueError,
            http.client.HTTPException,
        ) as error:
            reason = getattr(error, "reason", None) or error
            raise CheckpointError(
                f"{url}: cannot be downloaded ({reason}); check it, or download the file yourself"
            ) from error
        if not digest.hexdigest().startswith(checksum):
            raise CheckpointError(
                f"{url}: has the checksum {digest.hexdigest()}, not {checksum}; it is another file or damaged, nothing of it was kept"
            )
        spool.seek(0)
        with atomic_write(path) as file:
            while chunk := spool.read(CHUNK):
                file.write(chunk)
