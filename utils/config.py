"""Reads a config: defaults, then YAML files (base first), then --opts, then flags. The result is frozen."""

import functools
import operator
import os
import re
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence, Union

import yaml
from yacs.config import CfgNode

from .conflicts import require_no_conflict
from .errors import ConfigError, did_you_mean
from .schema import ALIASES, AUTO, DEFAULTS, KEYS, PATH, RETIRED, is_finite
from .yaml_files import read_yaml


def load_config(
    path: Union[str, os.PathLike],
    opts: Sequence[str] = (),
    flags: Optional[Mapping[str, Any]] = None,
    command: str = "",
    flags_from: str = "command line",
) -> CfgNode:
    """The frozen config of a YAML file.

    Args:
        path: the YAML file; its `BASE` files are read before it.
        opts: KEY VALUE KEY VALUE ..., as after --opts.
        flags: {key: value} from other command line flags; they win.
        command: main.py's command that the config is for, see `utils.conflicts`; '' for one that is only read.
        flags_from: where the flags stand, for messages.

    Raises:
        ConfigError: a file, key or value that cannot be used; the message names it and where it stands. Or keys that
            contradict each other in what the command does.
    """
    cfg = DEFAULTS.clone()
    _merge_file(cfg, Path(path), chain=())
    if len(opts) % 2:
        raise ConfigError(f"--opts: {opts[-1]!r} has no value; give pairs, KEY VALUE KEY VALUE ...")
    for key, text in zip(opts[::2], opts[1::2]):
        _set(cfg, key, text if isinstance(_lookup(ALIASES.get(key, key)), str) else _parse(text), "--opts")
    return with_values(cfg, flags or {}, flags_from, command)


def with_values(cfg: CfgNode, values: Mapping[str, Any], where: str, command: str = "") -> CfgNode:
    """The config, frozen, with other values by {key: value}.

    Args:
        where: they stand, for messages.
        command: as of `load_config`.

    Raises:
        ConfigError: as `load_config`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        _set(cfg, key, value, where)
    cfg.freeze()
    require_no_conflict(cfg, command)
    return cfg


def config_from(values: dict[str, Any], where: str) -> CfgNode:
    """The frozen config of plain dictionaries, which a checkpoint holds; keys that are younger than it have their defaults.

    Raises:
        ConfigError: a key or value that cannot be used; the message names it and `where` it stands.
    """
    cfg = DEFAULTS.clone()
    for key, value in _flatten({name: value for name, value in values.items() if name != "BASE"}):
        if key not in RETIRED:  # what it was trained with does not matter to its weights
            _set(cfg, key, value, where)
    cfg.freeze()
    return cfg


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of SECTION.KEY, which has to be there."""
    return functools.reduce(operator.getitem, key.split("."), config)


def batch_size_of(cfg: CfgNode) -> int:
    """DATA.BATCH_SIZE outside training, which alone looks for the one that `auto` stands for: there it is the default."""
    size = cfg.DATA.BATCH_SIZE
    return DEFAULTS.DATA.BATCH_SIZE if size == AUTO else size


def to_dict(node: CfgNode) -> dict[str, Any]:
    """The config as plain dictionaries."""
    return {name: to_dict(value) if isinstance(value, CfgNode) else value for name, value in node.items()}


def _merge_file(cfg: CfgNode, path: Path, chain: tuple[Path, ...]) -> None:
    where = " from ".join(str(p) for p in (path, *reversed(chain)))
    if os.path.realpath(path) in [os.path.realpath(p) for p in chain]:
        raise ConfigError(f"{where}: BASE leads back to the same file; take one of them out")
    content = read_yaml(path, where, "check --cfg and BASE")
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: holds no keys; a config has lines like 'MODEL: {{NAME: fat_b0}}'")
    bases = content.pop("BASE", None) or []
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{where}: BASE is {bases!r}; it must be a file or a list of files")
    for base in bases:
        if base:
            _merge_file(cfg, path.parent / base, (*chain, path))
    values: dict[str, Any] = {}
    for key, value in _flatten(content):
        name = ALIASES.get(key, key)
        if name in values and values[name] != value:
            raise ConfigError(f"{where}: {key} and its other name say {values[name]!r} and {value!r}; keep one of them")
        values[name] = value
        _set(cfg, key, value, where)


def _flatten(tree: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{key}.")
        elif value not in (None, {}) or not isinstance(_lookup(key), CfgNode):  # an empty section changes nothing
            yield key, value


def _lookup(key: str) -> Any:
    node: Any = DEFAULTS
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    if key == "BASE":
        raise ConfigError(f"{where}: BASE can stand in a config file only; put it there")
    if key in RETIRED:
        harmless, reason = RETIRED[key]
        if value not in harmless:
            raise ConfigError(f"{where}: {key} is {value!r}; {reason}")
        return
    name = ALIASES.get(key, key)
    default = _lookup(name)
    if default is None:
        raise ConfigError(f"{where}: unknown key {key}; {_suggest_key(key)}")
    if isinstance(default, CfgNode):
        raise ConfigError(f"{where}: {key} is a section; set one of its keys, such as {key}.{next(iter(default))}")
    value = _coerce(name, value, default, f"{where}: {key}")
    *sections, last = name.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[last] = value


def _suggest_key(key: str) -> str:
    known = [*KEYS, *ALIASES]
    same_name = [k for k in known if k.rsplit(".", 1)[-1].lower() == key.rsplit(".", 1)[-1].lower()]
    return f"did you mean {same_name[0]!r}?" if same_name else did_you_mean(key, known)


def _coerce(key: str, value: Any, default: Any, where: str) -> Any:
    """`value` with the type of `default`, as the key's rule has it: see `_converted`."""
    rule, kind = KEYS[key].rule, type(default)
    result = _converted(key, value, kind)
    if list in rule.kinds:
        result = _short_size(result)
    if type(result) not in (kind, *rule.kinds):
        raise ConfigError(f"{where} is {value!r}; it must be of type {kind.__name__}, like {default!r}")
    if isinstance(result, str) and not result.isprintable():
        raise ConfigError(f"{where} is {value!r}; it must have printable characters only")
    if rule is PATH and not result.startswith("pipe:"):  # a command, which its own shell expands
        result = _expand(result, where)
    if type(result) is int and abs(result) >= 2**31:
        raise ConfigError(f"{where} is {value}; it must be below 2147483648")
    if not is_finite(result):
        raise ConfigError(f"{where} is {value!r}; it must be a finite number")
    _require_rule(rule, result, f"{where} is {value!r}")
    return result


def _converted(key: str, value: Any, kind: type) -> Any:
    """5 is a float where one is wanted, null an empty string or list; what cannot be converted is as it was."""
    if value is None and kind in (str, list):
        return kind()
    if kind is list and isinstance(value, tuple):
        return list(value)
    if key == "MODEL.TYPE" and isinstance(value, str):
        return value.lower()
    if kind is float and type(value) in (int, float, str):
        try:
            return float(value)  # PyYAML reads 1e-3 as a string
        except (ValueError, OverflowError):
            return value
    return value


def _short_size(value: Any) -> Any:
    """[224, 224] is 224: what is one size is written in one way."""
    if isinstance(value, (list, tuple)):
        value = list(value)
        return value[0] if len(value) == 2 and value[0] == value[1] else value
    return value


def _require_rule(rule: Any, value: Any, where: str) -> None:
    """Raises ConfigError: the value is not what the key's rule asks for; of a list of names, the nearest is said."""
    try:
        if rule.holds(value):
            return
    except TypeError:  # a list with something other than numbers
        pass
    near = ""
    if isinstance(value, str) and rule.text.startswith("one of "):
        near = did_you_mean(value, rule.text.removeprefix("one of ").split(", "))
    raise ConfigError(f"{where}; it must be {rule.text}" + (f"; {near}" if near.startswith("did") else ""))


def _expand(path: str, where: str) -> str:
    """A path as a shell expands it, which has not seen those of a file: ~ is the home, $NAME a variable's value."""
    full = os.path.expandvars(os.path.expanduser(path))
    unset = re.search(r"\$(\w+|\{\w+\})", full)
    if unset:
        raise ConfigError(
            f"{where} is {path!r}, but the variable {unset.group()} is not set; export it, or write the path out"
        )
    return full


def _parse(text: str) -> Any:
    """A value given on the command line: a Python literal, or YAML (true, null), or the text itself."""
    try:
        value = CfgNode._decode_cfg_value(text)
        if isinstance(value, str):
            value = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError):
        return text
    return text if isinstance(value, dict) else value
