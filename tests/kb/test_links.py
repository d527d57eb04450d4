"""Verdicts on links, against a server that misbehaves; what counts as dead, and when."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from kb.fetch import Unusable, endpoints_at
from kb.http import Client
from kb.links import Finding, Kind, Link, Memory, Patience, Verdict, check, links, read_repository
from kb.load import corpus, load, parse

from .server import Reply, Server, serving
from .test_http import IMPATIENT, QUICK, FakeClock

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded"
HEDGEHOG = "Hedgehog: Structured Pruning of Diffusion Transformers by Made-Up Scores"
AUTHORS = ("Ada Müster", "Bruno de la Prüfung", "Cai Li")
DAY = 86400.0

LITERATURE = f"""\
schema_version: '1.0'

papers:
  - id: hedgehog
    section: pruning
    family: weight-pruning
    title: '{HEDGEHOG}'
    authors: [{", ".join(AUTHORS)}]
    year: 2024
    arxiv: '2401.01234'
    doi: 10.5555/nothing.2024.12
    openreview: AbCdEf123_
    dblp: conf/cvpr/MusterPL24
    publication: {{type: preprint}}
    project: https://hedgehog.example/
    code:
      - {{url: 'https://github.com/muster/hedgehog', status: released}}
      - {{url: 'https://github.com/muster/hedgehog/tree/main/extra', status: stub}}
      - {{status: none-found}}
      - {{url: 'https://github.com/muster/vanished', status: gone}}
    hub: [muster/hedgehog]
    summary: Removes what nobody needs and costs nothing, as far as anybody can tell from here.
    evidence: abstract
    curation: {{depth: metadata, date: '2026-11-22'}}
    sources: [github:lists/of-papers@1abed8a README.md, 'https://source.example/a']
tools:
  - id: spade
    name: Spade
    category: pruning
    url: https://github.com/muster/hedgehog
    docs: https://spade.example/docs
    status: active
    summary: Digs holes into networks where nobody looks, and says so in the log it leaves.
    curation: {{depth: metadata, date: '2026-11-22'}}
    sources: ['https://source.example/a']
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def judge(server: Server, clock: FakeClock, tmp_path: Path) -> Callable[..., list[Finding]]:
    """One run over links, with the memory of the runs before."""

    def run(*wanted: Link, patient: bool = True) -> list[Finding]:
        policy = QUICK if patient else IMPATIENT
        policy = replace(policy, retries=0, pace=0.0, exempt=frozenset({server.host}))
        memory = Memory(tmp_path / "links.jsonl")
        with Client(policy, clock=clock) as client:
            found = check(wanted, client, endpoints_at(server.url), memory)
        memory.save()
        return found

    return run


def web(server: Server, path: str) -> Link:
    return Link(Kind.WEB, f"{server.url}/{path}")


def verdict(findings: list[Finding]) -> tuple[str, str | None]:
    (finding,) = findings
    return finding.verdict.value, finding.target


# --------------------------------------------------------------------------- what is linked


def test_links_of_a_file() -> None:
    found = corpus(parse(LITERATURE, "papers.yaml"))
    assert found.problems == ()
    wanted = {link.key: link for link in links(found)}
    assert list(wanted) == [
        "arxiv:2401.01234",
        "doi:10.5555/nothing.2024.12",
        "openreview:AbCdEf123_",
        "dblp:conf/cvpr/MusterPL24",
        "hub:muster/hedgehog",
        "web:https://hedgehog.example/",
        "github:muster/hedgehog",
        "web:https://github.com/muster/hedgehog/tree/main/extra",
        "web:https://spade.example/docs",
    ]
    repository = wanted["github:muster/hedgehog"]
    assert [(u.entry, u.field, u.line) for u in repository.uses] == [
        ("hedgehog", "code[0].url", 17),
        ("hedgehog", "code[1].url", 18),
        ("spade", "url", 30),
    ]
    assert wanted["arxiv:2401.01234"].titles == (HEDGEHOG,)
    more = [link.key for link in links(found, sources=True)][len(wanted) :]
    assert more == ["github:lists/of-papers", "web:https://source.example/a"]


def test_links_of_our_own_file_have_lines() -> None:
    found = links(load(ROOT / "papers.yaml"), sources=True)
    assert {Kind.ARXIV, Kind.GITHUB} <= {link.kind for link in found}
    assert all(use.line > 1 for link in found for use in link.uses)


# --------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ok", "ok"),
        ("no-head", "ok"),
        ("head-lies", "ok"),
        ("huge", "ok"),
        ("endless", "ok"),
        ("bad-length", "ok"),
        ("status/206", "ok"),
        ("chain/302/3", "ok"),
        ("status/404", "failing"),
        ("status/410", "failing"),
        ("status/400", "unknown"),
        ("status/401", "unknown"),
        ("status/403", "unknown"),
        ("status/418", "unknown"),
        ("status/429", "unknown"),
        ("status/429?retry-after=999999", "unknown"),
        ("status/500", "unknown"),
        ("status/503", "unknown"),
        ("status/301", "unknown"),
        ("loop/a", "unknown"),
        ("chain/301/9", "unknown"),
        ("reset", "unknown"),
        ("garbage", "unknown"),
        ("silent", "unknown"),
        ("drip", "unknown"),
        ("to/302?url=http://10.0.0.1/", "refused"),
        ("to/301?url=https://localhost/", "refused"),
        ("to/302?url=ftp://example.org/", "refused"),
        ("to/302?url=file:///etc/passwd", "refused"),
    ],
)
def test_pages(
    judge: Callable[..., list[Finding]], server: Server, path: str, expected: str
) -> None:
    (finding,) = judge(web(server, path), patient=path not in ("silent", "drip"))
    assert finding.verdict.value == expected, finding.detail
    assert finding.red == (expected == "refused")


@pytest.mark.parametrize("url", ["http://10.0.0.1/x", "https://[::1]/", "https://127.0.0.1:1/"])
def test_private_pages_are_refused(judge: Callable[..., list[Finding]], url: str) -> None:
    assert verdict(judge(Link(Kind.WEB, url))) == ("refused", None)


def test_get_asks_for_the_beginning_only(
    judge: Callable[..., list[Finding]], server: Server
) -> None:
    judge(web(server, "no-head"))
    assert [method for method, _ in server.asked] == ["HEAD", "GET"]
    assert server.ranges == [None, "bytes=0-1023"]


def test_moved_for_good(judge: Callable[..., list[Finding]], server: Server) -> None:
    assert verdict(judge(web(server, "chain/301/2"))) == ("moved", f"{server.url}/chain/301/0")
    assert verdict(judge(web(server, "chain/308/1"))) == ("moved", f"{server.url}/chain/308/0")


def test_only_the_permanent_part_of_a_chain_is_proposed(
    judge: Callable[..., list[Finding]], server: Server
) -> None:
    link = web(server, f"to/301?url={server.url}/chain/302/2")
    assert verdict(judge(link)) == ("moved", f"{server.url}/chain/302/2")


def test_moved_to_nowhere_is_not_proposed(
    judge: Callable[..., list[Finding]], server: Server
) -> None:
    link = web(server, f"to/301?url={server.url}/status/404")
    assert verdict(judge(link)) == ("failing", None)


# --------------------------------------------------------------------------- identifiers


def arxiv(number: str, *titles: str, authors: tuple[str, ...] = AUTHORS) -> Link:
    return Link(Kind.ARXIV, number, titles=titles or (HEDGEHOG,), authors=authors)


def test_arxiv(judge: Callable[..., list[Finding]], server: Server) -> None:
    server.put("/arxiv", (RECORDED / "arxiv.xml").read_bytes())
    found = judge(
        arxiv("2401.01234"),
        arxiv("2402.04321"),
        arxiv("2403.00001"),
    )
    assert [f.verdict.value for f in found] == ["ok", "mismatch", "failing"]
    assert "On the Weather in Feature Maps" in found[1].detail
    assert found[1].red
    assert len(server.asked) == 1


def test_arxiv_title_that_changed(judge: Callable[..., list[Finding]], server: Server) -> None:
    server.put("/arxiv", (RECORDED / "arxiv.xml").read_bytes())
    assert verdict(judge(arxiv("2401.01234", "Its Name Before"))) == ("retitled", HEDGEHOG)
    assert verdict(judge(arxiv("2401.01234", "Its Name Before", HEDGEHOG.upper()))) == ("ok", None)


@pytest.mark.parametrize("body", [b"", b"<feed/>", b"<html>", b"\xff\xfe", b"Rate exceeded."])
def test_arxiv_feed_without_sense_condemns_nobody(
    judge: Callable[..., list[Finding]], server: Server, body: bytes
) -> None:
    server.put("/arxiv", body)
    assert verdict(judge(arxiv("2401.01234"))) == ("unknown", None)


def test_arxiv_feed_without_entries_condemns_nobody(
    judge: Callable[..., list[Finding]], server: Server
) -> None:
    empty = (RECORDED / "arxiv.xml").read_bytes().split(b"  <entry>")[0] + b"</feed>"
    server.put("/arxiv", empty)
    assert verdict(judge(arxiv("2401.01234"))) == ("unknown", None)


def test_arxiv_is_asked_in_batches_at_its_pace(server: Server, clock: FakeClock) -> None:
    def feed(path: str, query: dict[str, list[str]]) -> Reply:
        ids = query["id_list"][0].split(",")
        entry = "<entry><id>http://arxiv.org/abs/{}v1</id><title>T</title></entry>"
        text = "".join(entry.format(i) for i in ids)
        return 200, {}, f'<feed xmlns="http://www.w3.org/2005/Atom">{text}</feed>'.encode()

    server.routes["/arxiv"] = feed
    wanted = [Link(Kind.ARXIV, f"2401.{i:05}") for i in range(250)]
    policy = replace(QUICK, paces={"127.0.0.1": 3.0}, exempt=frozenset({server.host}))
    with Client(policy, clock=clock) as client:
        found = check(wanted, client, endpoints_at(server.url), Memory(Path("none.jsonl")))
    assert {f.verdict for f in found} == {Verdict.OK}
    assert [f.link for f in found] == wanted
    assert [path.count(",") + 1 for _, path in server.asked] == [100, 100, 50]
    assert clock.slept == pytest.approx([3.0, 3.0])


def doi() -> Link:
    return Link(Kind.DOI, "10.5555/nothing.2024.12", titles=(HEDGEHOG,), authors=AUTHORS)


def test_doi(judge: Callable[..., list[Finding]], server: Server) -> None:
    server.put("/crossref", (RECORDED / "crossref.json").read_bytes())
    assert verdict(judge(doi())) == ("ok", None)
    assert verdict(judge(replace(doi(), titles=("Another",), authors=("X Y",))))[0] == "mismatch"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(200, 1, "ok"), (200, 2, "unknown"), (404, 100, "failing"), (503, 0, "unknown")],
)
def test_doi_of_another_agency(
    judge: Callable[..., list[Finding]], server: Server, status: int, code: int, expected: str
) -> None:
    server.put("/crossref", b"Resource not found.", 404)
    server.put("/handles", {"responseCode": code}, status)
    assert verdict(judge(doi())) == (expected, None)


def note() -> Link:
    titles = ("Sparrow: Dropping Blocks of Text-to-Image Models",)
    return Link(Kind.OPENREVIEW, "AbCdEf123_", titles=titles)


def test_openreview(judge: Callable[..., list[Finding]], server: Server) -> None:
    server.put("/openreview2", (RECORDED / "openreview.json").read_bytes())
    assert verdict(judge(note())) == ("ok", None)
    server.put("/openreview2", {"notes": []})
    server.put("/openreview1", (RECORDED / "openreview.json").read_bytes())
    assert verdict(judge(note())) == ("ok", None)
    server.put("/openreview1", b"{}", 404)
    assert verdict(judge(note())) == ("failing", None)
    server.put("/openreview2", {"name": "ForbiddenError"}, 403)
    assert verdict(judge(note())) == ("unknown", None)


def test_dblp_and_hub(judge: Callable[..., list[Finding]], server: Server) -> None:
    server.put("/dblp/rec/conf/cvpr/A.xml", b"<dblp/>")
    server.put("/hub/models/a/b", {"id": "a/b"})
    server.put("/hub/models/a/old", {"id": "a/new"})
    server.put("/hub/datasets/a/d", {"id": "a/d"})
    server.put("/hub/models/a/secret", {"error": "Invalid username or password."}, 401)
    wanted = [
        Link(Kind.DBLP, "conf/cvpr/A"),
        Link(Kind.DBLP, "conf/cvpr/B"),
        *(Link(Kind.HUB, n) for n in ("a/b", "a/old", "datasets/a/d", "a/secret", "a/gone")),
    ]
    found = judge(*wanted)
    assert [f.verdict.value for f in found] == [
        "ok",
        "failing",
        "ok",
        "moved",
        "ok",
        "unknown",
        "failing",
    ]
    assert found[3].target == "a/new"


def test_renamed_data_sets_and_pages_of_collections(
    judge: Callable[..., list[Finding]], server: Server
) -> None:
    server.put("/hub/datasets/a/old", {"id": "a/new"})
    server.put("/hubpages/collections/a/some", b"")
    found = judge(
        *(Link(Kind.HUB, n) for n in ("datasets/a/old", "collections/a/some", "collections/a/none"))
    )
    assert [f.verdict.value for f in found] == ["moved", "ok", "failing"]
    assert found[0].target == "datasets/a/new"


def test_tools_that_are_known_to_be_finished_are_no_news() -> None:
    text = LITERATURE.replace("muster/hedgehog\n    docs", "tools/spade\n    docs")
    spade = "github:tools/spade"

    def found(status: str) -> dict[str, Link]:
        changed = corpus(parse(text.replace("status: active", f"status: {status}"), "f"))
        assert changed.problems == ()
        return {link.key: link for link in links(changed)}

    data = {"full_name": "tools/spade", "size": 1, "archived": True}
    assert read_repository(found("active")[spade], data).verdict is Verdict.ARCHIVED
    assert read_repository(found("archived")[spade], data).verdict is Verdict.OK
    assert spade not in found("removed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"message": {"items": []}}',
        b'{"message": 3, "notes": {"a": 1}, "id": [], "responseCode": {}}',
        b'{"notes": [{}]}',
        b"[" * 50_000,
    ],
)
def test_json_of_another_form_condemns_nobody(
    judge: Callable[..., list[Finding]], server: Server, body: bytes
) -> None:
    for path in ("/crossref", "/openreview1", "/openreview2", "/hub", "/github"):
        server.put(path, body)
    found = judge(doi(), note(), Link(Kind.HUB, "a/b"), Link(Kind.GITHUB, "a/b"))
    assert not any(f.red for f in found)
    assert found[0].verdict is Verdict.UNKNOWN
    assert found[3].verdict is Verdict.UNKNOWN


def test_an_interrupt_stops_all_hosts(server: Server, clock: FakeClock) -> None:
    def interrupted(count: int) -> None:
        raise KeyboardInterrupt

    with serving() as slow:
        wanted = [web(server, "ok"), *(web(slow, f"silent/{i}") for i in range(20))]
        # Two names, so that the two servers are two hosts.
        wanted[0] = Link(Kind.WEB, f"http://quick.test:{server.port}/ok")
        exempt = frozenset({slow.host, f"quick.test:{server.port}"})
        policy = replace(IMPATIENT, pace=0.0, exempt=exempt)
        with (
            Client(policy, clock=clock, resolve=lambda host, port: ["127.0.0.1"]) as client,
            pytest.raises(KeyboardInterrupt),
        ):
            memory = Memory(Path("none.jsonl"))
            check(wanted, client, endpoints_at(server.url), memory, progress=interrupted)
        assert len(slow.asked) <= 2, "HEAD and GET of the link at hand"


# --------------------------------------------------------------------------- repositories


@pytest.mark.parametrize(
    ("changes", "expected", "target"),
    [
        ({}, "ok", None),
        ({"archived": True}, "archived", None),
        ({"disabled": True}, "archived", None),
        ({"size": 0}, "empty", None),
        ({"full_name": "Muster/Hedgehog"}, "ok", None),
        ({"full_name": "other/hedgehog2"}, "moved", "https://github.com/other/hedgehog2"),
        ({"full_name": None}, "unknown", None),
    ],
)
def test_repositories(
    judge: Callable[..., list[Finding]],
    server: Server,
    changes: dict[str, object],
    expected: str,
    target: str | None,
) -> None:
    data = json.loads((RECORDED / "github.json").read_text(encoding="utf-8"))
    server.put("/github/repos/muster/hedgehog", {**data, **changes})
    found = judge(Link(Kind.GITHUB, "muster/hedgehog"))
    assert verdict(found) == (expected, target)
    assert not found[0].red


def test_a_renamed_repository_answers_by_redirect(
    judge: Callable[..., list[Finding]], server: Server
) -> None:
    data = json.loads((RECORDED / "github.json").read_text(encoding="utf-8"))
    server.put("/github/repos/old/name", b"", 301, Location="/github/repositories/1")
    server.put("/github/repositories/1", data)
    expected = ("moved", "https://github.com/muster/hedgehog")
    assert verdict(judge(Link(Kind.GITHUB, "old/name"))) == expected


def test_an_empty_repository_that_is_known_to_be_empty() -> None:
    link = Link(Kind.GITHUB, "a/b", expected_empty=True)
    assert read_repository(link, {"full_name": "a/b", "size": 0}).verdict is Verdict.OK
    assert read_repository(link, ["a/b"]).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(("page", "expected"), [(200, "ok"), (404, "failing"), (429, "unknown")])
def test_repository_when_the_api_refuses(
    judge: Callable[..., list[Finding]], server: Server, page: int, expected: str
) -> None:
    server.put("/github/repos/a/b", {"message": "API rate limit exceeded"}, 403)
    server.put("/pages/a/b", b"", page)
    assert verdict(judge(Link(Kind.GITHUB, "a/b"))) == (expected, None)


def test_repository_that_is_gone(judge: Callable[..., list[Finding]], server: Server) -> None:
    assert verdict(judge(Link(Kind.GITHUB, "a/b"))) == ("failing", None)


# --------------------------------------------------------------------------- over time


def test_red_after_several_failures_over_days(
    judge: Callable[..., list[Finding]], server: Server, clock: FakeClock
) -> None:
    seen = []
    for _ in range(3):
        for _again_on_the_same_day in range(2):
            (finding,) = judge(web(server, "status/404"))
            seen.append((finding.verdict.value, finding.red))
        clock.time += 7 * DAY
    assert seen == [("failing", False)] * 4 + [("dead", True)] * 2
    assert finding.since == "2027-01-15"


def test_many_failures_in_a_short_time_are_not_enough(
    judge: Callable[..., list[Finding]], server: Server, clock: FakeClock
) -> None:
    for _ in range(6):
        assert verdict(judge(web(server, "status/404")))[0] == "failing"
        clock.time += DAY


def test_one_good_answer_forgets_the_failures(
    judge: Callable[..., list[Finding]], server: Server, clock: FakeClock
) -> None:
    link = web(server, "page")
    for status in (404, 404, 200, 404, 404):
        server.put("/page", b"", status)
        (finding,) = judge(link)
        clock.time += 7 * DAY
    assert finding.verdict is Verdict.FAILING


@pytest.mark.parametrize("path", ["status/403", "status/429", "status/503", "reset"])
def test_what_is_unknown_never_dies(
    judge: Callable[..., list[Finding]], server: Server, clock: FakeClock, path: str
) -> None:
    for _ in range(10):
        (finding,) = judge(web(server, path))
        assert finding.verdict is Verdict.UNKNOWN
        clock.time += 30 * DAY
    assert finding.since == "2027-01-15"


def test_unknown_days_neither_count_nor_forgive(
    judge: Callable[..., list[Finding]], server: Server, clock: FakeClock
) -> None:
    found = []
    for status in (404, 503, 404, 403, 404):
        server.put("/page", b"", status)
        found += judge(web(server, "page"))
        clock.time += 4 * DAY
    assert [f.verdict.value for f in found] == ["failing", "unknown", "failing", "unknown", "dead"]


def nowhere(host: str, port: int) -> list[str]:
    if host.endswith(".example"):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return ["127.0.0.1"]


def test_a_name_that_is_gone_fails_only_when_others_are_found(
    server: Server, clock: FakeClock
) -> None:
    policy = replace(QUICK, pace=0.0, exempt=frozenset({server.host}))
    gone = Link(Kind.WEB, "https://gone.example/")
    with Client(policy, clock=clock, resolve=nowhere) as client:

        def run(*wanted: Link) -> list[str]:
            memory = Memory(Path("none.jsonl"))
            found = check(wanted, client, endpoints_at(server.url), memory)
            return [f.verdict.value for f in found]

        assert run(gone) == ["unknown"]
        assert run(gone, Link(Kind.WEB, "https://other.example/")) == ["unknown"] * 2
        assert run(gone, web(server, "ok")) == ["failing", "ok"]
        assert run(gone, web(server, "status/404")) == ["failing", "failing"]


# --------------------------------------------------------------------------- memory


def remembered(path: Path, day: int, state: Verdict) -> Finding:
    memory = Memory(path)
    found = memory.judge(Finding(Link(Kind.WEB, "x"), state), date(2026, 1, day), Patience(2, 1))
    memory.save()
    return found


def test_memory_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "links.jsonl"
    contents = [b""]
    for day, state in (
        (1, Verdict.FAILING),
        (2, Verdict.OK),
        (3, Verdict.OK),
        (4, Verdict.UNKNOWN),
    ):
        remembered(path, day, state)
        contents.append(path.read_bytes())
        assert contents[-1].startswith(contents[-2])
    assert [json.loads(line)["state"] for line in contents[-1].splitlines()] == [
        "gone",
        "well",
        "untold",
    ]


@pytest.mark.parametrize(
    "torn", [b'{"day": "2026-01', b"\xff", b'{"day": "2026-01-02"}', b"x" * 9000]
)
def test_a_torn_last_line_is_mended(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "links.jsonl"
    remembered(path, 1, Verdict.FAILING)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert remembered(path, 2, Verdict.FAILING).verdict is Verdict.DEAD
    data = path.read_bytes()
    assert data.startswith(whole)
    assert [json.loads(line)["day"] for line in data.splitlines()] == ["2026-01-01", "2026-01-02"]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"link": "x"}',
        '{"link": "x", "day": "yesterday", "state": "gone"}',
        '{"link": "x", "day": "2026-01-01", "state": "odd"}',
        '{"link": ["x"], "day": "2026-01-01", "state": "gone"}',
        "\x00",
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "links.jsonl"
    good = '{"link": "x", "day": "2026-01-01", "state": "gone"}'
    path.write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(Unusable, match=r"links\.jsonl:2: "):
        Memory(path)


# --------------------------------------------------------------------------- the command


@pytest.fixture
def command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location(
        "check_links", ROOT / "scripts" / "check_links.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_links", module)
    spec.loader.exec_module(module)
    app = Typer()
    app.command()(module.main)
    (tmp_path / "papers.yaml").write_text(LITERATURE, encoding="utf-8")

    def run(*arguments: str) -> Result:
        path = str(tmp_path / "papers.yaml")
        return CliRunner().invoke(app, [path, "--test-server", server.host, *arguments])

    return run


def test_nothing_red(command: Callable[..., Result], server: Server) -> None:
    server.put("/arxiv", (RECORDED / "arxiv.xml").read_bytes())
    server.put("/crossref", b"", 503)
    result = command("--json", "--only", "arxiv", "--only", "doi")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["red"] is False
    assert found["counts"] == {"ok": 1, "unknown": 1}
    assert found["links"][0]["uses"] == [{"entry": "hedgehog", "field": "arxiv", "line": 10}]


def test_something_red(command: Callable[..., Result], server: Server, tmp_path: Path) -> None:
    feed = (RECORDED / "arxiv.xml").read_text(encoding="utf-8")
    feed = (
        feed.replace("Hedgehog", "Zzz").replace("Structured Pruning", "Qqqq").replace("Müster", "M")
    )
    feed = feed.replace("de la Prüfung", "X").replace("Cai Li", "Y")
    server.put("/arxiv", feed.encode())
    result = command("--only", "arxiv")
    assert result.exit_code == 1, result.output
    assert "mismatch" in result.stdout
    assert "1 links: 1 mismatch" in result.stdout
    assert not (tmp_path / "cache" / "links.jsonl").exists(), "nothing to remember"


def test_second_run_asks_nobody(command: Callable[..., Result], server: Server) -> None:
    server.put("/arxiv", (RECORDED / "arxiv.xml").read_bytes())
    server.put("/github/repos/muster/hedgehog", (RECORDED / "github.json").read_bytes())
    first = command("--json", "--only", "arxiv", "--only", "github")
    asked = len(server.asked)
    second = command("--json", "--only", "arxiv", "--only", "github")
    assert (first.exit_code, second.exit_code, len(server.asked)) == (0, 0, asked)
    assert first.stdout == second.stdout


def test_dead_from_a_given_state(
    command: Callable[..., Result], server: Server, tmp_path: Path
) -> None:
    state = tmp_path / "state.jsonl"
    record = {"link": "github:muster/hedgehog", "day": "2026-01-01", "state": "gone"}
    state.write_text(json.dumps(record) + "\n", encoding="utf-8")
    result = command("--only", "github", "--state", str(state), "--failures", "2")
    assert result.exit_code == 1, result.output
    assert "dead" in result.stdout
    assert len(state.read_text(encoding="utf-8").splitlines()) == 2


def test_unusable_input(command: Callable[..., Result], tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    state.write_text("broken\n", encoding="utf-8")
    for arguments in (["--state", str(state)], ["--state", str(tmp_path)]):
        result = command(*arguments)
        assert result.exit_code == 2
        assert result.output.startswith("check_links: ")
    (tmp_path / "papers.yaml").write_text("papers: [", encoding="utf-8")
    result = command()
    assert result.exit_code == 2
    assert "papers.yaml:2: error" in result.output


def test_the_cache_folder_is_a_file(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path / "taken"))
    result = command()
    assert result.exit_code == 2
    assert "cannot be used" in result.output
    assert "Traceback" not in result.output
