"""Asking for a shard's bytes once: from an HTTP server, or from the command that `webdataset` starts.

What webdataset has for http (curl with its own retries) cannot go on where it broke off, takes a shard that ends too early
for a whole one, and does not say the server's status; so http is asked by Python itself. Commands, and the programs that
other URLs stand for (gs://, hf://), are started by webdataset.
"""

import base64
import binascii
import contextlib
import http.client
import re
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any, Optional

import webdataset

from utils.errors import one_line
from utils.urls import is_http

from ..workers import kill_with_children

REMOTE = re.compile(r"^(pipe:|[a-z0-9+]+://)")
STALL = 60.0  # seconds without a byte from a server
LATER = (408, 425, 429)  # statuses below 500 after which another try may succeed
ABSENT = (403, 404, 410)  # of a file that need not be there; S3 says 403 to who may not list its bucket
NO_COMMAND = (126, 127)  # a shell's statuses of a program that it cannot start


class FetchError(Exception):
    """Why a try gave no bytes, or not all.

    Args:
        reason: for the message.
        final: another try would meet the same.
        status: the server's; 0: it has said none.
        wait: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, final: bool = False, status: int = 0, wait: float = 0.0):
        super().__init__(reason)
        self.final, self.status, self.wait = final, status, wait


class Answer:
    """A shard's bytes from some place on, as they come.

    Args:
        stream: a server's response, a file, or webdataset's pipe from a command.
        start: place of the first byte.
        size: bytes of the whole shard, which the server says; 0: it does not.
        tag: changes with the shard; '': the server gives none.
        md5: the shard's, which the store says; '': it does not.
    """

    def __init__(self, stream: Any, start: int = 0, size: int = 0, tag: str = "", md5: str = ""):
        self.stream, self.start, self.size, self.tag, self.md5 = stream, start, size, tag, md5
        self.command = getattr(stream, "proc", None)
        self.bytes = stream.stream if self.command else stream

    def read(self, most: int) -> bytes:
        """The next bytes; none at the end. Raises FetchError."""
        try:
            data = self.bytes.read1(most)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(_reason(error)) from error
        if not data and self.command is not None:
            status = self.command.wait()
            if status:
                raise FetchError(f"the command that fetches it ended with status {status}", status in NO_COMMAND)
        return data

    def close(self) -> None:
        """A command is ended, which would be waited for otherwise."""
        if self.command is not None and self.command.poll() is None:
            kill_with_children(self.command.pid)
        with contextlib.suppress(OSError):
            self.stream.close()
        if self.command is not None:
            self.command.wait()


def ask(url: str, start: int = 0, last: Optional[int] = None) -> Answer:
    """The bytes from `start` on, or from an earlier place, where the server or the command knows only the whole.

    Args:
        last: place of the last byte that is wanted; None: to the end.

    Raises:
        FetchError: it is not there, or not just now.
    """
    return _ask_server(url, start, last) if is_http(url) else _start_command(url)


def _start_command(url: str) -> Answer:
    try:
        pipe = webdataset.gopen(url)
    except (OSError, ValueError, ImportError) as error:
        scheme = url.partition(":")[0]
        reason = (
            f"{scheme}:// cannot be opened ({one_line(error, 200)}); a command can stand there, as pipe:aws s3 cp ... -"
        )
        raise FetchError(reason, final=True) from error
    return Answer(pipe)


def _ask_server(url: str, start: int, last: Optional[int]) -> Answer:
    headers = {"Accept-Encoding": "identity"}  # the shard's own bytes
    if start or last is not None:
        headers["Range"] = f"bytes={start}-{'' if last is None else last}"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL)
    except urllib.error.HTTPError as error:
        error.close()
        final = error.code < 500 and error.code not in LATER
        wait = error.headers.get("Retry-After", "") if error.headers else ""
        seconds = float(wait) if wait.isdecimal() else 0.0
        raise FetchError(f"status {error.code}, {error.reason}", final, error.code, seconds) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchError(_reason(error), _is_final(error)) from error
    fields = response.headers
    part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", fields.get("Content-Range", "")) if response.status == 206 else None
    if response.status == 206 and not part:
        response.close()
        raise FetchError("is given in parts without their places", final=True)
    first, size = (int(part[1]), int(part[2])) if part else (0, int(fields.get("Content-Length") or 0))
    return Answer(response, first, size, fields.get("ETag", ""), _md5(fields, whole=not part))


def _md5(headers: Any, whole: bool) -> str:
    """What the store says of the shard's bytes. An ETag is no such thing: of an upload in parts it is no hash of them."""
    google = re.search(r"md5=([A-Za-z0-9+/=]+)", ", ".join(headers.get_all("x-goog-hash", [])))
    text = google[1] if google else headers.get("Content-MD5", "") if whole else ""
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.b64decode(text, validate=True).hex()
    return ""


def _is_final(error: Exception) -> bool:
    cause = getattr(error, "reason", error)
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_NONAME
    return isinstance(cause, ssl.SSLCertVerificationError) or not isinstance(
        error, (OSError, http.client.HTTPException)
    )


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return one_line(getattr(cause, "strerror", None) or cause or type(error).__name__, 200)
