"""From an identifier to an inserted entry, offline and against a local server."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner, Result

from kb import draft, fetch
from kb.fetch import Identifier, Unusable, identify, read_arxiv, read_openreview, recorded
from kb.http import Answer
from kb.load import load
from kb.rules import check
from kb.schema import Family, Paper

from .server import Server, serving

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded"
SUMMARY = "Scores channels by an invented rule and cuts them; costs one fine-tuning run afterwards."

SMALL = """\
# yaml-language-server: $schema=schema/papers.schema.json
schema_version: '1.0'

papers:
  - id: alpha
    section: pruning
    family: weight-pruning
    title: A First Paper About Nothing in Particular
    authors: [Zoe Anfang]
    year: 2023
    arxiv: '2301.00001'
    publication: {type: preprint}
    summary: Removes what nobody needs and costs nothing, as far as anybody can tell from here.
    evidence: abstract
    curation: {depth: metadata, date: '2026-11-22'}
    sources: ['arxiv:2301.00001v1']   # spacing of its own

  - id: zeta
    section: pruning
    family: layer-pruning
    title: A Last Paper About Nothing in Particular Either
    authors: [Zoe Ende]
    year: 2023
    arxiv: '2301.00002'
    doi: 10.5555/ZETA
    publication: {type: preprint}
    summary: Removes what nobody needs at the very end and costs nothing there either, it says.
    evidence: abstract
    curation: {depth: metadata, date: '2026-11-22'}
    sources: ['arxiv:2301.00002v1']
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "papers.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def add(file: Path) -> Callable[..., Result]:
    app = Typer()
    app.command()(script("add_paper").main)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--file", str(file)])

    return run


def body(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


# --------------------------------------------------------------------------- identifiers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2305.10924", "arxiv:2305.10924"),
        (" arXiv:2305.10924v3 ", "arxiv:2305.10924"),
        ("https://arxiv.org/abs/2305.10924v2", "arxiv:2305.10924"),
        ("http://www.arxiv.org/pdf/2305.10924.pdf", "arxiv:2305.10924"),
        ("https://arxiv.org/html/2305.10924v1#S1", "arxiv:2305.10924"),
        ("10.48550/arXiv.2305.10924", "arxiv:2305.10924"),
        ("https://doi.org/10.48550/arXiv.2305.10924", "arxiv:2305.10924"),
        ("10.1145/3746027.3755081", "doi:10.1145/3746027.3755081"),
        ("doi:10.1145/3746027.3755081", "doi:10.1145/3746027.3755081"),
        ("https://doi.org/10.1007%2F978-3", "doi:10.1007/978-3"),
        ("t9m14jybcI", "openreview:t9m14jybcI"),
        ("openreview:t9m14jybcIx", "openreview:t9m14jybcIx"),
        ("https://openreview.net/forum?id=t9m14jybcI&noteId=1", "openreview:t9m14jybcI"),
        ("https://openreview.net/pdf?id=t9m14jybcI", "openreview:t9m14jybcI"),
    ],
)
def test_identifiers(text: str, expected: str) -> None:
    assert str(identify(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hep-th/9901001",
        "2313.10924",
        "2305.109",
        "10.1/x",
        "diff-pruning",
        "https://example.org/abs/2305.10924",
        "https://arxiv.org/list/cs.CV",
        "https://openreview.net/forum",
        "https://[::1/",
        "2305.10924; rm -rf",
        "openreview:../../x",
        "doi:",
    ],
)
def test_what_is_no_identifier(text: str) -> None:
    with pytest.raises(Unusable) as caught:
        identify(text)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- responses


def test_arxiv_feed() -> None:
    first, second = read_arxiv(body("arxiv.xml"))
    assert first.title == "Hedgehog: Structured Pruning of Diffusion Transformers by Made-Up Scores"
    assert first.authors == ("Ada Müster", "Bruno de la Prüfung", "Cai Li")
    assert (first.arxiv, first.year) == ("2401.01234", 2024)
    assert (first.first_posted, first.doi) == ("2024-01-03", "10.5555/nothing.2024.12")
    assert first.source == "arxiv:2401.01234v2"
    assert len(first.hints) == 2
    assert (second.doi, second.hints) == (None, ())


def test_crossref_record() -> None:
    (work,) = recorded(body("crossref.json"), None)
    assert work.publication == {
        "type": "conference",
        "venue": "CVPR",
        "year": 2024,
        "pages": "101-110",
        "evidence": "doi:10.5555/nothing.2024.12",
    }
    assert work.abstract == "An invented abstract."


def test_openreview_notes_of_both_kinds() -> None:
    (new,) = recorded(body("openreview.json"), Identifier("openreview", "AbCdEf123_"))
    assert new.year == 2024
    assert new.publication == {
        "type": "conference",
        "venue": "ICLR",
        "year": 2025,
        "track": "main",
        "evidence": "openreview:AbCdEf123_",
    }
    (old,) = recorded(body("openreview_old.json"), None)
    assert old.publication["type"] == "submission"
    assert (old.title, old.authors) == ("An Older Note", ("Ada Müster",))


@pytest.mark.parametrize(
    ("venue", "group", "expected"),
    [
        ("NeurIPS 2023 poster", "NeurIPS.cc/2023/Conference", ("conference", "NeurIPS", "main")),
        ("ICML 2024 Oral", "ICML.cc/2024/Conference", ("conference", "ICML", "main")),
        (
            "ICLR 2025 Conference Withdrawn Submission",
            "ICLR.cc/2025/Conference/Withdrawn_Submission",
            ("submission", "ICLR", None),
        ),
        (
            "Submitted to ICLR 2026",
            "ICLR.cc/2026/Conference/Submission",
            ("submission", "ICLR", None),
        ),
        ("", "ICLR.cc/2025/Conference/Rejected_Submission", ("submission", "ICLR", None)),
        ("SCOPE", "ICLR.cc/2025/Workshop/SCOPE", ("workshop", "ICLR", "workshop")),
        ("Accepted by TMLR", "TMLR", ("journal", "TMLR", None)),
        ("Under review for TMLR", "TMLR/Under_Review", ("submission", "TMLR", None)),
        (
            "NeurIPS 2024 Datasets and Benchmarks Track Poster",
            "NeurIPS.cc/2024/Datasets_and_Benchmarks_Track",
            ("conference", "NeurIPS", "datasets"),
        ),
    ],
)
def test_venues_of_openreview(
    venue: str, group: str, expected: tuple[str, str, str | None]
) -> None:
    content = {"title": {"value": "T"}, "venue": {"value": venue}, "venueid": {"value": group}}
    found = read_openreview({"id": "AbCdEf123_", "content": content}).publication
    assert (found["type"], found["venue"], found.get("track")) == expected


def test_dblp_search() -> None:
    first, second = fetch.read(Answer("x", 200, {}, body("dblp.json")))
    assert first.title == "Hedgehog: Structured Pruning of Diffusion Transformers by Made-Up Scores"
    assert first.authors[-1] == "Cai Li"
    assert (first.dblp, first.publication["venue"]) == ("conf/cvpr/MusterPL24", "CVPR")
    assert (second.title, second.authors) == ("Hedgehog & Friends", ("Ada Müster",))
    assert second.publication == {"type": "preprint"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<",
        b"<html></html>",
        b"<feed>\xff</feed>",
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><feed>&b;</feed>',
        b'{"message": []}',
        b'{"message": {"title": ["No DOI"]}}',
        b'{"message": {"items": 3}}',
        b'{"notes": [1]}',
        b'{"notes": [{"content": {}}]}',
        b'{"notes": []}',
        b'{"result": {"hits": []}}',
        b'{"result": null}',
        b'{"title": "\xff"}',
        b"[" * 100_000,
        b"null",
        b'{"hello": 1}',
    ],
)
def test_responses_that_are_none(data: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        recorded(data, None)
    assert "\n" not in str(caught.value)


def test_markup_and_hidden_characters_are_dropped() -> None:
    text = "Pruning &lt;script&gt;a(1)&lt;/script&gt; \u202eaway\u200b <i>now</i>, a < b"
    assert fetch.clean(text) == "Pruning a(1) away now, a < b"


def test_error_of_arxiv_is_passed_on() -> None:
    with pytest.raises(Unusable, match=r"incorrect id format for 1234\.12345"):
        read_arxiv(body("arxiv_error.xml"))


def test_odd_values_do_not_break_the_readers() -> None:
    message = {
        "DOI": "10.5555/x",
        "title": ["T\x00i\ntle <b>bold</b> a < b"],
        "author": [None, {"name": "A Group"}, 3],
        "published": {"date-parts": [[None]]},
        "event": "none",
        "type": "journal-article",
        "container-title": [],
    }
    work = fetch.read_crossref(message)
    assert (work.title, work.authors, work.year) == ("T i tle bold a < b", ("A Group",), None)
    note = {"id": "AbCdEf123_", "cdate": 10**30, "content": {"title": "T", "authors": "x"}}
    assert fetch.read_openreview(note).year is None


def spoilt(data: object, path: list[int], value: object) -> object:
    """`data` with something deep within replaced by `value`."""
    if not path or not isinstance(data, (dict, list)) or not data:
        return value
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    key = keys[path[0] % len(keys)]
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    copy[key] = spoilt(copy[key], path[1:], value)
    return copy


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["crossref", "crossref_search", "openreview", "openreview_old", "dblp"]),
    path=st.lists(st.integers(0, 40), max_size=8),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.none() | st.integers() | st.text(max_size=5), max_size=3)
    | st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5), max_size=2),
)
def test_no_response_breaks_the_readers(name: str, path: list[int], value: object) -> None:
    data = json.dumps(spoilt(json.loads(body(f"{name}.json")), path, value)).encode()
    try:
        works = fetch.read(Answer("https://service.example/", 200, {}, data))
    except Unusable as error:
        assert "\n" not in str(error)
        return
    for work in works:
        made = draft.draft(
            [work],
            draft.suggest(work.title, work.abstract),
            id="x",
            today="2026-11-22",
            summary=SUMMARY,
            family=Family.NAS,
        )
        assert made["title"].isprintable()
        assert all(name.isprintable() for name in made.get("authors", ()))


# --------------------------------------------------------------------------- drafts


def test_suggestions_name_their_reason() -> None:
    (work, _) = read_arxiv(body("arxiv.xml"))
    found = {(s.field, s.value): s.because for s in draft.suggest(work.title, work.abstract)}
    assert found["family", "weight-pruning"] == "Pruning"
    assert found["granularity", "structured"] == "Structured Pruning"
    assert found["architectures", "dit"] == "Diffusion Transformers"
    assert ("recovery", "parameter-efficient") in found
    assert sum(field == "family" for field, _ in found) == 1


@pytest.mark.parametrize(
    ("title", "family"),
    [
        ("A Survey of Pruning for Diffusion Models", "survey"),
        ("Unstructured thoughts on 2:4 sparsity", "n-m-sparsity"),
        ("Cache Me If You Can", "caching"),
        ("Token Merging for Fast Sampling", "token-reduction"),
        ("4-bit Quantization of Transformers", "quantization"),
        ("Depth Pruning of U-Nets", "layer-pruning"),
    ],
)
def test_family_follows_the_title(title: str, family: str) -> None:
    found = [s.value for s in draft.suggest(title, "pruning") if s.field == "family"]
    assert found == [family]


def test_every_suggestion_is_in_the_vocabulary() -> None:
    base = load_data()
    for name, value, _ in draft._KEYWORDS:
        entry = {**base, name: value if name == "family" else [value]}
        Paper.model_validate(entry)


def load_data() -> dict[str, object]:
    works = read_arxiv(body("arxiv.xml"))[:1]
    suggestions = draft.suggest(works[0].title, works[0].abstract)
    return draft.draft(works, suggestions, id="x", today="2026-11-22", summary=SUMMARY)


def test_ids_from_titles() -> None:
    assert draft.entry_id("SnapFusion: Text on Phones", ()) == "snapfusion"
    assert draft.entry_id("On the Weather in Feature Maps", ()) == "weather-feature-maps"
    assert draft.entry_id("SnapFusion: Text", {"snapfusion"}) == "snapfusion-2"
    assert draft.entry_id("模型: 剪枝", ()) == "paper"


def test_copied_runs() -> None:
    words = "one two three four five six seven eight nine ten"
    assert draft.copied(f"Prefix {words.title()}!", f"{words} eleven") is not None
    assert draft.copied("one two three four five six seven other", words) is None


# --------------------------------------------------------------------------- the command


def test_offline_insertion_touches_nothing_else(
    add: Callable[..., Result], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "connect", None)
    response = RECORDED / "arxiv.xml"
    result = add("2401.01234", "--from", str(response), "--summary", SUMMARY)
    assert result.exit_code == 0, result.output
    text = file.read_text(encoding="utf-8")
    position = text.index("  - id: hedgehog\n")
    end = text.index("  - id: zeta\n")
    assert text[:position] + text[end:] == SMALL
    corpus = load(file)
    assert [p for p in check(corpus) if p.severity == "error"] == []
    assert [e.record.id for e in corpus.papers] == ["alpha", "hedgehog", "zeta"]
    record = corpus.papers[1].record
    assert record.arxiv == "2401.01234"
    assert record.summary == SUMMARY
    assert "invented abstract" not in text
    assert text[position:end].rstrip("\n") in result.output


def test_other_line_ends_and_byte_order_mark_stay(add: Callable[..., Result], file: Path) -> None:
    raw = b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode()
    file.write_bytes(raw)
    response = RECORDED / "arxiv.xml"
    result = add("2401.01234", "--from", str(response), "--summary", SUMMARY)
    assert result.exit_code == 0, result.output
    data = file.read_bytes()
    start, end = data.index(b"  - id: hedgehog"), data.index(b"  - id: zeta")
    assert data[:start] + data[end:] == raw


def test_dry_run_writes_nothing(add: Callable[..., Result], file: Path) -> None:
    for extra in ([], ["--summary", SUMMARY]):
        arguments = ["--from", str(RECORDED / "openreview.json"), "--dry-run", *extra]
        result = add("AbCdEf123_", *arguments)
        assert result.exit_code == 0, result.output
        assert "id: sparrow" in result.output
        assert "venue: ICLR" in result.output
    assert file.read_text(encoding="utf-8") == SMALL


def refused(result: Result, file: Path, code: int, words: str) -> None:
    assert result.exit_code == code, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert file.read_text(encoding="utf-8") == SMALL


def test_no_summary_no_insertion(add: Callable[..., Result], file: Path) -> None:
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"))
    refused(result, file, 1, "add --summary")
    assert "id: hedgehog" in result.output, "the preview is shown"


def test_summary_of_the_abstract_is_refused(add: Callable[..., Result], file: Path) -> None:
    copy = "A score that nobody ever computed for the channels of diffusion transformers, it says."
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"), "--summary", copy)
    refused(result, file, 1, "copied from the abstract")


@pytest.mark.parametrize("summary", ["too short", "x" * 401, "We prune things in our own way " * 3])
def test_summary_that_breaks_a_rule(add: Callable[..., Result], file: Path, summary: str) -> None:
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"), "--summary", summary)
    refused(result, file, 1, "hedgehog: summary:")


def test_no_family_suggested(add: Callable[..., Result], file: Path) -> None:
    arguments = ("2402.04321", "--from", str(RECORDED / "arxiv.xml"), "--summary", SUMMARY)
    refused(add(*arguments), file, 1, "choose --family")
    result = add(*arguments, "--family", "caching")
    assert result.exit_code == 0, result.output
    assert load(file).papers[1].record.section.value == "complementary"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("'2301.00002'", "'2401.01234'", "the same arxiv"),
        ("10.5555/ZETA", "10.5555/NOTHING.2024.12", "the same doi"),
        (
            "A Last Paper About Nothing in Particular Either",
            "'HEDGEHOG - structured pruning of diffusion transformers by made up scores'",
            "the same title",
        ),
    ],
)
def test_twins_are_refused(
    add: Callable[..., Result], file: Path, old: str, new: str, reason: str
) -> None:
    before = SMALL.replace(old, new)
    file.write_text(before, encoding="utf-8")
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"), "--summary", SUMMARY)
    assert result.exit_code == 1
    assert f"papers.yaml:18: zeta is this paper: {reason}" in result.output
    assert file.read_text(encoding="utf-8") == before


def test_near_titles_are_a_warning(add: Callable[..., Result], file: Path) -> None:
    title = "'Hedgehog: Structured Pruning of Diffusion Transformers by Made-Up Ideas'"
    before = SMALL.replace("A Last Paper About Nothing in Particular Either", title)
    file.write_text(before, encoding="utf-8")
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"), "--summary", SUMMARY)
    assert result.exit_code == 0, result.output
    assert "warning: papers.yaml:18: zeta has nearly its title" in result.output


def test_id_that_is_taken(add: Callable[..., Result], file: Path) -> None:
    result = add(
        "2401.01234", "--from", str(RECORDED / "arxiv.xml"), "--summary", SUMMARY, "--id", "alpha"
    )
    refused(result, file, 1, "the id alpha is taken")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no identifier"], "is no identifier"),
        ([], "give an identifier"),
        (["--from", "missing.json"], "missing.json cannot be read"),
        (["--from", "."], "cannot be read"),
        (["2399.99999"], "is no identifier"),
        (["2312.99999", "--from", str(RECORDED / "arxiv.xml")], "no record of arxiv:2312.99999"),
        (["--from", str(RECORDED / "arxiv.xml")], "holds 2 works"),
        (["--from", str(RECORDED / "github.json")], "no response of"),
    ],
)
def test_unusable_input(
    add: Callable[..., Result], file: Path, arguments: list[str], words: str
) -> None:
    refused(add(*arguments), file, 2, words)


def test_unreadable_literature(add: Callable[..., Result], file: Path) -> None:
    file.write_bytes(b"papers: [\xff")
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"))
    assert result.exit_code == 2
    assert "papers.yaml:1: error" in result.output


@pytest.mark.parametrize(
    ("title", "field"),
    [
        ("Pruning | by columns", "title"),
        ("Pruning " * 60, "title"),
        ("Pruning [by](javascript:alert(1)) links", "title"),
    ],
)
def test_titles_that_the_rules_forbid(
    add: Callable[..., Result], file: Path, tmp_path: Path, title: str, field: str
) -> None:
    feed = body("arxiv.xml").decode().split("<title>Hedgehog")
    response = tmp_path / "response.xml"
    rest = feed[1].partition("</title>")[2]
    response.write_text(f"{feed[0]}<title>{title}</title>{rest}", encoding="utf-8")
    result = add("2401.01234", "--from", str(response), "--summary", SUMMARY, "--id", "bad")
    refused(result, file, 1, f"bad: {field}:")


def test_from_the_services(add: Callable[..., Result], file: Path, server: Server) -> None:
    server.put("/arxiv", body("arxiv.xml"))
    server.put("/crossref", body("crossref.json"))
    result = add("2401.01234", "--summary", SUMMARY, "--test-server", server.host)
    assert result.exit_code == 0, result.output
    assert [path for _, path in server.asked] == [
        "/arxiv?id_list=2401.01234&max_results=1",
        "/crossref/10.5555%2Fnothing.2024.12",
    ]
    record = load(file).papers[1].record
    assert record.publication.venue == "CVPR"
    assert record.publication.evidence == "doi:10.5555/nothing.2024.12"
    assert record.sources == ("arxiv:2401.01234v2", "doi:10.5555/nothing.2024.12")


def test_a_doi_of_another_work_is_left_out(
    add: Callable[..., Result], file: Path, server: Server
) -> None:
    other = json.loads(body("crossref_search.json"))["message"]["items"][0]
    server.put("/arxiv", body("arxiv.xml"))
    server.put("/crossref", {"message": {**other, "DOI": "10.5555/nothing.2024.12"}})
    result = add("2401.01234", "--summary", SUMMARY, "--test-server", server.host)
    assert result.exit_code == 0, result.output
    assert "belongs to 'Hedgehogs in the garden'" in result.output
    assert load(file).papers[1].record.doi is None


def test_openreview_falls_back_to_the_older_service(
    add: Callable[..., Result], file: Path, server: Server
) -> None:
    server.put("/openreview2", {"notes": [], "count": 0})
    server.put("/openreview1", body("openreview_old.json"))
    result = add("OldOldOld1", "--dry-run", "--family", "nas", "--test-server", server.host)
    assert result.exit_code == 0, result.output
    assert "type: submission" in result.output


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "does not know"), (403, "status 403"), (429, "status 429"), (503, "status 503")],
)
@pytest.mark.parametrize("identifier", ["2401.01234", "10.5555/nothing.2024.12", "AbCdEf123_"])
def test_services_that_do_not_answer(
    add: Callable[..., Result],
    file: Path,
    server: Server,
    status: int,
    words: str,
    identifier: str,
) -> None:
    for path in ("/arxiv", "/crossref", "/openreview"):
        server.put(path, b"no", status)
    result = add(identifier, "--summary", SUMMARY, "--test-server", server.host)
    refused(result, file, 2, words)


def test_arxiv_that_does_not_know_the_id(
    add: Callable[..., Result], file: Path, server: Server
) -> None:
    server.put("/arxiv", body("arxiv.xml").split(b"  <entry>")[0] + b"</feed>")
    result = add("2401.01234", "--test-server", server.host)
    refused(result, file, 2, "arXiv does not know 2401.01234")


def test_failure_while_writing_leaves_no_litter(
    add: Callable[..., Result], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = add("2401.01234", "--from", str(RECORDED / "arxiv.xml"), "--summary", SUMMARY)
    refused(result, file, 2, "No space left on device")
    assert [p.name for p in file.parent.iterdir()] == ["papers.yaml"]
