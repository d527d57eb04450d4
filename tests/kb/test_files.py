"""Whoever writes is killed before each touch of a file, and the old file or the new one stands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from kb import render
from kb.files import replace_file, replace_folder
from kb.links import Finding, Kind, Link, Memory, Patience, Verdict
from scripts import add_paper, export, validate
from scripts import format as format_
from tests.kb.test_render import PROJECT, TEMPLATES, literature

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded"
SUMMARY = "Removes what nobody needs and costs nothing, as far as anybody can tell from here."
UNTIDY = f"""\
schema_version: "1.0"
papers:
- id: zebra
  title: 'Zebra: another work on something quite different'
  section: pruning
  family: weight-pruning
  year: 2023
  arxiv: '2306.00980'
  publication: {{type: preprint}}
  summary: {SUMMARY}
  evidence: abstract
  curation: {{depth: metadata, date: '2026-11-22'}}
  sources: ['arxiv:2306.00980v1']
"""
TOUCHES = ("open", "os.chmod", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate")


def killed(run: Callable[[], object], folder: Path) -> Iterator[int]:
    """Run again and again, each time killed one touch of `folder` later, until it gets through."""
    step = 0
    while True:
        child = os.fork()
        if child == 0:
            left = step

            def watch(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                if event in TOUCHES and any(str(a).startswith(str(folder)) for a in arguments):
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            code = 1
            try:
                sys.addaudithook(watch)  # for good, but this process has not long to live
                run()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield step
        step += 1


def command(main: Callable[..., None], *arguments: str) -> Callable[[], None]:
    app = Typer(pretty_exceptions_enable=False)
    app.command()(main)

    def run() -> None:
        assert CliRunner().invoke(app, list(arguments)).exit_code == 0

    return run


def add(file: Path) -> Callable[[], None]:
    response = str(RECORDED / "arxiv.xml")
    return command(
        add_paper.main, "2401.01234", "--from", response, "--summary", SUMMARY, "--file", str(file)
    )


def tidy(file: Path) -> Callable[[], None]:
    return command(format_.main, str(file))


def readme(file: Path) -> Callable[[], None]:
    return lambda: replace_file(file, render.readme(INPUTS, TEMPLATES).encode())


INPUTS = render.Inputs(literature(), PROJECT)


@pytest.mark.parametrize("writer", [add, tidy, readme])
def test_a_killed_command_leaves_the_old_file(
    tmp_path: Path, writer: Callable[[Path], Callable[[], None]]
) -> None:
    file = tmp_path / "papers.yaml"
    file.write_text(UNTIDY, encoding="utf-8")
    steps = [step for step in killed(writer(file), tmp_path) if file.read_text() == UNTIDY]
    assert len(steps) >= 3  # at least: make the other file, set its mode, put it in place
    assert file.read_text(encoding="utf-8") != UNTIDY


def test_a_killed_writer_of_the_schema_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "papers.schema.json"
    file.write_text("old", encoding="utf-8")
    monkeypatch.setattr(validate, "ROOT", tmp_path)
    monkeypatch.setattr(validate, "SCHEMA", file)
    run = lambda: validate.do_schema(validate.SchemaAction.WRITE)  # noqa: E731
    assert sum(file.read_text() == "old" for _ in killed(run, tmp_path)) >= 3
    assert file.read_text(encoding="utf-8") == validate.schema_text()


def test_a_killed_export_leaves_whole_files(tmp_path: Path) -> None:
    file, folder = tmp_path / "papers.yaml", tmp_path / "exports"
    file.write_text(UNTIDY, encoding="utf-8")
    run = command(export.main, str(folder), "--file", str(file))
    run()
    new = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.write_bytes(b"old")
    kills = 0
    for _ in killed(run, folder):
        kills += 1
        for name, data in new.items():
            assert (folder / name).read_bytes() in (b"old", data), name
    assert kills >= 3 * len(new)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name[0] != "."} == new


def test_a_killed_staging_leaves_whole_files(tmp_path: Path) -> None:
    old = {"a.md": b"old a", "gone/b.md": b"old b", "c/d.md": b"old d"}
    new = {"a.md": b"new a", "c/d.md": b"new d", "e/f/g.md": b"new g"}
    replace_folder(tmp_path, old)
    for _ in killed(lambda: replace_folder(tmp_path, new), tmp_path):
        for name in ("a.md", "c/d.md"):
            assert (tmp_path / name).read_bytes() in (old[name], new[name])
    # What was killed left files with a dot; the one that got through removed them too.
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(new)
    assert not (tmp_path / "gone").exists()


def test_a_killed_link_check_keeps_its_memory(tmp_path: Path) -> None:
    file = tmp_path / "links.jsonl"
    gone = Finding(Link(Kind.WEB, "https://example.org/"), Verdict.FAILING)

    def remember(day: date) -> None:
        memory = Memory(file)
        memory.judge(gone, day, Patience())
        memory.save()

    remember(date(2026, 1, 1))
    first = file.read_bytes()
    for _ in killed(lambda: remember(date(2026, 1, 2)), tmp_path):
        assert file.read_bytes().startswith(first)
        Memory(file)
    assert file.read_bytes().startswith(first)
    assert len(file.read_bytes().splitlines()) == 2


# ------------------------------------------------------------------ without a kill


def test_the_mode_of_an_old_file_is_kept_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    replace_file(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_equal_are_left_alone(tmp_path: Path) -> None:
    replace_folder(tmp_path, {"a": b"1", "b": b"2"})
    before = (tmp_path / "a").stat().st_ino, (tmp_path / "b").stat().st_ino
    replace_folder(tmp_path, {"a": b"1", "b": b"3"})
    after = (tmp_path / "a").stat().st_ino, (tmp_path / "b").stat().st_ino
    assert before[0] == after[0]
    assert before[1] != after[1]
