"""Shards on this machine's disk, which all its processes share: each is fetched once, and the folder has a limit.

Whoever fetches a shard writes `.<name>.part` and holds a lock on it; whole and checked, it gets its name by a rename. Whoever
reads a shard holds a shared lock on it, and only a shard that nobody holds is evicted, the one first that was read
longest ago. Locks are the operating system's (flock): those of a killed process are gone with it, and what it left of a
shard is removed by the next one.
"""

import contextlib
import fcntl
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Sequence

from utils.errors import ConfigError, OutputError
from utils.files import unwritable
from utils.rng import fingerprint
from utils.urls import shown

from .origin import FetchError
from .remote_stream import BUFFER, RemoteShard, RemoteStream, Tries

POLL = 0.1  # seconds between two looks at a shard that another process fetches
STEP = 2**23  # bytes by which a file grows whose size nobody says
KEY = "DATA.SHARD_CACHE"
LOCK = ".lock"
GB = 1e9


class NoRoom(Exception):
    """The folder is full of shards that are being read."""


class ShardCache:
    """
    Args:
        folder: on a disk of this machine; is made.
        most: bytes that it may hold.
    """

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most
        self.said = False  # that it was too small for what is being read

    def prepare(self, shards: Sequence[RemoteShard]) -> None:
        """Makes the folder.

        Raises:
            ConfigError: it could not hold the largest of the shards.
            OutputError: it cannot be written to, or its disk has no room for what it may hold.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                held = sum(size for _, size, _ in self._files())
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise unwritable(self.folder, error, KEY) from error
        largest = max(shards, key=lambda shard: shard.size)
        if largest.size > self.most:
            raise ConfigError(
                f"{KEY}_GB: is {self.most / GB:g}, and {shown(largest.url)} alone has {largest.size / GB:.3g} GB; raise it"
            )
        sizes = [shard.size for shard in shards]
        wanted = min(self.most, sum(sizes)) if all(sizes) else self.most
        if wanted > held + free:
            reason = f"its disk has room for {(held + free) / GB:.3g} GB, and {wanted / GB:.3g} GB are to be kept there"
            raise OutputError(str(self.folder), reason, f"free space, or lower {KEY}_GB")

    def open(self, shard: RemoteShard, tries: Tries) -> Optional[BinaryIO]:
        """The whole shard, which is not evicted before the file is closed; None: what the folder may hold is being read.

        Raises:
            DataError, OutputError: it cannot be fetched, or not be written.
        """
        path = self.folder / self.name_of(shard)
        try:
            while True:
                file = self._present(path) or self._fetched(shard, path, tries)
                if file is not None:
                    return file
                time.sleep(POLL)
        except NoRoom:
            if not self.said:
                self.said = True
                text = f"{KEY}_GB: is {self.most / GB:g}, all of which is being read; {shown(shard.url)} is read past the cache"
                print(text, file=sys.stderr, flush=True)
            return None

    @staticmethod
    def name_of(shard: RemoteShard) -> str:
        """A name that is another one for another shard, or for another state of it, as far as that is known."""
        which = fingerprint(map(os.fsencode, (shown(shard.url), str(shard.size), shard.sha256 or shard.tag)))
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", shown(shard.url))[-60:].lstrip(".")
        return f"{which}-{readable}"

    def _present(self, path: Path) -> Optional[BinaryIO]:
        """The shard, held for reading, if it is there."""
        try:
            file = open(path, "rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink == 0:  # it has been evicted meanwhile
            file.close()
            return None
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now))  # when it was last used
        return file

    def _fetched(self, shard: RemoteShard, path: Path, tries: Tries) -> Optional[BinaryIO]:
        """The shard, held for reading; None: another process is fetching it.

        Raises:
            NoRoom: see `_reserve`.
        """
        temporary = path.with_name(f".{path.name}.part")
        try:
            file: BinaryIO = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise unwritable(temporary, error, KEY) from error
        if not _lock_now(file, fcntl.LOCK_EX) or not _is_named(file, temporary):
            file.close()
            return None
        try:
            self._fill(file, shard, tries)
            os.fsync(file.fileno())
            os.rename(temporary, path)
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(0)
            return file
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            file.close()
            if isinstance(error, OSError):
                reason = f"has no place for {shown(shard.url)} ({error.strerror or error})"
                raise OutputError(str(self.folder), reason, f"free space, or lower {KEY}_GB") from error
            raise

    def _fill(self, file: BinaryIO, shard: RemoteShard, tries: Tries) -> None:
        """Fetches the shard into the file, and checks it."""
        damages = set()
        while True:
            file.seek(0)
            file.truncate(0)
            try:
                with RemoteStream(shard, tries) as stream:
                    self._copy(stream, file, shard.size)
                return
            except FetchError as error:  # all of it came, and its bytes are wrong
                error.final = str(error) in damages  # the same ones again
                damages.add(str(error))
                tries.failed(error)

    def _copy(self, stream: RemoteStream, file: BinaryIO, size: int) -> None:
        reserved = size
        self._reserve(file, size)
        while data := stream.read(BUFFER):
            if file.tell() + len(data) > reserved:
                reserved = file.tell() + max(STEP, len(data))
                self._reserve(file, reserved)
            file.write(data)
        file.truncate(file.tell())

    def _reserve(self, file: BinaryIO, size: int) -> None:
        """Gives the file so many bytes of the disk, for which others are evicted.

        Raises:
            NoRoom: those are being read.
        """
        with self._alone():
            files = sorted(self._files())
            used = sum(held for _, held, _ in files) + size - os.fstat(file.fileno()).st_size
            for _, held, path in files:
                if used <= self.most:
                    break
                if _evict(path):
                    used -= held
            if used > self.most:
                raise NoRoom
            if size:
                os.posix_fallocate(file.fileno(), 0, size)

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, bytes and name of each shard, whole or not."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has been renamed or removed meanwhile
                if path.name != LOCK:
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        return files

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process evicts or reserves."""
        with open(self.folder / LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lock_now(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Whether the open file still has that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _evict(path: Path) -> bool:
    """Removes a file that nobody reads or fetches."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if _lock_now(file, fcntl.LOCK_EX):
            path.unlink(missing_ok=True)
            return True
    return False
