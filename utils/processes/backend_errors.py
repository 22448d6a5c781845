"""Errors of NCCL, gloo and the store as one line that keeps their text."""

import re
from typing import Mapping, Optional

from ..errors import ShortageError

LONGEST = 500  # characters of a text of theirs
CONNECTING = re.compile(
    r"address already in use|EADDRINUSE|bind|listen|connect|timed? ?out|timeout|did not come|resolve|getaddrinfo"
    r"|name or service not known|no route|refused",
    re.IGNORECASE,
)


def text_of(error: BaseException) -> str:
    """An error's text on one line, without torch's list of C++ frames."""
    text = re.split(r"\n?Exception raised from |\nC\+\+ CapturedTraceback", str(error))[0]
    return " ".join(text.split())[:LONGEST]


def of_backend(error: BaseException, environ: Mapping[str, str]) -> Optional[ShortageError]:
    """The line for an error of NCCL or gloo; None if it is of neither."""
    text = text_of(error)
    if "nccl" in text.lower():
        remedy = "start one process per GPU" if "Duplicate GPU" in text else "NCCL_DEBUG=INFO makes it say what it met"
        if "Duplicate GPU" in text:
            remedy += ", each with a GPU of its own (NCCL_DEBUG=INFO says more)"
        return ShortageError(f"NCCL: {text}; {remedy}")
    if "gloo" in text.lower():
        interface = environ.get("GLOO_SOCKET_IFNAME")
        used = f"its interface is {interface}" if interface else "it uses the interface of the host name's address"
        return ShortageError(
            f"gloo: {text}; {used}: if that does not lead to the other processes, set GLOO_SOCKET_IFNAME to one that does"
        )
    return None


def of_meeting(error: BaseException, environ: Mapping[str, str]) -> ShortageError:
    """The line for an error before all processes have met."""
    text, place = text_of(error), f"{environ.get('MASTER_ADDR')}:{environ.get('MASTER_PORT')}"
    ours = of_backend(error, environ)
    if ours:
        return ours
    if CONNECTING.search(text):
        return ShortageError(
            f"MASTER_ADDR, MASTER_PORT: the processes do not find each other at {place} ({text}); is the port free and the "
            "address that of rank 0's machine?"
        )
    return ShortageError(f"the processes do not meet at {place}: {text}; TORCH_DISTRIBUTED_DEBUG=INFO says more")
