"""The shipped models are what their cards say, and load without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from methods.harness import bases, journal, zoo
from methods.harness.alignment import CLASSIFIER, classify, load_classifier
from methods.harness.checkpoint import load_base
from methods.harness.measure import count_macs, count_params
from methods.harness.pipeline import Task
from methods.harness.run import tensors_sha256
from scripts import base_card, train_classifier

PROVENANCE = {"date", "seed", "commit", "dirty", "system"}


def card_of(folder: Path) -> dict:
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", zoo.BASES)
def test_a_base_is_what_its_card_says(name):
    base = zoo.BASES[name]
    card, pipe = card_of(base.folder), load_base(name)
    assert card["name"] == name and card["describes"] == base.describes
    assert card["weights_sha256"] == tensors_sha256(pipe.denoiser)
    inputs = Task(name, pipe, None).example_inputs()
    assert card["params"] == count_params(pipe.denoiser)
    assert card["macs"] == count_macs(pipe.denoiser, inputs).conv_linear
    model, inputs = zoo.ARCHITECTURES[name].on_meta()
    assert card["params"] == count_params(model)
    assert card["macs"] == count_macs(model, inputs).conv_linear


@pytest.mark.parametrize("name", zoo.BASES)
def test_a_card_tells_what_the_training_log_tells(name):
    folder = zoo.BASES[name].folder
    card, log = card_of(folder), journal.read(folder / "training_log.jsonl")
    assert card["optimizer_steps"] == log[-1]["step"]
    assert card["images"] == log[-1]["images"] == card["batch"] * card["optimizer_steps"]
    assert card["learning_rate"] == max(record["learning_rate"] for record in log)
    assert [record["step"] for record in log] == sorted({record["step"] for record in log})


@pytest.mark.parametrize("name", zoo.BASES)
def test_a_card_is_whole(name):
    folder = zoo.BASES[name].folder
    card = card_of(folder)
    assert card.keys() >= PROVENANCE
    assert (card["agreement"] or {}).keys() == (card["agreement_images"] or {}).keys()
    for picture in ("samples.png", "loss.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert (folder / "README.md").read_text(encoding="utf-8") == base_card.readme(folder)
    if (folder / "autoencoder.json").is_file():
        note = json.loads((folder / "autoencoder.json").read_text(encoding="utf-8"))
        assert note.keys() >= PROVENANCE


def test_no_shipped_file_of_weights_is_too_large():
    files = sorted(zoo.MODELS.rglob("*.safetensors"))
    folders = {file.relative_to(zoo.MODELS).parts[0] for file in files}
    assert folders == {*zoo.BASES, CLASSIFIER.name}
    for file in files:
        assert file.stat().st_size <= bases.LARGEST_FILE, file


def test_the_text_base_is_a_stock_pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(
        zoo.BASES["fashion_t2i"].folder, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        "a red coat on a yellow background",
        guidance_scale=5,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert drawn.shape == (1, 3, 32, 32)
    red, green, blue = drawn[0, :, :2].mean(dim=(1, 2)).tolist()  # the background's upper edge
    assert min(red, green) > 2 * blue


def test_the_classifier_is_shipped_with_its_accuracy():
    card = card_of(CLASSIFIER)
    assert card.keys() >= PROVENANCE
    assert 0.8 < card["accuracy_grey"] < 1 and 0.8 < card["accuracy_tinted"] < 1
    found = classify(load_classifier(), torch.zeros(2, 1, 28, 28))
    assert found.shape == (2, 10)
    assert torch.allclose(found.sum(dim=1), torch.ones(2))
    words = (CLASSIFIER / "README.md").read_text(encoding="utf-8")
    assert words == train_classifier.readme(CLASSIFIER)
