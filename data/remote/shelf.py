"""What a source of shards sees of those that lie elsewhere: what is there, and each as an open file."""

import contextlib
import functools
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Mapping, NamedTuple, Optional

from utils.errors import UserError
from utils.processes.launch import read_launch
from utils.urls import is_http, shown

from ..workers import reading
from .origin import ABSENT, FetchError, ask
from .remote_stream import BUFFER, RemoteShard, RemoteStream, Tries, require_size
from .shard_cache import ShardCache

AT_ONCE = 16  # servers' answers that are waited for at the same time


class Fetching(NamedTuple):
    """How shards are fetched: DATA.SHARD_TRIES, DATA.SHARD_CACHE, DATA.SHARD_CACHE_GB in bytes."""

    tries: int = 8
    cache: str = ""
    cache_bytes: int = 0


class Shelf:
    """Shards that lie elsewhere, by what each of them is said to be.

    Servers are asked for them, so that one that is missing is known before it is wanted.

    Args:
        shards: by any numbers; what is not known of them is 0 or ''.

    Raises:
        DataError, OutputError, ConfigError: a server cannot be reached or lacks a shard; or what `ShardCache.prepare` raises.
    """

    def __init__(self, shards: Mapping[int, RemoteShard], how: Fetching):
        self.how = how
        self.shards = _looked_up(shards, how.tries)
        self.cache = ShardCache(Path(how.cache), how.cache_bytes) if how.cache and shards else None
        if self.cache:
            self.cache.prepare(list(self.shards.values()))

    @contextlib.contextmanager
    def opened(self, number: int) -> Iterator[BinaryIO]:
        """A shard's bytes, of which the block must read all.

        Raises:
            DataError, OutputError: they cannot be fetched, or are not those that are said; see `RemoteStream`.
        """
        shard = self.shards[number]
        tries = Tries(shard.url, self.how.tries)
        kept = self.cache.open(shard, tries) if self.cache else None
        with kept or io.BufferedReader(RemoteStream(shard, tries), BUFFER) as file:
            try:
                yield file
                while file.read(BUFFER):  # what follows the archive's end
                    pass
            except FetchError as error:
                error.final = True  # its images are in use
                tries.count += 1
                raise tries.error(error) from error


def read_small(url: str, tries: int) -> Optional[bytes]:
    """What a URL or command gives; None, where a server has no such file.

    Raises:
        DataError, OutputError: it cannot be fetched.
    """
    count = Tries(url, tries)
    try:
        with RemoteStream(RemoteShard(url), count) as stream:
            return b"".join(iter(functools.partial(stream.read, BUFFER), b""))
    except UserError as error:
        if isinstance(error.__cause__, FetchError) and error.__cause__.status in ABSENT:
            return None
        raise


def _looked_up(shards: Mapping[int, RemoteShard], tries: int) -> dict[int, RemoteShard]:
    """The shards with what the servers say of them.

    Where a list says their sizes, each process of a run asks for its share of them: they are many.
    """
    asked = [number for number, shard in shards.items() if is_http(shard.url)]
    if all(shards[number].size for number in asked):
        launch = read_launch(os.environ)
        asked = asked[launch.rank :: launch.world_size] or asked[:1]
    known = dict(shards)
    ended = threading.Event()
    look = functools.partial(_look, tries=tries, sleep=ended.wait)
    for number in asked[:1]:  # alone, as it tells whether there is a server
        reading(shown(shards[number].url))
        known[number] = look(shards[number])
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for number, shard in zip(asked[1:], pool.map(look, (shards[number] for number in asked[1:]))):
            reading(shown(shard.url))
            known[number] = shard
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return known


def _look(shard: RemoteShard, tries: int, sleep: Callable[[float], Any]) -> RemoteShard:
    """The shard with the size and the tag that its server says, if no list says the size."""
    count = Tries(shard.url, tries, sleep)
    while True:
        try:
            answer = ask(shard.url, 0, 0)
        except FetchError as error:
            count.failed(error)
            continue
        answer.close()
        require_size(shard, answer.size)
        return shard if shard.size else shard._replace(size=answer.size, tag=answer.tag)
