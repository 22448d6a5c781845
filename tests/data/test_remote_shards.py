"""Shards behind HTTP and behind commands: what breaks on the way, what is refused, and the cache on the disk."""

import base64
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

import prepare_data
from conftest import Stop, assert_same, error_of, free_port, history, load, run, stop_at_update
from data.batches import Item
from data.lanes import Lanes
from data.remote import origin, remote_stream, shard_cache
from data.remote.remote_stream import RemoteShard, Tries
from data.remote.shard_cache import ShardCache
from data.remote.shelf import Fetching, Shelf
from data.sample import Sample
from data.schedule import Schedule
from data.sources import Opening, open_source
from data.stream import TrainStream
from engine.checkpoints.resume import config_changes
from store import Store
from utils.errors import DataError, OutputError

SHARD = "val-000001.tar"


@pytest.fixture(scope="module")
def shards(tmp_path_factory, digits) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    arguments = ["shards", str(digits), "--output", str(folder), "--images-per-shard", "10", "--workers", "0"]
    assert prepare_data.main(arguments) == 0
    return folder


@pytest.fixture
def copied(tmp_path, shards) -> Path:
    shutil.copytree(shards, tmp_path / "there")
    return tmp_path / "there"


@pytest.fixture
def store(shards):
    with Store(shards) as store:
        yield store


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote_stream, "FIRST_WAIT", 1e-3)


def source(place: str, split: str = "val", **how):
    return open_source("wds", split, place, opening=Opening(num_classes=3, fetching=Fetching(**{"tries": 4, **how})))


def keys(source) -> list[str]:
    return [sample.key for shard in range(len(source.shards)) for sample in source.read(shard)]


def say(folder: Path, **changes) -> None:
    """Changes what _info.json says of the validation images; None takes it out."""
    info = json.loads((folder / "_info.json").read_text())
    about = info["splits"]["val"]
    about.update(changes)
    info["splits"]["val"] = {name: value for name, value in about.items() if value is not None}
    (folder / "_info.json").write_text(json.dumps(info))


# What can be named


def test_the_ways_to_name_them(shards, store):
    """By the info, by patterns in DATA_PATH and in the split, and by commands: always the images of the folder."""
    local = source(str(shards))
    pattern = "val-{000000..000002}.tar"
    ways = [
        (store.url, "val"),
        (f"{store.url}/{pattern}", "val"),
        (f"{store.url}/{pattern}?key=1|29", "val"),
        ("", f"{store.url}/{pattern}|29"),
        (f"pipe:cat {shards}/{{}}", "val"),
        (f"pipe:cat {shards}/{pattern}|29", "val"),
        (f"pipe:cat {shards}/train-{{0..9}}.tar|29", f"pipe:cat {shards}/{pattern}|29"),
    ]
    for place, split in ways:
        remote = source(place or str(shards), split)
        assert len(remote) == 29 and keys(remote) == keys(local), (place, split)
        assert not any("key=1" in shard for shard in remote.shards)  # which may be a secret
    assert source(store.url).fingerprint == local.fingerprint  # a run may go on from the one with the other
    assert len(source(f"{store.url}/train-{{000000..000005}}.tar", "val")) == 29  # of the info beside them


@pytest.mark.parametrize(
    "place, split, part",
    [
        ("pipe:cat {}/train-{{0..9}}.tar|60", "val", "DATA.DATA_PATH: its command gives no shards of 'val'; name them"),
        ("s3://bucket/imagenet", "val", "s3:// cannot be opened"),
        ("pipe:no_such_command {{}}", "val", "ended with status 127; 1 try"),
        ("pipe:cat {}/{{}}", "val-{{0..1}};rm.tar|29", "cannot stand in the command of DATA.DATA_PATH"),
    ],
)
def test_what_is_not_named_well(shards, place, split, part):
    with pytest.raises(DataError, match=part):
        source(place.format(shards), split.format())


# What breaks on the way


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("faults", [[503, 429], ["cut", "cut", "cut"], ["drop", 500, "cut"]])
def test_a_shard_comes_whole_in_the_end(shards, store, tmp_path, faults, ranges, cached):
    store.faults[SHARD], store.ranges = list(faults), ranges
    how = {"cache": str(tmp_path / "cache"), "cache_bytes": 10**9} if cached else {}
    assert keys(source(store.url, **how)) == keys(source(str(shards)))
    assert store.whole(SHARD) == len(faults) + 1
    if faults == ["cut"] * 3 and ranges:  # each goes on where the one before broke off
        size = (shards / SHARD).stat().st_size
        places = [int(part[6:-1] or 0) for name, part in store.requests if name == SHARD and part != "bytes=0-0"]
        assert places == sorted(places) and places[1] == size // 2 and places[2] > places[1]


def test_a_command_is_started_again(shards, tmp_path):
    """It fails, then ends too early without a word, then gives all; what was read is not given twice."""
    script = tmp_path / "fetch"
    script.write_text(
        f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n+1)) > {tmp_path}/n; f={shards}/$1\n"
        "case $1.$n in val*.0) head -c 3000 $f; exit 7;; val*.1) head -c 9000 $f;; *) cat $f;; esac\n"
    )
    opened = source(f"pipe:sh {script} {{}}")
    (tmp_path / "n").write_text("0")
    assert keys(opened) == keys(source(str(shards)))
    assert int((tmp_path / "n").read_text()) == 3 + 2


@pytest.mark.parametrize(
    "faults, error, part",
    [
        ([404], DataError, r"cannot be fetched \(status 404, Not Found; 1 try\); correct DATA.DATA_PATH"),
        ([403], DataError, r"\(status 403, Forbidden; 1 try\)"),
        ([503] * 9, OutputError, r"\(status 503, Service Unavailable; 4 tries\); look at the network"),
        (["cut"] * 9, OutputError, r"\(it ends after \d+ of \d+ bytes; 4 tries\)"),
        (["short"], DataError, "after [0-9]+ images .*(no end|unexpected end of data)"),
    ],
)
def test_a_shard_that_does_not_come(copied, faults, error, part):
    """Nor is the rest of it left out in silence where nobody says how long it is."""
    say(copied, shard_bytes=None, shard_sha256=None)
    with Store(copied) as store:
        opened = source(store.url)
        if faults == ["short"]:
            opened.shelf.shards[1] = RemoteShard(f"{store.url}/{SHARD}")
        store.faults[SHARD] = list(faults)
        with pytest.raises(error, match=f"^{store.url}/{SHARD}: .*{part}"):
            list(opened.read(1))


def test_what_is_refused_before_the_first_step(copied, write_config):  # noqa: F811
    """By --check, with one line: no server, no shard, another size."""

    def check(url: str, *options) -> str:
        config = write_config(DATA={"DATASET": "wds", "DATA_PATH": url, "SHARD_TRIES": 2})
        return str(error_of("--cfg", config, "--check", "--opts", *options, "DATA.NUM_WORKERS", 0))

    closed = f"http://127.0.0.1:{free_port()}"
    assert check(closed).startswith(f"{closed}/_info.json: cannot be fetched (Connection refused; 2 tries); look at")
    with Store(copied) as store:
        (copied / SHARD).rename(copied / "away")
        assert check(store.url).startswith(f"{store.url}/{SHARD}: cannot be fetched (status 404, Not Found; 1 try)")
        shutil.copy(copied / "val-000002.tar", copied / SHARD)
        assert "bytes, and should have" in check(store.url)
        (copied / "away").rename(copied / SHARD)
        line = check(store.url, "DATA.SHARD_CACHE", copied / "cache", "DATA.SHARD_CACHE_GB", 1e-6)
        assert line.startswith("DATA.SHARD_CACHE_GB: is 1e-06, and ") and line.endswith(" GB; raise it")
        (copied / "file").touch()
        assert "file: cannot be written" in check(store.url, "DATA.SHARD_CACHE", copied / "file")


def test_a_name_that_no_server_has(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DataError, match=r"http://nowhere/_info.json: .*\(Name or service not known; 1 try\)"):
        source("http://nowhere")


@pytest.mark.parametrize("said_by", ["shard_sha256", "x-goog-hash", "Content-MD5"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_wrong_hash_is_refused(copied, tmp_path, said_by, cached):
    """Also if the tar is whole. What is fetched into the cache is fetched once more before that, and is not kept."""
    wrong = base64.b64encode(hashlib.md5(b"another").digest()).decode()
    if said_by == "shard_sha256":
        info = json.loads((copied / "_info.json").read_text())["splits"]["val"]
        say(copied, shard_sha256=["0" * 64 if name == SHARD else sha256 for name, sha256 in zip(info["filenames"], info["shard_sha256"])])  # fmt: skip
    else:
        say(copied, shard_sha256=None)
    how = {"cache": str(tmp_path / "cache"), "cache_bytes": 10**9} if cached else {}
    with Store(copied) as store:
        if said_by != "shard_sha256":
            store.headers[SHARD] = {said_by: f"crc32c=AAAAAA==,md5={wrong}" if "goog" in said_by else wrong}
        opened = source(store.url, **how)
        assert len(list(opened.read(0))) == 10
        kind = "SHA-256" if said_by == "shard_sha256" else "MD5"
        with pytest.raises(
            DataError, match=f"{SHARD}: cannot be fetched .its {kind} is .*, and should be .*{1 + cached} tr"
        ):
            list(opened.read(1))
        assert store.whole(SHARD) == 1 + cached
    if cached:
        assert not [name for name in os.listdir(tmp_path / "cache") if SHARD in name]


# The cache


def kept(folder: Path) -> list[str]:
    """What it keeps, by the shards' numbers."""
    return sorted(name[-7:-4] for name in os.listdir(folder) if name.endswith(".tar"))


def shelf(store: Store, folder: Path, shards: Path, room: float) -> Shelf:
    """The three validation shards, with a cache that has room for so many of them."""
    files = sorted(shards.glob("val-*.tar"))
    largest = max(path.stat().st_size for path in files)
    listed = [RemoteShard(f"{store.url}/{path.name}", path.stat().st_size) for path in files]
    return Shelf(dict(enumerate(listed)), Fetching(4, str(folder), int(largest * room)))


def test_the_shard_read_longest_ago_makes_room_but_none_that_is_read(store, shards, tmp_path, capfd):
    held = shelf(store, tmp_path, shards, 2.1)

    def read(number: int) -> None:
        with held.opened(number) as file:
            assert file.read() == (shards / f"val-00000{number}.tar").read_bytes()

    for number in (0, 1, 0):
        read(number)
    assert kept(tmp_path) == ["000", "001"] and store.whole("val-000000.tar") == 1
    read(2)
    assert kept(tmp_path) == ["000", "002"]
    with held.opened(0):
        read(1)
        assert kept(tmp_path) == ["000", "001"]  # though 2 was read after it
        with held.opened(1):
            read(2)
            read(2)
            assert kept(tmp_path) == ["000", "001"]
            assert capfd.readouterr().err.count("all of which is being read") == 1
    assert sorted(os.listdir(tmp_path)) == sorted([".lock", *(n for n in os.listdir(tmp_path) if n.endswith("tar"))])


def test_a_shard_of_unknown_size_grows_and_evicts(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_cache, "STEP", 4096)
    files = sorted(shards.glob("val-*.tar"))
    sizes = [path.stat().st_size for path in files]
    held = Shelf(
        {n: RemoteShard(f"pipe:cat {path}") for n, path in enumerate(files)},
        Fetching(4, str(tmp_path), max(sizes) + 8192),
    )
    for number, path in enumerate(files):
        with held.opened(number) as file:
            assert file.read() == path.read_bytes()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == sizes[number]


def in_child(work) -> int:
    """Calls it in a forked process, which ends with 0 if nothing is raised; returns the process' id."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return pid


def test_processes_fetch_a_shard_once(store, shards, tmp_path):
    """One that is killed meanwhile leaves nothing that is in the way."""
    store.faults["val-000000.tar"] = ["drop"] * 2 + ["good"]

    def read() -> None:
        with shelf(store, tmp_path, shards, 3).opened(0) as file:
            assert file.read() == (shards / "val-000000.tar").read_bytes()

    pids = [in_child(read) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert store.whole("val-000000.tar") == 3
    unfinished = tmp_path / f".{ShardCache.name_of(shelf(store, tmp_path, shards, 3).shards[1])}.part"

    def read_and_die() -> None:
        shard_cache.RemoteStream.readinto = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with shelf(store, tmp_path, shards, 3).opened(1):
            pass

    assert os.waitpid(in_child(read_and_die), 0)[1] == signal.SIGKILL and unfinished.exists()
    with shelf(store, tmp_path, shards, 3).opened(1) as file:
        assert file.read() == (shards / SHARD).read_bytes()
    assert not unfinished.exists()


@pytest.mark.parametrize("room", [0, 1.1, 9])
def test_one_process_goes_on_with_the_shards_of_three(store, shards, tmp_path, room):
    """It reads three at a time, without a cache, past one that is too small for them, and with one that holds all."""

    def given(opened) -> list:
        images = SimpleNamespace(source=opened, item=lambda stored, *seed: Item(Sample(None, 0, (stored.key, *seed))))
        stream = TrainStream(images, Schedule(12, 4, 0, 1, seed=1), buffer=5)
        stream.set_position(0, 3, Lanes(3, 1, 4))
        return [item.sample.key for items in stream for item in items]

    largest = max(path.stat().st_size for path in shards.glob("train-*.tar"))
    store.faults["train-000001.tar"] = [503, "cut"]
    how = {"cache": str(tmp_path), "cache_bytes": int(room * largest)} if room else {}
    local = given(source(str(shards), "train"))
    assert given(source(store.url, "train", **how)) == local
    assert len({key for key, *_ in local}) == 36


def test_a_full_disk_ends_in_a_line_and_leaves_nothing(store, shards, tmp_path, monkeypatch):
    held = shelf(store, tmp_path, shards, 3)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OutputError, match=r"has no place for .*val-000000.tar \(No space left on device\); free"):
            with held.opened(0):
                pass
    assert os.listdir(tmp_path) == [".lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("", (), {"free": 10})())
    with pytest.raises(
        OutputError, match="its disk has room for 1e-08 GB, and .* are to be kept there; free space, or"
    ):
        shelf(store, tmp_path, shards, 3)


def test_another_state_of_a_shard_has_another_name():
    names = {
        ShardCache.name_of(RemoteShard(*about))
        for about in [
            ("http://a/x.tar", 5),
            ("http://a/x.tar", 6),
            ("http://b/x.tar", 5),
            ("http://a/x.tar", 5, "", "e"),
        ]
    }
    assert len(names) == 4 and all(name.endswith("x.tar") for name in names)


def test_waits_double_and_are_bounded(monkeypatch, capsys):
    waits: list[float] = []
    tries = Tries("http://a/x.tar?secret", 12, waits.append)
    monkeypatch.setattr(remote_stream, "FIRST_WAIT", 0.5)
    for _ in range(11):
        tries.failed(origin.FetchError("status 503"))
    with pytest.raises(OutputError, match="12 tries"):
        tries.failed(origin.FetchError("status 503"))
    assert all(second >= 1.99 * first for first, second in zip(waits, waits[1:6])) and max(waits) == 30.0
    said = capsys.readouterr().err
    assert "http://a/x.tar: status 503; is asked for again in 30 s, 11 of 12 tries" in said and "secret" not in said
    Tries("a", 3, waits.append).failed(origin.FetchError("status 429", wait=7.0))
    assert waits[-1] == 7.0  # as the server asks


# A run


def test_a_run_over_a_bad_network_has_the_bits_of_one_from_the_disk(write_config, copied, tmp_path, monkeypatch):  # noqa: F811
    """Two loading processes; cut off in mid-epoch and resumed, through a cache that holds two shards of nine."""
    more = {"TRAIN": {"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2}}
    data = {"DATASET": "wds", "DATA_PATH": str(copied), "NUM_WORKERS": 2}
    run("--cfg", write_config(DATA=data, **more), "--tag", "disk")
    with Store(copied) as store:
        for number in range(6):
            store.faults[f"train-00000{number}.tar"] = [503, "cut", "drop"]
        size = max(path.stat().st_size for path in copied.glob("*.tar"))
        cache = {"SHARD_CACHE": str(tmp_path / "cache"), "SHARD_CACHE_GB": 2.5 * size / 1e9}
        config = write_config(DATA={**data, "DATA_PATH": store.url, **cache}, **more)
        restore = stop_at_update(monkeypatch, 4)
        with pytest.raises(Stop):
            run("--cfg", config, "--tag", "network")
        restore()
        run("--cfg", config, "--tag", "network")
        assert not any(store.faults[name] for name in store.faults)
    folders = [tmp_path / "output/fat_tiny" / tag for tag in ("disk", "network")]
    saved = [load(folder / "last.pth") for folder in folders]
    for checkpoint in saved:
        del checkpoint["config"]
    assert_same(*saved)
    assert history(folders[0]) == history(folders[1])
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 2.5 * size


def test_a_new_key_in_a_url_is_no_change_and_none_is_said():
    old, new = ({"DATA": {"DATA_PATH": f"https://host/shards?key={key}"}} for key in "ab")
    assert config_changes(old, new) == []
    assert config_changes(old, {"DATA": {"DATA_PATH": "https://other/shards?key=b"}}) == [
        "DATA.DATA_PATH changed from 'https://host/shards' to 'https://other/shards'"
    ]
