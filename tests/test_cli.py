"""The command line: exit codes, one line for every mistake, never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kb import results
from methods.__main__ import main
from methods.harness import compare, run
from methods.harness.checkpoint import load_base
from tests.harness import small_task
from tests.harness.small_task import TASK
from tests.kb.test_results import record, write

TINY = ["--samples", "20", "--steps", "1", "--reference", "20", "--precision", "fp32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_task.write_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = run.TaskData(small_task.splits, "random smooth images")
    monkeypatch.setitem(run.TASKS, TASK, data)
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error line; nothing may follow it and nothing may look like a traceback."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err.rstrip("\n").splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lst"], "did you mean list?"),
        (["run", "nope", "--task", TASK], "unknown method 'nope'; valid: bk_sdm, dense"),
        (["run", "magnitude"], "--task"),
        (["run", "magnitude", "--task", "fashion"], "valid: fashion_dit, fashion_t2i"),
        (["run", "magnitude", "--task", TASK, "--sed", "1"], "--sed"),
        (["run", "magnitude", "--task", TASK, "--seed", "x"], "'--seed'"),
        (["run", "magnitude", "--task", TASK, "--set", "magnitude.ratio=1.7"], "[0, 1)"),
        (["run", "magnitude", "--task", TASK, "--set", "magnitude.ratio=nan"], "nan"),
        (["run", "magnitude", "--task", TASK, "--samples", "1"], "samples must be at least"),
        (["run", "magnitude", "--task", TASK, "--precision", "int4"], "bf16 or fp32"),
        (["run", "magnitude", "--task", TASK, "--device", "tpu"], "cpu or cuda"),
        (["compare", "--task", TASK], "--methods: name some of"),
        (["compare", "--task", TASK, "--methods", "magnitude", "--macs", "half"], "--macs"),
        (["compare", "--task", TASK, "--methods", "magnitude", "--macs", "2"], "(0, 1]"),
        (["compare", "--task", TASK, "--quick", "--macs", "0.5"], "--quick fixes"),
        (["count", "ddpm_cifar"], "did you mean ddpm_cifar10?"),
        (["table", "--task", "fashion"], "valid: fashion_dit, fashion_t2i, fashion_unet"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    line = last_line(capsys)
    assert line.startswith("error: ") and says in line


def test_list_needs_no_torch() -> None:
    code = "import sys; from methods.__main__ import main; main(['list', '--json']); "
    code += "sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = {method["name"]: method for method in json.loads(result.stdout)}
    assert {"dense", "random_pruning", "magnitude", "diff_pruning"} <= found.keys()
    assert found["diff_pruning"]["paper"] == "diff-pruning"
    assert {s["name"] for s in found["magnitude"]["settings"]} >= {"ratio", "macs", "rule"}
    assert found["magnitude"]["command"].endswith("--set magnitude.macs=0.5")
    assert found["smaller_faster_sd"]["reconstruction"] is True


def test_run_writes_a_result_that_resume_keeps(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "magnitude", "--task", TASK, "--set", "magnitude.macs=0.6", "--json", *TINY]
    words += ["--model", str(base), "--out", str(tmp_path), "--resume"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    results.Record.model_validate(first)
    stored = (tmp_path / "result.json").read_text()
    assert json.loads(stored) == first
    assert main(words) == 0
    assert (tmp_path / "result.json").read_text() == stored
    (tmp_path / "result.json").write_text(stored[:200])
    assert main(words) == 0
    assert json.loads((tmp_path / "result.json").read_text())["quality"] == first["quality"]

    picture = tmp_path / "grid.png"
    words = ["sample", str(tmp_path / "model"), "--out", str(picture), "--count", "4"]
    assert main([*words, "--steps", "1", "--precision", "fp32"]) == 0
    with Image.open(picture) as grid:
        assert grid.size == (2 * 34 + 2, 2 * 34 + 2)


def test_run_and_compare_leave_the_committed_results_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where they measure as the committed comparison does."""
    monkeypatch.setattr("methods.__main__._protocol", lambda *_, **__: (small_task.PROTOCOL, True))
    monkeypatch.setattr("methods.__main__.RUN", tmp_path / "results")
    monkeypatch.setattr(compare, "COMPARISON", tmp_path / "comparison")
    monkeypatch.setattr(run, "load_base", lambda _: load_base(str(base)))
    before = {path: path.stat().st_mtime_ns for path in results.ROOT.rglob("*.json")}
    assert main(["run", "dense", "--task", TASK, "--seed", "9", "--json"]) == 0
    assert main(["compare", "--task", TASK, "--methods", "dense", "--seeds", "9", "--json"]) == 0
    assert (tmp_path / "results" / TASK / "dense" / "9" / "result.json").is_file()
    assert (tmp_path / "comparison" / "records" / TASK / "dense" / "9.json").is_file()
    after = {path: path.stat().st_mtime_ns for path in results.ROOT.rglob("*.json")}
    assert after == before


def test_compare_prints_the_table_it_writes(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--task", TASK, "--methods", "dense", "--json", *TINY]
    assert main([*words, "--model", str(base), "--out", str(tmp_path)]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["recipe"] for row in table["rows"]] == ["dense"]
    assert json.loads((tmp_path / "table.json").read_text())["measured_now"] == table


def test_a_failed_recipe_is_named_and_fails_the_command(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--task", TASK, "--methods", "magnitude", "--macs", "0.001", *TINY]
    assert main([*words, "--model", str(base), "--out", str(tmp_path)]) == 1
    assert "magnitude-macs0.001" in last_line(capsys)
    assert (tmp_path / "report.html").exists()


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for words in (
        ["run", "magnitude", "--task", TASK, "--model", gone],
        ["sample", gone, "--out", str(tmp_path / "x.png")],
    ):
        assert main(words) == 1
        assert f"no model {gone!r}" in last_line(capsys)


def test_a_checkpoint_with_a_changed_shape(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bent"
    shutil.copytree(base, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] = tensors["conv_in.bias"][:-1].clone()
    save_file(tensors, weights)
    assert main(["sample", str(folder), "--out", str(tmp_path / "x.png")]) == 1
    assert "conv_in.bias" in last_line(capsys)


def test_a_results_file_that_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, record())
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results.tasks, "__defaults__", (tmp_path,))
    monkeypatch.setattr(results.table, "__defaults__", (tmp_path,))
    assert main(["table", "--task", TASK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["recipe"] == "magnitude"
    assert main(["table", "--task", TASK]) == 0
    assert "magnitude" in capsys.readouterr().out
    path.write_text(path.read_text()[:400])
    assert main(["table", "--task", TASK]) == 1
    assert str(path) in last_line(capsys)


def test_count_agrees_with_the_literature(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "ddpm_cifar10", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["params"] == 35_746_307
    assert 6.05e9 <= found["macs"] <= 6.07e9 < found["macs_with_attention"]


def test_an_unforeseen_error_is_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("methods.registry.methods", broken)
    assert main(["list"]) == 1
    assert "KeyError: 'surprise'" in last_line(capsys)
