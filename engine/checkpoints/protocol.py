"""Files that torch.save wrote with a newer pickle protocol than 2, all that torch.load knows where it runs no code."""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Optional, Union

from utils.errors import CheckpointError

KNOWN = 2
PICKLES = 5  # at the start of torch's older format: number, version, machine, content, names of the storages
TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
SETS = {"EMPTY_SET": pickle.EMPTY_LIST, "ADDITEMS": pickle.APPENDS, "FROZENSET": pickle.TUPLE}
PROTOCOLS = {operation.name: operation.proto for operation in pickletools.opcodes}  # the first that has each
PUT, GET = {"MEMOIZE", "BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


def in_protocol_2(path: Path) -> Optional[BinaryIO]:
    """A file that torch.save wrote, with its pickles in protocol 2; None if they are already. Nothing of it is run.

    Raises:
        CheckpointError: it holds what protocol 2 cannot say.
        ValueError: it is damaged.
    """
    if zipfile.is_zipfile(path):
        return _zip_in_protocol_2(path)
    with open(path, "rb") as file:
        if not _is_newer(file.read(2)):
            return None
        file.seek(0)
        return io.BytesIO(b"".join(_translated(file, path) for _ in range(PICKLES)) + file.read())


def _zip_in_protocol_2(path: Path) -> Optional[BinaryIO]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if not any(_is_newer(archive.read(name)) for name in pickles):
            return None
        result = io.BytesIO()
        with zipfile.ZipFile(result, "w") as rewritten:
            for name in archive.namelist():
                content = archive.read(name)
                rewritten.writestr(name, _translated(io.BytesIO(content), path) if name in pickles else content)
    result.seek(0)
    return result


def _is_newer(start: bytes) -> bool:
    return start[:1] == pickle.PROTO and start[1] > KNOWN


def _translated(file: BinaryIO, path: Path) -> bytes:
    """The pickle at the file's position, in protocol 2."""
    translation = _Translation(path)
    for name, argument, raw in _operations(file):
        translation.add(name, argument, raw)
    return translation.content()


class _Translation:
    """A pickle in protocol 2, operation by operation.

    A text is written out wherever it is used, instead of once and then by its number: so the two in front of
    STACK_GLOBAL, which are the name of a type, can be taken back for a GLOBAL. What stands beside the weights may change
    its type: sets become lists, frozen ones tuples, bytearrays bytes.
    """

    def __init__(self, path: Path):
        self.path = path  # of the file, for errors
        self.written: list[Union[str, bytes]] = []  # texts as str
        self.texts: dict[int, str] = {}  # by their numbers
        self.numbered = 0  # values that have a number

    def content(self) -> bytes:
        return b"".join(_encoded(value) if isinstance(value, str) else value for value in self.written)

    def add(self, name: str, argument: Any, raw: bytes) -> None:
        """An operation, its argument, and both as they are in the file.

        Raises:
            CheckpointError: protocol 2 cannot say it.
        """
        if name in PUT:
            self._number(self.numbered if name == "MEMOIZE" else argument)
        elif name in TEXT:
            self.written.append(argument)
        elif name in GET and argument in self.texts:
            self.written.append(self.texts[argument])
        elif name in BYTES:
            text = _encoded(argument.decode("latin1")) + _encoded("latin1")
            self.written.append(b"c_codecs\nencode\n" + text + pickle.TUPLE2 + pickle.REDUCE)
        elif name == "STACK_GLOBAL":
            self.written.append(self._type(raw))
        elif name == "PROTO":
            self.written.append(pickle.PROTO + bytes([KNOWN]))
        elif name != "FRAME":
            self.written.append(self._in_protocol_2(name, raw))

    def _number(self, number: int) -> None:
        """The value before this gets a number, by which it is asked for again."""
        self.numbered += 1
        value = self.written[-1]
        if isinstance(value, str):
            self.texts[number] = value
        else:
            self.written.append(pickle.LONG_BINPUT + number.to_bytes(4, "little"))

    def _type(self, raw: bytes) -> bytes:
        """The type that the two texts before this name, which are taken back."""
        module, kind = self.written[-2:]
        if not (isinstance(module, str) and isinstance(kind, str)):
            return self._in_protocol_2("STACK_GLOBAL", raw)
        del self.written[-2:]
        return f"c{module}\n{kind}\n".encode()

    def _in_protocol_2(self, name: str, raw: bytes) -> bytes:
        if name in SETS:
            return SETS[name]
        if PROTOCOLS[name] > KNOWN:
            raise CheckpointError(
                f"{self.path}: was saved with a newer pickle protocol, whose {name} torch.load knows only where it may run "
                "code; load it where it was saved, and save its state_dict() alone, without pickle_protocol"
            )
        return raw


def _operations(file: BinaryIO) -> Iterator[tuple[str, object, bytes]]:
    """A pickle's operations: name, argument, and both as they are in the file, which is then at its end."""
    operations = list(pickletools.genops(file))
    end, places = file.tell(), [place for _, _, place in operations if place is not None]  # None: it cannot seek
    file.seek(places[0])
    content = file.read(end - places[0])
    for (operation, argument, _), place, following in zip(operations, places, [*places[1:], end]):
        yield operation.name, argument, content[place - places[0] : following - places[0]]


def _encoded(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + len(content).to_bytes(4, "little") + content
