"""What a file is that holds no weights this project reads: other formats, and what a failed download leaves."""

import zipfile
from pathlib import Path
from typing import Sequence

SAVE = "save the model's state_dict() with torch.save, or its safetensors, and use that"
RELOAD = "download the file itself again"
STARTS = (  # first bytes, what they are of, what to do
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras and TensorFlow write",
        f"load it there, convert it to PyTorch's names, and {SAVE}",
    ),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for",
        "run `git lfs pull` where it is from, or download the file itself",
    ),
    (b"\x93NUMPY", "a NumPy array", SAVE),
    (b"GGUF", "a GGUF file", SAVE),
    (b"\x1f\x8b", "packed with gzip", "unpack it (gunzip, tar xzf)"),
    (b"BZh", "packed with bzip2", "unpack it"),
    (b"\xfd7zXZ\x00", "packed with xz", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"%PDF", "a PDF file", RELOAD),
)
SUFFIXES = {  # of formats without a certain beginning
    ".onnx": ("an ONNX file", f"an ONNX file holds no state dict; {SAVE}, from the model that it was exported of"),
    ".tflite": ("a TensorFlow Lite file", SAVE),
    ".pb": ("a TensorFlow graph", SAVE),
    ".msgpack": ("a Flax file", f"load it there, convert it to PyTorch's names, and {SAVE}"),
    ".engine": ("a TensorRT engine", f"it holds no state dict; {SAVE}"),
    ".mlmodel": ("a Core ML model", SAVE),
}
INDEX = ".index.json"  # of weights in several files, as the hub's are that are large: which tensor lies in which file
# of a model's folder, as timm and the hub name them
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "pytorch_model.pth")


def describe_start(path: Path) -> str:
    """`is ..., no checkpoint; what to do` for a file that is known to be something else; '' for any other."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return f"is empty, no checkpoint (of a download or a copy that failed, perhaps); {RELOAD}"
    if start[257:262] == b"ustar":
        return "is a tar archive, no checkpoint; unpack it, and give the file in it"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what, advice in STARTS:
        if start.startswith(magic):
            return f"is {what}, no checkpoint; {advice}"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return f"is an HTML page, no checkpoint (of a download that asked for a click or a login, perhaps); {RELOAD}"
    if text.startswith(b"<?xml"):
        return f"is an XML text, no checkpoint (a server's refusal, perhaps); {RELOAD}"
    if text.startswith((b'{"', b"{\r", b"{\n")):
        return f"is a JSON text, no checkpoint; {RELOAD}"
    if path.suffix.lower() == ".onnx" or _is_onnx(start):
        what, advice = SUFFIXES[".onnx"]
        return f"is {what}, no checkpoint; {advice}"
    # no pickle and no zip file
    if start[:1] != b"\x80" and not start.startswith(b"PK") and path.suffix.lower() in SUFFIXES:
        what, advice = SUFFIXES[path.suffix.lower()]
        return f"is {what}, no checkpoint; {advice}"
    return ""


def describe_archive(archive: zipfile.ZipFile) -> str:
    """The same of a zip file, torch's format and others'."""
    names = archive.namelist()
    inner = {name.partition("/")[2] or name for name in names}  # torch puts all into one folder
    if any(name.endswith(".npy") for name in names):
        return f"is a NumPy archive (.npz), as of JAX, no checkpoint; convert it to PyTorch's names, and {SAVE}"
    if "model.weights.h5" in inner or "model.weights.h5" in names:
        return f"is a Keras file, no checkpoint; load it there, convert it to PyTorch's names, and {SAVE}"
    if any(name.startswith("code/") for name in inner) and "data.pkl" in inner:
        return f"is a TorchScript file, which holds a program; torch.jit.load reads it: {SAVE}"
    if any(_is_of_a_program(name) for name in names):
        return f"is a file of torch.export, which holds a program; {SAVE}, of the model that it was exported of"
    if "data.pkl" not in inner:
        return "is a zip archive, no checkpoint; unpack it, and give the file in it"
    return ""


def describe_folder(names: Sequence[str], path: Path) -> str:
    """The same of a folder that holds no model's files."""
    checkpoint = next((name for name in ("best.pth", "last.pth") if name in names), None)
    if checkpoint:
        return f"is the folder of a run; give {path / checkpoint}"
    if "saved_model.pb" in names:
        return f"is a TensorFlow model's folder; convert it to PyTorch's names, and {SAVE}"
    return "is a folder without weights (model.safetensors, as scripts/export.py hub writes); give a checkpoint file"


def _is_of_a_program(name: str) -> bool:
    return name.rpartition("/")[2] in ("archive_format", "serialized_exported_program.json") or name.endswith(
        "aotinductor/"
    )


def _is_onnx(start: bytes) -> bool:
    """An ONNX file begins with its version (field 1, a small number) and its producer (field 2, a string)."""
    return (
        len(start) > 4
        and start[0] == 0x08
        and 0 < start[1] < 32
        and start[2] == 0x12
        and start[4 : 4 + start[3]].isascii()
        and start[3] < 100
    )
