"""The semantic diff against sentences written by hand."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kb.diff import as_json, as_markdown, as_text, differences
from kb.write import format_document

ROOT = Path(__file__).parents[2]


def row(id, fid, **more):
    return {
        "id": id,
        "base_model": "DDPM",
        "sparsity": {"kind": "macs", "value": 0.44},
        "measures": [{"metric": "fid", "value": fid, "dense": 4.19}],
        "source": {"document": "arxiv:2305.10924v1", "place": "Table 1"},
        **more,
    }


def paper(id="diff-pruning", **more):
    return {
        "id": id,
        "title": "Structural Pruning for Diffusion Models",
        "arxiv": "2305.10924",
        "publication": {"type": "preprint"},
        "summary": "Removes channels.",
        **more,
    }


def file(*papers, **more):
    return {"schema_version": "1.0", "papers": list(papers), **more}


def lines(old, new):
    (change,) = differences(file(old), file(new))
    return list(change.changes)


def test_equal_files_differ_in_nothing():
    assert differences(file(paper()), file(paper())) == ()
    assert as_text(()) == "no change\n"


def test_order_of_entries_and_keys_is_no_change():
    a, b = paper(), paper("other", arxiv="2306.00980", title="Other")
    turned = dict(reversed(a.items()))
    assert differences(file(a, b), file(b, turned)) == ()


def test_acceptance_of_a_preprint():
    accepted = {
        "type": "conference",
        "venue": "ICML",
        "year": 2026,
        "evidence": "openreview:abcdef",
    }
    assert lines(paper(), paper(publication=accepted)) == [
        "venue: preprint -> ICML 2026",
        "publication evidence: openreview:abcdef (new)",
    ]


def test_a_workshop_says_so():
    shop = {"type": "workshop", "venue": "CVPR", "year": 2025}
    main = {"type": "conference", "venue": "CVPR", "year": 2025}
    assert lines(paper(publication=main), paper(publication=shop)) == [
        "venue: CVPR 2025 -> CVPR 2025 (workshop)"
    ]


def test_results_added_removed_and_corrected():
    old = paper(results=[row("t1-r3", 5.29), row("gone", 7.0)])
    new = paper(results=[row("new-b", 6.0), row("t1-r3", 5.92), row("new-a", 6.5)])
    assert lines(old, new) == [
        "+2 results: new-a, new-b",
        "-1 result: gone",
        "result t1-r3: FID 5.29 -> 5.92",
    ]


def test_every_part_of_a_row_is_told():
    old = row("r", 5.29, status="reported", protocol={"steps": 100})
    new = row("r", 5.29, status="recomputed", protocol={"steps": 50, "samples": 50000})
    new["measures"][0]["dense"] = 4.2
    new["measures"].append({"metric": "clip-score", "value": 31.5, "unit": "x100"})
    new["sparsity"] = {"kind": "params", "value": 0.44}
    assert lines(paper(results=[old]), paper(results=[new])) == [
        "result r: +clip score 31.5 x100",
        "result r: FID dense: 4.19 -> 4.2",
        "result r: protocol samples: 50000 (new)",
        "result r: protocol steps: 100 -> 50",
        "result r: sparsity kind: macs -> params",
        "result r: status: reported -> recomputed",
    ]


def test_a_change_of_unit_is_a_change_of_value():
    old = row("r", 1.0, measures=[{"metric": "latency", "value": 230.0, "unit": "ms"}])
    new = row("r", 1.0, measures=[{"metric": "latency", "value": 0.23, "unit": "s"}])
    assert lines(paper(results=[old]), paper(results=[new])) == [
        "result r: latency 230 ms -> 0.23 s"
    ]


def test_code_status_and_moved_link():
    url = "https://github.com/owner/name"
    old = paper(code=[{"url": url, "status": "unchecked"}])
    assert lines(old, paper(code=[{"url": url, "status": "released"}])) == [
        "code status: unchecked -> released"
    ]
    assert lines(old, paper(code=[{"url": f"{url}-2", "status": "unchecked"}])) == [
        f"code url: {url} -> {url}-2"
    ]
    assert lines(paper(), old) == [f"+1 code link: {url}"]


def test_lists_of_terms_and_of_relations():
    old = paper(units=["channel", "head"], relations=[{"type": "extends", "to": "a"}])
    new = paper(units=["head", "layer"], relations=[{"type": "uses", "to": "b"}])
    assert lines(old, new) == [
        "+1 relation: uses b",
        "-1 relation: extends a",
        "units: +layer, -channel",
    ]
    assert lines(paper(units=["a", "b"]), paper(units=["b", "a"])) == ["units: other order"]


def test_plain_fields_come_change_and_go():
    old = paper(year=2023, doi="10.1/abc")
    new = paper(year=2024, project="https://owner.github.io/paper")
    assert lines(old, new) == [
        "DOI: removed, was 10.1/abc",
        "project: https://owner.github.io/paper (new)",
        "year: 2023 -> 2024",
    ]
    assert lines(paper(seed=True), paper(seed=False)) == ["seed: true -> false"]


def test_long_texts_are_cut():
    (line,) = lines(paper(), paper(summary="word " * 60))
    assert line.startswith("summary: Removes channels. -> word word") and line.endswith("…")
    assert len(line) < 200


def test_entries_added_removed_and_renamed():
    old = file(paper("diff-pruning"), paper("gone", arxiv="2306.00980", title="Gone"))
    new = file(
        paper("diffpruning", year=2023),
        paper("fresh", arxiv="2412.02852", title="Fresh", results=[row("a", 5.0)]),
    )
    changes = differences(old, new)
    assert [change.headline for change in changes] == [
        "diff-pruning renamed to diffpruning",
        "fresh added",
        "gone removed",
    ]
    assert changes[0].changes == ("year: 2023 (new)",)
    assert changes[1].changes == (
        "title: Fresh",
        "venue: preprint",
        "arxiv: 2412.02852",
        "+1 result",
    )


def test_tools_are_followed_too_and_sections_keep_their_order():
    tool = {"id": "a-tool", "name": "A tool", "url": "https://github.com/o/t", "status": "active"}
    old = file(paper(), tools=[tool])
    new = file(paper(year=2023), tools=[tool | {"status": "archived"}])
    assert as_text(differences(old, new)) == (
        "diff-pruning changed\n"
        "  year: 2023 (new)\n"
        "a-tool changed\n"
        "  status: active -> archived\n"
        "2 changed\n"
    )


def test_schema_version_is_told_first():
    changes = differences(file(paper()), file(paper(year=2023)) | {"schema_version": "1.1"})
    assert changes[0].changes == ("schema version: 1.0 -> 1.1",)


def test_markdown_is_a_list_in_which_nothing_is_active():
    nasty = "<img src=x onerror=alert(1)> [a](javascript:b) `c` | d\n# e"
    old, new = paper(units=["channel"]), paper(title=nasty, units=["head"])
    text = as_markdown(differences(file(old), file(new)))
    assert text.splitlines()[:5] == [
        "**1 changed**",
        "",
        "### Papers",
        "",
        "- diff-pruning changed",
    ]
    assert "<" not in text and "`" not in text and "[" not in text and "|" not in text
    assert sum(line.startswith("    - ") for line in text.splitlines()) == 2
    assert len(text.splitlines()) == 7


def test_the_report_does_not_move_the_cursor():
    changes = differences(file(), file(paper("x\x1b[2J", note="\x9b31m")))
    assert all(c.isprintable() or c == "\n" for c in as_text(changes))


def test_many_equal_ids_and_terms_are_compared_in_one_pass():
    rows = [row("same", float(i)) for i in range(1, 5001)]
    old = file(paper(results=rows, units=[f"u{i}" for i in range(5000)]))
    new = file(paper(results=rows[:-1], units=[f"v{i}" for i in range(5000)]))
    (change,) = differences(old, new)
    assert change.changes[0] == "-1 result: same"


def test_json_counts_and_names():
    found = as_json(differences(file(paper()), file(paper("x", year=2023))))
    assert found == {
        "counts": {"added": 0, "removed": 0, "renamed": 1, "changed": 0},
        "entries": [
            {
                "section": "papers",
                "id": "x",
                "kind": "renamed",
                "old_id": "diff-pruning",
                "changes": ["year: 2023 (new)"],
            }
        ],
    }


@pytest.mark.parametrize("seed", range(20))
def test_any_change_of_data_is_told_and_both_ways(seed):
    draw = random.Random(seed)
    old = file(paper(results=[row("a", 5.0), row("b", 6.0)], units=["head"], notes=["One."]))
    new = copy.deepcopy(old)
    target = new["papers"][0]
    while draw.random() < 0.8:  # walk down to some leaf
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        inner = [k for k in keys if isinstance(target[k], (dict, list))]
        if not inner:
            break
        target = target[draw.choice(inner)]
    key = draw.choice(list(target) if isinstance(target, dict) else list(range(len(target))))
    target[key] = "changed" if isinstance(target[key], str) else None
    assert differences(old, new) and differences(new, old)
    assert differences(new, copy.deepcopy(new)) == ()


# ------------------------------------------------------------------ command line


def run(*arguments):
    command = [sys.executable, ROOT / "scripts" / "diff.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def files(tmp_path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(format_document(file(paper())), encoding="utf-8")
    new.write_text(format_document(file(paper(year=2023))), encoding="utf-8")
    return old, new


def test_exit_codes(files):
    old, new = files
    same, changed = run(old, old), run(old, new)
    assert (same.returncode, same.stdout) == (0, "no change\n")
    assert (changed.returncode, changed.stdout) == (
        1,
        "diff-pruning changed\n  year: 2023 (new)\n1 changed\n",
    )


def test_formats(files):
    assert json.loads(run(*files, "--json").stdout)["counts"]["changed"] == 1
    assert run(*files, "--markdown").stdout.startswith("**1 changed**\n")
    assert run(*files, "--markdown", "--json").returncode == 2


@pytest.mark.parametrize("name", ["anchor", "empty", "duplicate-key", "not-a-mapping", "missing"])
def test_unusable_input_is_one_line(files, name):
    done = run(files[0], ROOT / "tests" / "kb" / "bad" / f"{name}.yaml")
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
