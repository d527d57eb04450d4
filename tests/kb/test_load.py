"""Reading: values, lines, refusals; and writing that changes nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import kb.load
from kb import write
from kb.load import (
    MAX_BYTES,
    MAX_ITEMS,
    MAX_NODES,
    PARSER,
    Unreadable,
    decode,
    load,
    load_literature,
    parse,
    read_text,
)
from kb.schema import Paper
from kb.write import (
    comment_lines,
    format_document,
    format_entry,
    format_text,
    insert_entry,
)
from scripts.bench_kb import generated

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "papers.yaml"


def rule_of(function, *arguments):
    with pytest.raises(Unreadable) as caught:
        function(*arguments)
    return caught.value.problem.rule


# ------------------------------------------------------------------ values and lines


def test_values_agree_with_an_independent_reader():
    text = PAPERS.read_text(encoding="utf-8")
    assert parse(text, "papers.yaml").data == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2305.10924", 2305.10924),
        ("'2305.10924'", "2305.10924"),
        ("12", 12),
        ("-3.5e2", -350.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("nothing", "nothing"),
        ("1a", "1a"),
        ('"no"', "no"),
    ],
)
def test_plain_scalars(text, value):
    found = parse(f"a: {text}\n", "f").data["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "Yes", "on", "OFF", "2024-12-02", "2:4", "017", "0x1F", "1_000", "True", "9" * 30],
)
def test_scalars_on_which_readers_disagree_are_named(text):
    tree = parse(f"a:\n  b: {text}\n", "f")
    assert [(p.rule, p.line, p.field) for p in tree.problems] == [("ambiguous-scalar", 2, "a.b")]
    assert tree.data == {"a": {"b": text}}


def test_every_field_has_its_line():
    text = (
        "# head\npapers:\n  - id: a\n    names:\n    - One\n    - Two\n    x: {y: 1,\n      z: 2}\n"
    )
    tree = parse(text, "f")
    assert tree.line(("papers",)) == 2
    assert tree.line(("papers", 0)) == 3
    assert tree.line(("papers", 0, "names", 1)) == 6
    assert tree.line(("papers", 0, "x", "z")) == 8
    assert tree.line(("papers", 0, "absent", 4)) == 3
    assert tree.line(("absent",)) == 1


def test_a_repeated_key_keeps_the_first_value_and_its_lines():
    tree = parse("a:\n  b: 1\nc: 2\na:\n  b: 3\n", "f")
    assert tree.data == {"a": {"b": 1}, "c": 2}
    assert tree.line(("a", "b")) == 2
    assert [(p.rule, p.line) for p in tree.problems] == [("duplicate-key", 4)]


def test_windows_line_ends_and_a_byte_order_mark_are_read():
    text = decode(b"\xef\xbb\xbfa: 1\r\nb: [x,\r\n  y]\r\n", "f")
    tree = parse(text, "f")
    assert tree.data == {"a": 1, "b": ["x", "y"]}
    assert tree.line(("b", 1)) == 3


# ------------------------------------------------------------------ refusals in bounded time


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "[" * 5000 + "]" * 5000,
        "{a: " * 5000 + "1" + "}" * 5000,
        "- " * 5000 + "a\n",
        "".join(" " * i + "a:\n" for i in range(5000)),
    ],
    ids=["open", "flow", "mappings", "dashes", "blocks"],
)
def test_five_thousand_levels(text):
    assert rule_of(parse, text, "f") in {"too-deep", "yaml-syntax"}


def test_alias_bomb_is_refused_at_its_first_anchor():
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert rule_of(parse, f"x0: &x0 [a]\n{levels}", "f") == "anchor"


def test_fifty_megabytes_are_not_even_read(tmp_path):
    path = tmp_path / "papers.yaml"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    assert rule_of(read_text, path) == "too-large"


@pytest.mark.parametrize(
    "text", ["a: [" + "no," * 1000 + "]", "a: 1\n" * 1000, "- a\n" * 30000, "a: [" + "[]," * 30000]
)
def test_rubbish_is_not_read_to_its_end(text):
    assert rule_of(parse, text, "f") == "too-many"


def test_the_bound_that_is_reached_is_named(monkeypatch):
    def message(text):
        with pytest.raises(Unreadable) as caught:
            parse(text, "f")
        return caught.value.problem.message

    assert "more than 20000 items" in message("- a\n" * 30000)
    assert "500 problems" in message("a: [" + "no," * 1000 + "]")
    monkeypatch.setattr(kb.load, "MAX_NODES", 100)
    # A list of lists: no list is long, but there are many.
    assert "more than 100 keys and values" in message("- [a, b, c]\n" * 30)


def test_ten_thousand_entries_with_rows_fit():
    sample = generated(200)
    nodes = sum(isinstance(e, yaml.NodeEvent) for e in yaml.parse(sample, Loader=PARSER))
    assert 50 * len(sample.encode()) < MAX_BYTES < 50 * 2**20
    assert 50 * nodes < MAX_NODES
    assert MAX_ITEMS > 10_000


def test_a_file_just_under_the_limit_of_one_scalar(tmp_path):
    path = tmp_path / "papers.yaml"
    path.write_text("papers: " + "1_" * (MAX_BYTES // 2 - 10) + "x\n", encoding="utf-8")
    assert load(path).problems[0].field == "schema_version"


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_what_is_no_file(tmp_path, name):
    assert rule_of(read_text, tmp_path / name) == "no-file"


def test_latin_1_names_line_and_offset():
    with pytest.raises(Unreadable) as caught:
        decode("a: 1\nb: Ren\u00e9\n".encode("latin-1"), "f")
    assert caught.value.problem.line == 2
    assert "offset 11" in caught.value.problem.message


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data):
    try:
        parse(decode(data, "f"), "f")
    except Unreadable as error:
        assert error.problem.message


YAMLISH = st.text(alphabet="ab:-[]{},#&*!|>'\"%@`?\n 01.~<", max_size=80)


@settings(max_examples=300, deadline=None)
@given(YAMLISH)
def test_no_punctuation_crashes_the_reader(text):
    try:
        parse(text, "f")
    except Unreadable as error:
        assert error.problem.line >= 1


def test_report_lines_do_not_move_the_cursor():
    tree = parse('a: "x\\e[2J"\n"k\\n": no\n', "f")
    assert all(str(p).isprintable() for p in tree.problems)
    assert len(tree.problems) == 1


def test_the_literature_loads_as_one_record():
    literature = load_literature(PAPERS)
    assert {p.id for p in literature.papers} >= {"diff-pruning", "snapfusion", "ecodiff"}


def test_kb_does_not_need_torch():
    code = "import sys, kb.load, kb.rules, kb.write, kb.ledger; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ------------------------------------------------------------------ canonical form

TRICKY = r"""
no 2:4 2024-01-01 1e3 0x1f - # ' ~ null true 1_0 << = .5 a: [a {a *a &a !a %a @a " 71e922e ` | > ?
... --- , a,b a| <b> \n + +1 1. 00 08 1e999 .inf -.INF 190:20:30 True Off
"""
SPACED = ["- a", "a: b", "a #b", "a\nb", " a", "a ", "? a", "a, b", "a  b " * 40, "x" * 200, ""]
LONG = [f"{start}{'word ' * 40}end" for start in ("", "# ", "- ", "> ", "'", "[")]
TEXT = st.text(
    alphabet=st.characters(
        exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\ufeff"
    ),
    max_size=120,
) | st.sampled_from(TRICKY.split() + SPACED + LONG)
VALUE = TEXT | st.integers(-1000, 1000) | st.booleans() | st.floats(-1e6, 1e6)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_any_text_survives_writing(text):
    entry = {"id": "a", "title": text, "authors": [text, text], "curation": {"note": text}}
    written = "papers:\n" + format_entry(entry, Paper)
    tree = parse(written, "f")
    assert tree.problems == ()
    assert tree.data == {"papers": [entry]}
    assert yaml.safe_load(written) == {"papers": [entry]}


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["note", "value", "list", "map"]), VALUE | st.lists(VALUE)))
def test_formatting_is_idempotent_and_keeps_the_data(data):
    once = format_document({"schema_version": "1.0", "papers": [{"id": "a", **data}]})
    assert format_text(once) == once
    assert parse(once, "f").data["papers"] == [{"id": "a", **data}]


def test_the_committed_file_is_canonical():
    text = PAPERS.read_text(encoding="utf-8")
    assert format_text(text) == text


def test_keys_are_ordered_at_every_level():
    entry = {
        "title": "T",
        "id": "a",
        "publication": {"venue": "V", "type": "conference"},
        "results": [{"measures": [{"value": 1.0, "metric": "fid"}], "id": "r"}],
    }
    text = format_entry(entry, Paper)
    places = [text.index(word) for word in ("id: a", "title", "type:", "venue", "id: r", "metric")]
    assert places == sorted(places)


def test_comments_are_found_and_hashes_in_values_are_not():
    text = "# one\na: 'x # no'\nb: y # two\nc: >-\n  # no\n  z\nd: a#b\n  # three\n"
    assert comment_lines(text) == (1, 3, 8)


def test_formatting_refuses_to_lose_a_comment():
    assert (
        rule_of(format_text, "# head\nschema_version: '1.0'\npapers: [] # keep me\n") == "comment"
    )


def test_comments_at_the_head_are_kept():
    text = format_text("# about this file\nschema_version: '1.0'\npapers: []\n")
    assert text.startswith(write.HEADER + "# about this file\nschema_version")
    assert format_text(text) == text


# ------------------------------------------------------------------ insertion

STYLES = {
    "canonical": "schema_version: '1.0'\n\npapers:\n  - id: b\n    x: 1\n\n  - id: d\n\ntools: []",
    "no indent": "papers:\n- {id: b}   # odd  space\n-   id: d\ntools: []\nschema_version: '1.0'",
    "comments": "papers:\n  # about b\n  - id: b\n  # about d\n  - id: d\n# end\ntools: []\n",
    "crlf": "papers:\r\n  - id: b\r\n    x: [1,\r\n      2]\r\n  - id: d\r\n",
    "no final newline": "papers:\n  - id: b\n  - id: d",
}


@pytest.mark.parametrize("new", ["a", "c", "e"])
@pytest.mark.parametrize("text", STYLES.values(), ids=STYLES)
def test_insertion_touches_nothing_else(text, new):
    result = insert_entry(text, "papers", {"id": new, "title": "no", "authors": ["A, B"]})
    data = parse(result, "f").data
    assert [e["id"] for e in data["papers"]] == sorted(["b", "d", new])
    assert data["papers"]["ace".index(new) if new != "c" else 1]["title"] == "no"
    inserted = len(result) - len(text)
    start = next(i for i in range(len(result)) if i >= len(text) or result[i] != text[i])
    assert any(
        result[:i] + result[i + inserted :] == text for i in range(max(0, start - 200), start + 1)
    )


def test_insertion_into_an_empty_or_missing_list():
    for text in ("papers: []\ntools: []\n", "schema_version: '1.0'\npapers: []\n"):
        result = insert_entry(text, "tools", {"id": "t"})
        assert parse(result, "f").data["tools"] == [{"id": "t"}]


def test_insertion_refuses_a_taken_id_and_leaves_seeds_in_place():
    text = PAPERS.read_text(encoding="utf-8")
    assert rule_of(insert_entry, text, "papers", {"id": "ecodiff"}) == "duplicate-id"
    result = insert_entry(text, "papers", {"id": "zz-last", "title": "Z"})
    assert result.replace("\n  - id: zz-last\n    title: Z\n", "", 1) == text
