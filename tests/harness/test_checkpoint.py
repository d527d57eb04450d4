"""A saved model is data: it comes back bit for bit, or is refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from safetensors.torch import load_file, save_file

from methods.harness import checkpoint
from methods.harness.channels import channel_groups
from methods.harness.checkpoint import load_base, load_pruned, read_tensors, save_base, save_pruned
from methods.harness.surgery import cut, ratio_widths, select
from tests.experiments import text_lab

from . import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def saved(tmp_path):
    pipe = tiny.pipeline("many_heads")
    groups = channel_groups(pipe.denoiser)
    widths = ratio_widths(groups, 0.5)
    draw = torch.Generator().manual_seed(0)
    keep = {
        g.name: select(g, torch.rand(g.size, generator=draw), widths[g.name])
        for g in groups
        if widths[g.name] < g.size
    }
    pipe = cut(pipe, keep)
    # A second cut on top: edits are replayed in order.
    first = channel_groups(pipe.denoiser)[3]
    narrower = ratio_widths([first], 0.5)[first.name]
    pipe = cut(pipe, {first.name: select(first, torch.zeros(first.size), narrower)})
    save_pruned(pipe, tmp_path / "model", "tiny", {"why": "test"})
    return pipe, tmp_path / "model"


def test_reload_is_bit_exact(saved):
    pipe, folder = saved
    back = load_pruned(folder)
    before, after = pipe.denoiser.state_dict(), back.denoiser.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    assert back.edits == pipe.edits
    assert back.steps == pipe.steps
    settings = [
        {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        for scheduler in (back.scheduler, pipe.scheduler)
    ]
    assert settings[0] == settings[1]
    for (name, a), (_, b) in list(
        zip(pipe.denoiser.named_modules(), back.denoiser.named_modules(), strict=True)
    )[1:]:  # the model itself keeps such values in its config
        for attribute in ("in_channels", "out_channels", "num_groups", "heads", "channels"):
            assert getattr(a, attribute, None) == getattr(b, attribute, None), (name, attribute)


def test_reload_in_a_fresh_process_is_bit_exact(saved, tmp_path):
    pipe, folder = saved
    x, t = tiny.inputs(pipe.denoiser)
    with torch.no_grad():
        expected = pipe.denoiser(x, t).sample
    state = {f"state/{name}": value for name, value in pipe.denoiser.state_dict().items()}
    save_file(state | {"x": x, "t": t, "expected": expected}, tmp_path / "io.safetensors")
    program = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import load_file\n"
        "from methods.harness.checkpoint import load_pruned\n"
        "torch.set_num_threads(1); io = load_file(sys.argv[2])\n"
        "model = load_pruned(Path(sys.argv[1])).denoiser\n"
        "state = model.state_dict()\n"
        "assert {f'state/{name}' for name in state} <= io.keys()\n"
        "assert all(torch.equal(io[f'state/{n}'], v) for n, v in state.items())\n"
        "with torch.no_grad():\n"
        "    out = model(io['x'], io['t']).sample\n"
        "print(float((out - io['expected']).abs().max()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "io.safetensors")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-6


def test_a_pruned_model_drops_into_the_stock_pipeline(saved):
    _, folder = saved
    back = load_pruned(folder)
    stock = DDIMPipeline(unet=back.denoiser, scheduler=back.scheduler)
    stock.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(0)
    images = stock(batch_size=2, num_inference_steps=2, generator=draw, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_nothing_is_pickled(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "pruning.json",
        "scheduler_config.json",
    ]


def rewrite(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def retensor(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut_in_the_middle(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def one_shape_changed(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"][1:].clone()


DAMAGE = {
    "shape": (lambda f: retensor(f, one_shape_changed), "conv_in.weight has shape"),
    "missing": (lambda f: retensor(f, lambda t: t.pop("conv_in.bias")), "conv_in.bias is missing"),
    "extra": (
        lambda f: retensor(f, lambda t: t.update(extra=torch.zeros(1))),
        "unexpected tensor extra",
    ),
    "cut_weights": (lambda f: cut_in_the_middle(f / "model.safetensors"), "not a readable"),
    "cut_record": (lambda f: cut_in_the_middle(f / "pruning.json"), "not valid JSON"),
    "empty_record": (lambda f: (f / "pruning.json").write_text(""), "not valid JSON"),
    "deep_record": (lambda f: (f / "pruning.json").write_text("[" * 100_000), "not valid JSON"),
    "list_record": (lambda f: (f / "pruning.json").write_text("[]"), "not a JSON object"),
    "latin1": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xe9"}'), "not valid JSON"),
    "format": (lambda f: rewrite(f, "pruning.json", lambda r: r.update(format=9)), "format 9"),
    "no_edits": (lambda f: rewrite(f, "pruning.json", lambda r: r.pop("edits")), "edits, shapes"),
    "foreign_edit": (
        lambda f: rewrite(f, "pruning.json", lambda r: r.update(edits=[{"op": "exec"}])),
        "unknown edit",
    ),
    "text_edit": (
        lambda f: rewrite(f, "pruning.json", lambda r: r.update(edits=["cut"])),
        "edit",
    ),
    "wild_index": (
        lambda f: rewrite(
            f, "pruning.json", lambda r: r["edits"][0]["keep"].update(conv_in=[0, 10**9])
        ),
        "conv_in: kept indices",
    ),
    "shapes": (
        lambda f: rewrite(
            f, "pruning.json", lambda r: r["shapes"].update({"conv_in.weight": [1, 1, 3, 3]})
        ),
        "conv_in.weight is recorded as",
    ),
    "class": (
        lambda f: rewrite(f, "config.json", lambda c: c.update(_class_name="Evil")),
        "unknown _class_name 'Evil'",
    ),
    "config": (
        lambda f: rewrite(f, "config.json", lambda c: c.update(block_out_channels=[16])),
        "config.json",
    ),
    "gone": (lambda f: (f / "model.safetensors").unlink(), "does not exist"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_in_one_line(case, saved):
    _, folder = saved
    damage, message = DAMAGE[case]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_pruned(folder)
    assert str(folder) in str(caught.value)


def test_a_save_over_another_model_leaves_nothing_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    text = text_lab.t2i()
    save_pruned(text, folder, "tiny", {})
    assert load_pruned(folder).autoencoder is not None
    plain = tiny.pipeline()
    save_pruned(plain, folder, "tiny", {})
    again = load_pruned(folder)
    assert again.autoencoder is None and again.text is None

    def fails(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(checkpoint, "write_tensors", fails)
        save_pruned(plain, folder, "tiny", {})
    with pytest.raises(FileNotFoundError, match=r"pruning\.json"):
        load_pruned(folder)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # of diffusers
def test_models_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_pruned(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a shipped base"):
        load_base(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="not a shipped base"):
        load_base("fashion_unte")
    with pytest.raises(FileNotFoundError, match="hub model 'nobody/nothing' cannot be loaded"):
        load_base("nobody/nothing")


def test_a_dense_base_is_a_stock_pipeline_directory(tmp_path):
    pipe = tiny.pipeline("one_head")
    save_base(pipe, tmp_path / "base")
    stock = DDIMPipeline.from_pretrained(tmp_path / "base", use_safetensors=True)
    back = load_base(str(tmp_path / "base"))
    for name, tensor in pipe.denoiser.state_dict().items():
        assert torch.equal(tensor, back.denoiser.state_dict()[name])
        assert torch.equal(tensor, stock.unet.state_dict()[name])


def test_tensor_files_keep_their_note(tmp_path):
    from methods.harness.checkpoint import write_tensors

    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"step": "7"})
    tensors, note = read_tensors(tmp_path / "a.safetensors")
    assert tensors["x"].tolist() == [0, 1, 2]
    assert note == {"step": "7"}
