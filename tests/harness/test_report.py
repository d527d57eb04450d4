"""What stands beside the points and the images of a comparison."""

from __future__ import annotations

from methods.harness import report


def test_a_reconstruction_is_called_one_in_legends_and_captions() -> None:
    names = ("smaller_faster_sd (reconstruction)", "taylor stride=10", "ecodiff a=1", "ecodiff a=2")
    legend = report._series([{"recipe": name} for name in names])
    assert list(legend.values()) == [names[0], "taylor", names[2], names[3]]
    row = {"method": "smaller_faster_sd", "macs_fraction": 0.5, "optimizer_steps": 9}
    caption = report._caption(row | {"frechet": {"mean": 12.3}})
    assert caption == "smaller_faster_sd\n(reconstruction)\n50 % MACs, 9 steps\nFréchet 12"
