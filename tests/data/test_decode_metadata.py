"""Metadata that are damaged or too large: the pixels are those of the same file without them, and no line is printed that
names no file.
"""

import importlib.util
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin

from conftest import ROOT, run, smallest_model
from data.decode import decode_image, frames_of, open_image
from data.metadata import without_metadata
from data.sources.image_paths import FileSource
from loading import augmentation
from utils.rng import seed_cpu

HAS_NVIMGCODEC = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec")
BACKENDS = ("pil", "cv2", *(["nvimgcodec"] if HAS_NVIMGCODEC else []))
ON_ITS_SIDE = 6  # EXIF's orientation


def picture() -> Image.Image:
    """48 x 40, without any symmetry."""
    y, x = np.mgrid[:40, :48]
    return Image.fromarray(np.stack([5 * x, 6 * y, 3 * x + 2 * y], axis=-1).clip(0, 255).astype(np.uint8))


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture().save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int = ON_ITS_SIDE) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def chunk(kind: bytes, data: bytes, check: int = -1) -> bytes:
    """Of a PNG."""
    check = zlib.crc32(kind + data) if check < 0 else check
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def segment(marker: int, data: bytes) -> bytes:
    """Of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


LARGE = zlib.compress(bytes(3_000_000), 9)  # Pillow's limit is 1 MiB
CHUNKS = {
    "large zTXt": chunk(b"zTXt", b"k\0\0" + LARGE),
    "large iTXt": chunk(b"iTXt", b"k\0\1\0\0\0" + LARGE),
    "large iCCP": chunk(b"iCCP", b"k\0\0" + LARGE),
    "many zTXt": 70 * chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))),  # its limit of all is 64 MiB
    "zTXt that is no zlib": chunk(b"zTXt", b"k\0\0nothing"),
    "zTXt of an unknown method": chunk(b"zTXt", b"k\0\7x"),
    "iCCP that is no zlib": chunk(b"iCCP", b"k\0\0nothing"),
    "iCCP of an unknown method": chunk(b"iCCP", b"k\0\7x"),
    "tEXt with a wrong checksum": chunk(b"tEXt", b"k\0v", 1),
    "eXIf with a wrong checksum": chunk(b"eXIf", b"II*\0", 1),
    "eXIf that is none": chunk(b"eXIf", b"none"),
    "short gAMA": chunk(b"gAMA", b"x"),
    "short pHYs": chunk(b"pHYs", b"x"),
    "short cHRM": chunk(b"cHRM", b"x"),
    "empty sRGB": chunk(b"sRGB", b""),
    "short acTL": chunk(b"acTL", b"x"),
    "an odd kind": chunk(b"t\xff\xffX", b"x"),
}
SEGMENTS = {
    "EXIF cut short": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
    "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "broken XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:"),
    "MPF cut short": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "MPF that is none": segment(0xE2, b"MPF\0nothing"),
    "ICC without a number": segment(0xE2, b"ICC_PROFILE\0"),
    "ICC that lacks parts": segment(0xE2, b"ICC_PROFILE\0\x05\x02abc"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "second, short JFIF": segment(0xE0, b"JFIF\0"),
    "Photoshop cut short": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x20ab"),
}


def tiff(tag: int, compression: str, byte_order: str = "<", **entry: int) -> tuple[bytes, bytes]:
    """A TIFF file whose entry of a tag is changed, and as it was."""
    options = {"quality": 95} if compression == "jpeg" else {}
    info = {270: "a description of some length", 274: ON_ITS_SIDE, 315: "an artist of some length"}
    whole = saved("TIFF", compression=compression, tiffinfo=info, dpi=(72, 72), icc_profile=bytes(100), **options)
    start = struct.unpack_from("<I", whole, 4)[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", whole, start)[0], 12):
        found, kind, count, value = struct.unpack_from("<HHII", whole, at)
        if found == tag:
            old = {"kind": kind, "count": count, "value": value, **entry}
            changed = struct.pack("<HHII", tag, old["kind"], old["count"], old["value"])
            return whole[:at] + changed + whole[at + 12 :], whole
    raise AssertionError(tag)


def cases() -> dict[str, tuple[bytes, bytes]]:
    """Name, with the suffix: the damaged file and the same without the damage, or where it changes no pixel."""
    png, jpeg, webp = (
        saved("PNG"),
        saved("JPEG", quality=95),
        saved("WEBP", lossless=True, exif=exif(), xmp=b"<x/>", icc_profile=bytes(99)),
    )
    turned = saved("JPEG", quality=95, exif=exif())
    found = {}
    for name, part in CHUNKS.items():
        found[f"{name} before.png"] = png[:33] + part + png[33:], png
        found[f"{name} after.png"] = png[:-12] + part + png[-12:], png
    found["a text that the end cuts.png"] = png[:-12] + struct.pack(">I", 10**6) + b"tEXtk\0v", png
    palette = io.BytesIO()
    picture().quantize(16).save(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    found["palette with transparent bytes.png"] = palette.getvalue(), palette.getvalue()
    upright = saved("PNG", exif=exif())
    found["large text of a turned one.png"] = upright[:33] + CHUNKS["large zTXt"] + upright[33:], upright
    for name, part in SEGMENTS.items():
        found[f"{name}.jpg"] = jpeg[:2] + part + jpeg[2:], jpeg
        if "EXIF" not in name:  # else the first one holds
            found[f"{name}, turned.jpg"] = turned[:2] + part + turned[2:], turned
    found["bytes before the end.jpg"] = jpeg[:-2] + b"\0\1\2\3" + jpeg[-2:], jpeg
    plain, place = saved("WEBP", lossless=True), webp.index(b"EXIF")
    found["EXIF that the end cuts.webp"] = webp[: place + 12], plain
    found["EXIF longer than the file.webp"] = webp[: place + 4] + struct.pack("<I", 10**6) + webp[place + 8 :], plain
    found["EXIF that is none.webp"] = webp[: place + 8] + b"\xff" * 8 + webp[place + 16 :], plain
    place = webp.index(b"XMP ")
    found["XMP longer than the file.webp"] = webp[: place + 4] + struct.pack("<I", 10**6) + webp[place + 8 :], webp
    for compression in ("raw", "tiff_lzw", "jpeg"):
        for tag in (270, 282, 315, 34675):
            found[f"{compression} {tag} beyond the end.tif"] = tiff(tag, compression, value=10**8)
            found[f"{compression} {tag} of an unknown kind.tif"] = tiff(tag, compression, kind=99)
        found[f"{compression} 270 that is no text.tif"] = tiff(270, compression, kind=5, count=1)
        found[f"{compression} 296 that is none.tif"] = tiff(296, compression, value=57600)
        found[f"{compression} 34675 larger than the file.tif"] = tiff(34675, compression, count=10**9)
    return found


CASES = cases()


def pixels(data: bytes, upright: bool = True) -> np.ndarray:
    return np.asarray(decode_image(io.BytesIO(data), upright))


@pytest.mark.parametrize("name", CASES)
def test_the_pixels_are_those_without_the_damage(name):
    damaged, whole = CASES[name]
    assert np.array_equal(pixels(damaged), pixels(whole)) and np.array_equal(
        pixels(damaged, False), pixels(whole, False)
    )
    is_turned = "turned" in name or name.endswith((".tif", "XMP longer than the file.webp"))
    assert pixels(damaged).shape == ((48, 40, 3) if is_turned else (40, 48, 3))
    if not name.startswith("short acTL"):
        assert frames_of(open_image(io.BytesIO(damaged))) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_backend_trains_on_the_same_pixels(backend):
    transform = augmentation(backend=backend, img_size=32)

    def trained(data: bytes) -> np.ndarray:
        seed_cpu(5)
        return transform.picture(transform.decode(io.BytesIO(data))).pixels

    for name, (damaged, whole) in CASES.items():
        assert np.array_equal(trained(damaged), trained(whole)), name


PRINTING = """
import io, sys, warnings
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/scripts"]
from data.sources.image_paths import FileSource
from loading import augmentation

warnings.resetwarnings()
warnings.simplefilter("default")
paths = sorted(map(str, Path({folder!r}).iterdir()))
for backend in {backends!r}:
    transform = augmentation(backend=backend, img_size=32)
    transform.decode(io.BytesIO(Path(paths[0]).read_bytes()))  # its libraries are loaded, which may warn for themselves
    print("begin", file=sys.stderr, flush=True)
    source = FileSource(paths, transform.decode)
    for index in range(len(source)):
        transform.picture(source.load(index)[0])
    print("end", file=sys.stderr, flush=True)
"""


def test_nothing_is_printed_without_a_file_s_name(tmp_path):
    """Neither by Pillow nor by the C libraries below; in a process of its own, whose warnings are on."""
    for name, (damaged, _) in CASES.items():
        (tmp_path / name).write_bytes(damaged)
    code = PRINTING.format(root=str(ROOT), folder=str(tmp_path), backends=BACKENDS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = done.stderr.split("begin\n")[1:]
    assert len(parts) == len(BACKENDS) and all(part.startswith("end\n") for part in parts), done.stderr


def test_an_evaluation_has_all_of_them(tmp_path, write_config):
    """main.py as a command with two loading processes: the accuracy of the whole files, and nothing on stderr."""
    for number, (name, both) in enumerate(CASES.items()):
        for kind, data in zip(("damaged", "whole"), both):
            folder = tmp_path / kind / "val" / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03d}{Path(name).suffix}").write_bytes(data)
    torch.manual_seed(0)
    torch.save({"model": smallest_model(num_classes=2).state_dict(), "classes": ["a", "b"]}, tmp_path / "w.pth")
    flags = ["--cfg", write_config(DATA={"NUM_WORKERS": 2}), "--eval", "--resume", tmp_path / "w.pth", "--data-path"]
    command = [sys.executable, "-W", "default", ROOT / "main.py", *flags, tmp_path / "damaged", "--tag", "damaged"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert not [line for line in lines if "PIL" in line or "TIFF" in line or "JPEG" in line or "Exif" in line], (
        done.stderr
    )
    run(*flags, tmp_path / "whole", "--tag", "whole")
    first, second = (
        json.loads((tmp_path / f"output/fat_tiny/{tag}/eval.json").read_text()) for tag in ("damaged", "whole")
    )
    assert first["num_images"] == len(CASES) and first["complete"] and first["raw"] == second["raw"]


def test_files_for_a_prediction(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(CASES["large zTXt before.png"][0])
    image, frames = FileSource([str(path)]).load(0)
    assert frames == 1 and np.array_equal(np.asarray(image), np.asarray(picture()))


# What is still refused


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_pixels_that_end_in_the_middle(kind):
    data = saved(
        kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {"lossless": True} if kind == "WEBP" else {})
    )
    part = {"PNG": CHUNKS["large zTXt"], "JPEG": SEGMENTS["ICC without a number"]}.get(kind, b"")
    place = {"PNG": 33, "JPEG": 2}.get(kind, 0)
    assert pixels(data[:place] + part + data[place:]).shape == (40, 48, 3)
    damaged = data[:place] + part + cut(data[place:])
    with pytest.raises(Exception, match="truncated|MAX_TEXT_CHUNK|cannot identify|decoder"):
        pixels(damaged)


def test_a_wrong_checksum_of_pixels_and_a_short_transparency():
    data = saved("PNG")
    place = data.index(b"IDAT")
    harmed = data[: place + 60] + bytes([data[place + 60] ^ 255]) + data[place + 61 :]
    with pytest.raises(Exception):
        pixels(harmed)
    with pytest.raises(Exception, match="Truncated tRNS"):
        pixels(data[:33] + chunk(b"tRNS", b"x") + data[33:])


def test_what_is_cut_anywhere_gives_an_error_or_the_pixels():
    """Of each format's file, cut after each of its bytes."""
    for data in (saved("PNG", exif=exif(1)), saved("WEBP", lossless=True, exif=exif(1)), tiff(270, "tiff_lzw")[1]):
        right = [pixels(data), pixels(data, False)]  # a cut orientation is none
        for end in range(0, len(data), 7):
            try:
                found = pixels(data[:end])
            except Exception:
                continue
            assert any(np.array_equal(found, expected) for expected in right), (end, len(data))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_bomb_among_the_texts_does_not_fill_the_memory(tmp_path, kind):
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(2**20)) for _ in range(500)]) + packer.flush()
    png = saved("PNG")
    (tmp_path / "a.png").write_bytes(png[:33] + chunk(kind, b"k\0\0" + bomb) + png[33:])
    code = (
        f"import resource, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from data.decode import decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"print(decode_image(open({str(tmp_path / 'a.png')!r}, 'rb')).size)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    size, grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert size == "(48, 40)" and int(grown) < 50_000  # KiB


def test_pillow_s_limits_are_left_alone():
    limits = (
        PngImagePlugin.MAX_TEXT_CHUNK,
        PngImagePlugin.MAX_TEXT_MEMORY,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        Image.MAX_IMAGE_PIXELS,
    )
    pixels(CASES["large zTXt before.png"][0])
    assert limits == (
        PngImagePlugin.MAX_TEXT_CHUNK,
        PngImagePlugin.MAX_TEXT_MEMORY,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        Image.MAX_IMAGE_PIXELS,
    )
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(CASES["large zTXt before.png"][0]))


@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_of_either_size(bigtiff):
    data = saved("TIFF", big_tiff=bigtiff, compression="raw", tiffinfo={270: "a description of some length"})
    bare = next(without_metadata(data))
    assert data[:4] == (b"II+\0" if bigtiff else b"II*\0") and np.array_equal(pixels(bare), np.asarray(picture()))
    assert 270 in Image.open(io.BytesIO(data)).tag_v2 and 270 not in Image.open(io.BytesIO(bare)).tag_v2


def test_other_formats_have_no_second_try():
    assert [list(without_metadata(saved(kind))) for kind in ("GIF", "BMP", "PPM")] == [[], [], []] and not list(
        without_metadata(b"")
    )
