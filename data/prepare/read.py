"""The images of each format again, for `verify`: (key, label, bytes), and what does not fit together.

A label is None where the format says none: then it is the class' place among the sorted names. What is wrong with one
image is noted in `problems`, and the others are still read; `notes` are of what is left out.
"""

import contextlib
import glob
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Iterator, Optional, Union

from utils.cli import importing
from utils.errors import DataError, UserError
from utils.files import sha256_of

from ..class_maps import wordnet_ids
from ..image_files import is_image, notes_of
from ..sources.archive import describe_leading, inner_name, leading_folders, read_member, require_end
from ..sources.columns import file_in, key_of
from ..sources.wds_members import USUAL, Parts, grouped
from .images import read_folder
from .parquet import NAMES
from .shards import INFO

Item = tuple[str, Optional[int], bytes]
SPLITS = ("train", "val")
COLUMNS = ["image", "label"]  # of parquet files


class Folder:
    """<split>/<class>/*"""

    @staticmethod
    def has(path: Path, split: str) -> bool:
        return (path / split).is_dir()

    @staticmethod
    def read(
        path: Path, split: str, problems: list[str], notes: list[str]
    ) -> tuple[Optional[list[str]], Iterator[Item]]:
        try:
            source = read_folder(path / split, outside_links=True)
        except UserError as error:
            problems.append(str(error))
            return None, iter(())

        notes.extend(source.notes)

        def items() -> Iterator[Item]:
            for i in range(len(source)):
                try:
                    data, label = source.load(i)
                except UserError as error:
                    problems.append(str(error))
                    continue
                yield source.key(i), label, data

        return source.classes, items()


class Zip:
    """<split>.zip with <split>_map.txt, or with a folder for each class"""

    @staticmethod
    def has(path: Path, split: str) -> bool:
        return (path / f"{split}.zip").exists() or (path / f"{split}_map.txt").exists()

    @staticmethod
    def read(
        path: Path, split: str, problems: list[str], notes: list[str]
    ) -> tuple[Optional[list[str]], Iterator[Item]]:
        archive, text = path / f"{split}.zip", path / f"{split}_map.txt"

        def items() -> Iterator[Item]:
            with _noted(archive, problems), zipfile.ZipFile(archive) as file:
                members = [member for member in file.infolist() if not member.is_dir()]
                names = [inner_name(archive, member.filename) for member in members]
                prefix = leading_folders(filter(is_image, names), split, None)
                keys = [name.removeprefix(prefix) for name in names]
                notes.extend(describe_leading(archive, prefix))
                labels = _map_labels(text, split, problems) if text.exists() else None
                if labels is not None:
                    problems.extend(
                        f"{archive}: has no {key}, which {text.name} names" for key in sorted(set(labels) - set(keys))
                    )
                    problems.extend(
                        f"{text}: does not name {key}, which {archive.name} has" for key in keys if key not in labels
                    )
                else:
                    notes.append(f"{text}: no such file; the classes are the folders in the zip")
                    notes.extend(notes_of(archive, [name for name in names if not is_image(name)]))
                for key, member in zip(keys, members):
                    if labels is not None or is_image(key):
                        with _noted(f"{archive}: {member.filename}", problems):
                            yield key, labels.get(key) if labels else None, file.read(member)

        return None, items()


def _map_labels(path: Path, split: str, problems: list[str]) -> dict[str, int]:
    """The labels by <class>/<file>, without folders that all of the map's names begin with."""
    labels: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, label = line.partition("\t")
        if name in labels:
            problems.append(f"{path}: line {number} names {name} again")
        if not label.isdecimal():
            problems.append(f"{path}: line {number} is no '<class>/<file>', tab, label")
            continue
        labels[name] = int(label)
    prefix = leading_folders(labels, split, None)
    return {name.removeprefix(prefix): label for name, label in labels.items()}


class Tar:
    """<split>.tar, with a folder or a tar file for each class"""

    @staticmethod
    def has(path: Path, split: str) -> bool:
        return (path / f"{split}.tar").exists()

    @staticmethod
    def read(
        path: Path, split: str, problems: list[str], notes: list[str]
    ) -> tuple[Optional[list[str]], Iterator[Item]]:
        def items() -> Iterator[Item]:
            archive, others = path / f"{split}.tar", []
            names = [name for name, _ in _tar_files(archive, [], contents=False)]
            prefix = leading_folders(filter(is_image, names), split, None)
            notes.extend(describe_leading(archive, prefix))
            for name, data in _tar_files(archive, problems):
                if is_image(name):
                    yield name.removeprefix(prefix), None, data
                else:
                    others.append(name)
            notes.extend(notes_of(archive, others))

        return None, items()


class Shards:
    """_info.json and the shards that it names"""

    @staticmethod
    def has(path: Path, split: str) -> bool:
        return split in _info(path).get("splits", {}) or any(path.glob(f"{split}-*.tar"))

    @staticmethod
    def read(
        path: Path, split: str, problems: list[str], notes: list[str]
    ) -> tuple[Optional[list[str]], Iterator[Item]]:
        info = _info(path)
        if split not in info.get("splits", {}):
            problems.append(
                f"{path / INFO}: names no split {split!r}, and there are shards of it; let the conversion end"
            )
            return None, iter(())
        about = info["splits"][split]

        def items() -> Iterator[Item]:
            others: list[str] = []
            extra = {file.name for file in path.glob(f"{glob.escape(split)}-*.tar")} - set(about["filenames"])
            problems.extend(f"{path / name}: is not named in {INFO}" for name in sorted(extra))
            hashes = about.get("shard_sha256") or [""] * len(about["filenames"])  # shards made before there were hashes
            for name, length, size, sha256 in zip(
                about["filenames"], about["shard_lengths"], about["shard_bytes"], hashes
            ):
                count = 0
                for item in _samples(path / name, info["classes"], problems, others):
                    count += 1
                    yield item
                if count != length:
                    problems.append(f"{path / name}: has {count} images, {INFO} says {length}")
                if (path / name).exists() and (path / name).stat().st_size != size:
                    problems.append(f"{path / name}: has {(path / name).stat().st_size} bytes, {INFO} says {size}")
                elif (path / name).exists() and sha256 and sha256_of(path / name) != sha256:
                    problems.append(f"{path / name}: has another SHA-256 than {INFO} says")
            if about["num_samples"] != sum(about["shard_lengths"]):
                problems.append(
                    f"{path / INFO}: the lengths of {split}'s shards do not add up to {about['num_samples']}"
                )
            notes.extend(notes_of(path, others))

        return info["classes"], items()


class Parquet:
    """data/train-*.parquet, data/validation-*.parquet"""

    @staticmethod
    def has(path: Path, split: str) -> bool:
        return any(path.glob(f"data/{NAMES[split]}-*.parquet"))

    @staticmethod
    def read(
        path: Path, split: str, problems: list[str], notes: list[str]
    ) -> tuple[Optional[list[str]], Iterator[Item]]:
        with importing("datasets"):  # which brings it
            import pyarrow.parquet as pq

        files = sorted(path.glob(f"data/{NAMES[split]}-*.parquet"))
        classes = None
        with _noted(files[0], problems):
            classes = _names_of_numbers(pq.read_schema(files[0]).metadata or {})

        def items() -> Iterator[Item]:
            expected = files[0].stem.rpartition("-of-")[2]
            if expected.isdecimal() and len(files) != int(expected):
                problems.append(f"{path / 'data'}: has {len(files)} of {int(expected)} files of {NAMES[split]}")
            number = 0
            for file in files:
                with _noted(file, problems), pq.ParquetFile(file) as table:
                    for batch in table.iter_batches(batch_size=100, columns=COLUMNS):
                        for row in batch.select(COLUMNS).to_pylist():
                            with _noted(f"{file}: row {number}", problems):
                                yield _row(path, row["image"], row["label"], classes, str(number))
                            number += 1

        return classes, items()


FORMATS: dict[str, type[Union[Folder, Zip, Tar, Shards, Parquet]]] = {
    "folder": Folder,
    "zip": Zip,
    "tar": Tar,
    "shards": Shards,
    "parquet": Parquet,
}


def guess(path: Path) -> str:
    """
    Raises:
        DataError: the folder holds none of the formats, or several.
    """
    formats = [name for name, kind in FORMATS.items() if any(kind.has(path, split) for split in SPLITS)]
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise DataError(f"{path}: holds several formats, {', '.join(formats)}; say which by --format")
    raise DataError(f"{path}: holds no train or val in any of the formats {', '.join(FORMATS)}; check the path")


def _info(path: Path) -> dict:
    try:
        info = json.loads((path / INFO).read_text())
        for about in info["splits"].values():
            lists = (about["filenames"], about["shard_lengths"], about["shard_bytes"])
            if (
                not all(isinstance(item, list) for item in lists)
                or len(set(map(len, lists))) > 1
                or type(about["num_samples"]) is not int
            ):
                raise ValueError
            if not all(isinstance(name, str) for name in lists[0]) or not all(
                type(n) is int for n in lists[1] + lists[2]
            ):
                raise ValueError
        if not all(isinstance(name, str) for name in info["classes"]):
            raise ValueError
        return info
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path / INFO}: cannot be read; remove it and start the conversion again") from error


def _names_of_numbers(metadata: dict) -> Optional[list[str]]:
    """The names of a column of numbers, as the Hugging Face libraries keep them; None where it holds names itself."""
    about = json.loads(metadata.get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
    return names and wordnet_ids(names)


def _row(root: Path, image: Any, label: Any, classes: Optional[list[str]], number: str) -> Item:
    """A row of a parquet file, see `data.sources.hfds`; labels without names of their own are names."""
    if label is None or image is None:
        raise ValueError(f"has no {'label' if label is None else 'image'}")
    name = classes[label] if classes else label.decode() if isinstance(label, bytes) else str(label)
    cell: dict[str, Any] = (
        image if isinstance(image, dict) else {"bytes": image} if isinstance(image, bytes) else {"path": image}
    )
    data: Optional[bytes] = cell.get("bytes")
    file: str = cell.get("path") or ""
    # as a conversion writes it; the label may be wrong
    has_class = classes and file and file.partition("/")[0] in classes
    key = file if has_class else key_of(file or number, name)
    if data is None:
        data = file_in(root, file).read_bytes()
    return key, label if classes else None, data


def _tar_files(path: Path, problems: list[str], contents: bool = True) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the files; those of a tar file in it are <its stem>/<name>."""
    with _noted(path, problems), tarfile.open(path, "r:") as archive:
        yield from _files_of(path, archive, problems, contents)


def _files_of(
    path: Path, archive: tarfile.TarFile, problems: list[str], contents: bool, folder: str = ""
) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = inner_name(path, member.name)
        if member.isdir():
            continue
        if not member.isfile():
            problems.append(f"{path}: {folder + name!r} is no plain file")
            continue
        if name.endswith(".tar") and not folder:
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _files_of(path, inner, problems, contents, name[:-4] + "/")
        else:
            yield folder + name, read_member(archive, member) if contents else b""
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all; typeshed does not list it
    require_end(archive)


def _samples(path: Path, classes: list[str], problems: list[str], others: list[str]) -> Iterator[Item]:
    with _noted(path, problems):
        for group in grouped(str(path), _tar_files(path, problems), USUAL, others):
            with _noted(f"{path}: {group.stem}", problems):
                yield from _sample(f"{path}: {group.stem}", group.parts(), classes, problems)


def _sample(where: str, parts: Parts[bytes], classes: list[str], problems: list[str]) -> Iterator[Item]:
    about, label = json.loads(parts.members["json"]), int(parts.members["cls"])
    if about["label"] != label:
        problems.append(f"{where}: its cls says label {label}, its json {about['label']}")
    if not 0 <= label < len(classes) or about["class"] != classes[label]:
        problems.append(f"{where}: label {label} is not that of class {about['class']!r}")
    yield about["key"], label, parts.members[parts.image]


@contextlib.contextmanager
def _noted(where: object, problems: list[str]) -> Iterator[None]:
    """Notes what a damaged file makes its reader raise."""
    try:
        yield
    except MemoryError:
        raise
    except DataError as error:
        problems.append(str(error))
    except Exception as error:  # pyarrow and zipfile raise of many kinds at damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        problems.append(f"{where}: cannot be read to its end ({type(error).__name__}: {' '.join(str(reason).split())})")
