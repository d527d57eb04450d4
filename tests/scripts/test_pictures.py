"""Scripts that draw refuse what is not there in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "argument", "status", "message"),
    [
        ("draw_results.py", "fashion_unte", 1, "fashion_unte"),
        ("base_card.py", "fashion_unte", 2, "unknown base 'fashion_unte'"),
    ],
)
def test_unknown_names_are_refused(script, argument, status, message):
    done = subprocess.run(
        [sys.executable, f"scripts/{script}", argument], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
