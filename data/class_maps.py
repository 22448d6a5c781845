"""Which label a class' name has, where that is not its place among the sorted names."""

import unicodedata
from importlib import resources
from pathlib import Path
from typing import Iterable, Mapping, Optional, Sequence

from timm.data import ImageNetInfo

from utils.errors import ConfigError, DataError

IMAGENET = (
    "imagenet-1k",
    "imagenet-12k",
    "imagenet-21k",
    "imagenet-21k-goog",
    "imagenet-21k-miil",
    "imagenet-22k",
    "imagenet-22k-ms",
)
# timm's lists of the 200 classes of ImageNet-A and of ImageNet-R
SUBSETS = ("imagenet_a_synsets", "imagenet_r_synsets")


def read_class_map(name: str, key: str = "DATA.CLASS_MAP") -> dict[str, int]:
    """Class name -> label.

    Args:
        name: a text file with a class' name in each line, in label order; or one of timm's lists of WordNet ids of
            ImageNet's subsets, see `IMAGENET` and `SUBSETS`.
        key: the config's, for messages.

    Raises:
        ConfigError: no such list or file, or it names a class twice or none.
    """
    if name in IMAGENET:
        names = ImageNetInfo(name).label_names()
    elif name in SUBSETS:
        names = (resources.files("timm.data") / "_info" / f"{name}.txt").read_text().split()
    else:
        try:
            names = [line.strip() for line in Path(name).read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(
                f"{key} is {name!r}: no such text file, and none of {', '.join(IMAGENET + SUBSETS)}; give one of them, or a file with a "
                "class' name in each line, in label order"
            ) from error
        seen: set[str] = set()
        for number, line in enumerate(names, 1):
            if not line or line in seen:
                raise ConfigError(
                    f"{name}: line {number} is {'empty' if not line else f'{line!r} again'}; name each class once, a line each"
                )
            seen.add(line)
        if not names:
            raise ConfigError(f"{name}: names no class; write a class' name in each line, in label order")
    return {name: label for label, name in enumerate(names)}


def unnamed_classes(
    place: object, names: Iterable[str], class_to_idx: Optional[Mapping[str, int]], what: str = "folder"
) -> list[str]:
    """A line of the classes whose images are left out, as a class map does not name them; none where there are none.

    Args:
        place: the data set.
        names: of the classes that are there.
        what: a class is there.

    Raises:
        DataError: one of them differs from a class of the map, which has no folder, in what is not seen.
    """
    names = set(names)
    if class_to_idx is None or names <= set(class_to_idx):
        return []
    unnamed = sorted(names - set(class_to_idx))
    missing = [name for name in class_to_idx if name not in names]
    alike = look_alikes(missing, unnamed)
    if alike:
        raise DataError(f"{place}: {alike}, of the class map and of a {what}; rename the {what}, or correct the map")
    lacks = f"; no {what} has the name of {len(missing)} classes of the map (such as {missing[0]!r})" if missing else ""
    return [
        f"{place}: left out {what}s that the class map does not name: {len(unnamed)} (such as {unnamed[0]!r}){lacks}"
    ]


def look_alikes(names: Iterable[str], others: Iterable[str]) -> str:
    """The first two names, written so that one sees it, that differ in blanks around them alone, or in how Unicode
    composes letters (macOS has 'A' and two dots where others have one character); '' where there are none.
    """
    seen = {unicodedata.normalize("NFC", name).strip(): name for name in names}
    for other in others:
        name = seen.get(unicodedata.normalize("NFC", other).strip(), other)
        if name != other:
            return f"{ascii(name)} and {ascii(other)} look the same and are not"
    return ""


def classes_for(num_classes: int, class_to_idx: Optional[Mapping[str, int]]) -> list[str]:
    """Names, in label order, for a format that has labels alone: those of the class map; of 1000 classes ImageNet's
    WordNet ids; else the numbers.

    Raises:
        ConfigError: nothing says how many there are.
    """
    if class_to_idx is not None:
        return sorted(class_to_idx, key=class_to_idx.__getitem__)
    if not num_classes:
        raise ConfigError(
            "MODEL.NUM_CLASSES is 0, but the data set does not say how many classes it has; set it, or DATA.CLASS_MAP"
        )
    return ImageNetInfo().label_names() if num_classes == 1000 else [str(label) for label in range(num_classes)]


def wordnet_ids(names: Sequence[str]) -> list[str]:
    """ImageNet's WordNet ids for names like 'tench, Tinca tinca' in their order, as the hub's imagenet-1k has them; other
    names as they are.
    """
    info = ImageNetInfo()
    descriptions = info.label_descriptions()
    same = [a.split(",")[0].strip().lower() == b.split(",")[0].strip().lower() for a, b in zip(names, descriptions)]
    return (
        info.label_names() if len(names) == len(descriptions) and sum(same) >= 0.95 * len(descriptions) else list(names)
    )
