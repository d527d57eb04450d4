"""Publication is believed when two services agree, and proposed as a patch that applies."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from kb.load import load
from kb.rules import check
from kb.write import format_text

from .server import Server, serving
from .test_links import HEDGEHOG

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded"

ENTRY = """\
  - id: {id}
    section: pruning
    family: weight-pruning
    title: '{title}'
    authors: [{authors}]
    year: 2024
    publication: {{type: {type}}}
    summary: {summary}
    evidence: abstract
    curation: {{depth: metadata, date: '2026-11-22'}}
    sources: ['arxiv:2401.01234v2']

"""
HEAD = """\
# yaml-language-server: $schema=schema/papers.schema.json
schema_version: '1.0'

papers:
"""
NAMES = "Ada Müster, Bruno de la Prüfung, Cai Li"


def entry(id: str, **changes: str) -> str:
    base = {"id": id, "title": HEDGEHOG, "authors": NAMES, "type": "preprint"}
    words = ("digs", "holes", "and", "fills", "them", "again")
    summary = " ".join(f"{id}-{word}" for word in words)
    return ENTRY.format(**(base | {"summary": summary} | changes))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        for path, name in (
            ("/crossref", "crossref_search.json"),
            ("/dblp/search/publ/api", "dblp.json"),
            ("/openreview2/notes/search", "openreview_search.json"),
        ):
            running.put(path, (RECORDED / name).read_bytes())
        yield running


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "papers.yaml"
    others = {"title": "Something Else Entirely", "authors": "Xi Yps"}
    text = HEAD + entry("alpha", **others) + entry("hedgehog") + entry("zeta", **others)
    path.write_text(format_text(text), encoding="utf-8")
    return path


@pytest.fixture
def command(file: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    spec = importlib.util.spec_from_file_location(
        "check_upstream", ROOT / "scripts" / "check_upstream.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_upstream", module)
    spec.loader.exec_module(module)
    app = Typer()
    app.command()(module.main)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [str(file), "--test-server", server.host, *arguments])

    return run


def news(command: Callable[..., Result], *arguments: str) -> dict[str, Any]:
    result = command("--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def of(found: dict[str, Any], id: str) -> dict[str, Any]:
    item: dict[str, Any] = next(e for e in found["entries"] if e["id"] == id)
    return item


def change(server: Server, path: str, name: str, old: str, new: str) -> None:
    text = (RECORDED / name).read_text(encoding="utf-8")
    assert old in text
    server.put(path, text.replace(old, new).encode())


def test_two_services_that_agree_make_a_patch_that_applies(
    command: Callable[..., Result], file: Path
) -> None:
    before = file.read_bytes()
    patch = file.parent / "upstream.patch"
    found = news(command, "--patch", str(patch))
    assert file.read_bytes() == before, "never applied by itself"
    assert [(e["id"], e["verdict"]) for e in found["entries"]] == [
        ("alpha", "none"),
        ("hedgehog", "published"),
        ("zeta", "none"),
    ]
    item = of(found, "hedgehog")
    assert item["agreed"] == ["Crossref", "DBLP"]
    assert {w["service"] for w in item["witnesses"]} == {"Crossref", "DBLP", "OpenReview"}
    assert all(w["authors_shared"] == 3 for w in item["witnesses"])
    assert patch.read_text(encoding="utf-8") == found["patch"]

    subprocess.run(["git", "apply", patch.name], cwd=file.parent, check=True, capture_output=True)
    corpus = load(file)
    assert [p for p in check(corpus) if p.entry == "hedgehog" and p.severity == "error"] == []
    record = corpus.papers[1].record
    assert record.publication.type == "conference"
    assert (record.publication.venue, record.publication.year) == ("CVPR", 2024)
    assert record.publication.evidence == "doi:10.5555/nothing.2024.12"
    assert (record.doi, record.dblp) == ("10.5555/nothing.2024.12", "conf/cvpr/MusterPL24")
    assert record.sources[-2:] == ("doi:10.5555/nothing.2024.12", "dblp:conf/cvpr/MusterPL24")
    changed = file.read_text(encoding="utf-8")
    assert changed.split("  - id: hedgehog")[0] == before.decode().split("  - id: hedgehog")[0]
    assert changed.split("  - id: zeta")[1] == before.decode().split("  - id: zeta")[1]


def test_one_source_is_not_enough(command: Callable[..., Result], server: Server) -> None:
    server.put("/dblp/search/publ/api", {"result": {"hits": {"@total": "0"}}})
    server.put("/openreview2/notes/search", {"notes": []})
    found = news(command)
    assert (of(found, "hedgehog")["verdict"], found["patch"]) == ("one-source", "")


def test_sources_that_disagree(command: Callable[..., Result], server: Server) -> None:
    change(server, "/dblp/search/publ/api", "dblp.json", '"CVPR"', '"CVPR Workshops"')
    change(server, "/openreview2/notes/search", "openreview_search.json", "CVPR", "ICCV")
    found = news(command)
    assert (of(found, "hedgehog")["verdict"], found["patch"]) == ("disputed", "")


def test_other_authors_are_another_work(command: Callable[..., Result], file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace(NAMES, "Ada Müster, Some Body, Any Body")
    file.write_text(text, encoding="utf-8")
    found = news(command)
    assert of(found, "hedgehog") | {"line": 0} == {
        "id": "hedgehog",
        "line": 0,
        "verdict": "none",
        "agreed": [],
        "witnesses": [],
        "silent": [],
    }


@pytest.mark.parametrize(
    "change_to", ["Hedgehog: Structured Pruning of Diffusion Models", "Hedgehog"]
)
def test_other_titles_are_another_work(
    command: Callable[..., Result], file: Path, change_to: str
) -> None:
    text = file.read_text(encoding="utf-8").replace(HEDGEHOG, change_to)
    file.write_text(text, encoding="utf-8")
    assert of(news(command), "hedgehog")["witnesses"] == []


def test_services_that_fail_are_named(command: Callable[..., Result], server: Server) -> None:
    server.put("/crossref", b"", 503)
    server.put("/dblp/search/publ/api", b"\xff\xfe")
    server.put("/openreview2/notes/search", {"name": "Forbidden"}, 403)
    item = of(news(command), "hedgehog")
    assert item["verdict"] == "unknown"
    assert [text.split(":")[0] for text in item["silent"]] == ["Crossref", "DBLP", "OpenReview"]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"message": {}}', b'{"result": {"hits": 1}}'])
def test_answers_of_another_form(
    command: Callable[..., Result], server: Server, body: bytes
) -> None:
    for path in ("/crossref", "/dblp/search/publ/api", "/openreview2/notes/search"):
        server.put(path, body)
    item = of(news(command), "hedgehog")
    assert (item["verdict"], len(item["silent"])) == ("unknown", 3)


def test_an_entry_of_another_form_is_left_out(command: Callable[..., Result], file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("year: 2024", "year:   2024")
    file.write_text(text, encoding="utf-8")
    result = command()
    assert result.exit_code == 0, result.output
    assert "hedgehog is not in canonical form" in result.output
    assert "+++" not in result.output


def test_published_entries_are_not_asked_about(
    command: Callable[..., Result], file: Path, server: Server
) -> None:
    published = "{type: journal, venue: TMLR, year: 2024, evidence: 'dblp:journals/tmlr/X'}"
    text = file.read_text(encoding="utf-8").replace("{type: preprint}", published)
    file.write_text(text, encoding="utf-8")
    assert news(command)["entries"] == []
    assert server.asked == []


def test_table_and_patch_on_the_terminal(command: Callable[..., Result]) -> None:
    result = command("--entry", "hedgehog")
    assert result.exit_code == 0, result.output
    assert "1 preprints and submissions: 1 published" in result.stdout
    assert "+      venue: CVPR" in result.stdout


def test_unusable_input(command: Callable[..., Result], file: Path) -> None:
    result = command("--entry", "nobody")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "no preprint or submission has this id" in result.output
    # A folder that is missing is made; a file is none.
    assert command("--patch", str(file / "published.patch")).exit_code == 2
    file.write_bytes(b"\xff")
    result = command()
    assert result.exit_code == 2
    assert "papers.yaml:1: error" in result.output
