"""The README and docs/ as tests read them: commands, Python blocks, links and anchors."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "results/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    line: int  # its first line in the page


def blocks(path: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(str(path.relative_to(ROOT)), match[1], match[2], text.count("\n", 0, match.start(2)) + 1)
        for match in FENCE.finditer(text)
    ]


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def commands_of(path: Path) -> list[str]:
    """What a reader can run: each line of the bash blocks, and `python ...` and `bash ...` in the text.

    A command is one line without comments; whoever prefixes one with a shell's prompt hides it, which is an error.
    """
    found = []
    for block in blocks(path):
        assert not re.search(r"^\$ ", block.text, re.MULTILINE), (
            f"{block.page}:{block.line}: a command stands in a bash block, without $"
        )
        if block.language == "bash":
            found += commands_in(block.text)
    return found + [" ".join(span.split()) for span in re.findall(r"`((?:python|bash)\s[^`]+)`", prose(path))]


def commands_in(block: str) -> list[str]:
    lines = (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
    return [" ".join(line.split()) for line in lines if line]


def words_of(command: str, folder: Path) -> list[str]:
    """The words that bash makes of a command: quotes, patterns and variables as in a shell."""
    done = subprocess.run(
        ["bash", "-c", rf"printf '%s\0' {command}"], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


# Links


def markdown_files() -> list[Path]:
    """All of the repository's, not those of a virtual environment, of runs or of data."""
    own = [
        path
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in ("output", "datasets")
    ]
    return sorted(ROOT.glob("*.md")) + sorted(file for folder in own for file in folder.rglob("*.md"))


def links_of(path: Path) -> list[str]:
    """The targets of a page's links and pictures, without those of code."""
    return re.findall(r"\]\(([^)\s]+)(?:\s\"[^\"]*\")?\)", re.sub(r"`[^`]*`", "", prose(path)))


def anchors_of(path: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    found: dict[str, int] = {}
    for title in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        number = found[name] = found.get(name, -1) + 1
        if number:
            found[f"{name}-{number}"] = 0
    return set(found)
