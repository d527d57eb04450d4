"""Every broken file gets the answer its name asks for, in the library and at the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kb.load import Unreadable, corpus, load, parse
from kb.rules import RULES, check, links, prose, rule
from kb.rules.arithmetic import printed
from kb.rules.prose import recorded_runs
from scripts import validate

ROOT = Path(__file__).parents[2]
BAD = sorted((Path(__file__).parent / "bad").iterdir())
NAME = {path: path.stem.split("--")[0] for path in BAD}


def problems_of(path):
    try:
        return check(load(path))
    except Unreadable as error:
        return (error.problem,)


def run(script, *arguments):
    command = [sys.executable, ROOT / "scripts" / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_broken_file_has_exactly_the_problem_it_is_named_after(path):
    found = problems_of(path)
    assert [p.rule for p in found] == [NAME[path]]
    problem = found[0]
    assert problem.file == path.name
    assert 1 <= problem.line <= max(1, path.read_bytes().count(b"\n"))
    assert problem.message and problem.mend
    assert "\n" not in str(problem)
    if problem.rule in RULES:
        assert problem.entry and problem.field
        assert problem.severity == RULES[problem.rule].severity


@pytest.mark.parametrize("rule_id", RULES)
def test_every_rule_has_a_fixture_and_a_reason(rule_id):
    assert rule_id in NAME.values(), f"add tests/kb/bad/{rule_id}.yaml"
    reason = RULES[rule_id].reason
    assert reason.endswith(".") and 20 < len(reason) < 120


def test_a_rule_id_is_taken_once():
    with pytest.raises(ValueError, match="twice"):
        rule(next(iter(RULES)), "error", "Reason.")(lambda corpus: ())


def test_the_literature_is_clean():
    found = check(load(ROOT / "papers.yaml"))
    assert [str(p) for p in found if p.severity == "error"] == []


def test_lines_of_problems_point_at_the_field():
    path = ROOT / "tests" / "kb" / "bad" / "measure-range.yaml"
    (problem,) = problems_of(path)
    assert "93.2" in path.read_text(encoding="utf-8").splitlines()[problem.line - 1]
    assert problem.field == "results[0].measures[0].value"


def test_an_unquoted_arxiv_id_is_mended_digit_by_digit():
    text = (ROOT / "tests" / "kb" / "bad" / "schema-string-type.yaml").read_text(encoding="utf-8")
    (problem,) = corpus(parse(text.replace("2305.10924", "2305.10920"), "f")).problems
    assert problem.mend == "write it in quotes: '2305.10920'"


def test_a_percentage_is_mended_to_a_fraction():
    path = ROOT / "tests" / "kb" / "bad" / "schema-less-than-equal.yaml"
    (problem,) = problems_of(path)
    assert problem.message.endswith(" is above 1")
    assert problem.mend == "write a fraction: 0.44 for 44 %"
    text = path.read_text(encoding="utf-8")
    value = text.partition("value: ")[2].partition("}")[0]
    (problem,) = corpus(parse(text.replace(f"value: {value}", "value: -0.5", 1), "f")).problems
    assert (problem.rule, problem.message) == ("schema-greater-than-equal", "'-0.5' is below 0")


def test_a_bad_entry_does_not_hide_the_others_nor_make_relations_dangle():
    text = (ROOT / "papers.yaml").read_text(encoding="utf-8")
    broken = text.replace("    title: Structural Pruning", "    titel: Structural Pruning", 1)
    found = check(corpus(parse(broken, "f")))
    errors = [p for p in found if p.severity == "error"]
    assert {p.entry for p in errors} == {"diff-pruning"}
    assert {p.rule for p in errors} == {"schema-missing", "schema-extra-forbidden"}


def test_problems_of_a_file_of_rubbish_are_bounded():
    text = "schema_version: '1.0'\npapers:\n" + "  - {id: A, x: 1}\n" * 19000
    assert len(corpus(parse(text, "f")).problems) <= 500


# ------------------------------------------------------------------ honest data passes

PAPER = """
  - id: {id}
    section: pruning
    family: weight-pruning
    title: {title}
    year: 2023
    arxiv: '{arxiv}'
    publication: {{type: preprint}}
    summary: {summary}
{more}    evidence: abstract
    curation: {{depth: metadata, date: '2026-11-22'}}
    sources: ['arxiv:{arxiv}v1']
"""
FIRST = {
    "id": "first-paper",
    "title": "A first paper about removing channels",
    "arxiv": "2305.10924",
    "summary": "Removes channels that matter little and trains the rest for a short while.",
}
SECOND = {
    "id": "second-paper",
    "title": "Another work on something quite different",
    "arxiv": "2306.00980",
    "summary": "Scores whole blocks by how little they change their input and distils the rest.",
}


def rules_broken(first="", second="", **fields):
    text = "schema_version: '1.0'\npapers:" + PAPER.format(more=first, **{**FIRST, **fields})
    if second:
        text += PAPER.format(more=second, **SECOND)
    return [p.rule for p in check(corpus(parse(text, "f")))]


def result(measures, more="", sparsity="{kind: prunable-units, value: 0.3}"):
    return (
        f"    results:\n      - id: row-1\n{more}        base_model: DDPM\n"
        f"        sparsity: {sparsity}\n        measures: [{measures}]\n"
        "        source: {document: 'arxiv:2305.10924v1', place: Table 1}\n"
    )


@pytest.mark.parametrize(
    ("measures", "sparsity"),
    [
        # 35.7 and 19.8 are rounded: 0.44 to 0.45 are all possible, 0.46 is not.
        ("{metric: params, value: 19.8, dense: 35.7}", "{kind: params, value: 0.445}"),
        ("{metric: params, value: 19.8, dense: 35.7}", "{kind: params, value: 0.44}"),
        # One printed digit says half, not 0.500.
        ("{metric: params, value: 1316.0, dense: 2567.0}", "{kind: params, value: 0.5}"),
        # A fraction of prunable units says nothing of parameters.
        ("{metric: params, value: 19.8, dense: 35.7}", "{kind: prunable-units, value: 0.3}"),
        # The decoder's operations are not the denoiser's.
        (
            "{metric: macs, value: 3.4, dense: 6.1, note: decoder}",
            "{kind: macs, value: 0.56}",
        ),
        # An approximate value is no contradiction.
        (
            "{metric: macs, value: 3.4, dense: 6.1}, "
            "{metric: compute-saved, value: 46, bound: about}",
            "{kind: blocks, value: 0.56}",
        ),
        ("{metric: steps, value: 8, dense: 50}", "{kind: steps, value: 0.84}"),
        (
            "{metric: fid, value: 5.29, dense: 4.19}, {metric: fid-change, value: 1.1}",
            "{kind: unstated}",
        ),
    ],
)
def test_rounded_numbers_do_not_contradict_each_other(measures, sparsity):
    assert rules_broken(result(measures, sparsity=sparsity)) == []


@pytest.mark.parametrize(
    ("speedup", "found"), [(1.9, []), (1.95, []), (1.96, []), (2.0, []), (1.8, ["arithmetic-time"])]
)
def test_speedup_is_checked_within_the_rounding_of_its_digits(speedup, found):
    measures = (
        f"{{metric: latency, value: 26.3, dense: 51.3}}, {{metric: speedup, value: {speedup}}}"
    )
    assert rules_broken(result(measures, "        hardware: NVIDIA A100\n")) == found


def test_a_disputed_row_may_contradict_itself():
    measures, kind = "{metric: params, value: 19.8, dense: 35.7}", "{kind: params, value: 0.6}"
    status = "        status: disputed\n        note: The table says 0.6, the text 0.45.\n"
    assert rules_broken(result(measures, status, kind)) == []


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(46.0, 45.5, 46.5), (50.0, 45.0, 55.0), (0.443, 0.4425, 0.4435), (1700.0, 1650.0, 1750.0)],
)
def test_printed_digits_stand_for_an_interval(value, low, high):
    found = printed(value)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("venue", "year", "found"),
    [
        *[("ECCV", 2024, []), ("ICCV", 2023, []), ("NeurIPS", 2024, []), ("CVPR", 2023, [])],
        *[("ICCV", 2024, ["venue-year"]), ("ECCV", 2025, ["venue-year"])],
        *[
            ("COLM", 2023, ["venue-year"]),
            ("NeurIPS", 2022, []),
            ("NeurIPS", 2021, ["publication-early"]),
        ],
    ],
)
def test_years_of_venues(venue, year, found):
    text = f"{{type: conference, venue: {venue}, year: {year}, evidence: 'openreview:abcdefgh'}}"
    source = "schema_version: '1.0'\npapers:" + PAPER.format(more="", **FIRST)
    source = source.replace("{type: preprint}", text)
    assert [p.rule for p in check(corpus(parse(source, "f")))] == found


CODE = "    code: [{url: 'https://github.com/owner/name', status: unchecked}]\n"


@pytest.mark.parametrize(
    "second",
    [
        CODE + "    relations: [{type: uses, to: first-paper}]\n",
        CODE + "    authors: [Ada Person]\n",
        CODE.replace("name", "other"),
    ],
)
def test_related_works_may_share_a_repository(second):
    assert rules_broken(CODE + "    authors: [Ada Person]\n", second) == []


@pytest.mark.parametrize(
    "name",
    ["Philip H.S. Torr", "J. Zico Kolter", "Yuchen Fan", "Tri Dao", "DeepSeek-AI", "Ömer Şahin"],
)
def test_names_of_people(name):
    assert rules_broken(f"    authors: ['{name}']\n") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ToDo is the name of a method.", []),
        ("See the TODO list of the authors.", ["placeholder"]),
        ("Runs on the US cluster in a week.", []),
        ("a < b and c > d, 3 <4", []),
        ("Δ-DiT and μP share the trick.", []),
        ("Costs $5 or $10 an hour.", []),
    ],
)
def test_notes_that_look_odd(text, found):
    assert rules_broken(f"    notes: ['{text}']\n") == found


def test_posting_date_may_precede_the_month_of_the_id():
    for day, found in (("2023-04-30", []), ("2023-05-31", []), ("2023-06-01", ["first-posted"])):
        assert rules_broken(f"    first_posted: '{day}'\n") == found


# ------------------------------------------------------------------ copied words


def test_summaries_are_compared_with_recorded_abstracts(tmp_path, monkeypatch):
    abstract = "It removes channels that\n matter little &amp; trains the rest."
    feed = f"<feed><summary>{abstract}</summary></feed>"
    (tmp_path / "a.xml").write_text(feed, encoding="utf-8")
    deep = {"notes": [{"abstract": {"value": "Blocks are scored by how little they change."}}]}
    (tmp_path / "b.json").write_text(json.dumps(deep), encoding="utf-8")
    monkeypatch.setattr(prose, "RECORDED", tmp_path)
    assert rules_broken(summary="It removes channels that matter little & trains a lot more.") == []
    copied = ["copied-summary"]
    assert (
        rules_broken(summary="It removes channels that matter little & trains the REST.") == copied
    )
    assert (
        rules_broken(summary="Blocks are scored, by how little they CHANGE, in an hour.") == copied
    )


def test_recorded_abstracts_were_found():
    assert len(recorded_runs(prose.RECORDED)) > 100


# ------------------------------------------------------------------ command line


def test_every_broken_file_is_answered_and_nothing_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "bad"
    shutil.copytree(BAD[0].parent, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    app = typer.Typer()
    app.command()(validate.main)
    monkeypatch.chdir(tmp_path)
    for path in sorted(before):
        done = CliRunner().invoke(app, [str(path)])
        assert done.exit_code in (0, 1, 2) and done.exception.__class__ in (SystemExit, type(None))
        first, *_, last = done.stdout.splitlines()
        assert first.startswith(f"{path.name}:") and f"[{path.stem.split('--')[0]}]" in first
        assert last.endswith("warnings")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_the_corpus_of_broken_files_is_large():
    assert len(BAD) >= 100


def test_command_is_clean_on_the_literature():
    done = run("validate.py", "--schema", "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors" in done.stdout


@pytest.mark.parametrize(
    ("name", "code"), [("schema-string-type", 1), ("anchor", 2), ("near-title", 0), ("empty", 2)]
)
def test_exit_codes(name, code):
    done = run("validate.py", ROOT / "tests" / "kb" / "bad" / f"{name}.yaml")
    assert done.returncode == code
    assert f"[{name}]" in done.stdout
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_warnings_fail_when_asked():
    done = run("validate.py", "--strict", ROOT / "tests" / "kb" / "bad" / "near-title.yaml")
    assert done.returncode == 1


def test_json_names_file_line_entry_field_and_mend():
    path = ROOT / "tests" / "kb" / "bad" / "measure-range.yaml"
    done = run("validate.py", "--json", path)
    data = json.loads(done.stdout)
    assert done.returncode == 1
    assert data["counts"] == {"entries": 1, "errors": 1, "warnings": 0}
    assert set(data["problems"][0]) == {
        *("file", "line", "entry", "field", "rule", "severity", "message", "mend")
    }


def test_missing_file_is_one_line(tmp_path):
    done = run("validate.py", tmp_path / "none.yaml")
    assert done.returncode == 2
    assert "[no-file]" in done.stdout and "Traceback" not in done.stderr


def test_format_checks_then_writes_then_is_content(tmp_path):
    path = tmp_path / "papers.yaml"
    path.write_text("papers: []\nschema_version: '1.0'\n", encoding="utf-8")
    assert run("format.py", "--check", path).returncode == 1
    assert path.read_text(encoding="utf-8").startswith("papers")
    assert run("format.py", path).returncode == 0
    assert run("format.py", "--check", path).returncode == 0
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server")


def test_format_follows_a_link_and_leaves_it(tmp_path):
    path, link = tmp_path / "real.yaml", tmp_path / "papers.yaml"
    path.write_text("papers: []\nschema_version: '1.0'\n", encoding="utf-8")
    link.symlink_to(path)
    assert run("format.py", link).returncode == 0
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server")


def test_format_leaves_a_broken_file_alone(tmp_path):
    path = tmp_path / "papers.yaml"
    path.write_text("papers: [\n", encoding="utf-8")
    done = run("format.py", path)
    assert done.returncode == 2
    assert path.read_text(encoding="utf-8") == "papers: [\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["CC-BY-NC-3.0", "CC-BY-SA-3.0", "MIT OR Apache-2.0", "Zlib"])
def test_licences_are_whole_words(name: str) -> None:
    assert links._is_spdx(name)
    assert not links._is_spdx(name[:-1])
