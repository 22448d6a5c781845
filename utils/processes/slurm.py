"""What Slurm's variables say of the machines of a step."""

import re
from typing import Mapping

from ..errors import ConfigError

# a name up to the first comma that stands in no bracket
FIRST_NODE = re.compile(r"(?:[^,\[\]]|\[[^\[\]]+\])+")
RANGE = re.compile(r"\[(\w+)[^\]]*\]")


def first_host(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: `rack[0-1]n[03-05,7],login` is rack0n03.

    Raises:
        ConfigError: it is no such list.
    """
    first = FIRST_NODE.match(nodes)
    end = first.end() if first else 0
    host = RANGE.sub(r"\1", nodes[:end])
    if nodes[end : end + 1] not in ("", ",") or not re.fullmatch(r"[\w.-]+", host):
        raise ConfigError(f"SLURM_STEP_NODELIST is {nodes!r}: no list of machines; export MASTER_ADDR, the first one's")
    return host


def tasks_of_nodes(text: str) -> list[int]:
    """How many tasks each machine of a step has: `2(x3),1` is [2, 2, 2, 1].

    Raises:
        ValueError: it is no such list.
    """
    tasks = []
    for part in text.split(","):
        number, _, repeated = part.partition("(x")
        tasks += [int(number)] * int(repeated.removesuffix(")") or 1)
    return tasks


def step_host(environ: Mapping[str, str]) -> str:
    """The machine of a step's first task.

    Raises:
        ConfigError: the variables do not say it.
    """
    # then the user's file says which task runs where, in another order than the list
    if environ.get("SLURM_DISTRIBUTION", "").startswith("arbitrary"):
        raise ConfigError(
            "MASTER_ADDR: not set, and with --distribution=arbitrary the first task may be on any machine; export its address"
        )
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "")
    if not nodes:
        raise ConfigError(
            "MASTER_ADDR: not set, and SLURM_STEP_NODELIST is not there to tell it; export it as the first machine's address"
        )
    return first_host(nodes)


def step_number(environ: Mapping[str, str]) -> int:
    """A number that differs between the steps of a job, and mostly between jobs."""
    # neighbouring jobs run at the same time, each with a few steps
    return 101 * int(environ.get("SLURM_JOB_ID", 0)) + int(environ.get("SLURM_STEP_ID", 0))
