"""A web server on this machine that misbehaves in every way the client must survive."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Reply = tuple[int, dict[str, str], bytes]
Route = Callable[[str, dict[str, list[str]]], Reply]


@dataclass
class Server:
    """A running server, what it was asked, and what it answers beyond its own tricks."""

    port: int
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path with query, in order."""
    ranges: list[str | None] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)
    """Answers by the beginning of the path; the longest that fits is taken."""
    stop: threading.Event = field(default_factory=threading.Event)
    turns: Counter[str] = field(default_factory=Counter)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def put(self, path: str, body: object, status: int = 200, **headers: str) -> None:
        """Answer `path` with JSON, or with bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.routes[path] = lambda _path, _query: (status, named, data)

    def count(self, path: str) -> int:
        """Requests whose path begins so."""
        return sum(asked.startswith(path) for _, asked in self.asked)


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    state: Server

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listening

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state = self.server.state
        state.asked.append((self.command, self.path))
        state.ranges.append(self.headers.get("Range"))
        state.tokens.append(self.headers.get("Authorization"))
        self.close_connection = True
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        fitting = [p for p in state.routes if parts.path.startswith(p)]
        if fitting:
            self._send(*state.routes[max(fitting, key=len)](parts.path, query))
            return
        name, *rest = parts.path.strip("/").split("/")
        trick = getattr(self, f"_{name.replace('-', '_')}", None)
        if trick is None:
            self._send(404, {}, b"no such page")
        else:
            trick(rest, query)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _ok(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(200, {}, b"fine")

    def _status(self, rest: list[str], query: dict[str, list[str]]) -> None:
        after = query.get("retry-after")
        self._send(int(rest[0]), {"Retry-After": after[0]} if after else {}, b"as you wish")

    def _flaky(self, rest: list[str], query: dict[str, list[str]]) -> None:
        """/flaky/NAME/STATUS/TIMES: fails so many times, then is well."""
        name, status, times = rest
        turns = self.server.state.turns
        turns[name] += 1
        if turns[name] <= int(times):
            after = query.get("retry-after")
            self._send(int(status), {"Retry-After": after[0]} if after else {}, b"later")
        else:
            self._send(200, {}, b"fine")

    def _no_head(self, rest: list[str], query: dict[str, list[str]]) -> None:
        if self.command == "HEAD":
            self._send(405, {"Allow": "GET"}, b"")
        else:
            self._send(200, {}, b"x" * 5000)

    def _head_lies(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(404 if self.command == "HEAD" else 200, {}, b"fine")

    def _to(self, rest: list[str], query: dict[str, list[str]]) -> None:
        """/to/STATUS?url=TARGET: redirects."""
        self._send(int(rest[0]), {"Location": query["url"][0]}, b"")

    def _chain(self, rest: list[str], query: dict[str, list[str]]) -> None:
        """/chain/STATUS/N: redirects N times."""
        left = int(rest[1])
        if left:
            self._send(int(rest[0]), {"Location": f"/chain/{rest[0]}/{left - 1}"}, b"")
        else:
            self._send(200, {}, b"arrived")

    def _loop(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(302, {"Location": "/loop/b" if rest == ["a"] else "/loop/a"}, b"")

    def _bytes_in_location(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\nContent-Length: 0\r\n\r\n")

    def _huge(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**12))
        self.end_headers()
        self._pour(b"x" * 65536)

    def _endless(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._pour(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    def _pour(self, block: bytes) -> None:
        if self.command == "HEAD":
            return
        while not self.server.state.stop.is_set():
            self.wfile.write(block)

    def _short(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(200, {"Content-Length": "5000"}, b"only this")

    def _bad_length(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(200, {"Content-Length": "many"}, b"fine")

    def _two_lengths(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(200, {"Content-Length": "4, 9"}, b"fine")

    def _reset(self, rest: list[str], query: dict[str, list[str]]) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def _garbage(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self.wfile.write(b"\xff\xfe not HTTP at all\r\n\r\n")

    def _silent(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self.server.state.stop.wait(20)

    def _drip(self, rest: list[str], query: dict[str, list[str]]) -> None:
        """Header bytes one by one: each in time, all together never."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.state.stop.wait(0.02):
            self.wfile.write(b"x")

    def _not_utf8(self, rest: list[str], query: dict[str, list[str]]) -> None:
        self._send(200, {"Content-Type": "application/json"}, b'{"title": "\xff\xfe"}')


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the length of a `with` block."""
    listening = _Listening(("127.0.0.1", 0), _Handler)
    state = Server(listening.server_address[1])
    listening.state = state
    thread = threading.Thread(target=lambda: listening.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stop.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
