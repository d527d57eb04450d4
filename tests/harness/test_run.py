"""One run: what is measured, what is recorded, and what a method must not leave behind."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kb import results
from methods import registry
from methods.harness import bases, run
from methods.harness.checkpoint import load_base, load_pruned, read_tensors
from methods.harness.cost import metered
from methods.harness.pipeline import Notes, Pipeline, Task
from methods.harness.run import Bench, Record
from methods.harness.sample import grid, sample

from . import small_task, tiny
from .small_task import PROTOCOL, TASK


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_task.write_base(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = run.TaskData(small_task.splits, "random smooth images")
    monkeypatch.setitem(run.TASKS, TASK, data)
    cache = tmp_path_factory.getbasetemp() / "cache"  # shared: features are slow
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(cache))
    torch.set_num_threads(1)


@pytest.fixture
def bench(base: Path) -> Bench:
    return Bench(TASK, PROTOCOL, model=str(base))


RECIPE = registry.build_recipe(
    ["magnitude", "finetune"],
    ["magnitude.macs=0.6", "finetune.steps=3", "finetune.batch_size=8"],
)


def test_a_record_is_whole_and_says_nothing_of_the_machine_owner(
    bench: Bench, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    record = bench.run(RECIPE, seed=1, folder=folder)
    path = run.record_path(tmp_path, TASK, RECIPE, 1)
    run.write_record(path, record)
    assert run.read_record(path) == record
    assert results.load(path).macs_fraction == pytest.approx(0.6, abs=0.02)
    text = path.read_text()
    for private in (str(tmp_path), str(base.parent), str(Path.home()), socket.gethostname()):
        assert private not in text
    assert [c["optimizer_steps"] for c in record["cost"]] == [0, 3]
    assert record["cost"][1]["denoiser_images"] == 24
    assert record["provenance"]["base"] == "base"
    assert set(record["notes"][1]) >= {"method", "losses"}


def test_the_saved_model_draws_the_recorded_images(bench: Bench, tmp_path: Path) -> None:
    record = bench.run(RECIPE, seed=1, folder=tmp_path)
    images, _ = read_tensors(tmp_path / "samples.safetensors")
    again = sample(
        load_pruned(tmp_path / "model"), bench.noise(1), PROTOCOL.steps, precision="fp32"
    )
    assert torch.equal(again, images["images"])
    assert record["quality"]["mse_to_dense"] > 0


def test_equal_seeds_give_equal_figures_and_other_seeds_other_ones(base: Path) -> None:
    recipe = registry.build_recipe(["random_pruning"], ["random_pruning.macs=0.6"])
    first = Bench(TASK, PROTOCOL, model=str(base)).run(recipe, seed=0)
    second = Bench(TASK, PROTOCOL, model=str(base)).run(recipe, seed=0)
    other = Bench(TASK, PROTOCOL, model=str(base)).run(recipe, seed=1)
    assert first["quality"] == second["quality"] and first["size"] == second["size"]
    assert other["quality"] != first["quality"]


def test_the_dense_row_is_the_dense_model(bench: Bench) -> None:
    record = bench.run(registry.build_recipe(["dense"]))
    size = dict(record["size"])
    assert size.pop("dense") == size
    assert record["quality"]["mse_to_dense"] == 0
    assert record["quality"]["ssim_to_dense"] == pytest.approx(1)


def test_a_first_stage_that_is_reused_changes_nothing(bench: Bench, base: Path) -> None:
    bench.run(RECIPE[:1])
    reused = bench.run(RECIPE)
    alone = Bench(TASK, PROTOCOL, model=str(base)).run(RECIPE)
    assert reused["quality"] == alone["quality"]


def test_a_damaged_cache_is_measured_again(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path))
    dense = registry.build_recipe(["dense"])
    before = Bench(TASK, PROTOCOL, model=str(base)).run(dense)
    files = list((tmp_path / "measured").iterdir())
    assert {path.name.split("-")[0] for path in files} == {"dense", "reference"}
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    assert Bench(TASK, PROTOCOL, model=str(base)).run(dense)["quality"] == before["quality"]


def test_current_means_same_recipe_seed_protocol_base_and_devices(bench: Bench, base: Path) -> None:
    record = bench.run(RECIPE)
    assert run.is_current(record, bench, RECIPE, 0)
    assert not run.is_current(record, bench, RECIPE, 1)
    assert not run.is_current(record, bench, RECIPE[:1], 0)
    more = Bench(TASK, replace(PROTOCOL, samples=25), model=str(base))
    assert not run.is_current(record, more, RECIPE, 0)
    for part in ("provenance", "latency"):  # drawn, or timed, on another device
        assert not run.is_current(
            {**record, part: {**record[part], "device": "cuda"}}, bench, RECIPE, 0
        )


@dataclass(frozen=True)
class Config:
    pass


def breaking(change: Any) -> Any:
    """A stand-in for a method's module whose compress does `change`."""

    def compress(pipe: Pipeline, task: Task, config: Config) -> tuple[Pipeline, Notes]:
        return change(pipe, task) or pipe, {}

    return lambda name: SimpleNamespace(Config=Config, compress=compress)


def leave_hook(pipe: Pipeline, task: Task) -> None:
    pipe.denoiser.conv_in.register_forward_hook(lambda *_: None)


def leave_parametrization(pipe: Pipeline, task: Task) -> None:
    nn.utils.parametrize.register_parametrization(pipe.denoiser.conv_in, "weight", nn.Identity())


def replace_forward(pipe: Pipeline, task: Task) -> None:
    pipe.denoiser.conv_in.forward = lambda x: x


def change_dense(pipe: Pipeline, task: Task) -> None:
    with torch.no_grad():
        task.dense.denoiser.conv_in.weight.add_(1)


def return_dense(pipe: Pipeline, task: Task) -> Pipeline:
    return task.dense


def leave_nan(pipe: Pipeline, task: Task) -> None:
    with torch.no_grad():
        pipe.denoiser.conv_in.weight.fill_(float("nan"))


def refuse(pipe: Pipeline, task: Task) -> None:
    raise ValueError("mid_block: not today")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (leave_hook, "conv_in: a hook"),
        (leave_parametrization, "conv_in: a parametrization"),
        (replace_forward, "conv_in: forward was replaced"),
        (change_dense, "changed the dense model"),
        (return_dense, "tensors of the dense model"),
        (leave_nan, "conv_in.weight holds values"),
        (refuse, "dense: mid_block: not today"),
    ],
)
def test_a_method_that_breaks_the_contract_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Any, says: str
) -> None:
    monkeypatch.setattr(registry, "load", breaking(change))
    with pytest.raises(ValueError, match=says):
        bench.run(registry.build_recipe(["dense"]))


def test_costs_are_counted_from_outside(bench: Bench) -> None:
    model = bench.dense.private_copy().denoiser
    inputs = bench.task_at(0).example_inputs(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with metered(type(model)) as cost:
        model(**inputs)
        model(**inputs, return_dict=False)[0].sum().backward()
        optimizer.step()
        nn.Linear(2, 2)(torch.zeros(5, 2))
    model(**inputs)
    optimizer.step()
    assert (cost.denoiser_calls, cost.denoiser_images, cost.optimizer_steps) == (2, 6, 1)
    assert cost.seconds > 0


def test_hooks_of_the_meter_go_also_by_an_error(bench: Bench) -> None:
    model = bench.dense.denoiser
    with pytest.raises(KeyError), metered(type(model)) as cost:
        raise KeyError
    model(**bench.task_at(0).example_inputs(1))
    assert cost.denoiser_calls == 0


# --- sampling --------------------------------------------------------------------------------


def ddim(pipe: Pipeline, noise: Tensor, steps: int) -> Tensor:
    """Song et al. 2021, eq. 12 with sigma = 0, written out: x0 clipped to [-1, 1], as its model."""
    bars = torch.cumprod(1 - pipe.scheduler.betas.double(), 0)
    horizon = len(bars)
    x = noise.double()
    for k in range(steps):
        t = round(horizon - k * horizon / steps) - 1  # "trailing" spacing
        before = t - horizon // steps
        bar, bar_before = bars[t], bars[before] if before >= 0 else torch.tensor(1.0)
        with torch.no_grad():
            eps = pipe.denoiser(x.float(), torch.full((len(x),), t)).sample.double()
        x0 = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
        x = bar_before.sqrt() * x0 + (1 - bar_before).sqrt() * eps
    return x.clamp(-1, 1).float()


def test_sampling_is_ddim_as_published(base: Path) -> None:
    pipe = load_base(str(base))
    noise = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    images = sample(pipe, noise, 5, precision="fp32")
    torch.testing.assert_close(images, ddim(pipe, noise, 5), atol=1e-4, rtol=0)
    assert images.dtype == torch.float32 and images.abs().max() <= 1


def test_batches_do_not_change_images_and_the_model_stays_as_it_was(base: Path) -> None:
    pipe = load_base(str(base))
    before = run.tensors_sha256(pipe.denoiser)
    noise = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    whole = sample(pipe, noise, 3, precision="fp32")
    parts = sample(pipe, noise, 3, precision="fp32", batch_size=2)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)
    close = sample(pipe, noise, 3, precision="bf16")
    assert 0 < (close - whole).abs().mean() < 0.1
    assert run.tensors_sha256(pipe.denoiser) == before


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 21}, {"precision": "fp16"}, {"batch_size": 0}]
)
def test_sampling_refuses_what_makes_no_sense(base: Path, wrong: Record) -> None:
    with pytest.raises(ValueError, match=r"steps|precision|nothing to sample"):
        sample(load_base(str(base)), torch.zeros(1, 1, 16, 16), **wrong)


def test_a_grid_places_images_row_by_row() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 1.0, 0.0)])
    picture = grid(images, columns=2, scale=1, gap=1)
    assert picture.size == (7, 7)
    assert [picture.getpixel(at) for at in ((1, 1), (4, 1), (1, 4), (4, 4))] == [0, 255, 128, 255]


@pytest.mark.parametrize(
    ("field", "value"),
    [("samples", 3), ("reference", 0), ("steps", 0), ("precision", "int8"), ("latency_rounds", 0)],
)
def test_a_protocol_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field.split("_")[0]):
        replace(PROTOCOL, **{field: value})


def test_a_cut_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "0.json"
    for text in ("", '{"schema": 1, "qua', "[]", '{"schema": 2, "quality": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"0\.json.*run it again"):
            run.read_record(path)


def test_records_with_nan_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_record(tmp_path / "0.json", {"quality": {"frechet": float("nan")}})
    assert list(tmp_path.iterdir()) == []


def test_long_notes_stay_in_the_model_folder(bench: Bench, tmp_path: Path) -> None:
    record = bench.run(RECIPE, folder=tmp_path)
    saved = json.loads((tmp_path / "model" / "pruning.json").read_text())
    assert record["notes"][0]["only_in_model_folder"] == ["keep"]
    assert saved["notes"]["stages"][0]["keep"]


def test_a_model_with_steps_of_its_own_is_sampled_in_them(bench: Bench) -> None:
    """Also where they are as many as the base's, which the protocol's replace."""
    pipe = bench.dense.private_copy()
    same = replace(pipe, steps=int(bench.dense.steps))
    assert PROTOCOL.steps != same.steps
    choices = ((pipe, PROTOCOL.steps), (replace(pipe, steps=5), 5), (same, same.steps))
    for changed, steps in choices:
        with metered(type(pipe.denoiser)) as cost:
            bench.sample(changed, 0)
        assert cost.denoiser_images == steps * PROTOCOL.samples


def test_a_recipe_hands_on_which_steps_were_chosen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = registry.build_recipe(["dense"])
    untouched = bench.compress(recipe, 0)[0]
    assert bench._is_dense(untouched)
    steps = int(bench.dense.steps)
    monkeypatch.setattr(registry, "load", breaking(lambda pipe, task: replace(pipe, steps=steps)))
    chosen = bench.compress(recipe, 1)[0]
    assert chosen.steps == untouched.steps and not bench._is_dense(chosen)


# --- provenance ------------------------------------------------------------------------------

EDITED = """
import sys
from pathlib import Path

root = Path(sys.argv[1])
sys.path.insert(0, str(root))
from methods.harness import bases, run
from methods import registry

recipe = registry.build_recipe(["magnitude"])
before, state = run.code_sha256(recipe), run.git_state()
for file in ("harness/cost.py", "magnitude.py"):
    with (root / "methods" / file).open("a") as stream:
        stream.write("# edited")
assert (run.code_sha256(recipe), run.git_state()) == (before, state)
for _ in range(2):
    try:
        run._load("magnitude")
    except ValueError as error:
        print(error)
run._load("dense")  # was not edited
"""


def test_records_tell_of_the_code_that_the_process_started_with(tmp_path: Path) -> None:
    copied = ("methods/*.py", "methods/harness/*.py", "kb/*.py", "kb/rules/*.py")
    for path in (path for pattern in copied for path in run.ROOT.glob(pattern)):
        target = tmp_path / path.relative_to(run.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    asked = [sys.executable, "-c", EDITED, str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = done.stdout.splitlines()
    assert len(refused) == 2
    assert all(line.startswith("methods/magnitude.py was edited after") for line in refused)


def test_the_hash_of_the_code_is_that_of_its_files() -> None:
    digest = hashlib.sha256()
    files = [*sorted((run.ROOT / "methods" / "harness").glob("*.py"))]
    files += [run.ROOT / "methods" / name for name in ("finetune.py", "magnitude.py")]
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    assert run.code_sha256(RECIPE) == digest.hexdigest()
    with pytest.raises(ValueError, match=r"methods/nothing.py was not there"):
        run.source("nothing.py")


def test_dense_images_are_kept_by_all_that_they_depend_on() -> None:
    """Decoder and requests count beside the denoiser, whose hash is the base's."""
    pipe = tiny.conditional("t2i")
    other = tiny.conditional("t2i", seed=1)
    pipe = replace(pipe, autoencoder=bases.small_autoencoder())
    hashes = {
        run._tensors_sha256(run._around(changed))
        for changed in (
            pipe,
            replace(pipe, autoencoder=bases.small_autoencoder()),
            replace(pipe, conditioning=other.conditioning),
        )
    }
    assert len(hashes) == 3
    assert run._around(tiny.pipeline()) == {}
