"""What the YAML file says of the sets to evaluate on."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Sequence

import yaml

from data.sources import SOURCES
from utils.config import UniqueKeyLoader
from utils.errors import ConfigError, did_you_mean, one_line
from utils.schema import CONFIGS

VAL = "val"
SETS_FILE = CONFIGS / "evaluation_sets.yaml"


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
    corruptions: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    severities: list = field(default_factory=lambda: [1, 2, 3, 4, 5])
    generate: bool = False
    crop_pct: float = 0.0
    images: int = 0
    published: str = ""
    source: str = ""
    name: str = ""
    file: Path = SETS_FILE

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def read_sets(path: str, names: Sequence[str]) -> dict[str, SetSpec]:
    """The sets of these names, and before them those whose images they are about.

    Args:
        path: the YAML file, '' for the one that comes with the code.

    Raises:
        ConfigError: the file cannot be read, or a set is unknown or not described as it must be.
    """
    file = Path(path) if path else SETS_FILE
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); check TEST.SETS_FILE") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is no YAML file that can be read ({one_line(error)}); correct it") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: describes no sets; it has entries like 'mine: {{path: my_images}}'")
    known = {VAL: SetSpec(name=VAL, file=file, published="top1")}
    for name, values in content.items():
        known[str(name)] = _read_set(str(name), values, file)
    found: dict[str, SetSpec] = {}
    for name in names:
        if name not in known:
            raise ConfigError(f"TEST.SETS: {name!r} is in no entry of {file}; {did_you_mean(name, known)}")
        base = known[name].of
        if base:
            if base not in known or known[base].of or known[base].corruptions:
                raise ConfigError(
                    f"{known[name]}.of is {base!r}; it must be val or another set with images of its own, uncorrupted"
                )
            found.setdefault(base, known[base])
        found[name] = known[name]
    return dict(sorted(found.items(), key=lambda item: (item[0] != VAL, bool(item[1].of))))


def _read_set(name: str, values: Any, file: Path) -> SetSpec:
    where = f"{file}: {name}"
    if name == VAL:
        raise ConfigError(f"{where}: is the config's own validation images and needs no entry; use another name")
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(f"{where}: files are named after it; use letters, digits, - and _, 100 at most")
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: is {values!r}; it must have keys, like {{path: my_images}}")
    kinds = {item.name: item.type for item in fields(SetSpec) if item.name not in ("name", "file")}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{where}: unknown key {key}; {did_you_mean(str(key), kinds)}")
        kind = {float: (float, int), Any: (str, list)}.get(kinds[key], kinds[key])
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = (
                "a number"
                if kinds[key] is float
                else "a name or a list"
                if kinds[key] is Any
                else f"of type {kind.__name__}"
            )
            raise ConfigError(f"{where}.{key} is {value!r}; it must be {wanted}")
    spec = SetSpec(**values, name=name, file=file)
    for problem, holds in (
        ("path: is missing; name the folder of its images", spec.of or spec.path),
        ("labels: is missing; name the file with the other labels", spec.labels or not spec.of),
        ("labels: needs `of`, the set whose images they are for; add it", spec.of or not spec.labels),
        ("only: names no class; name some, or leave it out", spec.only != []),
        (f"format is {spec.format!r}; {did_you_mean(spec.format, SOURCES)}", spec.format in SOURCES),
        ("of: contradicts path, only, folders, corruptions and generate, as the images are another set's; take one of them out",
         not spec.of or not (spec.path or spec.only or spec.corruptions or spec.generate or spec.folders != "names")),
        ("corruptions, extra: each needs a mean error greater than 0 and at most 1, such as AlexNet's",
         all(isinstance(v, (int, float)) and 0 < v <= 1 for v in [*spec.corruptions.values(), *spec.extra.values()])),
        ("corruptions, extra: must be names without '/', each once",
         all(re.fullmatch(r"[\w-]+", str(k)) for k in [*spec.corruptions, *spec.extra]) and not {*spec.corruptions} & {*spec.extra}),
        ("corruptions: must not be empty beside extra or generate", spec.corruptions or not (spec.extra or spec.generate)),
        ("severities: must be whole numbers from 1 to 5, each once",
         bool(spec.severities) and all(type(s) is int and 1 <= s <= 5 for s in spec.severities)
         and len(set(spec.severities)) == len(spec.severities)),
        ("crop_pct: must be between 0.1 and 1", not spec.crop_pct or 0.1 <= spec.crop_pct <= 1),
        ("images: must be 0 or greater", spec.images >= 0),
    ):  # fmt: skip
        if not holds:
            raise ConfigError(f"{where}: {problem}")
    return spec
