"""What the YAML file says of the sets to evaluate on."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Sequence

from data.sources import SOURCES
from utils.errors import ConfigError, did_you_mean
from utils.schema import CONFIGS
from utils.yaml_files import read_yaml

VAL = "val"
SETS_FILE = CONFIGS / "evaluation_sets.yaml"


@dataclass
class Corrupted:
    """The corruptions of a set's images, if it has some."""

    corruptions: dict = field(default_factory=dict)  # name -> mean error of the model that 100 stands for
    extra: dict = field(default_factory=dict)
    severities: list = field(default_factory=lambda: [1, 2, 3, 4, 5])
    generate: bool = False


@dataclass
class Expected:
    """What there is to compare a set with."""

    images: int = 0
    published: str = ""
    source: str = ""


@dataclass
class SetSpec:
    """What the YAML file says of a set; configs/evaluation_sets.yaml has the meaning of each key."""

    path: str = ""
    format: str = "folder"
    folders: Any = "names"
    numbering: Any = ""
    only: Any = ""
    of: str = ""
    labels: str = ""
    crop_pct: float = 0.0
    corrupted: Corrupted = field(default_factory=Corrupted)
    expected: Expected = field(default_factory=Expected)
    name: str = ""
    file: Path = SETS_FILE

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    @classmethod
    def of_keys(cls, values: dict[str, Any], name: str, file: Path) -> "SetSpec":
        """The set of the file's keys, which lie side by side there."""

        def part(kind: type) -> dict[str, Any]:
            return {item.name: values[item.name] for item in fields(kind) if item.name in values}

        corrupted, expected = Corrupted(**part(Corrupted)), Expected(**part(Expected))
        return cls(**part(cls), corrupted=corrupted, expected=expected, name=name, file=file)


KINDS: dict[str, Any] = {  # types, or `Any`, by the file's keys
    item.name: item.type
    for kind in (SetSpec, Corrupted, Expected)
    for item in fields(kind)
    if item.name not in ("corrupted", "expected", "name", "file")
}
# what else a value may be, and how that is said
LOOSE: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((float, int), "a number"),
    Any: ((str, list), "a name or a list"),
}


def read_sets(path: str, names: Sequence[str]) -> dict[str, SetSpec]:
    """The sets of these names, and before them those whose images they are about.

    Args:
        path: the YAML file, '' for the one that comes with the code.

    Raises:
        ConfigError: the file cannot be read, or a set is unknown or not described as it must be.
    """
    file = Path(path) if path else SETS_FILE
    content = read_yaml(file, str(file), "check TEST.SETS_FILE")
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: describes no sets; it has entries like 'mine: {{path: my_images}}'")
    described = {VAL: SetSpec(name=VAL, file=file, expected=Expected(published="top1"))}
    for name, values in content.items():
        described[str(name)] = _read_set(str(name), values, file)
    specs: dict[str, SetSpec] = {}
    for name in names:
        if name not in described:
            raise ConfigError(f"TEST.SETS: {name!r} is in no entry of {file}; {did_you_mean(name, described)}")
        base = described[name].of
        if base:
            if base not in described or described[base].of or described[base].corrupted.corruptions:
                raise ConfigError(
                    f"{described[name]}.of is {base!r}; it must be val or another set with images of its own, uncorrupted"
                )
            specs.setdefault(base, described[base])
        specs[name] = described[name]
    return dict(sorted(specs.items(), key=lambda item: (item[0] != VAL, bool(item[1].of))))


def _read_set(name: str, values: Any, file: Path) -> SetSpec:
    where = f"{file}: {name}"
    if name == VAL:
        raise ConfigError(f"{where}: is the config's own validation images and needs no entry; use another name")
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(f"{where}: files are named after it; use letters, digits, - and _, 100 at most")
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: is {values!r}; it must have keys, like {{path: my_images}}")
    for key, value in values.items():
        if key not in KINDS:
            raise ConfigError(f"{where}: unknown key {key}; {did_you_mean(str(key), KINDS)}")
        kind = KINDS[key]
        allowed, wanted = LOOSE.get(kind) or (kind, f"of type {kind.__name__}")
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{where}.{key} is {value!r}; it must be {wanted}")
    spec = SetSpec.of_keys(values, name, file)
    _require_sense(spec, where)
    return spec


def _require_sense(spec: SetSpec, where: str) -> None:
    """Raises ConfigError for keys that contradict each other, or lack one."""
    for problem, holds in (
        ("path: is missing; name the folder of its images", spec.of or spec.path),
        ("labels: is missing; name the file with the other labels", spec.labels or not spec.of),
        ("labels: needs `of`, the set whose images they are for; add it", spec.of or not spec.labels),
        ("only: names no class; name some, or leave it out", spec.only != []),
        (f"format is {spec.format!r}; {did_you_mean(spec.format, SOURCES)}", spec.format in SOURCES),
        ("of: contradicts path, only, folders, corruptions and generate, as the images are another set's; take one of them out",
         not spec.of or not (spec.path or spec.only or spec.corrupted.corruptions or spec.corrupted.generate or spec.folders != "names")),
        ("corruptions, extra: each needs a mean error greater than 0 and at most 1, such as AlexNet's",
         all(isinstance(v, (int, float)) and 0 < v <= 1 for v in [*spec.corrupted.corruptions.values(), *spec.corrupted.extra.values()])),
        ("corruptions, extra: must be names without '/', each once",
         all(re.fullmatch(r"[\w-]+", str(k)) for k in [*spec.corrupted.corruptions, *spec.corrupted.extra]) and not {*spec.corrupted.corruptions} & {*spec.corrupted.extra}),
        ("corruptions: must not be empty beside extra or generate", spec.corrupted.corruptions or not (spec.corrupted.extra or spec.corrupted.generate)),
        ("severities: must be whole numbers from 1 to 5, each once",
         bool(spec.corrupted.severities) and all(type(s) is int and 1 <= s <= 5 for s in spec.corrupted.severities)
         and len(set(spec.corrupted.severities)) == len(spec.corrupted.severities)),
        ("crop_pct: must be between 0.1 and 1", not spec.crop_pct or 0.1 <= spec.crop_pct <= 1),
        ("images: must be 0 or greater", spec.expected.images >= 0),
    ):  # fmt: skip
        if not holds:
            raise ConfigError(f"{where}: {problem}")
