"""Tinted garments, their captions, and whether an image shows what was asked for."""

from __future__ import annotations

import torch

from methods.harness import alignment, bases, garments
from methods.harness.data import ImageSet
from methods.harness.pipeline import Pipeline
from methods.harness.prompts import asked
from tests.harness import tiny


def test_captions_are_whole_words_that_fit():
    text = bases.untrained_text()
    names = bases.captions()
    assert len(names) == len(set(names)) == 561 and names[-1] == ""
    assert "an orange ankle boot on a white background" in names
    assert "red trousers on a yellow background" in names
    tokens = text.tokens(names)
    assert tokens.shape == (561, bases.CAPTION_LENGTH)
    end = text.tokenizer.eos_token_id
    assert (tokens[:, -1] == end).all(), "a caption was cut off"
    assert len(text.tokenizer.tokenize("orange")) == 1


def test_held_out_captions_leave_every_word_and_pair_in_training():
    table, barred = garments.requests(), garments.held_out()
    assert len(barred) == 63
    seen = [request for row, request in enumerate(table) if row not in barred]
    assert {(r.colour, r.background) for r in seen} == {(r.colour, r.background) for r in table}
    assert {(r.garment, r.colour) for r in seen} == {(r.garment, r.colour) for r in table}


def test_tint_by_hand():
    grey = -torch.ones(1, 1, 28, 28)
    grey[0, 0, 10:20, 10:20] = 1.0
    red, blue = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    image = garments.tint(grey, red, blue)
    assert image.shape == (1, 3, 32, 32)
    assert image[0, :, 0, 0].tolist() == [-1.0, -1.0, 1.0]
    assert image[0, :, 16, 16].tolist() == [1.0, -1.0, -1.0]


def test_colours_are_read_back():
    """Backgrounds always; garments but for neighbouring hues, whose mixed edges can mislead: how
    often on photographs is measured in the classifier's card."""
    grey = -torch.ones(56, 1, 28, 28)
    grey[:, :, 6:22, 8:20] = 0.4
    wanted = garments.requests()[:56]
    rows = torch.arange(56)
    images = garments.TintedSet(ImageSet(grey, torch.zeros(56)), rows).take(rows)
    garment, background = alignment.colours(images)
    right = garment == torch.tensor([request.colour for request in wanted])
    assert right.float().mean() >= 0.9
    missed = {(wanted[k].colour, int(garment[k])) for k in torch.nonzero(~right).flatten()}
    assert missed <= {(1, 2), (2, 1), (1, 0)}, "only orange is taken for its neighbours"
    assert background.tolist() == [request.background for request in wanted]
    blank = images[:1, :, :1, :1].expand(1, 3, 32, 32)
    assert alignment.colours(blank)[0].tolist() == [-1]


def test_agreement_counts_what_is_right():
    class Always(alignment.GarmentClassifier):
        def forward(self, images):
            return torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]

    grey = -torch.ones(4, 1, 28, 28)
    grey[:, :, 6:22, 8:20] = 0.4
    shown, rows = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2 + 56, 60])
    images = garments.TintedSet(ImageSet(grey, shown), shown).take(torch.arange(4))
    found = alignment.agreement(Always(), images, rows)
    assert found["class"] == 0.5 and found["all"] == 0.5
    assert found["colour"] >= 0.75


def test_surprise_is_the_cross_entropy_of_the_garment_asked_for():
    torch.manual_seed(0)
    model = alignment.GarmentClassifier(width=4).eval()
    grey = torch.rand(5, 1, 28, 28) * 2 - 1
    colour = torch.rand(5, 3, 32, 32) * 2 - 1
    rows = torch.tensor([0, 57, 200, 300, 559])
    for images, wanted, labels in (
        (grey, torch.tensor([0, 1, 2, 3, 9]), [0, 1, 2, 3, 9]),
        (colour, rows, [garments.requests()[row].garment for row in rows]),
    ):
        with torch.no_grad():
            logits = model(alignment.as_colour(images))
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
        assert abs(alignment.surprise(model, images, wanted) - float(expected)) <= 1e-5
    assert alignment.overall({"class": 0.5}) == 0.5
    assert alignment.overall({"class": 0.5, "colour": 0.9, "all": 0.4}) == 0.4


def test_requests_by_name_by_words_and_in_turn():
    pipe = tiny.conditional("dit")
    assert asked(pipe, "request 3", 2)[1].tolist() == [3, 3]
    assert asked(pipe, None, 12)[1].tolist() == [*range(10), 0, 1]
    assert asked(tiny.pipeline(), None, 2)[1] is None
    text = bases.untrained_text()
    conditioned = Pipeline(
        tiny.text_unet(),
        pipe.scheduler,
        conditioning=bases.embedded_captions(text),
        text=text,
    )
    free, rows = asked(conditioned, "a glowing dress", 3)
    assert rows.tolist() == [0, 0, 0] and free.conditioning.names == ("a glowing dress", "")
