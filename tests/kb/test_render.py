"""README and pages: the right content, no torn table and no live markup, whatever a field holds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints

import markdown
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kb import render, results
from kb.load import load_literature
from kb.schema import SCHEMA_VERSION, Depth, Evidence, Line, Literature, Prose, Record, Summary

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "site" / "templates"
PROJECT = render.Project("https://github.com/owner/repository")
FRAGMENTS = st.sampled_from(
    [
        *("|", "\\|", "`", "*", "# ", "- ", "```", "[TOC]", "| a |", "-->", "{: onclick=a }"),
        *("[x](javascript:alert(1))", "<script>alert(1)</script>", "<img src=x onerror=a>"),
        *("&lt;script&gt;", "</td></tr></table>", "</title><script>", '" onmouseover="a'),
        *("https://example.com", "<a href=data:x>"),
    ]
)
TEXT = st.lists(st.one_of(st.text(max_size=20), FRAGMENTS), max_size=5).map("".join)


def lines(text: str) -> str:
    """`text` as a field of one line may hold it."""
    return " ".join(text.split())[:150].strip() or "x"


def literature(text: str = "Some words", url: str = "https://example.org/") -> Literature:
    """Two works, a tool and a tutorial that hold `text` and `url` wherever they may stand."""
    summary = (text + " is described here in more than forty characters.")[-400:]
    curation = {"depth": "abstract-read", "date": "2026-01-02", "note": text}
    reference = "https://example.org/ " + text
    row = {
        "id": "row",
        "role": "proposed",
        "variant": text,
        "base_model": text,
        "dataset": text,
        "resolution": "32x32",
        "sparsity": {"kind": "params", "value": 0.5, "scope": text},
        "protocol": {
            "sampler": text,
            "steps": 20,
            "reference_set": text,
            "note": text,
            "fid_implementation": text,
            "retraining": text,
        },
        "hardware": text,
        "precision": text,
        "measures": [{"metric": "fid", "value": 5.0, "dense": 4.0, "note": text}],
        "source": {"document": reference, "place": text, "row": text, "via": text},
        "note": text,
    }
    paper = {
        "id": "first",
        "section": "pruning",
        "family": "weight-pruning",
        "title": text,
        "alternate_titles": [text],
        "authors": [text, text],
        "year": 2024,
        "arxiv": "2401.00001",
        "publication": {
            "type": "workshop",
            "venue": text,
            "year": 2024,
            "workshop": text,
            "pages": text,
            "evidence": reference,
            "note": text,
        },
        "page": url,
        "project": url,
        "code": [{"url": url, "status": "stub", "licence": text, "note": text}],
        "granularity": ["structured"],
        "units": ["n:m"],
        "stage": ["post-training"],
        "architectures": ["unet"],
        "recovery": ["fine-tuning"],
        "training": text,
        "base_models": [text],
        "summary": summary,
        "results": [row, {**row, "id": "other", "dataset": None, "hardware": None}],
        "not_reported": ["seeds"],
        "relations": [{"type": "extends", "to": "second", "note": text, "source": reference}],
        "notes": [text],
        "evidence": "list",
        "curation": curation,
        "sources": [reference],
    }
    second = {**paper, "id": "second", "section": "complementary", "family": "caching"}
    second |= {"relations": [{"type": "uses", "to": "nowhere"}], "results": []}
    common = {"summary": summary, "curation": curation, "sources": [reference], "url": url}
    tool = {"id": "tool", "name": text, "category": "pruning", "docs": url, "package": text}
    tool |= {"licence": text, "status": "active", "version": text, "traps": [text]}
    tool |= {"papers": ["first", "nowhere"], **common}
    tutorial = {"id": "tutorial", "kind": "article", "title": text, "authors": [text]}
    tutorial |= {"papers": ["first"], **common}
    data = {"papers": [paper, second], "tools": [tool], "tutorials": [tutorial]}
    return Literature.model_validate({"schema_version": SCHEMA_VERSION, **data})


METHOD = render.Method(
    "some_method", "Does it.\n\nMore `code` here.", {"paper": "first", "tasks": ["task"]}, ()
)


def spread(value: float) -> dict[str, Any]:
    return {"mean": value, "min": value, "max": value, "n": 1, "values": [value]}


TABLE = {
    "columns": [{"key": k, "label": label, "meaning": m} for k, label, m in results.COLUMNS],
    "rows": [
        {
            "slug": "some_method-macs0.75+finetune",
            "recipe": "some_method",
            "seeds": [0],
            "macs_fraction": 0.75,
            "macs_fraction_range": [0.75, 0.75],
            "macs_with_attention_fraction": 0.77,
            "params": 850000,
            "params_range": [840000, 860000],
            "params_fraction": 0.85,
            "nonzero_fraction": 0.8,
            "optimizer_steps": 100,
            "optimizer_steps_range": [100, 100],
            "frechet": spread(500.0),
            "kernel": spread(0.5),
            "agreement": spread(0.8),
            "ssim": spread(0.9),
            "speedup": spread(1.3),
            "no_faster": False,
            "cost_seconds": 12.0,
            "rank": "1–2",
            "method": "some_method",
            "request": "macs 0.75",
            "bare": True,
            "compression": {
                "seconds": 3.25,
                "denoiser_calls": 1234.0,
                "denoiser_images": 56789.0,
                "optimizer_steps": 7.0,
                "peak_bytes": 2.5e6,
            },
        }
    ],
    "comparisons": [],
    "notes": ["A note."],
    "protocol": {
        "samples": 5000,
        "sampler": "DDIM",
        "steps": 20,
        "precision": "fp32",
        "features": {"network": "lite0", "weights_sha256": "0" * 64, "input_size": 64},
        "reference": {"size": 5000, "set": "held-out images"},
    },
}


def inputs(papers: Literature | None = None, **more: Any) -> render.Inputs:
    return render.Inputs(papers or literature(), PROJECT, methods=(METHOD,), **more)


class Seen(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@cache
def extensions() -> tuple[str, ...]:
    """What mkdocs.yml switches on."""
    found = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return tuple(e if isinstance(e, str) else next(iter(e)) for e in found["markdown_extensions"])


def site_html(page: str) -> str:
    """`page` as the site builder renders it."""
    body = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    return markdown.markdown(body, extensions=extensions())


@cache
def plain_pages() -> Mapping[str, str]:
    """Every page of `literature` with plain words."""
    return render.pages(inputs(results={"task": TABLE}), TEMPLATES)


def forge_html(page: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable(["table"]).render(page)


def assert_harmless(html: str) -> None:
    seen = Seen(html)
    dangerous = {"script", "style", "iframe", "object", "embed", "form", "base", "meta", "link"}
    assert not seen.tags & (dangerous | {"svg", "math"})
    for name, value in seen.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            relative = re.fullmatch(r"[\w./#:-]*", value) and ":" not in value.split("/")[0]
            assert value.startswith("https://") or relative, value
            assert "javascript" not in value
            assert "data:" not in value


def assert_even_tables(page: str) -> None:
    """Every line of a table has as many bars as its head."""
    bars = 0
    fence = False
    for line in page.splitlines():
        fence ^= line.startswith("```")
        if fence or not line.startswith("|"):
            bars = 0
            continue
        bars = bars or line.count("|")
        assert line.count("|") == bars, line


def texts(record: Record) -> Iterator[tuple[str, bool]]:
    """Fields of free text by the name of their record, and whether `record` fills them."""
    hints = get_type_hints(type(record), include_extras=True)
    for name, hint in hints.items():
        value = getattr(record, name)
        many = value if isinstance(value, tuple) else (value,)
        if any(str(kind) in str(hint) for kind in (Line, Prose, Summary)):
            yield f"{type(record).__name__}.{name}", any(many)
        for inner in many:
            if isinstance(inner, Record):
                yield from texts(inner)


def test_every_field_of_free_text_is_attacked() -> None:
    filled: dict[str, bool] = {}
    for name, full in texts(literature()):
        filled[name] = filled.get(name, False) or full
    assert len(filled) > 40
    assert sorted(name for name, full in filled.items() if not full) == ["Measure.unit"]


@settings(deadline=None, max_examples=30)
@given(text=TEXT.map(lines), url=TEXT.map(lambda t: "x:" + "".join(t.split())[:200] + "x"))
def test_hostile_fields_stay_text(text: str, url: str) -> None:
    hostile = inputs(literature(text, url), results={"task": TABLE})
    readme = render.readme(hostile, TEMPLATES)
    assert_even_tables(readme)
    assert_harmless(forge_html(readme))
    for name, page in render.pages(hostile, TEMPLATES).items():
        # A page in which nothing of the text stands is tried once, below.
        if name.endswith(".md") and page != plain_pages()[name]:
            assert_even_tables(page)
            assert_harmless(site_html(page))
            if page.startswith("---\n"):
                head = yaml.safe_load(page.split("---\n")[1])
                assert "<" not in str(head["title"])


def test_every_template_passes_both_renderers_with_plain_words() -> None:
    found = plain_pages()
    assert {"glossary.md", "fields.md", "results/task.md", "methods/some_method.md"} <= set(found)
    for name, page in found.items():
        if name.endswith(".md"):
            assert_even_tables(page)
            assert_harmless(site_html(page))
            assert name in ("glossary.md", "rules.md") or not re.search(r"\bNone\b(?! of)", page), (
                name
            )


def test_the_readme_in_the_repository_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_lists_every_work_tool_and_tutorial_once() -> None:
    real = load_literature(ROOT / "papers.yaml")
    text = render.readme(render.Inputs(real, PROJECT), TEMPLATES)
    listed = [line for line in text.splitlines() if line.startswith("| ")]
    for paper in real.papers:
        assert sum(str(render.link(paper.title, paper.url)) in line for line in listed) == 1
    for tool in real.tools:
        assert any(str(render.link(tool.name, tool.url)) in line for line in listed)


def test_readme_shows_results_and_times_only_when_there_are_some() -> None:
    without = render.readme(inputs(), TEMPLATES)
    assert "standard comparison says" not in without
    assert "Measured on" not in without
    measured = {"machine": "2 cores", "setup_seconds": 61, "compare_seconds": 200}
    measured |= {"test_seconds": 120, "disk_mb": 1400}
    with_them = render.readme(inputs(results={"task": TABLE}, measured=measured), TEMPLATES)
    assert "| some_method | 75.0&nbsp;% | 500.0 | 0.800 | 1.30× | 1–2 |" in with_them
    assert "| 0.85&nbsp;M (0.84–0.86) | 80.0&nbsp;% | 100 | 12.0 | 1 |" in with_them
    assert "| **75 % of MACs** | | |" in with_them
    assert "| method | MACs left | Fréchet ↓ | as asked ↑ |" in with_them
    assert "5000 samples, DDIM, 20 sampling steps" in with_them
    assert "standard comparison says" in with_them
    assert "Measured on 2 cores: set-up 61 s" in with_them


def test_a_method_page_shows_the_rows_that_use_it() -> None:
    other = {**TABLE["rows"][0], "slug": "some_method_two", "recipe": "some_method_two"}
    table = {**TABLE, "rows": [*TABLE["rows"], other]}
    page = render.pages(inputs(results={"task": table}), TEMPLATES)["methods/some_method.md"]
    assert page.count('| 75.0 % <small class="range">&#91;77.0 %&#93;</small> |') == 1
    assert "non-zero" in page and "rank" not in page
    assert "| some_method, macs 0.75 | 3.2 | 1,234 | 56,789 | 7 | 2 MB |" in page


def test_a_reconstruction_is_called_one_wherever_it_is_named() -> None:
    card = {**METHOD.card, "reconstruction": True, "role": "method"}
    method = render.Method("some_method", METHOD.doc, card, ())
    made = render.Inputs(literature(), PROJECT, methods=(method,), results={"task": TABLE})
    readme, found = render.readme(made, TEMPLATES), render.pages(made, TEMPLATES)
    assert "[`some_method`](methods/some_method.py) (reconstruction)" in readme
    assert "[some_method](methods/some_method.py) (reconstruction)" in readme
    assert "# some_method (reconstruction)" in found["methods/some_method.md"]
    assert "[some_method](some_method.md) (reconstruction)" in found["methods/index.md"]
    assert "runs here (reconstruction)" in found["index.md"]
    assert "runs here (reconstruction)" in found["papers/index.md"]
    assert "[some_method (reconstruction)]" in found["papers/first.md"]


def test_a_method_page_begins_with_a_command_that_gives_what_the_method_needs() -> None:
    card = {**METHOD.card, "known_as": "Some|Thing", "recipe": ("other", "some_method")}
    card["try"] = ("some_method.ratio=0.5", "other.a_rather_long_name_of_a_setting=0.123456789")
    method = render.Method("some_method", METHOD.doc, card, ())
    made = render.Inputs(literature(), PROJECT, methods=(method,))
    page = render.pages(made, TEMPLATES)["methods/some_method.md"]
    block = page[page.index("```sh") : page.index("```\n", page.index("```sh") + 5)]
    assert " ".join(block.replace("\\\n", " ").split()[1:]) == (
        "python -m methods run other some_method --task task --set some_method.ratio=0.5 "
        "--set other.a_rather_long_name_of_a_setting=0.123456789"
    )
    assert max(map(len, block.splitlines())) < 100
    assert "Some&#124;Thing, paper:" in page


def test_the_reference_has_no_steps_and_no_cost_of_a_cut() -> None:
    card = {"paper": None, "granularity": None, "unit": None, "role": "reference", "tasks": ["t"]}
    method = render.Method("some_method", "The row beside the others.", card, ())
    made = render.Inputs(literature(), PROJECT, methods=(method,), results={"task": TABLE})
    found = render.pages(made, TEMPLATES)
    page = found["methods/some_method.md"]
    assert "Idea and steps" not in page and "Granularity" not in page and "cut itself" not in page
    assert "| – | – | reference | – |" in found["methods/index.md"]


def test_masks_that_miss_their_bar_are_named() -> None:
    times = {"min_ms": 1.0, "max_ms": 99.0, "stable_sort_ms": 500.0}
    masks = {
        "date": "2026-01-02",
        "shape": [3072, 3072],
        "rounds": 15,
        "system": {"cpu": "a processor", "torch": "2"},
        "masks": {"2:4": {"median_ms": 49.9, **times}, "rows": {"median_ms": 50.0, **times}},
    }
    page = render.pages(inputs(masks=masks), TEMPLATES)["methods/index.md"]
    assert "bar is 50 ms; “rows” misses it" in page.replace("\n", " ")
    assert "| 2:4 | 49.9 | 1.0–99.0 | 500 | yes |" in page and "| **no** |" in page


def test_an_experiment_has_a_page_and_stands_on_its_methods_page() -> None:
    record = results.Experiment.model_validate(
        {
            "schema": 1,
            "name": "some_question",
            "question": "Does a|b hold?",
            "methods": ["some_method"],
            "task": None,
            "bar": "a is smaller than b",
            "source": "arXiv 2305.10924",
            "verdict": "not shown",
            "answer": "a - b = 1",
            "why": "one seed was odd",
            "columns": [{"key": "a", "label": "A", "digits": 2}],
            "rows": [{"a": 1.5}, {"a": None}],
            "settings": {"steps": 3},
            "seeds": [0, 1],
            "protocol": {"samples": 10, "steps": 2},
            "seconds": 1.0,
            "provenance": {
                "command": "python -m methods experiment some_question",
                "date": "2026-01-01T00:00:00+00:00",
                "commit": None,
                "dirty": None,
                "code_sha256": "0",
                "device": "cuda",
                "system": {"cpu": "a processor", "cuda": ["a GPU"]},
            },
        }
    )
    card = {"methods": ["some_method"], "task": None, "bar": "it | holds", "source": "x"}
    asked = (
        render.Method("some_question", "Does a|b hold?\n\nThis was done.", card, ()),
        render.Method("other_question", "And c?\n\nLater.", card, ()),
    )
    found = render.pages(inputs(experiments=(record,), questions=asked), TEMPLATES)
    page = found["experiments/some_question.md"]
    assert "This was done." in page and "experiments/other_question.md" not in found
    for name in ("experiments/index.md", "methods/some_method.md"):
        assert "And c?" in found[name] and "it &#124; holds" in found[name]
    assert "| 1.50 |" in page and "| – |" in page and "2 seeds, a GPU" in page
    assert "# Does a&#124;b hold?" in page
    for name in ("experiments/index.md", "methods/some_method.md"):
        assert "a&#124;b" in found[name] and "ot shown" in found[name]


def test_readme_links_the_method_that_implements_a_paper() -> None:
    text = render.readme(inputs(), TEMPLATES)
    assert text.count("[some_method](methods/some_method.py)") == 1


def test_paper_page_says_what_it_rests_on_and_relates_to() -> None:
    found = render.pages(inputs(), TEMPLATES)
    first, second = found["papers/first.md"], found["papers/second.md"]
    assert "rests on paper lists alone" in first
    assert "- extends [Some words](second.md): Some words" in first
    assert "- is extended by [Some words](first.md): Some words" in second
    assert "nowhere" not in second
    assert "[seeds](../glossary.md#reportitem-seeds" in first
    assert "**5** <small>dense&nbsp;4; Some words</small>" in first
    place = '<br><small class="wide">example.org via Some words</small>'
    assert f"[Some words](https://example.org/){place}" in first
    assert first.count("<sup>1</sup>") == 4  # two tables, each a row and its note
    assert "issues/new?template=fix-entry.yml&amp;title=Fix+first&amp;entry=first" in first
    assert "@inproceedings{first," in first


def test_a_family_page_lists_both_halves_of_the_list() -> None:
    papers = literature().papers
    same = papers[1].model_copy(update={"family": papers[0].family})
    both = literature().model_copy(update={"papers": (papers[0], same)})
    page = render.pages(inputs(both), TEMPLATES)["families/weight-pruning.md"]
    assert '<a href="../papers/first.html">' in page
    assert '<a href="../papers/second.html">' in page
    cells = re.findall(r'<td data-label="([^"]+)"', page)
    heads = re.findall(r'<th scope="col">([^<]+)</th>', page)
    assert cells == heads * 2


def test_the_home_page_begins_with_what_is_known_best() -> None:
    first, second = literature().papers
    read = first.curation.model_copy(update={"depth": Depth.PAPER_READ})
    papers = (
        first.model_copy(update={"id": "new-but-unread", "year": 2026}),
        first.model_copy(update={"id": "read", "curation": read}),
        second,
        first,  # the one that METHOD implements
    )
    home = render.pages(inputs(literature().model_copy(update={"papers": papers})), TEMPLATES)
    shown = re.findall(r'<a href="papers/([\w-]+)\.html"', home["index.md"])
    assert shown == ["first", "read", "new-but-unread", "second"]


def test_models_are_found_by_any_usual_spelling() -> None:
    paper = literature().papers[0]
    for name in ("SD1.5", "SD v1.5", "Stable Diffusion v1.5", "Stable Diffusion 1.5"):
        words = render.model_words(paper.model_copy(update={"base_models": (name,)}))
        assert "sd1.5" in words
        assert "stable diffusion v1.5" in words
    assert render.model_words(paper.model_copy(update={"base_models": ("SDXL",)})) == "SDXL"


def test_only_entries_without_a_read_source_carry_the_warning() -> None:
    paper = literature().papers[0]
    warned = {e for e in Evidence if render.weak_evidence(paper.model_copy(update={"evidence": e}))}
    assert warned == {Evidence.LIST, Evidence.CITATION}


def test_rows_that_may_not_be_ranked_say_why() -> None:
    paper = literature().papers[0]
    rows = tuple(
        row.model_copy(update={"dataset": "CIFAR-10", "source": paper.results[0].source})
        for row in paper.results
    )
    other = rows[1].model_copy(
        update={"protocol": rows[1].protocol.model_copy(update={"steps": 50})}
    )
    (group,) = render.claims(paper.model_copy(update={"results": (rows[0], other)}))
    assert "steps" in group.differing
    (same,) = render.claims(paper.model_copy(update={"results": (rows[0], rows[0])}))
    assert same.differing == ()


def test_numbers_are_shown_as_printed() -> None:
    paper = literature().papers[0]
    measure = paper.results[0].measures[0]

    def shown(**changes: Any) -> str:
        return str(render.measure_cell(measure.model_copy(update={"note": None, **changes})))

    assert shown(value=19.8, dense=None) == "**19.8**"
    assert shown(value=10, upper=20.0, dense=None) == "**10–20**"
    assert shown(value=0.1 + 0.2, dense=None, spread=0.05) == "**0.3 ± 0.05**"
    assert render.number(49984) == "49984"
    assert render.number(1e-7) == "1e-07"


def test_a_method_file_is_read_without_being_run(tmp_path: Path) -> None:
    file = tmp_path / "some_method.py"
    file.write_text(
        '"""Does one thing.\n\nA list:\n* first\n  goes on\n* second\n\n    x = 1\n"""\n'
        "raise SystemExit('must not run')\n"
        'CARD = {"paper": "first", "granularity": "structured", "tasks": ["task"]}\n'
        "@dataclass(frozen=True)\nclass Config:\n"
        "    # Why it is\n    ratio: float = 0.3  # fraction removed\n    name: str\n",
        encoding="utf-8",
    )
    method = render.read_method(file)
    assert method.summary == "Does one thing."
    assert method.paper == "first"
    assert method.options == (
        render.Option("ratio", "float", "0.3", "Why it is fraction removed"),
        render.Option("name", "str", "required", ""),
    )
    blocks = [str(b) for b in render.doc_blocks(method.doc)]
    assert blocks == ["A list:", "- first goes on\n- second", "```text\nx = 1\n```\n"]


def test_numbered_steps_of_a_docstring_are_a_list() -> None:
    doc = "Head.\n\nBy steps:\n1. First `a`,\n   which goes on\n2. Second: 1.5 of 2.\n\n2.5 times."
    blocks = [str(b) for b in render.doc_blocks(doc)]
    steps = "1. First <code>a</code>, which goes on\n2. Second: 1.5 of 2."
    assert blocks == ["By steps:", steps, "2.5 times."]


def test_every_field_and_word_is_explained() -> None:
    found = render.pages(inputs(), TEMPLATES)
    for record in render.DOCUMENTED:
        rows = render.field_rows(record)
        assert all(row.meaning for row in rows), record
        for row in rows:
            required = " <small>required</small>" if row.required else ""
            assert f"| `{row.name}`{required} |" in found["fields.md"]
    for term in (*Evidence, *Depth):
        assert f'<a id="{render.term_id(term)}"></a>' in found["glossary.md"]


def test_staging_leaves_only_what_belongs(tmp_path: Path) -> None:
    docs, target = tmp_path / "docs", tmp_path / "out"
    docs.mkdir()
    (docs / "hand.md").write_text("# By hand\n", encoding="utf-8")
    picture = tmp_path / "pareto.png"
    picture.write_bytes(b"png")
    (target / "old").mkdir(parents=True)
    (target / "old" / "stale.md").write_text("old", encoding="utf-8")
    given_ = inputs(results={"task": TABLE}, images={"task": (picture,)})
    count = render.stage(given_, TEMPLATES, docs, target, {"papers.json": b"{}"})
    staged = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert {"hand.md", "index.md", "papers/first.md", "results/task/pareto.png"} <= staged
    assert (target / "data" / "papers.json").read_bytes() == b"{}"
    assert not (target / "old").exists()
    assert count == sum(name.endswith(".md") for name in staged) - 1
    assert "![pareto](task/pareto.png)" in (target / "results/task.md").read_text(encoding="utf-8")


def test_a_failed_staging_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "index.md").write_text("old", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        render.stage(inputs(), TEMPLATES, tmp_path / "missing", target)
    assert (target / "index.md").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_repository_that_is_no_https_address_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mkdocs.yml").write_text("extra: {repository: 'javascript:x'}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"extra\.repository must be an https address"):
        render.project(tmp_path)


@pytest.mark.parametrize("text", ["extra: [", "", "extra:", "extra: {repository: 1}"])
def test_broken_settings_are_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "mkdocs.yml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^mkdocs\.yml: [^\n]+$"):
        render.project(tmp_path)


def test_a_broken_method_file_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "some_method.py"
    file.write_text("CARD = {\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^some_method\.py:1: not valid Python"):
        render.read_method(file)


def test_a_broken_file_ends_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "papers.yaml"
    broken.write_text("papers: [", encoding="utf-8")
    command = [
        sys.executable,
        str(ROOT / "scripts" / "render.py"),
        "--check",
        "--file",
        str(broken),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("papers.yaml:")
