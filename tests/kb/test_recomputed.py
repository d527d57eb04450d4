"""site/claims.json against papers.yaml, without torch; the pages that show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kb import recomputed, render
from kb.load import load_literature
from kb.rules import RULES
from kb.schema import Literature, Metric, SparsityKind

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "site" / "claims.json"


@pytest.fixture(scope="module")
def literature() -> Literature:
    return load_literature(ROOT / "papers.yaml")


@pytest.fixture(scope="module")
def found() -> tuple[recomputed.Recomputed, ...]:
    return recomputed.read(FILE)


def test_every_claim_stands_in_the_literature(
    literature: Literature, found: tuple[recomputed.Recomputed, ...]
) -> None:
    assert found
    assert list(recomputed.outdated(literature, found)) == []


def test_every_row_with_an_architecture_has_its_claims(
    literature: Literature, found: tuple[recomputed.Recomputed, ...]
) -> None:
    """The dense number and the pruned one of each size and MACs that a row prints."""
    wanted = []
    for paper in literature.papers:
        for row in paper.results:
            for measure in row.measures:
                if row.zoo is None or measure.metric not in (Metric.PARAMS, Metric.MACS):
                    continue
                dense = row.sparsity.kind is SparsityKind.NONE
                kinds = ["dense"] if dense or measure.dense is not None else []
                kinds += [] if dense else ["pruned"]
                wanted += [(paper.id, row.id, measure.metric.value, kind) for kind in kinds]
    assert sorted(wanted) == sorted((c.paper, c.row, c.metric, c.what) for c in found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"row": "no-such-row"}, "there is no such row"),
        ({"paper": "no-such-paper"}, "there is no such row"),
        ({"claimed": 12345.0}, "12345"),
        ({"unit": "K"}, "is not printed"),
    ],
)
def test_outdated_claims_are_found(
    literature: Literature,
    found: tuple[recomputed.Recomputed, ...],
    change: dict[str, Any],
    says: str,
) -> None:
    (problem,) = recomputed.outdated(literature, [found[0].model_copy(update=change)])
    assert says in problem


@pytest.mark.parametrize(
    "text", ["", "{", "{}x", "7", "[1]", '[{"paper": "a"}]', '[{"verdict": NaN}]', "null"]
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "claims.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^claims\.json: .*run scripts/claims\.py") as error:
        recomputed.read(file)
    assert "\n" not in str(error.value)


def test_numbers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    one = json.loads(FILE.read_text(encoding="utf-8"))[0] | {"recomputed": float("nan")}
    file = tmp_path / "claims.json"
    file.write_text(json.dumps([one]), encoding="utf-8")
    with pytest.raises(ValueError, match="recomputed"):
        recomputed.read(file)


def test_pages_show_claims_gaps_and_rules(
    literature: Literature, found: tuple[recomputed.Recomputed, ...]
) -> None:
    inputs = render.Inputs(
        literature, render.Project("https://github.com/owner/repository"), recomputed=found
    )
    pages = render.pages(inputs, ROOT / "site" / "templates")
    for one in found:
        assert f"{{ #{one.paper} }}" in pages["claims.md"]
        assert f"../claims.md#{one.paper}" in pages[f"papers/{one.paper}.md"]
    assert sum(row.startswith("| <a id=") for row in pages["rules.md"].splitlines()) == len(RULES)
    for rule in RULES.values():
        assert f'<a id="{rule.id}"></a>{rule.id} | {rule.severity} |' in pages["rules.md"]
    told = {p.id for p in literature.papers if p.not_reported}
    assert told
    for paper in told:
        assert f"](papers/{paper}.md)" in pages["unreported.md"]
