"""Image files without what they say about their pixels: texts, colour profiles, previews, the camera's notes.

A reader may end at such a part that is damaged or too large, though the pixels are whole. Pixels are not looked at
here.
"""

import struct
import zlib
from typing import Callable, Iterator, Optional

PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
PNG_FRAMES = (b"acTL", b"fcTL", b"fdAT")
# Of the texts those that can say which side is up.
PNG_ORIENTATIONS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")

# Markers of JPEG files.
SOS, EXIF, COMMENT = 0xDA, 0xE1, 0xFE
JPEG_COLOURS = {0xE0: 14, 0xEE: 12}  # JFIF and Adobe, which say how colours are stored, and their least bytes

WEBP_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
WEBP_ORIENTATIONS = {b"EXIF": 0x08, b"XMP ": 0x04}  # and their flags in VP8X
WEBP_PROFILE = 0x20  # likewise

TIFF_PIXELS = {
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
    347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
# By a file's first bytes: byte order, where the directory's offset stands, kinds of the offset and of the number
# of entries (as in `struct`), bytes of an entry.
TIFFS = {
    b"II*\0": ("<", 4, "I", "H", 12), b"MM\0*": (">", 4, "I", "H", 12),
    b"II+\0": ("<", 8, "Q", "Q", 20), b"MM\0+": (">", 8, "Q", "Q", 20),
}  # fmt: skip


def without_metadata(data: bytes) -> Iterator[bytes]:
    """A file's bytes with less and less metadata; none of a format that is not known here.

    First without what says nothing of the pixels, then also without what says which side of them is up, and without
    the frames of an animated PNG.
    """
    stripped = _stripper(data)
    if stripped is None:
        return
    for keep in (True, False):
        try:
            bare = stripped(data, keep)
        except (struct.error, IndexError):  # it ends in the middle
            bare = None
        if bare:
            yield bare


def _stripper(data: bytes) -> Optional[Callable[[bytes, bool], Optional[bytes]]]:
    if data.startswith(PNG):
        return _png
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp
    return _tiff if data[:4] in TIFFS else None


def _png(data: bytes, keep: bool) -> Optional[bytes]:
    """None if its pixels end in the middle."""
    parts, start = [PNG], len(PNG)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data) and kind in PNG_PIXELS:
            return None
        chunk = data[start:end]
        if kind in PNG_PIXELS or (keep and end <= len(data) and _says_more(kind, chunk)):
            parts.append(chunk)
        start = end
    return b"".join(parts)


def _says_more(kind: bytes, chunk: bytes) -> bool:
    """Whether a chunk of a PNG is one of its other frames or may say its orientation."""
    wanted = kind == b"eXIf" or chunk[8:].startswith(PNG_ORIENTATIONS)
    whole = struct.unpack(">I", chunk[-4:])[0] == zlib.crc32(chunk[4:-4])
    return kind in PNG_FRAMES or (wanted and whole)


def _jpeg(data: bytes, keep: bool) -> Optional[bytes]:
    """None if it has no segments up to its pixels."""
    parts, start = [data[:2]], 2
    while data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xFF:  # filling
            start += 1
            continue
        if marker == SOS:
            return b"".join([*parts, data[start:]])
        end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        wanted = end - start - 4 >= JPEG_COLOURS.get(marker, 0)
        if 0xE0 <= marker <= 0xEF and marker not in JPEG_COLOURS or marker == COMMENT:
            wanted = keep and marker == EXIF
        if wanted:
            parts.append(data[start:end])
        start = end
    return None


def _webp(data: bytes, keep: bool) -> Optional[bytes]:
    """None if its pixels end in the middle."""
    parts, start, flags = [], 12, 0
    while start + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, start)
        end = start + 8 + length
        if end > len(data) and kind in WEBP_PIXELS:
            return None
        is_kept = keep and end <= len(data) and kind in WEBP_ORIENTATIONS
        if kind in WEBP_PIXELS or is_kept:
            parts.append(bytearray(data[start:end] + b"\0" * (length % 2)))
            flags |= WEBP_ORIENTATIONS.get(kind, 0)
        start = end + length % 2
    if parts and parts[0].startswith(b"VP8X"):
        every = WEBP_PROFILE | sum(WEBP_ORIENTATIONS.values())
        parts[0][8] = parts[0][8] & ~every | flags
    chunks = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def _tiff(data: bytes, keep: bool) -> Optional[bytes]:
    """The first page's directory has the pixels' entries alone; what the others point at stays where it is."""
    order, place, offset, number, size = TIFFS[data[:4]]
    start = struct.unpack_from(order + offset, data, place)[0]
    count = struct.unpack_from(order + number, data, start)[0]
    first = start + struct.calcsize(order + number)
    end = first + count * size
    following = data[end : end + struct.calcsize(order + offset)]
    if end > len(data):
        return None
    entries = [data[at : at + size] for at in range(first, end, size)]
    entries = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in TIFF_PIXELS]
    directory = struct.pack(order + number, len(entries)) + b"".join(entries) + following
    return data[:start] + directory + data[start + len(directory) :]
