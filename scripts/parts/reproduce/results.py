"""What every table and figure has in common: expected values, verdicts, files with their provenance."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from utils.files import write_text
from utils.provenance import ROOT

EXPECTED = ROOT / "configs" / "expected.csv"
PUBLISHED = ROOT / "configs" / "published.csv"
PUBLISHED_SPEED = ROOT / "configs" / "published_speed.csv"
REPRODUCED, DIFFERS, NOT_MEASURED = "reproduced", "differs", "not measured"
TRAINED = ("date", "commit", "machine", "versions")  # of a run's result: what its figures depend on


@dataclass
class Outcome:
    """What a target leaves to say, a line each.

    `missed`: computed figures that are not what is expected. `refused`: inputs that could not be used; the cells that they
    were for stay as they were.
    """

    missed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Expected:
    """A value to be reproduced, as its source prints it."""

    text: str
    tolerance: str  # empty: half of the last digit printed
    source: str

    @property
    def value(self) -> float:
        return float(self.text)

    def verdict(self, measured: Optional[float]) -> str:
        """REPRODUCED, DIFFERS or NOT_MEASURED (for None)."""
        if measured is None:
            return NOT_MEASURED
        decimals = len(self.text.partition(".")[2])
        allowed = float(self.tolerance) if self.tolerance else 0.5 * 10**-decimals if "." in self.text else 0.0
        # A whole number is exact, unless a tolerance says how it was rounded.
        return REPRODUCED if abs(measured - self.value) <= allowed * (1 + 1e-9) else DIFFERS


def read_expected(path: Path = EXPECTED) -> dict[tuple[str, str], Expected]:
    """By cell (a config's path below configs/, without .yaml) and quantity."""
    with open(path, newline="", encoding="utf-8") as file:
        return {
            (row["cell"], row["quantity"]): Expected(row["expected"], row["tolerance"], row["source"])
            for row in csv.DictReader(file)
        }


def read_published() -> list[dict[str, str]]:
    """The rows of configs/published.csv: FAT's and its peers' published figures."""
    with open(PUBLISHED, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_published_speed() -> list[dict[str, str]]:
    """The rows of configs/published_speed.csv: images/s that others have measured of FAT."""
    with open(PUBLISHED_SPEED, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """When, with which code and where the runs were trained, which may be long before their table is written; a row has `TRAINED`."""
    days, commits, machines, versions = (list(dict.fromkeys(row[key] for row in rows)) for key in TRAINED)
    days = sorted({day[:10] for day in days})
    return [
        f"Trained {' to '.join(dict.fromkeys((days[0], days[-1])))}, commit {', '.join(commits)}",
        " / ".join(machines),
        " / ".join(versions),
    ]


def write_results(
    output: Path, title: str, command: str, facts: Sequence[str], body: str, rows: Sequence[dict[str, Any]]
) -> None:
    """Writes <output>.md, with where it comes from, and <output>.csv.

    Args:
        output: path without a suffix.
        command: what makes these files again.
        facts: see `utils.provenance.environment`.
        body: Markdown below the title.
        rows: of the CSV, all with the keys of the first.
    """
    write_text(output.with_suffix(".md"), f"# {title}\n\n`{command}`. {'; '.join(facts)}.\n\n{body.strip()}\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output.with_suffix(".csv"), text.getvalue())
