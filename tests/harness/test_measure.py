"""Counts against hand counts and the literature, timing by fake clocks, memory by known tensors."""

import getpass
import json
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from methods.harness import measure
from methods.harness.measure import Macs, Seconds, Timing, count_macs, interleaved, peak_memory


def ddpm_cifar10() -> UNet2DModel:
    """The architecture of google/ddpm-cifar10-32, without weights."""
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            attention_head_dim=None,
        )


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("kept", torch.zeros(5, dtype=torch.float64))
        self.register_buffer("dropped", torch.zeros(7), persistent=False)


def test_shared_parameters_count_once() -> None:
    module = Tied()
    with torch.no_grad():
        module.a.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]))
    assert measure.count_params(module) == 9
    assert measure.count_nonzero(module) == 3


def test_weight_bytes_follow_the_types_and_leave_out_what_is_not_stored() -> None:
    assert measure.weight_bytes(Tied()) == 9 * 4 + 5 * 8
    assert measure.weight_bytes(nn.Linear(3, 2).to(torch.bfloat16)) == (6 + 2) * 2


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # outputs x taps x inputs per group; the picture is 12 x 10, the batch 2
        (nn.Conv2d(6, 8, 3), 2 * (10 * 8) * 8 * 9 * 6),
        (nn.Conv2d(6, 8, 3, padding=1), 2 * (12 * 10) * 8 * 9 * 6),
        (nn.Conv2d(6, 8, 3, padding=1, stride=2), 2 * (6 * 5) * 8 * 9 * 6),
        (nn.Conv2d(6, 8, (3, 1), groups=2, bias=False), 2 * (10 * 10) * 8 * 3 * 3),
        # each input pixel reaches every output channel by every tap
        (nn.ConvTranspose2d(6, 8, 2, stride=2), 2 * (12 * 10) * 6 * 8 * 4),
    ],
)
def test_macs_of_one_convolution(layer: nn.Module, expected: int) -> None:
    assert count_macs(layer, {"input": torch.zeros(2, 6, 12, 10)}) == Macs(expected, 0)


def test_macs_of_one_linear() -> None:
    expected = Macs(2 * 7 * 5 * 11, 0)
    assert count_macs(nn.Linear(5, 11), {"input": torch.zeros(2, 7, 5)}) == expected
    # A layout that torch multiplies as a batch of matrices is still a linear layer.
    transposed = torch.zeros(2, 5, 7).transpose(1, 2)
    assert count_macs(nn.Linear(5, 11), {"input": transposed}) == expected
    assert count_macs(nn.Linear(5, 11, bias=False), {"input": transposed}) == expected


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.to_out = nn.Linear(8, 4)

    def forward(self, q: Tensor, kv: dict[str, Tensor]) -> Tensor:
        if self.fused:
            x = F.scaled_dot_product_attention(q, kv["k"], kv["v"])
        else:
            x = (q @ kv["k"].transpose(-1, -2)).softmax(-1) @ kv["v"]
        return self.to_out(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("fused", [True, False])
def test_macs_of_one_attention(fused: bool) -> None:
    q, k = torch.zeros(3, 2, 16, 4), torch.zeros(3, 2, 10, 4)
    found = count_macs(Attention(fused), {"q": q, "kv": {"k": k, "v": k}})
    # batch x heads x queries x keys x width, for Q K^T and again for A V
    assert found.attention == 2 * (3 * 2 * 16 * 10 * 4)
    assert found.conv_linear == 3 * 16 * 8 * 4
    assert found.total == found.attention + found.conv_linear


def test_ddpm_cifar10_has_the_published_size() -> None:
    module = ddpm_cifar10()
    found = count_macs(module, {"sample": torch.zeros(1, 3, 32, 32), "timestep": 1})
    assert measure.count_params(module) == 35_746_307
    assert measure.weight_bytes(module) == 4 * 35_746_307
    assert 6.05e9 < found.conv_linear < 6.07e9
    # Single-head attention of 256 channels: five blocks at 16 x 16, one at 4 x 4.
    assert found.attention == 5 * 2 * 256 * 256**2 + 2 * 256 * 16**2


def test_stable_diffusion_15_is_counted_without_weights() -> None:
    with torch.device("meta"):
        module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    inputs = {
        "sample": torch.zeros(1, 4, 64, 64),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.zeros(1, 77, 768),
    }
    found = count_macs(module, inputs)
    assert measure.count_params(module) == 859_520_964
    assert round(found.conv_linear / 1e9, 2) == 338.61
    assert round(found.attention / 1e9, 2) == 63.03


class WithPlainTensor(nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer, as some embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(3)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.table)  # type: ignore[no-any-return]


def test_counting_leaves_the_module_alone() -> None:
    module = WithPlainTensor().train()
    before = dict(module.named_parameters())
    assert count_macs(module, {"x": torch.zeros(4, 3)}) == Macs(4 * 3 * 2, 0)
    assert module.training
    assert module.table.device.type == "cpu"
    assert all(p is before[name] and p.requires_grad for name, p in module.named_parameters())


def test_zeros_in_the_weights_do_not_lower_macs() -> None:
    module, inputs = tiny_unet(), {"sample": torch.zeros(2, 1, 8, 8), "timestep": 3}
    dense, nonzero = count_macs(module, inputs), measure.count_nonzero(module)
    with torch.no_grad():
        module.mid_block.resnets[0].conv1.weight.zero_()
    assert count_macs(module, inputs) == dense
    assert measure.count_nonzero(module) == nonzero - 16 * 16 * 9
    assert measure.count_params(module) >= nonzero


class FakeMachine:
    """Two clocks that advance only when a variant runs."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.calls: list[str] = []
        self.threads: list[int] = []

    def variant(self, name: str, *wall_seconds: float) -> Callable[[], None]:
        series = iter(wall_seconds)

        def run() -> None:
            self.calls.append(name)
            self.threads.append(torch.get_num_threads())
            seconds = next(series)
            self.wall += seconds
            self.cpu += seconds / 2

        return run


def test_interleaving_keeps_every_round_and_warms_up_unmeasured() -> None:
    machine = FakeMachine()
    variants = {
        "a": machine.variant("a", 100, 1, 2, 3),
        "b": machine.variant("b", 100, 10, 20, 60),
    }
    found = interleaved(
        variants, rounds=3, warmup=1, wall_clock=lambda: machine.wall, cpu_clock=lambda: machine.cpu
    )
    assert machine.calls == ["a", "b", "a", "b", "b", "a", "b", "a"]
    assert found["a"].wall.rounds == (1, 2, 3)
    assert found["b"].wall.rounds == (10, 20, 60)
    assert found["b"].cpu.rounds == (5, 10, 30)
    assert (found["b"].wall.median, found["b"].wall.min) == (20, 10)
    assert found["b"].wall.spread == pytest.approx((40 - 15) / 20)
    assert (found["a"].threads, found["a"].device) == (1, "cpu")


@given(st.integers(1, 6))
def test_over_two_n_rounds_every_variant_stands_everywhere_equally_often(n: int) -> None:
    names = [str(i) for i in range(n)]
    orders = [measure._order(names, i) for i in range(2 * n)]
    for name in names:
        assert sorted(order.index(name) for order in orders) == sorted([*range(n), *range(n)])


def test_threads_are_set_for_timing_and_restored_also_after_an_error() -> None:
    before = torch.get_num_threads()
    machine = FakeMachine()
    try:
        torch.set_num_threads(2)
        interleaved({"a": machine.variant("a", *[0] * 4)}, rounds=2, warmup=2, threads=1)
        assert machine.threads == [1] * 4
        assert torch.get_num_threads() == 2
        with pytest.raises(StopIteration):
            interleaved({"a": machine.variant("a")}, rounds=1, warmup=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warmup": -1}, {"threads": 0}, {"variants": {}}])
def test_impossible_timings_are_refused(wrong: dict[str, object]) -> None:
    settings = {"variants": {"a": lambda: None}, "rounds": 1, "warmup": 0} | wrong
    with pytest.raises(ValueError, match="timing needs a variant, a round, a thread"):
        interleaved(**settings)  # type: ignore[arg-type]


def timing(*seconds: float, device: str = "cpu", wall: float = 1.0) -> Timing:
    return Timing(Seconds(tuple(wall * s for s in seconds)), Seconds(seconds), 1, device)


def test_speedup_is_the_median_of_ratios_within_rounds() -> None:
    # A slow phase of the machine doubles both: the ratio of a round does not move.
    dense, pruned = timing(2, 4, 9), timing(1, 2, 3)
    found = measure.speedup(dense, pruned, Macs(10, 2), Macs(5, 2))
    assert (found.cpu, found.wall) == (2, 2)
    assert not found.fewer_macs_but_slower


def test_fewer_macs_but_slower_is_flagged() -> None:
    dense, pruned, same = timing(1, 1), timing(2, 2), timing(1, 1)
    assert measure.speedup(dense, pruned, Macs(10, 0), Macs(5, 0)).fewer_macs_but_slower
    assert not measure.speedup(dense, pruned, Macs(10, 0), Macs(10, 0)).fewer_macs_but_slower
    assert not measure.speedup(dense, same, Macs(10, 0), Macs(5, 0)).fewer_macs_but_slower
    # The host's CPU time says nothing about a GPU: there, wall time decides.
    quick, slow = timing(1, 1, device="cuda:0"), timing(2, 2, device="cuda:0", wall=0.1)
    found = measure.speedup(quick, slow, Macs(10, 0), Macs(5, 0))
    assert found.cpu < 1 < found.wall
    assert not found.fewer_macs_but_slower


def test_timings_that_cannot_be_paired_are_refused() -> None:
    for pruned in (timing(1, 1), timing(1, 1, 0)):
        with pytest.raises(ValueError, match="same rounds"):
            measure.speedup(timing(1, 1, 1), pruned, Macs(1, 0), Macs(1, 0))


def test_denoisers_are_timed_as_copies_in_the_asked_precision() -> None:
    seen: list[tuple[torch.dtype, bool, bool]] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            assert timestep.dtype == torch.int64
            last = sample.is_contiguous(memory_format=torch.channels_last)
            seen.append((self.conv.weight.dtype, last, torch.is_inference_mode_enabled()))
            return self.conv(sample)  # type: ignore[no-any-return]

    module = Spy().train()
    inputs = {"sample": torch.zeros(2, 4, 6, 6), "timestep": torch.tensor([1, 2])}
    found = measure.time_denoisers(
        {"one": module}, inputs, rounds=2, warmup=1, dtype=torch.bfloat16, channels_last=True
    )
    assert seen == [(torch.bfloat16, True, True)] * 3
    assert len(found["one"].cpu.rounds) == 2
    assert module.training
    assert module.conv.weight.dtype == torch.float32
    assert module.conv.weight.requires_grad


def test_latency_of_a_real_denoiser_is_compared() -> None:
    inputs = {"sample": torch.zeros(2, 1, 8, 8), "timestep": 3}
    gain, dense, pruned = measure.compare_latency(
        tiny_unet(), tiny_unet(), inputs, rounds=3, warmup=1
    )
    ratios = [d / p for d, p in zip(dense.cpu.rounds, pruned.cpu.rounds, strict=True)]
    assert gain.cpu == sorted(ratios)[1]
    assert not gain.fewer_macs_but_slower  # equal MACs, whichever was faster
    assert min(*dense.wall.rounds, *pruned.wall.rounds) > 0


def test_peak_memory_of_known_allocations() -> None:
    weight = torch.zeros(1000)

    def work() -> Tensor:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1  # 800
        del a  # 400
        c = torch.cat([b, b])  # 1200
        view = c.view(10, 20)
        del c  # the view keeps it alive
        weight[5:].add_(1)  # existed before
        wide = view.double()  # + 1600 = 2800
        del wide
        return view * 2  # 2000

    assert peak_memory(work) == 2800
    assert peak_memory(work) == 2800


def test_peak_memory_counts_what_backward_keeps() -> None:
    x = torch.zeros(8, 100, requires_grad=True)

    def chain(steps: int) -> None:
        y = x
        for _ in range(steps):
            y = y.exp()

    def inference() -> None:
        with torch.inference_mode():
            chain(5)

    # Each exp saves its result for the backward pass; without one only two live at a time.
    assert peak_memory(lambda: chain(5)) == 5 * 3200
    assert peak_memory(inference) == 2 * 3200


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_peak_memory_follows_composed_operations(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    a, b, c = torch.zeros(10, 2), torch.zeros(2, 50), torch.zeros(50, 1)

    def chain() -> None:
        with mode():
            torch.linalg.multi_dot([a, b, c])

    # a (b c): the inner product of 2 x 1 lives until the outer one of 10 x 1 is done.
    assert peak_memory(chain) == 4 * (2 + 10)


def test_peak_memory_of_a_denoiser_grows_with_the_batch_and_leaves_weights_out() -> None:
    module = tiny_unet()

    def run(batch: int) -> int:
        sample = torch.zeros(batch, 1, 8, 8)
        with torch.inference_mode():
            return peak_memory(lambda: module(sample, 3))

    assert run(8) == pytest.approx(8 * run(1), rel=0.05)


def test_system_info_is_json_and_names_nobody() -> None:
    record = json.loads(json.dumps(measure.system_info()))
    assert record["torch"] == torch.__version__
    assert record["python"] == platform.python_version()
    assert record["cpu"] and record["cores"] >= 1 and record["memory_gib"] >= 1
    assert {"cpu_flags", "cpu_capability", "cuda", "platform", "diffusers"} <= record.keys()
    text = json.dumps(list(record.values()))
    assert platform.node() not in text
    assert str(Path.cwd()) not in text and f'"{getpass.getuser()}"' not in text


def test_the_processor_is_read_from_cpuinfo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(measure, "_CPUINFO", file)
    assert measure.system_info()["cpu"] in (platform.processor(), platform.machine())
    assert measure.system_info()["cpu_flags"] == []
    block = "processor\t: {}\nmodel name\t: Chip: the {}th\nflags\t\t: fpu amx_bf16 avx2 x\n"
    file.write_text(block.format(0, 0) + "\n" + block.format(1, 1))
    assert measure.system_info()["cpu"] == "Chip: the 0th"
    assert measure.system_info()["cpu_flags"] == ["avx2", "amx_bf16"]
