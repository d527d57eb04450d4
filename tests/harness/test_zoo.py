"""True architectures have their published sizes; nothing is allocated."""

from __future__ import annotations

import pytest

from methods.harness import zoo
from methods.harness.measure import count_macs, count_params

PARAMS = {
    # Counted from the official weights or printed by the papers; see specs of each method.
    "ddpm_cifar10": 35_746_307,
    "sd15": 859_520_964,
    "sd21": 865_910_724,
    "bk_sdm_base": 579_384_964,
    "bk_sdm_small": 482_346_884,
    "bk_sdm_tiny": 323_384_964,
    "bk_sdm_v2_base": 583_480_964,
    "bk_sdm_v2_small": 485_787_524,
    "bk_sdm_v2_tiny": 326_825_604,
    "sdxl": 2_567_463_684,
    "sd3_medium": 2_028_328_000,
    "flux_dev": 11_901_408_320,
    "dit_xl_2": 749_826_464,
}
GMACS = {
    # convolution and linear, attention matmuls
    "ddpm_cifar10": (6.054, 0.168),
    "sd15": (338.61, 63.03),
    "sd21": (339.10, 63.03),
    "sdxl": (2988.66, 391.96),
    "bk_sdm_base": (223.67, 37.8),
    "bk_sdm_tiny": (204.95, 37.8),
    "flux_dev": (29_756.0, 7_436.0),
    "dit_xl_2": (114.44, 4.23),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters(name):
    model, _ = zoo.ARCHITECTURES[name].on_meta()
    assert count_params(model) == PARAMS[name]


@pytest.mark.parametrize("name", GMACS)
def test_macs(name):
    model, inputs = zoo.ARCHITECTURES[name].on_meta()
    macs = count_macs(model, inputs)
    assert macs.conv_linear / 1e9 == pytest.approx(GMACS[name][0], rel=2e-4)
    assert macs.attention / 1e9 == pytest.approx(GMACS[name][1], rel=2e-3)


def test_shipped_bases_are_counted_too():
    for name in zoo.BASES:
        model, inputs = zoo.ARCHITECTURES[name].on_meta()
        assert 1e6 < count_params(model) < 5e6
        assert count_macs(model, inputs).conv_linear > 0
