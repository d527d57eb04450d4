"""The baselines: what they hand to the parts that they share with the other channel methods."""

from __future__ import annotations

import pytest
import torch

from methods import magnitude, random_pruning, taylor
from methods.harness.channels import channel_groups
from methods.harness.scores import choose
from methods.harness.surgery import ratio_widths
from tests.harness import tiny


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_keeps_the_channels_of_largest_norm(p):
    pipe = tiny.pipeline()
    widths = ratio_widths(channel_groups(pipe.denoiser), 0.5)
    expected = {
        q: choose(pipe.denoiser, magnitude.SCORES[q], widths, order="sequential") for q in (1, 2)
    }
    assert expected[1] != expected[2]
    config = magnitude.Config(ratio=0.5, p=p)
    _, notes = magnitude.compress(pipe.private_copy(), tiny.task(pipe), config)
    assert notes["keep"] == expected[p]


def test_other_norms_are_refused():
    pipe = tiny.pipeline()
    with pytest.raises(ValueError, match="p must be 1 or 2, not 3"):
        magnitude.compress(pipe, tiny.task(pipe), magnitude.Config(p=3))


@pytest.mark.parametrize(("stride", "count"), [(250, 4), (300, 4), (400, 3)])
def test_taylor_adds_up_all_timesteps_however_small_the_loss_becomes(stride, count):
    """A model of the clean image: the noise that its answer stands for is ever closer."""
    pipe = tiny.pipeline()
    pipe.scheduler.register_to_config(prediction_type="sample")
    config = taylor.Config(ratio=0.5, batch_size=2, stride=stride)
    _, notes = taylor.compress(pipe.private_copy(), tiny.task(pipe), config)
    assert notes["losses"][1] < 0.01 * notes["losses"][0]
    assert len(notes["losses"]) == count


def test_a_model_that_starts_anew_has_torchs_own_weights_and_no_global_randomness():
    pipe = tiny.pipeline()
    around = tiny.task(pipe)
    kept, plain = random_pruning.compress(
        pipe.private_copy(), around, random_pruning.Config(ratio=0.5)
    )
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fresh, notes = random_pruning.compress(
        pipe.private_copy(), around, random_pruning.Config(ratio=0.5, reinit=True)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert notes["keep"] == plain["keep"]

    draw = around.generator("random_pruning")
    for group in channel_groups(pipe.denoiser):
        torch.rand(group.size, generator=draw)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
    expected = kept.private_copy().denoiser
    for module in expected.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    found, old = fresh.denoiser.state_dict(), kept.denoiser.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(found[name], value), name
        assert not torch.equal(found[name], old[name]), name
