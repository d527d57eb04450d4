"""Files that would exhaust a careless reader: one clear line in bounded time and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded" / "arxiv.xml"
HEAD = b"schema_version: '1.0'\npapers:\n"
MB = 2**20


def bomb() -> bytes:
    """Thirty levels of nine aliases each: 9**30 items to a reader that expands them."""
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 30))
    return f"x0: &x0 [a]\n{levels}".encode()


def merges() -> bytes:
    """The same with merge keys."""
    entries = ["  - &y0\n    a: b\n"]
    for i in range(1, 20):
        entries.append(f"  - &y{i}\n    <<: [{', '.join([f'*y{i - 1}'] * 9)}]\n")
    return ("papers:\n" + "".join(entries)).encode()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (bomb, "anchor"),
    "merges": (merges, "anchor"),
    "open brackets": (lambda: b"[" * 4 * MB, "too-deep"),
    "deep blocks": (lambda: b"".join(b" " * i + b"a:\n" for i in range(3000)), "too-deep"),
    "long list": (lambda: b"papers:\n" + b"- a\n" * 500_000, "too-many"),
    "one long line": (lambda: b"papers: " + b"a" * 40 * MB, "schema-list"),
    "one long key": (lambda: b"a" * 2 * MB + b": b\n", "yaml-syntax"),
    "many problems": (lambda: HEAD + b"- {id: A, x: 1}\n" * 2_000, "schema-extra-forbidden"),
    "ambiguous": (lambda: b"a: [" + b"no," * MB, "too-many"),
    "documents": (lambda: b"---\n" * 500_000, "documents"),
    "blank": (lambda: b"\n" * 4 * MB, "empty"),
    "nothing but zeros": (lambda: bytes(2 * MB), "empty|control-character"),
    "utf-16": (lambda: HEAD.decode().encode("utf-16"), "not-utf8"),
    "gzip": (lambda: bytes.fromhex("1f8b0800") + os.urandom(MB), "not-utf8"),
    "late latin-1": (lambda: b"# \n" * MB + "é".encode("latin-1"), "not-utf8"),
    "late conflict": (lambda: HEAD + b"# \n" * MB + b"<<<<<<< HEAD\n", "merge-conflict"),
    "late tab": (lambda: HEAD + b"# \n" * MB + b"\t- a\n", "tab"),
}


def bounded() -> None:
    """20 s of processor time and 1 GiB of addresses, of which Python itself takes a third."""
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * MB, 1024 * MB))


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, preexec_fn=bounded
    )


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_answered_within_bounds(tmp_path: Path, name: str) -> None:
    content, rules = FILES[name]
    file = tmp_path / "papers.yaml"
    file.write_bytes(content())
    done = run("validate.py", file)
    first, *_, last = done.stdout.splitlines()
    assert done.returncode in (1, 2), done.stderr
    assert done.stderr == ""
    assert first.startswith("papers.yaml:")
    assert any(f"[{rule}]" in done.stdout for rule in rules.split("|")), first
    assert len(first) < 500
    assert last.endswith("warnings")
    assert [p.name for p in tmp_path.iterdir()] == ["papers.yaml"]


@pytest.mark.parametrize("kind", ["fifo", "loop", "folder", "device", "fifty"])
def test_what_is_no_usable_file_does_not_hang(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "papers.yaml"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file = Path("/dev/zero")
    else:
        with file.open("wb") as stream:
            stream.truncate(50 * MB)
    done = run("validate.py", file)
    assert done.returncode == 2, done.stderr
    assert f"[{'too-large' if kind == 'fifty' else 'no-file'}]" in done.stdout
    assert done.stderr == ""


COMMANDS: dict[str, tuple[str, ...]] = {
    "format.py": ("{file}",),
    "render.py": ("--check", "--file", "{file}"),
    "export.py": ("{folder}/out", "--file", "{file}"),
    "diff.py": ("{file}", "{file}"),
    "comparable.py": ("a/b", "c/d", "--file", "{file}"),
    "check_links.py": ("{file}", "--state", "{folder}/state.jsonl"),
    "check_upstream.py": ("{file}",),
    "add_paper.py": ("2401.01234", "--from", str(RECORDED), "--file", "{file}"),
}


@pytest.mark.parametrize("script", COMMANDS)
def test_every_command_refuses_a_bomb_in_one_line(tmp_path: Path, script: str) -> None:
    file = tmp_path / "papers.yaml"
    file.write_bytes(bomb())
    done = run(script, *(a.format(file=file, folder=tmp_path) for a in COMMANDS[script]))
    assert done.returncode == 2, done.stderr
    (line,) = (done.stdout + done.stderr).splitlines()
    assert "papers.yaml:1: error" in line
    assert "[anchor]" in line
    assert [p.name for p in tmp_path.iterdir()] == ["papers.yaml"]
    assert file.read_bytes() == bomb()
