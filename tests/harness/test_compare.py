"""Sweeps: what is run, what is kept, and the table after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kb import results
from methods import registry
from methods.harness import compare, journal, report, run
from methods.harness.compare import Places, Sweep, run_sweep, sweep_table
from methods.harness.run import Bench

from . import small_task
from .small_task import PROTOCOL, TASK

ROOT = Path(__file__).resolve().parents[2]
SWEEP = Sweep(TASK, ("random_pruning", "magnitude"), macs=(0.6,), seeds=(0, 1))
# What a second run may measure differently: times, and what follows from them.
TIMED = {"speedup", "speedup_wall", "no_faster", "cost_seconds", "peak_memory_fraction"}
TIMED |= {"compression"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_task.write_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture
def bench(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    data = run.TaskData(small_task.splits, "random smooth images")
    monkeypatch.setitem(run.TASKS, TASK, data)
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(cache))
    torch.set_num_threads(1)
    return Bench(TASK, PROTOCOL, model=str(base))


def untimed(table: results.Table) -> list[results.Table]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in table["rows"]]


def test_a_sweep_is_methods_by_sizes_by_retraining_and_the_dense_model() -> None:
    sweep = Sweep(
        TASK, ("magnitude", "diff_pruning"), macs=(0.75, 0.5), ratios=(0.3,), finetune_steps=(0, 9)
    )
    slugs = [registry.slug(recipe) for recipe in sweep.recipes()]
    assert len(slugs) == len(set(slugs)) == 1 + 2 * 3 * 2
    assert slugs[0] == "dense" and "magnitude-ratio0.3+finetune-steps9" in slugs
    by_layers = Sweep(
        TASK,
        ("magnitude", "uniform_depth"),
        macs=(0.6,),
        params=(0.7,),
        finetune_steps=(0, 9),
        recovery="distill",
    )
    assert [registry.slug(recipe) for recipe in by_layers.recipes()] == [
        "dense",
        "magnitude-macs0.6",
        "magnitude-macs0.6+distill-steps9",
        "uniform_depth-params0.7",
        "uniform_depth-params0.7+distill-steps9",
    ]
    by_weight = Sweep(TASK, ("magnitude",), assignments=("magnitude.ratio=0.5",))
    assert [registry.slug(r) for r in by_weight.recipes()] == ["dense", "magnitude-ratio0.5"]


@pytest.mark.parametrize("task", ["fashion_unet", "fashion_dit", "fashion_t2i"])
def test_the_standard_comparison_holds_every_method_that_can(task: str) -> None:
    recipes = [r for sweep in compare.standard_sweeps(task) for r in sweep.recipes()]
    slugs = {registry.slug(recipe) for recipe in recipes}
    compared = {stage.method for recipe in recipes for stage in recipe}
    able = {m.name for m in registry.methods() if task in m.card["tasks"]}
    assert able == compared
    budgets = {
        (stage.settings["steps"], stage.settings["batch_size"])
        for recipe in recipes
        for stage in recipe
        if stage.method in ("finetune", "distill")
    }
    assert budgets == {(compare.STANDARD_STEPS, compare.STANDARD_BATCH)}
    retrained = f"finetune-steps{compare.STANDARD_STEPS}-batch_size{compare.STANDARD_BATCH}"
    for name in ("random_pruning", "magnitude"):
        for size in ("0.75", "0.5"):
            bare = f"{name}-macs{size}"
            assert {bare, f"{bare}+{retrained}"} <= slugs
    assert "magnitude-ratio0.5-unitweight" in slugs
    for (where, name), sizes in compare.OWN_SIZES.items():
        asked = {
            f"{name}.{key}={stage.settings[key]}"
            for recipe in recipes
            for stage in recipe
            for key in ("ratio", "params")
            if stage.method == name and stage.settings[key] is not None
        }
        assert where != task or asked == set(sizes)
    # What trains by itself gets no second budget.
    assert not any(s.startswith(compare.TRAINED) and "finetune" in s for s in slugs)


def test_a_part_of_the_standard_comparison() -> None:
    (sweep,) = compare.standard_sweeps("fashion_dit", (1,), ("taylor",))
    assert sweep.methods == ("taylor",) and sweep.seeds == (1,)
    assert sweep.assignments == (
        "taylor.batch_size=32",
        "taylor.stride=10",
        f"finetune.batch_size={compare.STANDARD_BATCH}",
    )
    assert [s.methods for s in compare.standard_sweeps("fashion_dit", (1,), ("dense",))] == [()]
    with pytest.raises(ValueError, match=r"valid: .*taylor"):
        compare.standard_sweeps("fashion_dit", (0,), ("bk_sdm",))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ("magnitud",)}, "did you mean magnitude"),
        ({"methods": ("finetune",)}, "--finetune-steps"),
        ({"macs": ()}, "needs a size"),
        ({"macs": (1.5,)}, "magnitude.macs"),
        ({"macs": (float("nan"),)}, "magnitude.macs"),
        ({"macs": (), "ratios": (1.7,)}, "magnitude.ratio"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"finetune_steps": (-1,)}, "--finetune-steps"),
        ({"assignments": ("magnitude.q=1",)}, "unknown setting magnitude.q"),
        ({"task": "fashion"}, "unknown task"),
        ({"recovery": "magnitude"}, "valid: distill, finetune"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"task": TASK, "methods": ("magnitude",), "macs": (0.5,)}
    with pytest.raises(ValueError, match=says):
        Sweep(**(good | changes)).recipes()


def test_what_is_done_is_kept_and_what_is_damaged_is_done_again(
    bench: Bench, tmp_path: Path
) -> None:
    places = Places.under(tmp_path)
    sweep = Sweep(TASK, ("magnitude",), macs=(0.6,))
    assert run_sweep(bench, sweep, places).done == 2
    table = sweep_table(sweep, places)
    path = run.record_path(places.records, TASK, sweep.recipes()[1], 0)
    path.write_text(path.read_text()[:300])
    with pytest.raises(results.ResultsError, match=str(path)):
        sweep_table(sweep, places)
    said: list[str] = []
    outcome = run_sweep(bench, sweep, places, warn=said.append)
    assert (outcome.done, outcome.skipped) == (1, 1)
    assert len(said) == 1 and str(path) in said[0]
    assert untimed(sweep_table(sweep, places)) == untimed(table)
    assert run_sweep(bench, sweep, places).skipped == 2


def test_other_code_counts_only_where_it_is_asked_for(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, sweep = Places.under(tmp_path), Sweep(TASK, ("dense",))
    run_sweep(bench, sweep, places)
    monkeypatch.setattr(compare, "code_sha256", lambda recipe: "other")
    assert run_sweep(bench, sweep, places).skipped == 1
    assert run_sweep(bench, sweep, places, same_code=True).done == 1


def test_a_refused_recipe_is_reported_and_the_others_go_on(bench: Bench, tmp_path: Path) -> None:
    sweep = Sweep(TASK, ("magnitude",), macs=(0.001, 0.6))
    outcome = run_sweep(bench, sweep, Places.under(tmp_path))
    assert outcome.done == 2
    ((slug, seed, reason),) = outcome.failures
    assert slug == "magnitude-macs0.001" and seed == 0 and "nearest" in reason


def test_a_killed_sweep_goes_on_and_ends_in_the_same_table(
    bench: Bench, base: Path, cache: Path, tmp_path: Path
) -> None:
    whole = Places.under(tmp_path / "whole")
    run_sweep(bench, SWEEP, whole)
    expected = sweep_table(SWEEP, whole)

    places = Places.under(tmp_path / "killed")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.harness.small_task", "compare", "--task", TASK),
            *("--methods", ",".join(SWEEP.methods), "--macs", "0.6", "--seeds", "0,1"),
            *("--model", str(base), "--out", str(places.report), "--precision", "fp32"),
            *("--samples", str(PROTOCOL.samples), "--steps", str(PROTOCOL.steps)),
            *("--reference", str(PROTOCOL.reference)),
        ],
        cwd=ROOT,
        env=os.environ | {"DIFFUSION_PRUNING_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    # Two results are there, the third run has begun: the kill comes in its middle.
    deadline = time.monotonic() + 900  # for a machine that is busy with other work
    while process.poll() is None and time.monotonic() < deadline:
        events = [entry["event"] for entry in journal.read(places.journal)]
        if events.count("done") == 2 and events[-1] == "start":
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the sweep ended before it could be killed"

    with places.journal.open("ab") as file:
        file.write(b'{"event": "done", "rec')
    protocol = bench.protocol
    bench.protocol = _as_the_command_line(protocol)
    bench.__dict__.pop("protocol_record", None)
    outcome = run_sweep(bench, SWEEP, places)
    assert outcome.skipped >= 2 and outcome.done >= 1 and not outcome.failures
    assert [row["slug"] for row in sweep_table(SWEEP, places)["rows"]] == [
        row["slug"] for row in expected["rows"]
    ]
    assert untimed(sweep_table(SWEEP, places)) == untimed(expected)
    assert all("recipe" in entry for entry in journal.read(places.journal))


def _as_the_command_line(protocol: run.Protocol) -> run.Protocol:
    """The command line has no option for how latency is timed."""
    return run.Protocol(
        samples=protocol.samples,
        steps=protocol.steps,
        precision=protocol.precision,
        reference=protocol.reference,
    )


# --- report ----------------------------------------------------------------------------------


def test_the_report_stands_alone(bench: Bench, tmp_path: Path) -> None:
    places = Places.under(tmp_path)
    run_sweep(bench, SWEEP, places)
    table = sweep_table(SWEEP, places)
    failures = [("magnitude", 0, "<script>alert(1)</script>")]
    compare.write_report(SWEEP, places, table, failures, committed=table)
    data = json.loads((tmp_path / "table.json").read_text())
    assert data["measured_now"]["rows"] == table["rows"]
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert 'src="http' not in page and "href=" not in page
    rows = len(table["rows"])
    assert page.count(">measured now<") == page.count(">committed result<") == rows
    for name in ("pareto.png", "samples.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


def test_pictures_show_each_row_of_the_table(bench: Bench, tmp_path: Path) -> None:
    places = Places.under(tmp_path)
    run_sweep(bench, SWEEP, places)
    table = sweep_table(SWEEP, places)
    first, second = (compare.kept_images(table, places.runs, seed) for seed in SWEEP.seeds)
    assert list(first) == [row["slug"] for row in table["rows"]]
    assert {len(images) for images in first.values()} == {compare.PICTURED}
    # Another seed is other noise: it never stands in for the one asked for.
    assert not any(torch.equal(first[slug], second[slug]) for slug in first)
    assert compare.kept_images(table, places.runs, seed=9) == {}
    report.draw_samples([], tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 0
