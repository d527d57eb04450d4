"""The workflows: pinned actions, least rights, no text of others in a shell; the weekly issue."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from scripts.weekly import LONGEST

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Expressions that hold nothing an outsider wrote.
TRUSTED = re.compile(
    r"github\.(ref|token|run_id|run_attempt|repository)|!cancelled\(\)"
    r"|steps\.report\.outputs\.body|needs\.ask\.outputs\.body"
)
# What a package is imported as, where the names differ.
IMPORTED = {"pyyaml": "yaml", "requests-cache": "requests_cache"}
# Come with jinja2, scipy, pydantic and requests.
BENEATH = {"markupsafe", "numpy", "pydantic_core", "urllib3"}


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in load(file)["jobs"].values() for step in job["steps"]]


def test_every_workflow_is_there() -> None:
    assert {file.stem for file in FILES} >= {"test", "knowledge", "weekly"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_pinned_and_rights_are_least(file: Path) -> None:
    content = load(file)
    for step in steps(file):
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    assert content["permissions"] in ({}, {"contents": "read"})
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert job.get("permissions", {}) in ({}, {"contents": "read"}, {"issues": "write"})
    # YAML 1.1 reads the key `on` as true.
    assert "pull_request_target" not in content[True]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_foreign_text_reaches_a_shell(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", text):
        assert TRUSTED.fullmatch(expression), expression
    for step in steps(file):
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shell_is_well_formed(file: Path) -> None:
    for step in steps(file):
        if "run" in step:
            done = subprocess.run(["bash", "-n", "-c", step["run"]], capture_output=True, text=True)
            assert not done.stderr, done.stderr


@pytest.mark.parametrize("name", ["knowledge", "weekly"])
def test_the_small_installation_holds_all_that_is_imported(name: str) -> None:
    """The knowledge base and its scripts run without torch on the few packages named."""
    runs = [step["run"] for step in steps(ROOT / f".github/workflows/{name}.yml") if "run" in step]
    line = next(run for run in runs if run.startswith("pip install"))
    packages = [w for w in shlex.split(line)[4:] if w != "requirements.txt"]
    installed = {IMPORTED.get(package, package) for package in packages} | BENEATH
    called = {ROOT / "scripts" / f for run in runs for f in re.findall(r"scripts/(\w+\.py)", run)}
    assert called
    for file in [*(ROOT / "kb").rglob("*.py"), *called]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names} - {"kb", "tests"}:
                assert module in sys.stdlib_module_names | installed, f"{file.name}: {module}"


def test_hooks_run_what_exists() -> None:
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == [
        *("validate", "schema", "format", "render", "ruff", "ruff-format")
    ]
    for hook in hooks:
        for word in hook["entry"].split():
            assert not word.endswith(".py") or "bin/" in word or (ROOT / word).is_file()


# --------------------------------------------------------------------------- the weekly issue

HOSTILE = "</code></pre><script>alert(1)</script> ``` @somebody #1 [x](javascript:alert(1))"


def link(verdict: str = "dead", text: str = "https://example.org/", count: int = 1) -> list[Any]:
    use = {"entry": "one", "field": "code", "line": 7}
    found = {"kind": "web", "link": text, "verdict": verdict, "red": verdict == "dead"}
    return [found | {"detail": text, "target": text, "since": "2026-01-02", "uses": [use]}] * count


def news(patch: str = "-a\n+b\n", agreed: bool = True) -> dict[str, Any]:
    services = ["dblp", "crossref"] if agreed else []
    return {"entries": [{"id": "one", "line": 7, "agreed": services}], "patch": patch}


def issue(folder: Path, links: list[Any], upstream: Any) -> subprocess.CompletedProcess[str]:
    (folder / "links.json").write_text(json.dumps({"links": links}), encoding="utf-8")
    (folder / "upstream.json").write_text(json.dumps(upstream), encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts" / "weekly.py")]
    files = [str(folder / "links.json"), str(folder / "upstream.json")]
    return subprocess.run([*command, *files], capture_output=True, text=True)


def test_weekly_issue_shows_hostile_text_as_text(tmp_path: Path) -> None:
    done = issue(tmp_path, link(text=HOSTILE), news(patch=f"+{HOSTILE}\n"))
    assert done.returncode == 0
    page = MarkdownIt("commonmark").render(done.stdout)
    assert "<script" not in page and "<a " not in page
    # Services take a name for a mention everywhere but in code.
    outside = re.sub(r"<(code|pre)>.*?</\1>", "", page, flags=re.DOTALL)
    assert "@" not in outside and "#" not in outside
    assert "dead (1)" in page and "Published since (1)" in page


def test_weekly_issue_is_empty_when_all_is_well(tmp_path: Path) -> None:
    quiet = [*link("ok"), *link("unknown"), *link("failing")]
    assert issue(tmp_path, quiet, news("", agreed=False)).stdout == ""


def test_weekly_issue_fits(tmp_path: Path) -> None:
    links = [*link("dead", HOSTILE * 9, 300), *link("moved", HOSTILE * 9, 300)]
    text = issue(tmp_path, links, news("+x" * 40_000)).stdout
    assert LONGEST * 0.5 < len(text) < LONGEST + 100
    assert "And more" in text


@pytest.mark.parametrize("links", [None, [1], [{"verdict": "dead"}]])
def test_weekly_issue_refuses_other_files(tmp_path: Path, links: Any) -> None:
    done = issue(tmp_path, links, news())
    assert done.returncode == 2
    assert done.stderr.startswith("weekly: ") and done.stderr.count("\n") == 1
