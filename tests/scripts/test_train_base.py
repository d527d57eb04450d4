"""The training script goes on where it stopped and refuses unknown names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from methods.harness import journal
from methods.harness.checkpoint import read_tensors

ROOT = Path(__file__).resolve().parents[2]


def train(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/train_base.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_second_call_resumes(tmp_path):
    state, log = tmp_path / "state.safetensors", tmp_path / "log.jsonl"
    places = ["--state", str(state), "--log", str(log), "--batch-size", "4", "--threads", "1"]
    for steps in (1, 3):
        done = train("fashion_unet", "--steps", str(steps), *places)
        assert done.returncode == 0, done.stderr
    records = journal.read(log)
    assert [(r["step"], r["images"]) for r in records] == [(1, 4), (3, 12)]
    tensors, note = read_tensors(state)
    assert note == {"step": "3"}
    assert {name.split("/")[0] for name in tensors} == {"model", "ema", "optimizer"}


def test_an_unknown_base_is_refused():
    done = train("fashion_unte")
    assert done.returncode == 2
    assert "unknown base 'fashion_unte'" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
