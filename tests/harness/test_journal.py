"""Files that survive a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from methods.harness import journal

ROOT = Path(__file__).resolve().parents[2]


def test_records_come_back(tmp_path):
    path = tmp_path / "log.jsonl"
    assert journal.read(path) == []
    for step in range(3):
        journal.append(path, {"step": step})
    assert [r["step"] for r in journal.read(path)] == [0, 1, 2]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 2', b'{"step": 2}', b"\xff\xfe", b"x" * 9000])
def test_a_torn_tail_is_left_out_and_cut_before_appending(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    journal.append(path, {"step": 0})
    journal.append(path, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [r["step"] for r in journal.read(path)][:2] == [0, 1]
    journal.append(path, {"step": 9})
    assert path.read_bytes() == whole + b'{"step": 9}\n'


def test_a_file_that_is_all_torn_starts_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step"')
    journal.append(path, {"step": 0})
    assert path.read_bytes() == b'{"step": 0}\n'


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl:2: .*restore"):
        journal.read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    journal.write_text(path, "old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        journal.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"], "the temporary file is removed"


def test_kill_9_while_appending_loses_at_most_the_last_record(tmp_path):
    path = tmp_path / "log.jsonl"
    program = (
        "import sys; from pathlib import Path; from methods.harness import journal\n"
        "for step in range(10**6): journal.append(Path(sys.argv[1]), {'step': step})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or path.stat().st_size < 200):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    steps = [r["step"] for r in journal.read(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 5
    journal.append(path, {"step": len(steps)})
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(steps) + 1))
