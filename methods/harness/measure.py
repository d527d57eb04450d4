"""What a denoiser costs: parameters, bytes, MACs, seconds, peak memory, and on which machine."""

import copy
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Inputs = Mapping[str, Any]
Clock = Callable[[], float]

_LAYERS: Final = frozenset(
    {
        F.linear,
        *(F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    }
)
_CPUINFO: Final = Path("/proc/cpuinfo")
# Instruction sets that decide how fast low precision runs on a CPU.
_CPU_FLAGS: Final = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve"),
)


def count_params(module: nn.Module) -> int:
    """Number of parameters; shared ones count once, buffers not."""
    return sum(p.numel() for p in module.parameters())


def count_nonzero(module: nn.Module) -> int:
    """Number of parameters that are not zero, shared ones once. Needs real weights, not meta."""
    return sum(int(torch.count_nonzero(p)) for p in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of what a checkpoint stores: parameters and persistent buffers, each in its own type.

    Shared tensors count once. Zeros are stored like any value, as a dense file format does.
    """
    stored = {id(t): t for t in module.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.element_size() for t in stored.values())


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass; 1 MAC is 2 FLOPs."""

    conv_linear: int  # convolutions and linear layers without biases: the literature's figure
    attention: int  # products between activations: Q K^T and A V

    @property
    def total(self) -> int:
        """Both together."""
        return self.conv_linear + self.attention


def count_macs(module: nn.Module, inputs: Inputs) -> Macs:
    """MACs of ``module(**inputs)``, by one forward pass on the meta device: no arithmetic, no copy.

    Biases, norms, activations and softmax are left out; every tap of a convolution counts, also on
    padding; a zero weight costs what any weight costs. ``inputs`` may hold nested containers, and
    tensors on any device. The module itself is neither run nor changed.
    """
    ghost = _meta_copy(module).eval()
    counter = FlopCounterMode(display=False)
    # Fused attention kernels escape the counter on some devices; the plain one is two products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, _LayerFlops(counter) as layers:
        ghost(**_map_tensors(dict(inputs), lambda t: t.to("meta")))
    return Macs(layers.flops // 2, (counter.get_total_flops() - layers.flops) // 2)


def macs_inside(module: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, int]:
    """MACs, attention included, spent inside each named submodule; "" is the whole.

    Counted as `count_macs` does, in one forward pass.
    """
    ghost = _meta_copy(module).eval()
    counter = FlopCounterMode(display=False)
    flops = dict.fromkeys(["", *names], 0)

    def watch(name: str, sign: int) -> Callable[..., None]:
        def look(*_: Any) -> None:
            flops[name] += sign * counter.get_total_flops()

        return look

    for name in names:
        ghost.get_submodule(name).register_forward_pre_hook(watch(name, -1))
        ghost.get_submodule(name).register_forward_hook(watch(name, 1))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        ghost(**_map_tensors(dict(inputs), lambda t: t.to("meta")))
    flops[""] = counter.get_total_flops()
    return {name: found // 2 for name, found in flops.items()}


class _LayerFlops(TorchFunctionMode):
    """Sums what a flop counter gains inside calls of convolutions and linear layers."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if func in _LAYERS:
            self.flops += self.counter.get_total_flops() - before
        return result


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy with every tensor on meta; weights are never duplicated on the way."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()
    }
    others = [*module.buffers(), *(t for m in module.modules() for t in vars(m).values())]
    memo |= {id(t): t.detach().to("meta") for t in others if isinstance(t, Tensor)}
    return copy.deepcopy(module, memo)


@dataclass(frozen=True)
class Seconds:
    """Raw durations, one a round, in the order in which they were taken."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def min(self) -> float:
        """Fastest round."""
        return min(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 for a single round."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class Timing:
    """One variant's rounds; CPU time is of the whole process and says nothing about a GPU."""

    wall: Seconds
    cpu: Seconds
    threads: int
    device: str


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    threads: int = 1,
    device: torch.device | str = "cpu",
    wall_clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> dict[str, Timing]:
    """Times variants in turn, so that whatever slows the machine slows all of them.

    Each round calls every variant once; the order is rotated every second round and reversed in
    between, so that over 2 n rounds each of n variants stands at each place equally often. On CUDA
    every call is synchronised. torch's thread count is ``threads`` meanwhile and is restored
    afterwards. On a shared machine CPU time with one thread agrees between runs where wall time
    does not: compare variants of one call of this function only. ValueError for no variants, no
    rounds, no threads or a negative warm-up.
    """
    if not variants or rounds < 1 or warmup < 0 or threads < 1:
        raise ValueError(
            "timing needs a variant, a round, a thread and no negative warm-up, got "
            f"{len(variants)} variants, rounds={rounds}, threads={threads}, warmup={warmup}"
        )
    device = torch.device(device)
    names = list(variants)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(warmup):
            for name in names:
                variants[name]()
        _synchronise(device)
        for i in range(rounds):
            for name in _order(names, i):
                wall_start, cpu_start = wall_clock(), cpu_clock()
                variants[name]()
                _synchronise(device)
                cpu_end, wall_end = cpu_clock(), wall_clock()
                wall[name].append(wall_end - wall_start)
                cpu[name].append(cpu_end - cpu_start)
    finally:
        torch.set_num_threads(threads_before)
    return {
        name: Timing(Seconds(tuple(wall[name])), Seconds(tuple(cpu[name])), threads, str(device))
        for name in names
    }


def time_denoisers(
    denoisers: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    rounds: int = 20,
    warmup: int = 3,
    threads: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> dict[str, Timing]:
    """Interleaved timings of one forward pass ``denoiser(**inputs)`` each, in inference mode.

    Copies are timed, cast to ``dtype`` (None keeps each tensor's own) and, on request, laid out
    channels-last; the given modules stay as they are.
    """
    ready = placed(inputs, device, dtype, channels_last=channels_last)

    def call(denoiser: nn.Module) -> Callable[[], None]:
        clone = copy.deepcopy(denoiser).eval().requires_grad_(False)
        # diffusers' own ``to`` logs a warning for every cast, whether or not one is needed.
        nn.Module.to(clone, device=device, dtype=dtype)
        if channels_last:
            clone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def forward() -> None:
            with torch.inference_mode():
                clone(**ready)

        return forward

    calls = {name: call(denoiser) for name, denoiser in denoisers.items()}
    return interleaved(calls, rounds=rounds, warmup=warmup, threads=threads, device=device)


def placed(
    inputs: Inputs,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    channels_last: bool = False,
) -> dict[str, Any]:
    """The inputs on a device, floating-point tensors in `dtype` (None keeps each tensor's own)."""
    found: dict[str, Any] = _map_tensors(
        dict(inputs), lambda t: _place(t, device, dtype, channels_last)
    )
    return found


@dataclass(frozen=True)
class Speedup:
    """How many times faster the pruned model is: the median of the ratios within each round."""

    cpu: float
    wall: float
    fewer_macs_but_slower: bool  # by wall time on CUDA, by CPU time elsewhere


def speedup(dense: Timing, pruned: Timing, dense_macs: Macs, pruned_macs: Macs) -> Speedup:
    """Compares two timings of one ``interleaved`` call. ValueError if they cannot be paired."""
    cpu = _paired_ratio(dense.cpu, pruned.cpu)
    wall = _paired_ratio(dense.wall, pruned.wall)
    decisive = wall if torch.device(dense.device).type == "cuda" else cpu
    return Speedup(cpu, wall, pruned_macs.total < dense_macs.total and decisive < 1)


def compare_latency(
    dense: nn.Module,
    pruned: nn.Module,
    inputs: Inputs,
    *,
    rounds: int = 20,
    warmup: int = 3,
    threads: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> tuple[Speedup, Timing, Timing]:
    """Speed-up of ``pruned`` over ``dense`` and the timings of both; see ``time_denoisers``."""
    timings = time_denoisers(
        {"dense": dense, "pruned": pruned},
        inputs,
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        device=device,
        dtype=dtype,
        channels_last=channels_last,
    )
    macs = count_macs(dense, inputs), count_macs(pruned, inputs)
    gain = speedup(timings["dense"], timings["pruned"], *macs)
    return gain, timings["dense"], timings["pruned"]


def _order(names: Sequence[str], i: int) -> list[str]:
    shift = i // 2 % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if i % 2 else order


def _paired_ratio(dense: Seconds, pruned: Seconds) -> float:
    if len(dense.rounds) != len(pruned.rounds) or not all(s > 0 for s in pruned.rounds):
        raise ValueError("a ratio needs timings of the same rounds, each longer than a clock tick")
    return statistics.median(d / p for d, p in zip(dense.rounds, pruned.rounds, strict=True))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _place(
    t: Tensor, device: torch.device | str, dtype: torch.dtype | None, channels_last: bool
) -> Tensor:
    moved = t.to(device=device, dtype=dtype if t.is_floating_point() else None)
    if channels_last and moved.ndim == 4:
        moved = moved.contiguous(memory_format=torch.channels_last)
    return moved


def peak_memory(fn: Callable[[], object], *, device: torch.device | str = "cpu") -> int:
    """Most bytes of tensor storage alive at once during ``fn()``, beyond what was alive before.

    So weights and inputs that exist already are not in it; add ``weight_bytes``. On CUDA it is the
    allocator's own peak. On the CPU, whose allocator keeps no peak, it follows every storage that a
    torch operation returns until it is freed: deterministic, activations and saved gradients
    included; scratch space inside a kernel and memory outside torch are not.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    live = _LiveBytes()
    with live:
        fn()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows storages that operations create, by weak references."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        # A weak reference keeps a storage's address from being reused, so it can serve as the key.
        self._given: dict[int, StorageWeakRef] = {}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _strided((args, kwargs)):
            ref = _reference(tensor)
            if ref.cdata not in self._made:
                self._given.setdefault(ref.cdata, ref)
        with self:  # operations that torch composes of others are followed step by step
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        gone = [key for key, (ref, _) in self._made.items() if ref.expired()]
        for key in gone:
            del self._made[key]
        for tensor in _strided(result):
            ref = _reference(tensor)
            if ref.cdata not in self._given:
                self._made[ref.cdata] = (ref, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


def _reference(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _strided(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        if tree.layout is torch.strided:
            yield tree
    elif isinstance(tree, Mapping):
        yield from _strided(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _strided(item)


def _map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dicts, lists and tuples with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _map_tensors(item, change) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_tensors(item, change) for item in tree)
    return tree


def system_info() -> dict[str, Any]:
    """Hardware and software that timings depend on, as JSON; no name of a host or a user."""
    fields = _cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": math.ceil(gib),
        "cuda": _cuda_devices(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
    }


def _cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        first = _CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cuda_devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
