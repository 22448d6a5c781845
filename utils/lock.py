"""One run per folder."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import NoReturn, Optional, TextIO

from .errors import OutputError
from .files import unwritable_folder

NAME = ".lock"


class RunLock:
    """Holds a folder for this process until it is released or the process ends, however it ends.

    The lock is the operating system's on the file `.lock`, so none is left by a process that was killed; the file's
    content only says who has it. (A POSIX record lock: worker processes do not inherit it, and NFS knows it.)
    """

    def __init__(self, directory: Path, flag: str = "--tag"):
        self.path = directory / NAME
        self.flag = flag  # gives another folder
        self.file: Optional[TextIO] = None

    def acquire(self) -> None:
        """Makes the folder if there is none, and takes it.

        Raises:
            OutputError: another process has it; its host, process and start are named. Or it cannot be written to.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+")
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if self.file is None:
                self._refuse(error)
            self.file.seek(0)
            holder = self.file.read()
            self.release()
            raise OutputError(
                f"{self.path.parent}: is in use by {_describe(holder)}; wait for it, end it, or use another {self.flag}"
            ) from error
        except OSError as error:
            self._refuse(error)
        self.file.truncate(0)
        self.file.write(
            json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        )
        self.file.flush()

    def release(self) -> None:
        if self.file:
            self.file.close()
            self.file = None

    def _refuse(self, error: OSError) -> NoReturn:
        self.release()
        raise unwritable_folder(self.path.parent, error) from error


def _describe(holder: str) -> str:
    try:
        values = json.loads(holder)
        return f"process {values['pid']} on {values['host']} since {values['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
