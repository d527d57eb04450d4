"""Records of runs: validation, the table, and what may be said about order."""

from __future__ import annotations

import copy
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from kb import results


def record(
    method: str = "magnitude", seed: int = 0, frechet: float = 100.0, steps: int = 0, **more: Any
) -> dict[str, Any]:
    macs = more.get("macs", 750)
    params = more.get("params", 80)
    size = {"params": params, "nonzero_params": params, "weight_bytes": 4 * params, "macs": macs}
    size["macs_with_attention"] = macs + 10
    dense = {"params": 100, "nonzero_params": 100, "weight_bytes": 400, "macs": 1000}
    dense["macs_with_attention"] = 1010
    rounds = {"cpu_seconds": [0.2, 0.2], "wall_seconds": [0.2, 0.2]}
    recipe = [{"method": method, "config": {"macs": 0.75}}]
    slug = f"{method}-macs0.75"
    cost = {"method": method, "seconds": 1.5, "cpu_seconds": 1.0, "optimizer_steps": 0}
    cost |= {"denoiser_calls": 2, "denoiser_images": 8, "peak_bytes": 9}
    costs = [cost]
    if steps:
        recipe.append({"method": "finetune", "config": {"steps": steps}})
        slug += f"+finetune-steps{steps}"
        costs.append(cost | {"method": "finetune", "optimizer_steps": steps})
    return {
        "schema": 1,
        "task": "fashion_unet",
        "slug": slug,
        "recipe": recipe,
        "seed": seed,
        "size": size | {"dense": dense},
        "latency": {
            "batch": 8,
            "threads": 1,
            "precision": "fp32",
            "device": "cpu",
            "speedup_cpu": more.get("speedup", 1.25),
            "speedup_wall": 1.2,
            "fewer_macs_but_slower": False,
            "dense": rounds,
            "pruned": rounds,
        },
        "memory": {"what": "x", "batch": 8, "peak_bytes": 5, "dense_peak_bytes": 10},
        "quality": {
            "frechet": frechet,
            "kernel": frechet / 100,
            "kernel_standard_error": 0.1,
            "mse_to_dense": 0.1,
            "ssim_to_dense": 0.5,
        },
        "protocol": {"samples": 100, "steps": 10, "sampler": "ddim, eta 0"},
        "cost": costs,
        "notes": [{"method": method}],
        "provenance": {
            "command": "python -m methods run",
            "date": "2026-01-01T00:00:00+00:00",
            "commit": "0" * 40,
            "dirty": False,
            "code_sha256": "c",
            "base": "fashion_unet",
            "base_sha256": "b",
            "device": "cpu",
            "system": {"cpu": "a processor"},
        },
    }


def write(root: Path, data: dict[str, Any]) -> Path:
    path = root / data["task"] / data["slug"] / f"{data['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def table_of(root: Path, *data: dict[str, Any]) -> results.Table:
    for item in data:
        write(root, item)
    return results.table("fashion_unet", root)


def row(table: results.Table, method: str) -> results.Table:
    return next(row for row in table["rows"] if row["method"] == method)


def test_rows_hold_mean_range_and_count_over_seeds(tmp_path: Path) -> None:
    values = (90.0, 100.0, 130.0)
    data = [record(seed=seed, frechet=value, steps=150) for seed, value in enumerate(values)]
    table = table_of(tmp_path, *data)
    (only,) = table["rows"]
    spread = only["frechet"]
    assert spread["mean"] == pytest.approx(statistics.fmean(values))
    assert (spread["min"], spread["max"], spread["n"]) == (90, 130, 3)
    assert only["macs_fraction"] == 0.75 and only["params_fraction"] == 0.8
    assert only["optimizer_steps"] == 150 and only["cost_seconds"] == 2.0
    assert only["seeds"] == [0, 1, 2] and only["rank"] is None


def test_cells_stand_under_their_columns(tmp_path: Path) -> None:
    table = table_of(tmp_path, record())
    keys = [column["key"] for column in table["columns"]]
    assert list(results.cells(table["rows"][0])) == keys
    asked = [key for key, *_ in results.COLUMNS]
    assert [key for key in asked if key != "agreement"] == keys  # unconditional: nothing is asked


def test_what_differs_between_seeds_is_shown_as_a_range(tmp_path: Path) -> None:
    data = [record(seed=seed, params=80 + 2 * seed, macs=750 + 10 * seed) for seed in range(3)]
    data[2]["cost"][0]["optimizer_steps"] = 30
    for item in data:
        item["size"]["params"] *= 10**5
    (only,) = table_of(tmp_path, *data)["rows"]
    assert only["params"] == 82 * 10**5 and only["macs"] == 760 and only["optimizer_steps"] == 10
    shown = results.cells(only)
    assert shown["params"] == "8.20 M (8.00–8.40)"
    assert shown["macs_fraction"] == "76.0 % (75.0–77.0)"
    assert shown["macs_with_attention_fraction"] == "76.2 %"  # 770 / 1010
    assert shown["optimizer_steps"] == "10 (0–30)"
    (alone,) = table_of(tmp_path / "one", data[0])["rows"]
    assert results.cells(alone)["params"] == "8.00 M"


def test_the_protocol_names_the_weight_of_guidance() -> None:
    assert "guidance" not in results.protocol_line({"samples": 9, "guidance": None})
    assert results.protocol_line({"samples": 9, "guidance": 2.0}).startswith(
        "9 samples at guidance weight 2, "
    )


def test_a_claim_gives_the_better_minus_the_worse(tmp_path: Path) -> None:
    data = [record("taylor", s, 100.0 + s) for s in range(3)]  # 10 better, 11, 12
    data += [record("magnitude", s, 110.0 + 2 * s) for s in range(3)]
    for item, share in zip(data, (0.9, 0.9, 0.9, 0.5, 0.51, 0.52), strict=True):
        item["quality"]["agreement"] = {"class": share}
    pairs = table_of(tmp_path, *data)["comparisons"]
    said = {pair["metric"]: results.claim(pair) for pair in pairs}
    assert "taylor is better than magnitude" in said["frechet"]
    # The interval of -10, -11, -12 is -11 -+ 4.302653 / sqrt(3).
    assert "first minus second: -11 in Fréchet distance" in said["frechet"]
    assert "95% interval -13.48 to -8.516, n=3" in said["frechet"]
    assert "taylor is better than magnitude (first minus second: 0.39 of all" in said["as_asked"]
    (turned,) = [
        {**pair, "a": pair["b"], "b": pair["a"], "a_label": pair["b_label"]}
        | {"b_label": pair["a_label"], "better": "a" if pair["better"] == "b" else "b"}
        | {"difference": -pair["difference"], "interval": [-e for e in pair["interval"][::-1]]}
        for pair in pairs
        if pair["metric"] == "frechet"
    ]
    assert results.claim(turned) == said["frechet"]


def test_a_reconstruction_is_called_one(tmp_path: Path) -> None:
    table = table_of(tmp_path, record("smaller_faster_sd"), record("taylor"))
    assert {r["recipe"] for r in table["rows"]} == {"smaller_faster_sd (reconstruction)", "taylor"}
    said = " ".join(results.claim(pair) for pair in table["comparisons"])
    assert said.count("smaller_faster_sd (reconstruction)") == said.count("smaller_faster_sd") > 0
    assert results.labelled("smaller_faster_sd-a1+x: b") == (
        "smaller_faster_sd-a1+x (reconstruction): b"
    )
    assert results.labelled("a_smaller_faster_sd") == "a_smaller_faster_sd"


def test_rows_are_grouped_by_size_and_sorted_within() -> None:
    def made(slug: str, macs: float, frechet: float, kept: float = 0.5) -> results.Table:
        found = {"slug": slug, "macs_fraction": macs, "frechet": {"mean": frechet}}
        return found | {"params_fraction": 1.0 if macs == 1 else 0.5, "nonzero_fraction": kept}

    rows = [
        made("zeros", 1.0, 1),
        made("small", 0.2, 2),
        made("worse", 0.49, 9),
        made("dense", 1.0, 3, kept=1.0),
        made("better", 0.51, 4),
        made("big", 0.9, 8),
        made("wide", 0.74, 5),
    ]
    found = [(name, [r["slug"] for r in group]) for name, group in results.by_size(rows)]
    assert found == [
        ("", ["dense"]),
        ("75 % of MACs", ["wide"]),
        ("50 % of MACs", ["better", "worse"]),
        ("other sizes", ["big", "small"]),
        ("zeros, all MACs", ["zeros"]),
    ]


def test_paired_interval_is_students() -> None:
    low, high = results.paired_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    half = 4.302652729749464 / math.sqrt(3)  # t of 2 degrees of freedom at 0.975; deviation 1
    assert low == pytest.approx(2 - half) and high == pytest.approx(2 + half)
    assert results.paired_interval([1.0]) is None


def test_order_is_claimed_where_the_paired_interval_excludes_zero(tmp_path: Path) -> None:
    # Seeds differ by far more than methods do: only the pairing can tell the two apart.
    data = [record("magnitude", s, 100.0 * s + 100) for s in range(3)]
    data += [record("diff_pruning", s, 100.0 * s + 90 - s) for s in range(3)]
    table = table_of(tmp_path, *data)
    pair = next(p for p in table["comparisons"] if p["metric"] == "frechet")
    better = pair[pair["better"]]
    assert better == "diff_pruning-macs0.75"
    assert abs(pair["difference"]) == pytest.approx(11.0) and pair["seeds"] == [0, 1, 2]
    assert row(table, "diff_pruning")["rank"] == "1"
    assert row(table, "magnitude")["rank"] == "2"


def test_ties_are_drawn_as_ties(tmp_path: Path) -> None:
    data = [record("magnitude", s, v) for s, v in enumerate((100.0, 120.0, 110.0))]
    data += [record("diff_pruning", s, v) for s, v in enumerate((110.0, 100.0, 111.0))]
    table = table_of(tmp_path, *data)
    assert {r["rank"] for r in table["rows"]} == {"1–2"}
    assert {p["better"] for p in table["comparisons"]} == {"tie"}


def test_one_seed_claims_no_order(tmp_path: Path) -> None:
    table = table_of(tmp_path, record("magnitude", 0, 500.0), record("diff_pruning", 0, 1.0))
    assert {p["interval"] for p in table["comparisons"]} == {None}
    assert {r["rank"] for r in table["rows"]} == {"1–2"}


def test_equal_means_of_unequal_runs_are_not_compared(tmp_path: Path) -> None:
    data = [record("magnitude", s, 100.0 + s, macs=600, params=60) for s in range(2)]
    data += [
        record("snapfusion", s, 200.0, macs=macs, params=macs // 10)
        for s, macs in enumerate((500, 700))
    ]
    table = table_of(tmp_path, *data)
    assert len({r["macs_fraction"] for r in table["rows"]}) == 1
    assert table["comparisons"] == []


def test_a_row_whose_seeds_disagree_has_a_wide_rank(tmp_path: Path) -> None:
    far = {"magnitude": (300.0, 301.0, 302.0), "random": (100.0, 900.0, 150.0)}
    far["diff_pruning"] = (200.0, 202.0, 201.0)
    data = [record(name, s, v) for name, found in far.items() for s, v in enumerate(found)]
    table = table_of(tmp_path, *data)
    ranks = {name: row(table, name)["rank"] for name in far}
    assert ranks == {"diff_pruning": "1–2", "magnitude": "2–3", "random": "1–3"}


def test_unequal_sizes_or_retraining_are_not_compared(tmp_path: Path) -> None:
    small = record("diff_pruning", macs=500, params=50)
    assert table_of(tmp_path, record(), small, record("random", steps=5))["comparisons"] == []


def test_rows_of_equal_parameters_are_compared_but_not_ranked(tmp_path: Path) -> None:
    layers = [record("laptop_diff", seed, 100.0 + seed, macs=900) for seed in (0, 1)]
    blocks = [record("bk_sdm", seed, 200.0 + 2 * seed, macs=600) for seed in (0, 1)]
    table = table_of(tmp_path, *layers, *blocks)
    (pair,) = [p for p in table["comparisons"] if p["metric"] == "frechet"]
    assert pair["equal"] == "params_fraction"
    assert {row["rank"] for row in table["rows"]} == {None}
    assert results.claim(pair).startswith("At 80 % of parameters, by Fréchet distance:")


def test_cost_is_cpu_time_and_on_a_gpu_wall_clock_time(tmp_path: Path) -> None:
    """A neighbour's work, or a machine put to sleep, does not make a method expensive."""
    data = record("magnitude", 0, 100.0, steps=5)
    (row,) = table_of(tmp_path / "cpu", data)["rows"]
    assert (row["cost_seconds"], row["compression"]["seconds"]) == (2.0, 1.0)
    data["provenance"]["device"] = "cuda"
    (row,) = table_of(tmp_path / "cuda", data)["rows"]
    assert (row["cost_seconds"], row["compression"]["seconds"]) == (3.0, 1.5)


def test_rows_of_different_devices_are_not_compared(tmp_path: Path) -> None:
    here = [record("magnitude", seed, 100.0 + seed) for seed in (0, 1)]
    there = [record("random", seed, 200.0 + 2 * seed) for seed in (0, 1)]
    for data in there:
        data["provenance"]["device"] = "cuda"
    table = table_of(tmp_path / "mixed", *here, *there)
    assert table["comparisons"] == []
    assert any("a GPU and a CPU" in note for note in table["notes"])
    for data in here:
        data["provenance"]["device"] = "cuda"
    assert table_of(tmp_path / "alike", *here, *there)["comparisons"]


def test_whether_the_figures_tell_damage_is_said(tmp_path: Path) -> None:
    dense = [record("dense", seed, 100.0 + 10 * seed, macs=1000, params=100) for seed in range(3)]
    for data in dense:
        data["slug"], data["recipe"] = "dense", [{"method": "dense", "config": {}}]
    far = [record("random", seed, 150.0 + 10 * seed + seed) for seed in range(3)]  # gaps 50, 51, 52
    near = [record("taylor", seed, v) for seed, v in enumerate((99.0, 115.0, 121.0))]  # -1, 5, 1
    once = [record("magnitude", 0, 900.0)]  # no interval, so nothing is said
    notes = table_of(tmp_path, *dense, *far, *near, *once)["notes"]
    (said,) = [note for note in notes if "dense model" in note]
    assert said.startswith("1 of 2 rows") and "51.0 of 110.0 (random" in said
    assert "Not told from it: taylor" in said and "magnitude" not in said


def test_more_images_as_asked_are_better(tmp_path: Path) -> None:
    data = [record("magnitude", s, 100.0) for s in range(3)]
    data += [record("taylor", s, 100.0) for s in range(3)]
    for item, share in zip(data, (0.5, 0.6, 0.7, 0.8, 0.91, 1.0), strict=True):
        item["quality"]["agreement"] = {"class": 1.0, "all": share}
    pairs = {p["metric"]: p for p in table_of(tmp_path, *data)["comparisons"]}
    assert pairs["frechet"]["better"] == "tie"
    assert pairs["as_asked"][pairs["as_asked"]["better"]] == "taylor-macs0.75"
    assert "by images as asked: taylor" in results.claim(pairs["as_asked"])
    without = table_of(tmp_path / "none", record("magnitude"), record("taylor"))["comparisons"]
    assert {pair["metric"] for pair in without} == {"frechet", "kernel"}


def test_no_speed_gain_is_flagged(tmp_path: Path) -> None:
    table = table_of(tmp_path, record(speedup=1.002))
    assert table["rows"][0]["no_faster"]
    assert results.cells(table["rows"][0])["speedup"] == "1.00× !"
    assert any("no faster" in note for note in table["notes"])


def test_rows_that_read_alike_get_their_slug(tmp_path: Path) -> None:
    other = record()
    other["slug"] = "magnitude-ratio0.3"
    table = table_of(tmp_path, record(), other)
    assert {r["recipe"] for r in table["rows"]} == {"magnitude-macs0.75", "magnitude-ratio0.3"}


def test_text_json_and_markdown_say_the_same(tmp_path: Path) -> None:
    table = table_of(tmp_path, record(), record("diff_pruning", steps=5))
    assert json.loads(json.dumps(table)) == table
    plain, marked = results.text(table), results.markdown(table)
    for line in table["rows"]:
        for cell in results.cells(line).values():
            assert cell in plain and cell.replace("_", "\\_") in marked


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    table = table_of(tmp_path, record())
    table["rows"][0]["recipe"] = "a|b"
    line = results.markdown(table).splitlines()[2]
    assert line.startswith("| a\\|b |")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text[: len(text) // 2], "not whole JSON"),
        (lambda _: "", "not whole JSON"),
        (lambda _: "[" * 100_000, "not whole JSON"),
        (lambda _: "[]", "the file"),
        (lambda _: "{}", "schema"),
        (lambda text: text.replace('"frechet": 100.0', '"frechet": NaN'), "quality.frechet"),
        (lambda text: text.replace('"frechet": 100.0', '"frechet": "low"'), "quality.frechet"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "move it"),
        (lambda text: text.replace('"notes"', '"remarks"'), "notes"),
    ],
)
def test_a_bad_file_is_named_with_the_field(tmp_path: Path, spoil: Any, says: str) -> None:
    path = write(tmp_path, record())
    path.write_text(spoil(path.read_text()))
    with pytest.raises(results.ResultsError) as caught:
        results.table("fashion_unet", tmp_path)
    assert str(path) in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, record())
    path.write_bytes(b"\xe9\xff" + path.read_bytes())
    with pytest.raises(results.ResultsError, match="not whole JSON"):
        results.load(path)


def test_protocols_and_bases_are_not_mixed(tmp_path: Path) -> None:
    odd = copy.deepcopy(record(seed=1))
    odd["protocol"]["samples"] = 7
    write(tmp_path, odd)
    write(tmp_path, record())
    with pytest.raises(results.ResultsError, match=r"different protocols \(samples\)"):
        results.table("fashion_unet", tmp_path)
    other = record(seed=1)
    other["provenance"]["base_sha256"] = "another"
    write(tmp_path, other)
    with pytest.raises(results.ResultsError, match="different weights"):
        results.table("fashion_unet", tmp_path)


def test_tasks_are_those_with_records(tmp_path: Path) -> None:
    assert results.tasks(tmp_path / "nowhere") == ()
    write(tmp_path, record())
    assert results.tasks(tmp_path) == ("fashion_unet",)
    with pytest.raises(results.ResultsError, match="tasks with results: fashion_unet"):
        results.table("other", tmp_path)
