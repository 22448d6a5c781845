"""All processes of a run must have the same config, code, versions and images; who has others is named."""

import hashlib
import platform
from pathlib import Path
from typing import Any, Mapping

import torch
from yacs.config import CfgNode

from ..config import to_dict, value_of
from ..errors import ConfigError, DataError
from ..rng import fingerprint
from ..schema import KEYS, PATH
from .peers import Peers

ROOT = Path(__file__).resolve().parents[2]
CODE = ("main.py", "models", "data", "engine", "utils")


def facts_of(cfg: CfgNode) -> dict[str, str]:
    """What a process tells of itself when it meets the others: versions, and hashes of its config and code."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "config": fingerprint(f"{key} {value!r}".encode() for key, value in comparable(cfg).items()),
        "code": fingerprint(f"{path} {digest}".encode() for path, digest in code_hashes().items()),
    }


def comparable(cfg: CfgNode) -> dict[str, Any]:
    """The keys that must be the same: all but paths, as each machine may keep its files elsewhere."""
    values = to_dict(cfg)
    return {key: value_of(values, key) for key in KEYS if KEYS[key].rule is not PATH and key != "BASE"}


def code_hashes() -> dict[str, str]:
    """The program's files and their hashes."""
    paths = [path for part in CODE for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in sorted(paths)}


def require_same_start(peers: Peers, cfg: CfgNode) -> None:
    """Compares what the processes told of themselves; asks for more only where it differs.

    Raises:
        ConfigError: on all processes, with the first rank that differs from rank 0, and in what.
    """
    facts = [member.facts for member in peers.members]
    if all(other == facts[0] for other in facts):
        return
    versions = {name: facts[0].get(name) for name in ("Python", "torch")}
    details = peers.gather((comparable(cfg), code_hashes()))
    for rank, other in enumerate(facts):
        who = f"rank {rank} (on {peers.members[rank].host})"
        for name, version in versions.items():
            if other.get(name) != version:
                raise ConfigError(
                    f"{who}: has {name} {other.get(name)}, rank 0 {version}; give all machines the same environment"
                )
        _refuse_difference(f"{who}: ", details[rank], details[0])


def _refuse_difference(
    who: str, own: tuple[Mapping[str, Any], Mapping[str, str]], first: tuple[Mapping[str, Any], Mapping[str, str]]
) -> None:
    (config, code), (first_config, first_code) = own, first
    # the code first: other code may have other keys
    files = sorted(name for name in {*code, *first_code} if code.get(name) != first_code.get(name))
    if files:
        more = f" and {len(files) - 1} more files differ" if len(files) > 1 else " differs"
        raise ConfigError(f"{who}{files[0]}{more} from rank 0's; bring all machines to the same code")
    for key, value in config.items():
        if value != first_config[key]:
            raise ConfigError(
                f"{who}{key} is {value!r}, that of rank 0 is {first_config[key]!r}; start every process with the same command"
            )


def require_same_images(peers: Peers, training: str, validation: str) -> None:
    """Compares the data sets' fingerprints: with others, images would be left out or seen twice.

    Raises:
        DataError: on all processes, with the first rank whose images are others than rank 0's.
    """
    first, *others = peers.gather((training, validation))
    for rank, images in enumerate(others, start=1):
        for split, own, expected in zip(("training", "validation"), images, first):
            if own != expected:
                raise DataError(
                    f"rank {rank} (on {peers.members[rank].host}): its {split} images are others than rank 0's; copy the "
                    "same files to all machines, or wait until all have them"
                )
