"""An object store for tests: a folder behind HTTP on this machine, which fails as it is told."""

import http.server
import re
import threading
from pathlib import Path
from typing import Any


class Store:
    """
    Args:
        folder: what it holds.

    `faults` has a list for a file's name, of which each request for it takes the first: a status such as 503; 'cut' (half of
    the bytes come), 'drop' (the connection ends before an answer), 'short' (half of the bytes, and no word of how many
    there are); 'good'. `headers` has more lines of a file's answers. `requests` has each request's file and range.
    """

    def __init__(self, folder: Path):
        self.faults: dict[str, list] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges = True  # whether it gives parts
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self, folder))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Store":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def whole(self, name: str) -> int:
        """How often a file was asked for, but for its first byte alone."""
        return sum(asked == name and part != "bytes=0-0" for asked, part in self.requests)


def handler_of(store: Store, folder: Path) -> Any:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, part = self.path.partition("?")[0].strip("/"), self.headers.get("Range", "")
            store.requests.append((name, part))
            waiting = store.faults.get(name)
            fault = waiting.pop(0) if waiting and part != "bytes=0-0" else "good"
            if fault == "drop":
                return
            if isinstance(fault, int) or not (folder / name).is_file():
                return self.send_error(fault if isinstance(fault, int) else 404)
            self.give((folder / name).read_bytes(), part, fault, store.headers.get(name, {}))

        def give(self, data: bytes, part: str, fault: str, headers: dict[str, str]) -> None:
            size, first = len(data), 0
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", part) if store.ranges else None
            if match:
                first = int(match[1])
                data = data[first : int(match[2]) + 1 if match[2] else None]
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{size}")
            if fault != "short":
                self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data if fault == "good" else data[: len(data) // 2])

        def log_message(self, *_):
            pass

    return Handler
