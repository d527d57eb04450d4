"""Ask web servers politely, within bounds, and never a private one.

Everything that goes out passes through `Client.ask`: the address is checked before the first
request and after every redirect, the connection is made to the very address that was checked, and
bytes, seconds, redirects, retries and the pace per host are limited by one `Policy`.

Proxies, netrc and cookies are not used: behind a proxy the checked address could not be pinned.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from requests_cache.backends.sqlite import SQLiteDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.util import Retry
from urllib3.util.connection import create_connection

MAX_URL = 2000
_HOUR = 3600.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
_SETTLED = frozenset({200, 203, 204, 206, 404, 410}) | _REDIRECTS

FailureKind: TypeAlias = Literal[
    "timeout", "no-host", "name-lookup", "connection", "tls", "broken", "too-large", "redirects",
    "asked-to-wait",
]  # fmt: skip
Resolve: TypeAlias = Callable[[str, int], Iterable[str]]


class Refused(Exception):
    """The address must not be asked: wrong scheme, credentials, or a host that is not public."""


class Failure(Exception):
    """No usable answer came; says nothing about whether the thing asked for exists."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Clock(Protocol):
    """Time as the client sees it; tests bring their own."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of everything a client does. Times are in seconds."""

    user_agent: str = "diffusion-pruning-links/1.0"
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    """Longest silence of a server."""
    request_seconds: float = 30.0
    """One request in all, however slowly its bytes drip."""
    total_seconds: float = 90.0
    """All requests for one address: redirects and retries, without waiting for the pace."""
    max_bytes: int = 4 * 2**20
    max_redirects: int = 5
    retries: int = 2
    backoff: float = 1.0
    longest_wait: float = 120.0
    """A server that asks for more patience is not asked again in this run."""
    pace: float = 1.0
    """Least time between two requests to one host."""
    paces: Mapping[str, float] = field(
        default_factory=lambda: {"export.arxiv.org": 3.0, "api.github.com": 0.2}
    )
    """Hosts with a pace of their own."""
    fresh: float = 20 * _HOUR
    """How long a definite answer is taken from the cache."""
    fresh_unsettled: float = _HOUR
    """The same for refusals, overload and timeouts."""
    exempt: frozenset[str] = frozenset()
    """`host:port` of local test servers: plain http and private addresses are allowed there."""

    def pace_of(self, host: str) -> float:
        """Least time between two requests to `host`."""
        return self.paces.get(host, self.pace)


@dataclass(frozen=True, slots=True)
class Hop:
    """One redirect: the status that sent us on, and where to."""

    status: int
    url: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said in the end."""

    url: str
    """Address that answered, after redirects."""
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    hops: tuple[Hop, ...] = ()
    cached: bool = False

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            Failure: when it is none.
        """
        try:
            return json.loads(self.body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise Failure("broken", f"{host_of(self.url)} did not send valid JSON") from error


# --------------------------------------------------------------------------- addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet reaches.

    Addresses that carry another one (IPv4-mapped, 6to4, Teredo, NAT64) are judged by both.
    """
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    carried: list[ipaddress.IPv4Address] = []
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv6Network("64:ff9b::/96")
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        carried += [ip.sixtofour] if ip.sixtofour else []
        carried += list(ip.teredo or ())
        if ip in nat64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.is_site_local:
            return False
    return (
        ip.is_global
        and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
        and all(is_public(str(inner)) for inner in carried)
    )


def resolve_host(host: str, port: int) -> list[str]:
    """Every address of a host, as the system finds them."""
    return list(
        dict.fromkeys(
            str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
    )


def host_of(url: str) -> str:
    """Host name of an address, lower case; empty when there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _checked_url(url: str, policy: Policy) -> SplitResult:
    shown = re.sub(r"[^\x21-\x7e]", "?", url)[:120]
    if len(url) > MAX_URL or re.search(r"[\x00-\x20\x7f-\x9f\\]", url):
        raise Refused(f"{shown} is no valid address")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        raise Refused(f"{shown} is no valid address") from None
    if not host:
        raise Refused(f"{shown} names no host")
    if parts.username is not None or parts.password is not None:
        raise Refused(f"an address at {host} carries a user name or password")
    exempt = _host_port(host, port, parts.scheme) in policy.exempt
    if parts.scheme != "https" and not (exempt and parts.scheme == "http"):
        raise Refused(f"{shown} is not https")
    return parts


def _host_port(host: str, port: int | None, scheme: str) -> str:
    return f"{host.rstrip('.').lower()}:{port or (443 if scheme == 'https' else 80)}"


# --------------------------------------------------------------------------- connections


class _Watch:
    """Cuts the connection of one request when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._originals: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(seconds, 0.001), self._cut)
        self._timer.daemon = True

    def add(self, connection: socket.socket) -> None:
        # A duplicate still reaches the connection after TLS has taken over the first object.
        with self._lock:
            self._sockets.append(connection.dup())
            self._originals.append(connection)

    def _cut(self) -> None:
        with self._lock:
            self.expired = True
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # closed in the meantime
                    continue

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._sockets:
                connection.close()
            for connection in self._originals:
                # http.client leaves it open when the headers make no sense.
                descriptor = connection.detach()
                if descriptor >= 0:
                    os.close(descriptor)


_Opener: TypeAlias = Callable[[HTTPConnection], socket.socket]


def _pools(opener: _Opener) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's pools with connections that `opener` makes."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return opener(self)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return opener(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class _Adapter(HTTPAdapter):
    """requests' transport on top of `_pools`."""

    def __init__(self, opener: _Opener) -> None:
        self._opener = opener
        super().__init__(max_retries=Retry(0, read=False), pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._opener)


class _Pacer:
    """Hands out turns per host, a fixed time apart, and remembers who asked for patience."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._free: dict[str, float] = {}
        self._blocked: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait(self, host: str) -> None:
        """Return when it is the caller's turn to ask `host`.

        Raises:
            Failure: when the host asked for more patience than the policy has.
        """
        with self._lock:
            now = self._clock.now()
            blocked = self._blocked.get(host, now)
            if blocked - now > self._policy.longest_wait:
                raise Failure("asked-to-wait", f"{host} asks to wait {blocked - now:.0f} s")
            start = max(now, blocked, self._free.get(host, now))
            self._free[host] = start + self._policy.pace_of(host)
        if start > now:
            self._clock.sleep(start - now)

    def defer(self, host: str, seconds: float) -> None:
        """Nobody asks `host` for this long."""
        with self._lock:
            until = self._clock.now() + seconds
            self._blocked[host] = max(until, self._blocked.get(host, until))


# --------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """Where answers and the memory of links are kept between runs."""
    chosen = os.environ.get("DIFFUSION_PRUNING_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "diffusion-pruning"


class Cache:
    """Answers of earlier runs, as JSON in an SQLite file.

    A file that is no database is replaced: it is a cache.

    Raises:
        OSError: when the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target in (path.parent, path):
            # requests-cache waits without end for a lock that it can never get.
            if target.exists() and not os.access(target, os.W_OK):
                raise PermissionError(13, "the cache cannot be written", str(target))
        self._lock = threading.Lock()
        try:
            self._store: Any = self._open(path)
        except sqlite3.DatabaseError:
            path.unlink()
            self._store = self._open(path)

    @staticmethod
    def _open(path: Path) -> SQLiteDict:
        # No serializer: values are text already, so nothing is ever unpickled.
        return SQLiteDict(path, table_name="answers", serializer=None, fast_save=True)

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored object, or None."""
        try:
            with self._lock:
                value = json.loads(self._store[key])
        except (KeyError, ValueError, TypeError, RecursionError, sqlite3.DatabaseError):
            return None
        return value if isinstance(value, dict) else None

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store an object under `key`, a hexadecimal digest; a damaged file keeps nothing."""
        with self._lock, contextlib.suppress(sqlite3.DatabaseError):
            self._store[key] = json.dumps(value)

    def close(self) -> None:
        """Close the file."""
        self._store.close()


def open_cache() -> Cache:
    """The cache in the cache folder."""
    return Cache(cache_folder() / "http.sqlite")


# --------------------------------------------------------------------------- client


class Client:
    """Asks servers under a policy; safe to share between threads.

    Args:
        policy: Bounds.
        clock: Time and waiting.
        cache: Answers of earlier runs, or None.
        tokens: Bearer tokens by host; sent to that host alone, over https, also after redirects.
        resolve: Finds the addresses of a host.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        clock: Clock | None = None,
        cache: Cache | None = None,
        tokens: Mapping[str, str] | None = None,
        resolve: Resolve = resolve_host,
    ) -> None:
        self.policy = policy or Policy()
        self.clock = clock or SystemClock()
        self.requests = 0
        """Requests that really went out."""
        self._cache = cache
        self._tokens = dict(tokens or {})
        self._resolve = resolve
        self._pacer = _Pacer(self.policy, self.clock)
        self._count = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache."""
        if self._cache is not None:
            self._cache.close()

    def ask(
        self,
        url: str,
        *,
        method: Literal["GET", "HEAD"] = "GET",
        accept: str = "*/*",
        first_bytes: int | None = None,
    ) -> Answer:
        """The answer to one request, from the cache or the network, after redirects.

        Args:
            url: An https address.
            method: HEAD brings no body.
            accept: Wanted media type.
            first_bytes: Ask for so many bytes and keep no more; None wants the whole body.

        Raises:
            Refused: when the address, or one that it redirects to, must not be asked.
            Failure: when no usable answer came within the bounds.
        """
        parts = _checked_url(url, self.policy)
        url = urlunsplit(parts._replace(fragment=""))
        key = hashlib.sha256(repr((method, url, accept, first_bytes)).encode()).hexdigest()
        stored = self._stored(key)
        if stored is not None:
            return stored
        try:
            answer = self._follow(url, method, accept, first_bytes)
        except Failure as failure:
            if self._cache is not None and failure.kind in ("timeout", "too-large", "redirects"):
                record = {"at": self.clock.now(), "failure": [failure.kind, failure.detail]}
                self._cache.put(key, record)
            raise
        if self._cache is not None:
            self._cache.put(key, {"at": self.clock.now(), "answer": _as_json(answer)})
        return answer

    def _stored(self, key: str) -> Answer | None:
        record = self._cache.get(key) if self._cache is not None else None
        if record is None:
            return None
        try:
            age = self.clock.now() - float(record["at"])
            failure = record.get("failure")
            if failure is not None:
                if 0 <= age < self.policy.fresh_unsettled:
                    raise Failure(failure[0], failure[1])
                return None
            answer = _from_json(record["answer"])
        except (KeyError, TypeError, ValueError, IndexError):
            return None
        settled = answer.status in _SETTLED
        limit = self.policy.fresh if settled else self.policy.fresh_unsettled
        return answer if 0 <= age < limit else None

    def _follow(self, url: str, method: str, accept: str, first_bytes: int | None) -> Answer:
        hops: list[Hop] = []
        left = self.policy.total_seconds
        seen = {url}
        while True:
            answer, left = self._with_retries(url, method, accept, first_bytes, left)
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or not location:
                return Answer(answer.url, answer.status, answer.headers, answer.body, tuple(hops))
            # Servers send raw UTF-8 here, which http.client hands over as Latin-1.
            text = location.encode("latin-1", "replace").decode("utf-8", "replace")
            try:
                target = requests.utils.requote_uri(urljoin(url, text.strip()))
            except (ValueError, requests.RequestException):
                raise Failure("broken", f"{host_of(url)} redirects to no valid address") from None
            parts = _checked_url(target, self.policy)
            url = urlunsplit(parts._replace(fragment=""))
            hops.append(Hop(answer.status, url))
            if url in seen:
                raise Failure("redirects", f"{host_of(url)} redirects in a circle")
            if len(hops) > self.policy.max_redirects:
                raise Failure("redirects", f"more than {self.policy.max_redirects} redirects")
            seen.add(url)

    def _with_retries(
        self, url: str, method: str, accept: str, first_bytes: int | None, left: float
    ) -> tuple[Answer, float]:
        policy, host = self.policy, host_of(url)
        retry = Retry(total=policy.retries, backoff_factor=policy.backoff)
        while True:
            self._pacer.wait(host)
            started = time.monotonic()
            answer: Answer | None = None
            failure: Failure | None = None
            try:
                answer = self._once(url, method, accept, first_bytes, left)
            except Failure as caught:
                if caught.kind not in ("timeout", "connection", "broken", "name-lookup"):
                    raise
                failure = caught
            left -= time.monotonic() - started
            if answer is not None and answer.status not in _TRY_AGAIN:
                return answer, left
            last = left <= 0
            try:
                retry = retry.increment(method, url, error=HTTPError("no usable answer"))
            except MaxRetryError:
                last = True
            wait = self._wait(retry, answer)
            if answer is not None:
                self._pacer.defer(host, wait)
                if last or wait > policy.longest_wait:
                    return answer, left
            elif failure is not None:
                if last:
                    raise failure
                self.clock.sleep(wait)

    def _wait(self, retry: Retry, answer: Answer | None) -> float:
        text = answer.headers.get("retry-after") if answer is not None else None
        if text is not None:
            try:
                # urllib3 reads dates against the system's clock, like the servers that send them.
                return retry.parse_retry_after(text)
            except (InvalidHeader, ValueError, OverflowError):
                pass
        return retry.get_backoff_time() or self.policy.backoff

    def _once(
        self, url: str, method: str, accept: str, first_bytes: int | None, left: float
    ) -> Answer:
        policy = self.policy
        limit = policy.max_bytes if first_bytes is None else first_bytes
        headers = {
            "User-Agent": policy.user_agent,
            "Accept": accept,
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        if first_bytes is not None and method == "GET":
            headers["Range"] = f"bytes=0-{first_bytes - 1}"
        token = self._tokens.get(host_of(url))
        if token and url.startswith("https://"):
            headers["Authorization"] = f"Bearer {token}"
        with self._count:
            self.requests += 1
        host = host_of(url)
        with _Watch(min(policy.request_seconds, left)) as watch:
            # A requests.Session would read the whole bodies of redirects and take cookies and
            # proxies from the environment; a shared pool would outlive the watch.
            adapter = _Adapter(lambda connection: self._open(connection, watch))
            try:
                prepared = requests.Request(method, url, headers=headers).prepare()
                timeouts = (policy.connect_timeout, policy.read_timeout)
                with adapter.send(prepared, stream=True, timeout=timeouts) as response:
                    status = response.status_code
                    names = {k.lower(): v for k, v in response.headers.items()}
                    body = b""
                    if method == "GET" and status not in _REDIRECTS:
                        body = _read(response, limit, first_bytes is None)
            except (Refused, Failure):
                raise
            except (requests.exceptions.InvalidURL, UnicodeError) as error:
                raise Refused(f"{host} is no valid host name") from error
            except (requests.RequestException, HTTPError, OSError, ValueError) as error:
                raise _failure(error, host, watch.expired) from error
            finally:
                adapter.close()
            if watch.expired:
                raise _failure(TimeoutError(), host, True)
        return Answer(url, status, names, body)

    def _open(self, connection: HTTPConnection, watch: _Watch) -> socket.socket:
        """Resolve, check every address, connect to one that was checked."""
        host, port = connection._dns_host, connection.port
        secure = isinstance(connection, HTTPSConnection)
        try:
            addresses = list(self._resolve(host, port))
        except socket.gaierror as error:
            kind: FailureKind = "no-host" if error.errno == socket.EAI_NONAME else "name-lookup"
            raise Failure(kind, f"{host} has no known address") from error
        if not addresses:
            raise Failure("no-host", f"{host} has no known address")
        if _host_port(host, port, "https" if secure else "http") not in self.policy.exempt:
            for address in addresses:
                if not is_public(address):
                    raise Refused(f"{host} leads to {address}, which is not a public address")
        trouble: OSError = OSError("no address")
        for address in addresses[:4]:
            try:
                opened = create_connection(
                    (address, port),
                    self.policy.connect_timeout,
                    source_address=connection.source_address,
                    socket_options=connection.socket_options,
                )
            except TimeoutError as error:
                raise ConnectTimeoutError(connection, f"{host} did not answer") from error
            except OSError as error:
                trouble = error
                continue
            opened.settimeout(self.policy.read_timeout)
            watch.add(opened)
            return opened
        raise NewConnectionError(connection, str(trouble)) from trouble


def _read(response: requests.Response, limit: int, whole: bool) -> bytes:
    """Up to `limit` bytes of the body.

    Raises:
        Failure: when `whole` is wanted and there are more.
    """
    announced = response.headers.get("content-length", "")
    if whole and announced.isdecimal() and int(announced) > limit:
        raise Failure("too-large", f"{host_of(response.url)} sends more than {limit} bytes")
    body = bytearray()
    for chunk in response.raw.stream(min(16384, limit + 1), decode_content=True):
        body += chunk
        if len(body) >= limit and not whole:
            break
        if len(body) > limit:
            raise Failure("too-large", f"{host_of(response.url)} sends more than {limit} bytes")
    return bytes(body[:limit])


def _failure(error: Exception, host: str, expired: bool) -> Failure:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(causes) < 10:
        causes.append(current)
        inner = getattr(current, "reason", None)
        argument = current.args[0] if current.args else None
        current = next(
            (e for e in (inner, argument, current.__cause__) if isinstance(e, BaseException)), None
        )
    timeouts = (requests.Timeout, ReadTimeoutError, ConnectTimeoutError, TimeoutError)
    if any(isinstance(e, NewConnectionError) for e in causes):  # one of urllib3's timeouts
        return Failure("connection", f"no connection to {host}")
    if expired or any(isinstance(e, timeouts) for e in causes):
        return Failure("timeout", f"{host} did not answer in time")
    if any(isinstance(e, requests.exceptions.SSLError) for e in causes):
        return Failure("tls", f"the certificate of {host} is not accepted")
    if any(isinstance(e, ConnectionError) for e in causes):
        return Failure("connection", f"no connection to {host}")
    return Failure("broken", f"{host} sent an answer that is not valid HTTP")


_KEPT_HEADERS = ("content-type", "location", "retry-after", "last-modified", "link")


def _as_json(answer: Answer) -> dict[str, Any]:
    return {
        "url": answer.url,
        "status": answer.status,
        "headers": {k: v for k, v in answer.headers.items() if k in _KEPT_HEADERS},
        "body": base64.b64encode(answer.body).decode(),
        "hops": [[hop.status, hop.url] for hop in answer.hops],
    }


def _from_json(value: Mapping[str, Any]) -> Answer:
    return Answer(
        str(value["url"]),
        int(value["status"]),
        {str(k): str(v) for k, v in value["headers"].items()},
        base64.b64decode(value["body"]),
        tuple(Hop(int(status), str(url)) for status, url in value["hops"]),
        cached=True,
    )
