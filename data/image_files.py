"""What an image is, by its name: the one rule for folders, archives, shards, what is converted and what is predicted.

The suffix says that a file is an image, its content of which format: `data.decode` reads a GIF that is called .jpg.
"""

from typing import Any, Callable, NamedTuple, Optional

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".gif",
    ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
)  # fmt: skip
# What systems and programs put beside a user's files; names that begin with a dot need not be here.
TOOL_NAMES = {
    "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx", "__pycache__",
    "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini",
}  # fmt: skip


class LeftOut(NamedTuple):
    """What a place holds besides its images: files that are none by their name, and hidden or tool folders."""

    paths: int  # how many
    example: str  # the first one's path in that place; a folder's ends with '/'

    def __str__(self) -> str:
        example = self.example if self.example.isprintable() else repr(self.example)
        return (
            f"left out what is no image by its name, hidden, or in no class' folder: {self.paths} (such as {example})"
        )


def is_hidden_or_tool(name: str) -> bool:
    """Whether a file or folder of this name, without its path, is hidden or a system's or a program's, not the user's.

    Such are `.ipynb_checkpoints`, `._photo.jpg`, `@eaDir`, `__MACOSX`, `Thumbs.db`.
    """
    return name.startswith(".") or name.lower() in TOOL_NAMES


def has_image_suffix(name: str) -> bool:
    """Whether a name ends as an image's, without regard to case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_image(path: str) -> bool:
    """Whether a file is an image by its name, without regard to case. A name without a suffix is none.

    Args:
        path: relative to the place that is looked through, with '/'; no part of it may be hidden or a tool's.
    """
    return has_image_suffix(path) and not any(map(is_hidden_or_tool, path.split("/")))


def rule_of(decode: Any) -> Callable[[str], bool]:
    """What an image is, by its name, for a decoder of files: as `is_image` says, or the decoder's own rule."""
    return getattr(decode, "is_image", is_image)


def left_out(paths: list[str]) -> Optional[LeftOut]:
    """What is to be said of the paths that are left out; None: there are none."""
    return LeftOut(len(paths), min(paths)) if paths else None


def notes_of(place: object, others: list[str]) -> list[str]:
    """The lines that a source's `notes` begin with: one of what is left out, if there is any."""
    return [f"{place}: {left_out(others)}"] if others else []
