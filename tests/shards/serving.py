"""A web server on loopback that counts, delays and misbehaves as a test wants."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path


class Server:
    """What a test sees of it.

    Attributes:
        url: Without a slash at the end.
        asked: How often each path was asked for.
        delay: Seconds before each answer.
        answer: Called with a path before the files are looked at; returns status, headers and body, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.delay = 0.0
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes] | None] = lambda _path: None
        self.url = ""

    def respond(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked[path] += 1
        time.sleep(self.delay)
        special = self.answer(path)
        if special is not None:
            return special
        file = self.folder / path.partition("?")[0].lstrip("/")
        return (200, {}, file.read_bytes()) if file.is_file() else (404, {}, b"no")


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    server = Server(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = server.respond(self.path)
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # The client is gone, as some tests want.

        def log_message(self, *arguments: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
