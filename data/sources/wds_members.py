"""Which members of a shard are a sample, and which of them are its image and its label: by their names alone.

The one rule for counting and for reading. A label's name without its suffix is the sample's key, and the
names of its other members begin with the key and a dot: with `img.0.cls` the key is `img.0`, and `img.0.png`
and `img.0.mask.png` are of that sample. The members of a sample lie in a row. (webdataset ends a key at the
first dot of a file's name, which is the same where labels have one dot.) Names that can be understood in two
ways are refused.
"""

import re
from typing import Generic, Iterable, Iterator, NamedTuple, Optional, Sequence, TypeVar

from utils.errors import DataError, printable

from ..image_files import IMAGE_SUFFIXES, has_image_suffix, is_hidden_or_tool
from ..label_sets import LabelCells
from .archive import inner_name

LABELS = ("cls", "json", "txt")  # suffixes of labels; of several kinds in a sample the first one counts
META = re.compile(r"__[^/]*__(/|$)")  # members that describe a shard, in webdataset's format
IN_A_ROW = "make the shard anew, with the members of each sample in a row"

Data = TypeVar("Data")  # of a member: its bytes; where images are only counted, None


class Wanted(NamedTuple):
    """Which members DATA.COLUMNS asks for. Suffixes are in lower case."""

    image: str  # suffix; '': the one that is an image's
    labels: Sequence[str]  # suffixes
    fields: Sequence[str]  # of a label in JSON; the first one that is there counts
    cells: Optional[LabelCells] = (
        None  # take the labels of an image apart, which may have several, or none; None: it has one
    )


USUAL = Wanted("", LABELS, ("label",))
SEVERAL_FIELDS = ("labels", "label")  # where an image may have several labels


class Parts(NamedTuple, Generic[Data]):
    """The members of a sample."""

    key: str
    members: dict[str, Data]  # by what follows the key and its dot, in lower case
    image: str  # which of them it is
    label: str  # which of them it is
    exact: bool  # the image is the one that was asked for, or has a suffix alone


def wanted_by(columns: Sequence[str], cells: Optional[LabelCells] = None) -> Wanted:
    """
    Args:
        columns: suffixes of images and labels, such as 'rgb.png' and 'cls'; 'json:class' is a field in JSON;
            'image' and 'label', the defaults, stand for the usual members.
        cells: see `Wanted`.
    """
    image, label = columns
    suffix, _, field = label.partition(":")
    return Wanted(
        USUAL.image if image == "image" else image.lower().lstrip("."),
        USUAL.labels if label == "label" else (suffix.lower().lstrip("."),),
        (field,) if field else SEVERAL_FIELDS if cells else USUAL.fields,
        cells,
    )


def samples(
    where: str, members: Iterable[tuple[str, Data]], wanted: Wanted, others: list[str]
) -> Iterator[Parts[Data]]:
    """The samples of a shard; see `grouped`.

    Raises:
        DataError: members are of no sample, or can be of several; a sample has no label, or not one image.
    """
    for group in grouped(where, members, wanted, others):
        yield group.parts()


def grouped(
    where: str, members: Iterable[tuple[str, Data]], wanted: Wanted, others: list[str]
) -> Iterator["Group[Data]"]:
    """Members in a row that should be a sample.

    Args:
        where: the shard, for messages.
        members: names and data of its files, in order.
        others: is given the names of those that are left out: hidden ones, those of systems and programs, and
            those without a dot.

    Raises:
        DataError: a name leads out of the shard.
    """
    group: Optional[Group[Data]] = None
    for name, data in members:
        name = inner_name(where, name)
        hidden = any(map(is_hidden_or_tool, name.split("/")))
        if hidden or META.match(name) or "." not in name.rpartition("/")[2]:
            others.append(name)
            continue
        if group is None:
            group = Group(where, wanted)
        elif group.ends_before(name):
            yield group
            group = Group(where, wanted, group.whole_keys() if group.stem == stem_of(name) else [])
        group.add(name, data)
    if group is not None:
        yield group


def stem_of(name: str) -> str:
    """A member's name up to the first dot behind its folders."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


class Group(Generic[Data]):
    """Members in a row with the same name up to the first dot.

    Args:
        where: the shard, for messages.
        before: keys of the sample before, if its names are the same up to there.
    """

    def __init__(self, where: str, wanted: Wanted, before: Sequence[str] = ()):
        self.where, self.wanted, self.before = where, wanted, before
        self.stem = ""
        self.members: list[tuple[str, Data]] = []
        self.image_keys: set[str] = set()  # that the images fit
        self.label_keys: dict[str, list[str]] = {suffix: [] for suffix in wanted.labels}  # that they name

    def add(self, name: str, data: Data) -> None:
        self.stem = stem_of(name)
        self.members.append((name, data))
        wanted = self.wanted.image
        if wanted and name.lower().endswith("." + wanted):
            self.image_keys.add(name[: -len(wanted) - 1])
        elif not wanted and has_image_suffix(name):
            self.image_keys.update(name[: dot.start()] for dot in re.finditer(r"\.", name))
        for suffix, keys in self.label_keys.items():
            if name.lower().endswith("." + suffix):
                keys.append(name[: -len(suffix) - 1])

    def ends_before(self, name: str) -> bool:
        """Whether a member is of another sample: it has another stem, or this one is whole without it."""
        if stem_of(name) != self.stem:
            return True
        whole = self.whole_keys()
        return bool(whole) and not name.startswith(whole[0] + ".")

    def label(self) -> str:
        """The kind of label that counts here; '' for none."""
        return next((suffix for suffix, keys in self.label_keys.items() if keys), "")

    def whole_keys(self) -> list[str]:
        """The keys that have both a label and an image, the shortest first."""
        return sorted(self.image_keys.intersection(self.label_keys.get(self.label(), ())), key=len)

    def parts(self) -> Parts[Data]:
        """The members as a sample.

        Raises:
            DataError: they are none; see `samples`.
        """
        key = self._key()
        members: dict[str, Data] = {}
        for name, data in self.members:
            suffix = name[len(key) + 1 :].lower()
            if not name.startswith(key + "."):
                text = "is of no sample, as no image and label of its name lie beside it"
                raise self._error(name, f"{text}; {IN_A_ROW}")
            if suffix in members:
                raise self._error(name, f"is there twice; {IN_A_ROW}")
            members[suffix] = data
        image = self.wanted.image or self._image(key, list(members))
        return Parts(key, members, image, self.label(), "." not in image or image == self.wanted.image)

    def _key(self) -> str:
        """The one key that all names begin with, by what has an image and a label."""
        image, labels = self.wanted.image, self.wanted.labels
        there = ", ".join(name[len(self.stem) + 1 :] for name, _ in self.members)
        if not self.image_keys:
            missing = f"member {image}" if image else "image"
            what = "correct DATA.COLUMNS" if image else "each sample needs a .jpg, .png or the like"
            raise self._error(self.stem, f"has no {missing}, but {there}; {what}")
        if not self.label():
            usual = labels == LABELS
            missing = "label" if usual else f"member {labels[0]}"
            what = "each sample needs one in .cls, .json or .txt" if usual else "correct DATA.COLUMNS"
            raise self._error(self.stem, f"has no {missing}, but {there}; {what}")
        whole = self.whole_keys()
        if not whole:
            text = f"has no image and {self.label()} with the same name, but {there}"
            raise self._error(self.stem, f"{text}; name their suffixes in DATA.COLUMNS")
        key = whole[0]
        inner = next((other for other in (*whole, *self.before) if other.startswith(key + ".")), "")
        if inner:
            text = f"is one sample, or {inner!r} another one, which has an image and a label too"
            what = "name the members' suffixes in DATA.COLUMNS, or make the shard anew with keys without dots"
            raise self._error(key, f"{text}; {what}")
        return key

    def _image(self, key: str, suffixes: list[str]) -> str:
        """Which member is the image: the one that is a suffix alone, else the only one that ends in one."""
        exact = [suffix for suffix in suffixes if "." + suffix in IMAGE_SUFFIXES]
        fitting = exact or [suffix for suffix in suffixes if has_image_suffix("." + suffix)]
        if len(fitting) > 1:
            what = f"choose one in DATA.COLUMNS, such as [{fitting[0]}, {self.label()}]"
            raise self._error(key, f"has several images, {', '.join(fitting)}; {what}")
        return fitting[0]

    def _error(self, name: str, text: str) -> DataError:
        return DataError(printable(f"{self.where}:{name}: {text}"))
