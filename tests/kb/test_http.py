"""The client against a server that misbehaves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from kb.http import Cache, Client, Failure, Policy, Refused, cache_folder, is_public

from .server import Server, serving

QUICK = Policy(max_bytes=100_000, retries=2, pace=1.0, paces={})
IMPATIENT = replace(QUICK, read_timeout=0.25, request_seconds=0.4, retries=0)
"""For servers that never answer; with the others a busy machine may take its time."""


@dataclass
class FakeClock:
    """Time that passes only when somebody sleeps."""

    time: float = 1_800_000_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def client(server: Server, clock: FakeClock) -> Iterator[Client]:
    with Client(replace(QUICK, exempt=frozenset({server.host})), clock=clock) as made:
        yield made


def failure(client: Client, url: str, **options: object) -> Failure:
    with pytest.raises(Failure) as caught:
        client.ask(url, **options)  # type: ignore[arg-type]
    return caught.value


def test_plain_answer(client: Client, server: Server) -> None:
    answer = client.ask(f"{server.url}/ok#part")
    assert (answer.status, answer.body, answer.url) == (200, b"fine", f"{server.url}/ok")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "2001:0:7f00:1::",
        "2001:db8::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "//example.org/",
        "https://user:secret@example.org/",
        "https://user@example.org/",
        "https://exa mple.org/",
        "https://example.org/\r\nX: y",
        "https://example.org:99999/",
        "https://example.org\\@evil.org/",
        "https://[::1/",
        "https://a" + "b" * 3000,
        "https://" + "a" * 70 + ".org/",
    ],
)
def test_addresses_refused_before_any_request(url: str, clock: FakeClock) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    with Client(QUICK, clock=clock, resolve=resolve) as client, pytest.raises(Refused) as caught:
        client.ask(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "127.1", "169.254.169.254"],
)
def test_spellings_of_private_hosts(host: str, clock: FakeClock) -> None:
    with Client(QUICK, clock=clock) as client, pytest.raises(Refused, match="not a public"):
        client.ask(f"https://{host}/")


def test_one_private_address_among_public_ones_is_enough(clock: FakeClock) -> None:
    def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "10.0.0.7"]

    with (
        Client(QUICK, clock=clock, resolve=resolve) as client,
        pytest.raises(Refused, match=r"mixed\.example leads to 10\.0\.0\.7"),
    ):
        client.ask("https://mixed.example/")


def test_the_connection_goes_to_the_address_that_was_checked(
    server: Server, clock: FakeClock
) -> None:
    looked_up: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["203.0.113.9"]

    policy = replace(QUICK, exempt=frozenset({f"name.test:{server.port}"}))
    with Client(policy, clock=clock, resolve=rebinding) as client:
        answer = client.ask(f"http://name.test:{server.port}/ok")
    assert answer.status == 200
    assert looked_up == ["name.test"]


@pytest.mark.parametrize(
    "target",
    [
        "http://10.0.0.1/",
        "https://10.0.0.1/",
        "https://localhost/",
        "https://[::ffff:127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        "http://example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://example.org/",
        "https://user:secret@example.org/",
    ],
)
def test_redirects_to_what_must_not_be_asked(client: Client, server: Server, target: str) -> None:
    with pytest.raises(Refused):
        client.ask(f"{server.url}/to/302?url={target}")
    assert len(server.asked) == 1


def test_redirect_to_another_port_of_an_exempt_host_is_refused(
    client: Client, server: Server
) -> None:
    with serving() as other, pytest.raises(Refused):
        client.ask(f"{server.url}/to/302?url={other.url}/ok")
    assert other.asked == []


def test_redirect_chain(client: Client, server: Server) -> None:
    answer = client.ask(f"{server.url}/chain/301/4")
    assert answer.url == f"{server.url}/chain/301/0"
    assert [hop.status for hop in answer.hops] == [301] * 4
    assert failure(client, f"{server.url}/chain/301/6").kind == "redirects"


def test_redirect_loop(client: Client, server: Server) -> None:
    assert failure(client, f"{server.url}/loop/a").kind == "redirects"
    assert len(server.asked) == 2


def test_redirect_with_bytes_that_are_not_text(client: Client, server: Server) -> None:
    answer = client.ask(f"{server.url}/bytes-in-location")
    assert answer.status == 404
    assert answer.url.isascii()


@pytest.mark.parametrize("trick", ["huge", "endless"])
def test_bodies_without_end(client: Client, server: Server, trick: str) -> None:
    assert failure(client, f"{server.url}/{trick}").kind == "too-large"
    assert client.ask(f"{server.url}/{trick}", first_bytes=1000).body == b"x" * 1000
    assert server.ranges[-1] == "bytes=0-999"


@pytest.mark.parametrize("trick", ["short", "reset", "garbage", "two-lengths"])
def test_broken_answers(client: Client, server: Server, trick: str) -> None:
    assert failure(client, f"{server.url}/{trick}").kind in ("broken", "connection")
    assert len(server.asked) == 3, "two retries"


def test_length_that_is_no_number(client: Client, server: Server) -> None:
    assert client.ask(f"{server.url}/bad-length").body == b"fine"


@pytest.mark.parametrize("trick", ["silent", "drip"])
def test_slow_servers(server: Server, clock: FakeClock, trick: str) -> None:
    with Client(replace(IMPATIENT, exempt=frozenset({server.host})), clock=clock) as client:
        assert failure(client, f"{server.url}/{trick}").kind == "timeout"


def test_the_time_for_all_requests_is_bounded(server: Server, clock: FakeClock) -> None:
    exempt = frozenset({server.host})
    policy = replace(IMPATIENT, retries=50, total_seconds=0.3, exempt=exempt)
    with Client(policy, clock=clock) as client:
        assert failure(client, f"{server.url}/silent").kind == "timeout"
    assert len(server.asked) <= 3


def test_nobody_listens(clock: FakeClock) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    with Client(replace(QUICK, exempt=frozenset({host})), clock=clock) as client:
        assert failure(client, f"http://{host}/").kind == "connection"


@pytest.mark.parametrize(
    ("code", "kind", "asked"),
    [(socket.EAI_NONAME, "no-host", 1), (socket.EAI_AGAIN, "name-lookup", 3)],
)
def test_names_that_cannot_be_found(code: int, kind: str, asked: int, clock: FakeClock) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(code, "no")

    with Client(QUICK, clock=clock, resolve=resolve) as client:
        assert failure(client, "https://gone.example/").kind == kind
        assert client.requests == asked


def test_a_certificate_that_cannot_be_checked(server: Server, clock: FakeClock) -> None:
    policy = replace(QUICK, retries=0, exempt=frozenset({server.host}))
    with Client(policy, clock=clock) as client:
        assert failure(client, f"https://{server.host}/ok").kind in ("tls", "timeout", "broken")
    assert server.asked == []


def test_overload_is_retried_with_growing_patience(
    client: Client, server: Server, clock: FakeClock
) -> None:
    assert client.ask(f"{server.url}/flaky/a/503/2").status == 200
    assert clock.slept == [1.0, 2.0]


def test_retries_are_bounded(client: Client, server: Server) -> None:
    assert client.ask(f"{server.url}/status/503").status == 503
    assert len(server.asked) == 3


def test_retry_after_is_honoured(client: Client, server: Server, clock: FakeClock) -> None:
    assert client.ask(f"{server.url}/flaky/b/429/1?retry-after=17").status == 200
    assert clock.slept == [17.0]


def test_retry_after_that_makes_no_sense(client: Client, server: Server, clock: FakeClock) -> None:
    assert client.ask(f"{server.url}/flaky/c/429/1?retry-after=soon").status == 200
    assert clock.slept == [1.0]


@pytest.mark.parametrize("after", ["86400", "Fri,%2001%20Jan%202100%2000:00:00%20GMT"])
def test_a_host_that_asks_for_too_much_patience_is_left_alone(
    client: Client, server: Server, clock: FakeClock, after: str
) -> None:
    assert client.ask(f"{server.url}/status/429?retry-after={after}").status == 429
    assert failure(client, f"{server.url}/ok").kind == "asked-to-wait"
    assert (len(server.asked), clock.slept) == (1, [])
    clock.time += 86400
    assert client.ask(f"{server.url}/ok").status == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418])
def test_other_answers_are_not_retried(client: Client, server: Server, status: int) -> None:
    assert client.ask(f"{server.url}/status/{status}").status == status
    assert len(server.asked) == 1


def test_pace_per_host(client: Client, server: Server, clock: FakeClock) -> None:
    for _ in range(4):
        client.ask(f"{server.url}/ok")
    assert clock.slept == pytest.approx([1.0] * 3)


def test_json_that_is_not_utf8(client: Client, server: Server) -> None:
    with pytest.raises(Failure, match="did not send valid JSON"):
        client.ask(f"{server.url}/not-utf8").json()


def test_tokens_are_not_sent_in_the_clear(server: Server, clock: FakeClock) -> None:
    policy = replace(QUICK, exempt=frozenset({server.host}))
    with Client(policy, clock=clock, tokens={"127.0.0.1": "secret"}) as client:
        client.ask(f"{server.url}/chain/302/1")
    assert server.tokens == [None, None]


def cached_client(server: Server, clock: FakeClock, path: Path) -> Client:
    policy = replace(QUICK, exempt=frozenset({server.host}))
    return Client(policy, clock=clock, cache=Cache(path))


def test_cache_answers_without_asking(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "http.sqlite"
    for expected in (False, True):
        with cached_client(server, clock, path) as client:
            answer = client.ask(f'{server.url}/chain/301/1?it\'s="quoted"')
            assert (answer.cached, answer.status, answer.body) == (expected, 200, b"arrived")
            assert len(answer.hops) == 1
    assert len(server.asked) == 2
    clock.time += QUICK.fresh + 1
    with cached_client(server, clock, path) as client:
        assert not client.ask(f'{server.url}/chain/301/1?it\'s="quoted"').cached


@pytest.mark.parametrize("trick", ["status/403", "endless"])
def test_unsettled_answers_are_cached_for_a_shorter_time(
    server: Server, clock: FakeClock, tmp_path: Path, trick: str
) -> None:
    with cached_client(server, clock, tmp_path / "c.sqlite") as client:

        def ask() -> str:
            try:
                return str(client.ask(f"{server.url}/{trick}").status)
            except Failure as caught:
                return caught.kind

        first = ask()
        asked = len(server.asked)
        assert ask() == first
        assert len(server.asked) == asked
        clock.time += QUICK.fresh_unsettled + 1
        assert ask() == first
        assert len(server.asked) == 2 * asked


def test_a_cache_that_is_no_database_is_replaced(
    server: Server, clock: FakeClock, tmp_path: Path
) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database, but long enough to be read as one" * 40)
    with cached_client(server, clock, path) as client:
        assert client.ask(f"{server.url}/ok").status == 200
        assert client.ask(f"{server.url}/ok").cached


def test_a_damaged_cache_is_no_obstacle(server: Server, clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with cached_client(server, clock, path) as client:
        for i in range(200):
            client.ask(f"{server.url}/ok?{i}")
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with cached_client(server, clock, path) as client:
        assert [client.ask(f"{server.url}/ok?{i}").status for i in range(5)] == [200] * 5


def test_a_cached_record_that_is_not_ours_is_ignored(
    server: Server, clock: FakeClock, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "c.sqlite")
    cache.put("ab", {"at": 1})
    cache._store["cd"] = "[1, 2"
    assert (cache.get("ab"), cache.get("cd"), cache.get("ef")) == ({"at": 1}, None, None)
    cache.close()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DIFFUSION_PRUNING_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "diffusion-pruning"
