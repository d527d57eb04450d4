"""Exports say what papers.yaml says, in formats that other programs read, with the same bytes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

import bibtexparser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb import export
from kb.load import load_literature
from kb.schema import SCHEMA_VERSION, Literature

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://github.com/owner/repository"
ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture(scope="module")
def literature() -> Literature:
    return load_literature(ROOT / "papers.yaml")


@pytest.fixture(scope="module")
def files(literature: Literature) -> dict[str, bytes]:
    return export.exports(literature, REPOSITORY)


def record(text: str = "Some text", **fields: Any) -> dict[str, Any]:
    """A paper that holds `text` wherever text may stand."""
    return {
        "id": "a-paper",
        "section": "pruning",
        "family": "weight-pruning",
        "title": text,
        "authors": [text, "Second Author"],
        "year": 2024,
        "publication": {"type": "conference", "venue": text, "year": 2024, "pages": text},
        "base_models": [text],
        "summary": (text + " is described here in more than forty characters.")[-400:],
        "results": [
            {
                "id": "row",
                "variant": text,
                "base_model": text,
                "sparsity": {"kind": "params", "value": 0.5},
                "measures": [{"metric": "latency", "value": 1.5, "unit": "s", "dense": 3.0}],
                "source": {"document": "arxiv:2401.00001v1", "place": text},
            }
        ],
        "evidence": "abstract",
        "curation": {"depth": "abstract-read", "date": "2026-01-02"},
        "sources": ["arxiv:2401.00001v1"],
        **fields,
    }


def of(*papers: dict[str, Any]) -> Literature:
    return Literature.model_validate({"schema_version": SCHEMA_VERSION, "papers": papers})


def lines(text: str) -> str:
    """`text` as a field of one line may hold it."""
    return " ".join(text.split())[:200].strip() or "x"


def parse_bib(data: bytes) -> list[dict[str, str]]:
    library = bibtexparser.parse_string(data.decode())
    assert library.failed_blocks == []
    return [
        {"ID": e.key, "ENTRYTYPE": e.entry_type, **{f.key: f.value for f in e.fields}}
        for e in library.entries
    ]


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "export.py"), str(tmp_path / name)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    first = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    second = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert set(first) == {*export.FILES, "datapackage.json"}
    assert first == second


def test_the_data_package_lists_every_file_with_its_checksum(files: dict[str, bytes]) -> None:
    package = json.loads(files["datapackage.json"])
    assert package["version"] == SCHEMA_VERSION
    listed = {r["path"]: r for r in package["resources"]}
    assert set(listed) == set(files) - {"datapackage.json"}
    for name, resource in listed.items():
        assert resource["bytes"] == len(files[name])
        assert resource["hash"] == "sha256:" + hashlib.sha256(files[name]).hexdigest()
    fields = listed["results.csv"]["schema"]["fields"]
    columns = next(csv.reader(io.StringIO(files["results.csv"].decode())))
    assert [f["name"] for f in fields] == columns
    assert all(f["description"].endswith(".") for f in fields)


def test_columns_say_what_the_field_behind_them_says() -> None:
    meanings = export.columns()
    assert meanings["sparsity"] == "Fraction removed, 0 to 1."
    assert meanings["value"] == "The number for the compressed model."
    assert meanings["place_row"] == "Row or column within it."
    assert meanings["status"] == "How far it was checked."
    assert meanings["note"] == "What a reader must know before using the row."
    assert len(set(meanings.values())) == len(meanings)


def test_the_query_on_the_data_page_runs(files: dict[str, bytes]) -> None:
    page = (ROOT / "site" / "templates" / "data.md.j2").read_text(encoding="utf-8")
    query = page.split("```sql\n")[1].split("```")[0]
    with open_database(files["papers.sqlite"]) as database:
        rows = database.execute(query).fetchall()
    assert len(rows) > 20
    assert all(row[5] > 0 for row in rows)


def test_every_file_names_the_schema_version(files: dict[str, bytes]) -> None:
    assert json.loads(files["papers.json"])["schema_version"] == SCHEMA_VERSION
    assert json.loads(files["papers.jsonld"])["@graph"][0]["version"] == SCHEMA_VERSION
    for name in ("papers.bib", "feed.atom", "llms.txt"):
        assert f"chema version {SCHEMA_VERSION}" in files[name].decode()
    rows = csv.DictReader(io.StringIO(files["results.csv"].decode()))
    assert {row["schema_version"] for row in rows} == {SCHEMA_VERSION}
    with open_database(files["papers.sqlite"]) as database:
        query = "SELECT value FROM meta WHERE key = 'schema_version'"
        assert database.execute(query).fetchone() == (SCHEMA_VERSION,)


def open_database(data: bytes) -> Any:
    """A connection that closes itself at the end of a with block."""
    connection = sqlite3.connect(":memory:")
    connection.deserialize(data)
    return closing(connection)


def test_json_restores_the_literature(literature: Literature, files: dict[str, bytes]) -> None:
    data = json.loads(files["papers.json"])
    del data["updated"]
    for paper in data["papers"]:
        del paper["url"]
    assert Literature.model_validate(data) == literature


def test_csv_has_one_line_per_measure(literature: Literature, files: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(io.StringIO(files["results.csv"].decode())))
    wanted = [
        (p.id, r.id, m.metric.value, m.value)
        for p in literature.papers
        for r in p.results
        for m in r.measures
    ]
    assert [(r["paper"], r["row"], r["metric"], float(r["value"])) for r in rows] == wanted


def test_csv_gives_canonical_units_and_the_baseline() -> None:
    row = next(csv.DictReader(io.StringIO(export.results_csv(of(record())).decode())))
    assert (row["value"], row["unit"], row["dense"]) == ("1.5", "s", "3")
    assert (row["canonical_value"], row["canonical_unit"]) == ("1500", "ms")
    assert row["canonical_dense"] == "3000"
    assert row["source_url"] == "https://arxiv.org/abs/2401.00001v1"


def test_sqlite_is_sound_and_complete(literature: Literature, files: dict[str, bytes]) -> None:
    with open_database(files["papers.sqlite"]) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        ids = [row[0] for row in database.execute("SELECT id FROM papers ORDER BY id")]
        assert ids == sorted(p.id for p in literature.papers)
        counted = database.execute("SELECT count(*), sum(value) FROM measures").fetchone()
    values = [m.value for p in literature.papers for r in p.results for m in r.measures]
    assert counted[0] == len(values)
    assert counted[1] == pytest.approx(sum(values))


def test_bibtex_parses_with_one_entry_per_work(
    literature: Literature, files: dict[str, bytes]
) -> None:
    entries = parse_bib(files["papers.bib"])
    assert [e["ID"] for e in entries] == [p.id for p in literature.papers]
    by_id = {e["ID"]: e for e in entries}
    assert by_id["diff-pruning"]["ENTRYTYPE"] == "inproceedings"
    assert by_id["diff-pruning"]["author"] == "Gongfan Fang and Xinyin Ma and Xinchao Wang"
    assert by_id["diff-pruning"]["eprint"] == "2305.10924"
    assert by_id["laptop-diff"]["ENTRYTYPE"] == "misc"


def test_bibtex_escapes_and_keeps_names_whole() -> None:
    names = ["Team of A, B and C", "Ö. Ünal"]
    paper = record(authors=names, et_al=True, title=r"50% of {x}_1 & $y$ \ #~^")
    entry = parse_bib(export.papers_bib(of(paper)))[0]
    assert entry["author"] == "{Team of A, B and C} and Ö. Ünal and others"
    assert entry["title"] == (
        r"{50\% of \textbraceleft{}x\textbraceright{}\_1 \& \$y\$ \textbackslash{} "
        r"\#\textasciitilde{}\textasciicircum{}}"
    )


@pytest.mark.parametrize(
    ("pages", "shown"),
    [("18144-18154", "18144--18154"), ("3 – 9", "3--9"), ("e1-e9", "e1-e9"), ("12", "12")],
)
def test_bibtex_writes_a_range_of_pages_with_two_hyphens(pages: str, shown: str) -> None:
    publication = {"type": "conference", "venue": "CVPR", "year": 2024, "pages": pages}
    (entry,) = parse_bib(export.papers_bib(of(record(publication=publication))))
    assert entry["pages"] == shown


@settings(deadline=None)
@given(text=st.text(max_size=60).map(lines))
def test_any_text_leaves_every_format_readable(text: str) -> None:
    files = export.exports(of(record(text)), REPOSITORY)
    assert len(parse_bib(files["papers.bib"])) == 1
    rows = list(csv.reader(io.StringIO(files["results.csv"].decode())))
    assert len(rows) == 2
    assert len(rows[0]) == len(rows[1])
    feed = ET.fromstring(files["feed.atom"])
    assert len(feed.findall(f"{ATOM}entry")) == 1
    assert json.loads(files["papers.jsonld"])["@graph"][1]["identifier"] == "a-paper"
    assert json.loads(files["papers.json"])["papers"][0]["title"] == text
    assert files["llms.txt"].decode().count("\n- ") == 1


def test_feed_runs_from_the_newest_check() -> None:
    old = record()
    new = record(id="b-paper", curation={"depth": "paper-read", "date": "2026-03-04"})
    feed = ET.fromstring(export.feed_atom(of(old, new), REPOSITORY))
    updated = [e.findtext(f"{ATOM}updated") for e in feed.findall(f"{ATOM}entry")]
    assert updated == ["2026-03-04T00:00:00Z", "2026-01-02T00:00:00Z"]
    assert feed.findtext(f"{ATOM}updated") == "2026-03-04T00:00:00Z"
    ids = [e.findtext(f"{ATOM}id") for e in feed.findall(f"{ATOM}entry")]
    assert len(set(ids)) == 2


def test_addresses_off_the_allow_list_are_left_out() -> None:
    paper = record(page="javascript:alert(1)", project="http://example.org/")
    for name, data in export.exports(of(paper), REPOSITORY).items():
        if name != "papers.json":
            assert b"javascript:" not in data, name


def test_venues_are_named_as_what_they_are() -> None:
    def named(**publication: Any) -> str:
        return export.venue(of(record(publication=publication)).papers[0])

    assert named(type="conference", venue="ICLR", year=2026, track="main") == "ICLR 2026"
    assert named(type="workshop", venue="ICLR", year=2025) == "ICLR 2025 workshop"
    assert named(type="submission", venue="ICLR", year=2025) == "ICLR 2025 submission"
    assert named(type="preprint") == "preprint"


def test_a_broken_file_ends_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "papers.yaml"
    broken.write_text("papers: [", encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--file", str(broken)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("papers.yaml:2: error: not valid YAML")
    assert not (tmp_path / "out").exists()
