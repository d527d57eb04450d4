"""The committed answers are those that the code gives."""

from __future__ import annotations

import json
from pathlib import Path

from kb.load import load_literature
from methods.harness.claims import claims

ROOT = Path(__file__).resolve().parents[2]


def test_committed_claims_are_current() -> None:
    found = [claim.as_json() for claim in claims(load_literature(ROOT / "papers.yaml"))]
    committed = json.loads((ROOT / "site" / "claims.json").read_text(encoding="utf-8"))
    assert committed == found, "run scripts/claims.py"
