"""A shard's bytes from the first to the last: what breaks on the way is asked for again, from where it broke off."""

import hashlib
import io
import os
import sys
import time
import zlib
from typing import Any, Callable, NamedTuple, Optional

from utils.errors import DataError, OutputError, UserError
from utils.urls import shown

from .origin import Answer, FetchError, ask

FIRST_WAIT = 0.5  # seconds after the first failure; twice as long after each further one
LONGEST_WAIT = 30.0
SAID_FROM = 2.0  # seconds of a wait that is said
BUFFER = 2**20


class RemoteShard(NamedTuple):
    """A shard, and what is said of it by the list of shards or by the store."""

    url: str
    size: int = 0  # bytes; 0: nobody says
    sha256: str = ""
    tag: str = ""  # the store's, which changes with the shard; '': not asked for, or none


class Tries:
    """How often a shard has been asked for in vain.

    The waits double. Processes whose requests were refused at one time come back at different ones.
    """

    def __init__(self, url: str, most: int, sleep: Callable[[float], Any] = time.sleep):
        self.url, self.most, self.sleep, self.count = url, most, sleep, 0

    def failed(self, error: FetchError) -> None:
        """Waits for the next try.

        Raises:
            DataError: another one would meet the same.
            OutputError: there have been enough.
        """
        self.count += 1
        if error.final or self.count >= self.most:
            raise self.error(error) from error
        spread = zlib.crc32(f"{self.url} {os.getpid()}".encode()) % 1000 / 2000
        doubled = FIRST_WAIT * 2 ** (self.count - 1) * (1 + spread)
        wait = min(max(doubled, error.wait), LONGEST_WAIT)
        if wait >= SAID_FROM:
            line = f"{shown(self.url)}: {error}; is asked for again in {wait:.0f} s, {self.count} of {self.most} tries"
            print(line, file=sys.stderr, flush=True)
        self.sleep(wait)

    def error(self, error: FetchError) -> UserError:
        """The error that ends it."""
        tries = "1 try" if self.count == 1 else f"{self.count} tries"
        reason = f"cannot be fetched ({error}; {tries})"
        if error.final:
            return DataError(
                shown(self.url), reason, "correct DATA.DATA_PATH or the split, or see to it that it can be read"
            )
        remedy = "look at the network and the store, or raise DATA.SHARD_TRIES, and start the same command again"
        return OutputError(shown(self.url), reason, remedy)


def require_size(shard: RemoteShard, size: int) -> None:
    """Raises DataError: the store says another size than the list of shards."""
    if shard.size and size and size != shard.size:
        reason = f"has {size} bytes, and should have {shard.size}"
        raise DataError(shown(shard.url), reason, "put the shard there again, or the _info.json that belongs to it")


class RemoteStream(io.RawIOBase):
    """The bytes of a shard, which has the size and the hashes that are said of it when its end has been read.

    Args:
        shard: with `sha256` its bytes are checked; else by the MD5 that the store gives, if it does.
        tries: counts the failures.

    Raises, while it is read:
        DataError, OutputError: it cannot be fetched, see `Tries`; or it has another size.
        FetchError: it was read to its end, and its bytes are not those that are said.
    """

    def __init__(self, shard: RemoteShard, tries: Tries):
        self.shard, self.tries = shard, tries
        self.answer: Optional[Answer] = None
        self.position = 0  # bytes given
        self.tag, self.expected = "", shard.sha256
        self.digest = hashlib.sha256() if shard.sha256 else None
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ended:
            try:
                data = self._next(len(buffer))
            except FetchError as error:
                self._hang_up()
                self.tries.failed(error)
                continue
            if not data:
                self.ended = True
                self._require_hash()
                break
            buffer[: len(data)] = data
            return len(data)
        return 0

    def _next(self, most: int) -> bytes:
        if self.answer is None:
            self._call()
        assert self.answer is not None
        data = self.answer.read(most)
        if data:
            self.position += len(data)
            if self.digest:
                self.digest.update(data)
            return data
        size = self.shard.size or self.answer.size
        if size and self.position != size:
            raise FetchError(f"it ends after {self.position} of {size} bytes")
        return data

    def _call(self) -> None:
        """Asks for the bytes from `position` on; what comes before them is read and left."""
        self.answer = answer = ask(self.shard.url, self.position)
        require_size(self.shard, answer.size)
        if self.position and answer.tag != self.tag and not self.shard.sha256:  # which will show it
            raise FetchError("it has been replaced while it was read", final=True)
        self.tag = answer.tag
        if not self.expected and answer.md5:
            self.expected = answer.md5
            self.digest = None if self.position else hashlib.md5(usedforsecurity=False)
        behind = self.position - answer.start
        while behind > 0:
            data = answer.read(min(behind, BUFFER))
            if not data:
                raise FetchError(f"it ends after {self.position - behind} bytes, of which {self.position} came before")
            behind -= len(data)

    def _require_hash(self) -> None:
        if self.digest and self.digest.hexdigest() != self.expected:
            name = "SHA-256" if self.shard.sha256 else "MD5"
            raise FetchError(f"its {name} is {self.digest.hexdigest()}, and should be {self.expected}")

    def _hang_up(self) -> None:
        if self.answer is not None:
            self.answer.close()
            self.answer = None

    def close(self) -> None:
        self._hang_up()
        super().close()
