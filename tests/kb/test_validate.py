"""Every broken file gets the answer its name asks for, in the library and at the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kb.load import Unreadable, corpus, load, parse
from kb.rules import RULES, check, rule

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


# ------------------------------------------------------------------ command line


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


def test_format_leaves_a_broken_file_alone(tmp_path):
    path = tmp_path / "papers.yaml"
    path.write_text("papers: [\n", encoding="utf-8")
    done = run("format.py", path)
    assert done.returncode == 2
    assert path.read_text(encoding="utf-8") == "papers: [\n"
    assert "Traceback" not in done.stderr
