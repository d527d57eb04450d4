"""Rows are compared only where their settings agree."""

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from kb.ledger import Reporting, comparable, measure, ranked, reporting
from kb.load import load_literature
from kb.schema import Metric, ReportItem, Result
from scripts import comparable as script

PAPERS = {p.id: p for p in load_literature(Path(__file__).parents[2] / "papers.yaml").papers}

FULL = {
    "sampler": "DDIM",
    "steps": 50,
    "guidance": 7.5,
    "samples": 5000,
    "reference_set": "COCO",
    "fid_implementation": "pytorch-fid",
}


def row(place="Table 1", metric="fid", value=5.0, protocol=None, **fields):
    return Result.model_validate(
        {
            "id": "r",
            "base_model": "SDXL",
            "dataset": "COCO",
            "resolution": "512x512",
            "sparsity": {"kind": "macs", "value": 0.5},
            "protocol": FULL if protocol is None else protocol,
            "measures": [{"metric": metric, "value": value}],
            "source": {"document": "arxiv:2305.10924v1", "place": place},
            **fields,
        }
    )


def test_equal_settings_from_two_tables_compare():
    answer = comparable(row(), row("Table 2"))
    assert answer.ok and answer.differing == answer.unstated == answer.caveats == ()


@pytest.mark.parametrize("name", sorted(FULL))
def test_each_differing_setting_is_named(name):
    other = {**FULL, name: 3 if isinstance(FULL[name], int) else 1.5 if name == "guidance" else "X"}
    answer = comparable(row(), row(protocol=other))
    assert not answer.ok and answer.differing == (name,)


def test_unstated_settings_stand_in_the_way_except_within_one_table():
    assert comparable(row(protocol={}), row(protocol={})).ok
    answer = comparable(row(protocol={}), row("Table 2", protocol={}))
    assert not answer.ok and answer.differing == () and "samples" in answer.unstated
    assert comparable(row(), row(protocol={})).unstated == tuple(FULL)


def test_size_needs_only_the_base_model():
    a, b = row(metric="params", protocol={}), row("Table 2", metric="params", protocol={})
    assert comparable(a, b).ok
    other = row(metric="params", base_model="SD")
    assert comparable(a, other).differing == ("base_model",)


def test_speed_needs_hardware_and_the_same_thing_timed():
    a = row(metric="latency", hardware="A100", precision="fp16", protocol={"batch": 1})
    b = a.model_copy(update={"hardware": "H100"})
    assert comparable(a, b).differing == ("hardware",)
    whole = row(hardware="A100", precision="fp16", protocol={"batch": 1})
    measured = [{"metric": "latency", "value": 1.0, "note": "whole pipeline"}]
    named = Result.model_validate({**whole.model_dump(), "measures": measured})
    assert comparable(a, named).differing == ("latency note",)


def test_rows_without_a_common_metric_do_not_compare():
    assert comparable(row(), row(metric="params")).differing == ("measures",)
    assert comparable(row(), row(), Metric.PARAMS).differing == ("measures",)


def test_sparsity_and_retraining_are_caveats():
    other = row(sparsity={"kind": "params", "value": 0.5}, protocol={**FULL, "retraining": "1K"})
    answer = comparable(row(), other)
    assert answer.ok and answer.caveats == ("sparsity", "retraining")


def test_steps_are_a_caveat_of_times_and_a_difference_of_quality():
    def timed(steps):
        protocol = {"batch": 1, "steps": steps}
        return row(metric="latency", hardware="A100", precision="fp16", protocol=protocol)

    answer = comparable(timed(25), timed(8))
    assert answer.ok and answer.caveats == ("steps",)
    assert comparable(timed(8), timed(8)).caveats == ()
    assert comparable(row(), row(protocol={**FULL, "steps": 8})).caveats == ()


# ------------------------------------------------------------------ the command


def asked(*arguments):
    app = Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, list(arguments))


SAME = ("diff-pruning/celeba-hq-ours-t0", "diff-pruning/celeba-hq-random")


def test_rows_of_one_table_may_be_compared():
    done = asked(*SAME)
    assert done.exit_code == 0, done.output
    assert {line.split()[0] for line in done.output.splitlines()} >= {"fid", "ssim", "params"}
    assert all(": yes" in line for line in done.output.splitlines())


def test_rows_of_two_data_sets_may_not_and_the_fields_are_named():
    done = asked(SAME[0], "diff-pruning/cifar10-random", "--metric", "fid")
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert ": no; base_model differs ('DDPM CelebA-HQ', 'DDPM CIFAR-10')" in line
    assert "dataset differs" in line and "resolution differs ('64x64', '32x32')" in line


def test_the_answer_as_json():
    found = json.loads(asked(*SAME, "--metric", "fid", "--json").output)
    assert found["ok"] is True and found["rows"] == list(SAME)
    (answer,) = found["answers"]
    assert answer["metric"] == "fid" and answer["differing"] == {}
    rows = {r.id: r for r in PAPERS["diff-pruning"].results}
    printed = [measure(rows[name.split("/")[1]], Metric.FID) for name in SAME]
    assert answer["values"] == [m.value for m in printed if m]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody/row", SAME[1]), "no entry has the id 'nobody'"),
        ((SAME[0], "diff-pruning/nothing"), "has no row 'nothing'; its rows: cifar10"),
        ((*SAME, "--metric", "latency"), "latency stands not in both rows"),
        ((*SAME, "--file", "missing.yaml"), "is not a file"),
    ],
)
def test_unusable_input_is_one_line(arguments, words):
    done = asked(*arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert len(done.output.splitlines()) == 1


def test_ranking_never_crosses_groups():
    rows = [
        row(value=5.0),
        row(value=4.0),
        row(value=1.0, dataset="ImageNet"),
        row(metric="params"),
    ]
    groups = ranked(rows, Metric.FID)
    assert [[r.measures[0].value for r in g] for g in groups] == [[4.0, 5.0], [1.0]]
    with pytest.raises(ValueError, match="no grade"):
        ranked(rows, Metric.WEIGHTS_ZERO)


def test_higher_is_better_where_it_is():
    rows = [row(metric="ssim", value=0.8), row(metric="ssim", value=0.9)]
    assert [r.measures[0].value for r in ranked(rows, Metric.SSIM)[0]] == [0.9, 0.8]


def test_the_table_of_diff_pruning_ranks_as_printed():
    rows = [
        r
        for r in PAPERS["diff-pruning"].results
        if r.source.place == "table of CelebA-HQ" and r.protocol.fid_implementation is None
    ]
    (group,) = ranked(rows, Metric.FID)
    assert len(group) == 10
    assert group[0].id == "celeba-hq-ours-t0"


def test_reporting_tells_missing_from_not_transcribed():
    # The curators' own list grows as papers are read; here it holds what the test says.
    paper = PAPERS["snapfusion"]
    for listed, state in (
        ((), Reporting.NOT_TRANSCRIBED),
        ((ReportItem.SEEDS,), Reporting.NOT_REPORTED),
    ):
        found = reporting(paper.model_copy(update={"not_reported": listed}))
        assert found[ReportItem.SEEDS] is state
        assert found[ReportItem.LATENCY] is Reporting.REPORTED
        assert found[ReportItem.CODE] is Reporting.NOT_REPORTED
    assert reporting(PAPERS["diff-pruning"])[ReportItem.CODE] is Reporting.REPORTED
    assert reporting(PAPERS["laptop-diff"])[ReportItem.CODE] is Reporting.NOT_REPORTED
