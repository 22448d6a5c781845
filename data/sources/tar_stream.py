"""A tar that is read from the first byte to the last, and must have an end.

tarfile takes a header that is cut short or damaged for the end of the archive, and so does webdataset, which reads by it.
"""

import tarfile
from typing import BinaryIO, Iterator


class Header(tarfile.TarInfo):
    """A member's header. The archive's `ended` says whether its own end has been read: an empty block."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed does not list it
            archive.ended = True  # type: ignore[attr-defined]
            raise


def members(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of its files, compressed or not.

    Raises:
        tarfile.TarError: it is no tar, is damaged, or has no end.
        OSError, EOFError, ValueError: likewise, of compressed ones.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=Header) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all; typeshed does not list it
            if member.isreg():
                file = archive.extractfile(member)
                assert file is not None  # as it is of a folder
                yield member.name, file.read()
        if not getattr(archive, "ended", False):
            raise tarfile.ReadError("it has no end")
