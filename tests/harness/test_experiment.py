"""Experiments: paired intervals, verdicts that need reasons, records that are read back."""

from __future__ import annotations

import json
import math

import pytest

from kb import results
from methods import registry
from methods.harness import experiment
from methods.harness.checkpoint import load_base
from methods.harness.experiment import Column, Finding, Lab, Paired, paired, paired_logs
from methods.harness.run import tensors_sha256

COLUMNS = (Column("a", "A"), Column("b", "B", 2))


def test_paired_interval_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t(2, .975) = 4.302653, half width 4.302653 / sqrt(3).
    found = paired([2, 4, 6], [1, 2, 3])
    assert found.mean == 2
    assert abs(found.high - found.mean - 4.302653 / 3**0.5) < 1e-6
    assert not found.above and not found.below  # the interval reaches -0.48
    assert paired([5, 5.1, 5.2], [1, 1.1, 1.2]).above
    assert paired([1, 1.1, 1.2], [5, 5.1, 5.2]).below


def test_paired_logs_are_ratios() -> None:
    # Ratios 1/2, 1/4, 1/8: logarithms -1, -2, -3 times log 2.
    found = paired_logs([1, 1, 1], [2, 4, 8])
    assert abs(found.mean + 2 * math.log(2)) < 1e-12
    half = 4.302653 * math.log(2) / 3**0.5
    low, high = math.exp(found.mean - half), math.exp(found.mean + half)
    assert found.ratio == f"0.25 ({low:.3g} to {high:.3g}, n=3)"
    with pytest.raises(ValueError, match="positive"):
        paired_logs([1, 0], [1, 1])


def test_a_bound_beside_one_does_not_read_as_one() -> None:
    found = Paired(math.log(0.617), math.log(0.381), math.log(0.99962), 3)
    assert found.ratio == "0.617 (0.381 to 0.9996, n=3)"
    assert Paired(0.0, -0.1, math.log(1.004), 3).ratio == "1 (0.905 to 1.004, n=3)"
    assert Paired(0.0, 0.0, 800.0, 3).ratio.startswith("1 (1 to 1.01e+304")


def test_one_seed_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        paired([1.0], [2.0])


def test_a_failed_bar_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="reason"):
        Finding("not shown", "no", COLUMNS, ())


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(ValueError, match="columns"):
        Finding("shown", "yes", COLUMNS, ({"a": 1},))


@pytest.fixture
def one_experiment(tmp_path, monkeypatch):
    folder = tmp_path / "methods" / "experiments"
    folder.mkdir(parents=True)
    source = '''"""Does it add up?"""
from dataclasses import dataclass

from methods.harness.experiment import Column, Finding

CARD = {"methods": ["magnitude"], "task": None, "bar": "two", "source": "arithmetic"}
SEEDS = 1


@dataclass(frozen=True)
class Config:
    """Settings."""

    one: int = 1  # a summand


def investigate(lab, config):
    total = config.one + config.one
    verdict = "shown" if total == 2 else "not shown"
    why = "" if total == 2 else "one was not 1"
    row = {"seed": lab.seeds[0], "sum": float(total)}
    columns = (Column("seed", "seed"), Column("sum", "sum", 1))
    return Finding(verdict, f"{total}", columns, (row,), why)
'''
    (folder / "adds_up.py").write_text(source)
    monkeypatch.setattr(registry, "EXPERIMENTS", folder)
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "methods")
    monkeypatch.setattr(experiment, "source", lambda *parts: source.encode())
    monkeypatch.setattr(experiment, "code_sha256", lambda stages: "0" * 64)
    registry.experiment_names.cache_clear()
    registry.describe_experiment.cache_clear()
    namespace: dict[str, object] = {}
    exec(source, namespace)
    monkeypatch.setattr(
        registry, "load_experiment", lambda name: type("Module", (), {**namespace, "__doc__": ""})
    )
    yield tmp_path
    registry.experiment_names.cache_clear()
    registry.describe_experiment.cache_clear()


def test_a_record_is_written_and_read_back(one_experiment) -> None:
    record = experiment.investigate("adds_up", Lab(seeds=(7, 8)), {"one": 1})
    assert record["seeds"] == [7]  # it uses one
    path = experiment.write(record, one_experiment / "adds_up.json")
    (found,) = results.experiments(one_experiment)
    assert found.verdict == "shown" and found.question == "Does it add up?"
    assert found.cells() == [["7", "2.0"]]
    assert "--seeds 7" in found.provenance.command

    other = experiment.investigate("adds_up", Lab(seeds=(7,)), {"one": 2})
    assert other["verdict"] == "not shown" and other["why"]
    assert "--set adds_up.one=2" in other["provenance"]["command"]

    path.rename(one_experiment / "other.json")
    with pytest.raises(results.ResultsError, match="rename"):
        results.experiments(one_experiment)


def test_one_seed_or_one_twice_is_refused_before_anything_runs(one_experiment, monkeypatch) -> None:
    module = registry.load_experiment("adds_up")
    monkeypatch.delattr(module, "SEEDS")
    monkeypatch.setattr(registry, "load_experiment", lambda name: module)
    monkeypatch.setattr(module, "investigate", lambda lab, config: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="at least two"):
        experiment.investigate("adds_up", Lab(seeds=(7,)), {})
    with pytest.raises(ValueError, match="names a seed twice"):
        experiment.investigate("adds_up", Lab(seeds=(7, 8, 7)), {})


def test_committed_records_answer_what_the_code_asks() -> None:
    """Question and bar are the code's, settings its defaults, models those that are shipped."""
    shipped = {}
    for found in results.experiments():
        asked = registry.describe_experiment(found.name)
        assert found.settings == asked.defaults, found.name
        assert found.question == asked.describes, found.name
        for key, text in asked.card.items():
            assert getattr(found, key) == text, (found.name, key)
        for task, sha256 in found.provenance.bases.items():
            if task not in shipped:
                shipped[task] = tensors_sha256(load_base(task).denoiser)
            assert sha256 == shipped[task], found.name


def test_damaged_records_are_named(tmp_path) -> None:
    (tmp_path / "torn.json").write_text(json.dumps({"schema": 1})[:-1])
    with pytest.raises(results.ResultsError, match=r"torn\.json"):
        results.experiments(tmp_path)


def test_settings_are_checked(one_experiment) -> None:
    described = registry.describe_experiment("adds_up")
    assert registry.experiment_settings(described, ["adds_up.one=3"]) == {"one": 3}
    for bad in ("one=3", "other.one=3", "adds_up.two=3", "adds_up.one=x"):
        with pytest.raises(ValueError):
            registry.experiment_settings(described, [bad])
    with pytest.raises(ValueError, match="given twice"):
        registry.experiment_settings(described, ["adds_up.one=3", "adds_up.one=4"])


def test_every_committed_experiment_is_described() -> None:
    methods = set(registry.names())
    for name in registry.experiment_names():
        card = registry.describe_experiment(name).card
        assert card["methods"] and set(card["methods"]) <= methods, name
        assert card["bar"] and card["source"], name


def test_a_verdict_counts_the_parts_of_a_bar() -> None:
    assert [experiment.verdict_of(missed, 3) for missed in range(4)] == [
        "shown",
        "in part",
        "in part",
        "not shown",
    ]
    for missed, checked in ((1, 0), (0, 0), (4, 3), (-1, 2)):
        with pytest.raises(ValueError, match="cannot be missed"):
            experiment.verdict_of(missed, checked)
