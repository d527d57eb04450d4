"""Do 2:4 weights make the linear layers of real denoisers faster on a GPU?

Linear layers and whole transformer blocks (attention, MLP, norms; random weights, half of them zero
in 2:4) of the widths of SD3-medium and FLUX, in bf16: dense kernels, which multiply the zeros,
against torch's semi-structured ones. Times are the GPU's own: a short sleep on the device lets all
launches queue up before the clock starts, as a captured graph would have them; variants take turns.
"searched" is cusparselt with the algorithm that its own search likes best for the shape. A backend
that this GPU or this torch does not have is a row without times.

The bar is the speed that SparseDM claims for 2:4, about 1.2 times dense, for whole blocks: what
attention, norms and activations take stays as it is.

Expect: `python -m methods experiment semi_structured_speed --device cuda` on a GPU of compute
capability 8.0 or more, a clear refusal anywhere else. Without a record yet, so its time is
not known.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from methods.harness.experiment import Column, Finding, Lab, Value, Verdict, paired_logs
from methods.harness.masks import NOfM, removed
from methods.harness.pipeline import seeded
from methods.harness.semi_structured import PACKINGS, pack, packed_bytes, to_semi_structured

CARD = {
    "methods": ["sparsedm"],
    "task": None,
    "bar": "at every width and number of tokens a 2:4 transformer block takes at most 1/1.2 of the "
    "dense one's time with the best backend, by the 95 % interval over seeds",
    "source": "SparseDM, arXiv 2404.10445: about 1.2 times faster with 2:4",
}
WIDTHS = {1536: "SD3-medium", 3072: "FLUX"}
HEAD = {1536: 64, 3072: 128}  # width of a head
CLAIMED = 1.2
SEARCHED = "cusparselt, searched"
_SLEEP = 50_000_000  # GPU cycles, some 30 ms: longer than the launches of a round take
COLUMNS = (
    Column("what", "what"),
    Column("tokens", "tokens"),
    Column("kernel", "kernel"),
    Column("ms", "GPU ms", 4),
    Column("speedup", "times as fast as dense", 3),
    Column("low", "at least", 3),
    Column("error", "largest error, of the largest output", 5),
    Column("bytes", "bytes, of dense", 4),
    Column("note", "note"),
)


@dataclass(frozen=True)
class Config:
    """What is timed, and how often."""

    least: int = 1024  # tokens (images x positions) of a call: least, 4 times, 8 times as many
    mlp: int = 4  # width of the MLP over the width of the model
    rounds: int = 10  # timed rounds for each seed, variants in turn
    calls: int = 10  # calls between two clock marks


Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to compute the same thing."""

    run: Run | None  # None: not on this machine
    bytes: int
    note: str = ""


def investigate(lab: Lab, config: Config) -> Finding:
    """Time every layer and block with every kernel.

    Raises:
        ValueError: the lab's device is not a CUDA device.
    """
    device = torch.device(lab.device)
    if device.type != "cuda":
        raise ValueError(
            f"semi_structured_speed needs a CUDA device, not {lab.device}: torch has no kernel for "
            "2:4 weights elsewhere; give --device cuda"
        )
    tokens = [config.least * factor for factor in (1, 4, 8)]
    rows = []
    for what, shape in shapes(config.mlp):
        for count in tokens:
            lab.report(f"{what}, {count} tokens")
            found = [measure(shape, count, seed, device, config) for seed in lab.seeds]
            rows += summary(what, count, found)
    return judge(rows)


def shapes(mlp: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, (in, out)) of a layer, (name, (width,)) of a block."""
    for width, model in WIDTHS.items():
        for inputs, outputs in ((width, width), (width, mlp * width), (mlp * width, width)):
            yield f"linear {inputs} to {outputs} ({model})", (inputs, outputs)
        yield f"block {width} ({model})", (width,)


@torch.no_grad()
def measure(
    shape: tuple[int, ...], tokens: int, seed: int, device: torch.device, config: Config
) -> dict[str, dict[str, Value]]:
    """Milliseconds, error and bytes of every kernel, on weights and inputs of this seed."""
    draw = seeded(seed, f"semi_structured_speed/{shape}/{tokens}")
    x = torch.randn(1, tokens, shape[0], generator=draw).to(device, torch.bfloat16)
    made = linear(shape, x, draw) if len(shape) == 2 else block(shape[0], x, draw)
    dense = made["dense"]
    assert dense.run is not None
    wanted = dense.run().float()
    times = interleaved(
        {name: variant.run for name, variant in made.items() if variant.run is not None}, config
    )
    return {
        name: {
            "ms": median(times[name]) if name in times else None,
            "error": None
            if variant.run is None
            else float((variant.run().float() - wanted).abs().max() / wanted.abs().max()),
            "bytes": None if variant.run is None else variant.bytes / dense.bytes,
            "note": variant.note,
        }
        for name, variant in made.items()
    }


def linear(shape: tuple[int, ...], x: Tensor, draw: torch.Generator) -> dict[str, Variant]:
    """One layer without bias, its 2:4 weight dense and packed."""
    weight = torch.randn(shape[1], shape[0], generator=draw) / shape[0] ** 0.5
    weight = two_of_four(weight.to(x.device, x.dtype))
    size = weight.numel() * weight.element_size()
    found = {"dense": Variant(partial(F.linear, x, weight), size)}
    ways: dict[str, Callable[[], Tensor]] = {
        **{name: partial(pack, weight, name) for name in PACKINGS},  # type: ignore[arg-type]
        SEARCHED: partial(pack_for, weight, x),
    }
    for name, way in ways.items():
        try:
            packed = way()
            F.linear(x, packed)  # some kernels refuse only when they meet a shape
            found[name] = Variant(partial(F.linear, x, packed), packed_bytes(packed))
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            found[name] = Variant(None, 0, missing(error))
    return found


def pack_for(weight: Tensor, x: Tensor) -> Tensor:
    """Packed by cusparselt with the algorithm that its search prefers for x (1, tokens, in)."""
    plain = pack(weight, "cusparselt")
    chosen = torch._cslt_sparse_mm_search(plain.packed, x[0].t())  # type: ignore[attr-defined]
    packed: Tensor = PACKINGS["cusparselt"].from_dense(weight, alg_id=int(chosen))
    F.linear(x, packed)
    return packed


def block(width: int, x: Tensor, draw: torch.Generator) -> dict[str, Variant]:
    """A pre-norm transformer block, all its linear weights in 2:4."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
        model = BasicTransformerBlock(
            dim=width,
            num_attention_heads=width // HEAD[width],
            attention_head_dim=HEAD[width],
            activation_fn="gelu-approximate",
        )
    model = model.to(x.device, x.dtype).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(two_of_four(layer.weight))
    found = {"dense": Variant(partial(model, x), linear_bytes(model))}
    for name in PACKINGS:
        packed = copy.deepcopy(model)
        layers = [at for at, part in packed.named_modules() if isinstance(part, nn.Linear)]
        try:
            to_semi_structured(packed, layers, backend=name)  # type: ignore[arg-type]
            packed(x)
            found[name] = Variant(partial(packed, x), linear_bytes(packed))
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            found[name] = Variant(None, 0, missing(error))
    return found


def two_of_four(weight: Tensor) -> Tensor:
    return weight.masked_fill(removed(weight.abs(), NOfM(2, 4)), 0.0)


def linear_bytes(model: nn.Module) -> int:
    """Bytes of the weights of all linear layers, packed or not."""
    total = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight
            packed = isinstance(weight, torch.sparse.SparseSemiStructuredTensor)
            total += packed_bytes(weight) if packed else weight.numel() * weight.element_size()
    return total


def missing(error: Exception) -> str:
    """Why a kernel is not there, on one line."""
    return f"not available: {' '.join(str(error).split())}"[:300]


def interleaved(runs: Mapping[str, Run], config: Config) -> dict[str, list[float]]:
    """GPU milliseconds of one call, one figure a round; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(config.rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_SLEEP)
            start.record()
            for _ in range(config.calls):
                runs[name]()
            end.record()
            torch.cuda.synchronize()
            if turn:
                times[name].append(start.elapsed_time(end) / config.calls)
    return times


# --- what is told ----------------------------------------------------------------------------


def summary(
    what: str, tokens: int, found: Sequence[Mapping[str, Mapping[str, Value]]]
) -> list[dict[str, Value]]:
    """One row for each kernel from its figures, one mapping a seed."""
    rows: list[dict[str, Value]] = []
    dense = numbers(found, "dense", "ms")
    for kernel in found[0]:
        row: dict[str, Value] = {"what": what, "tokens": tokens, "kernel": kernel}
        note = next((str(f[kernel]["note"]) for f in found if f[kernel]["note"]), "")
        ms, errors = numbers(found, kernel, "ms"), numbers(found, kernel, "error")
        if note or len(ms) < len(found):
            nothing = dict.fromkeys(("ms", "speedup", "low", "error", "bytes"))
            rows.append(row | nothing | {"note": note or "not available"})
            continue
        gain = paired_logs(dense, ms)  # of dense over sparse
        rows.append(
            row
            | {
                "ms": fmean(ms),
                "speedup": math.exp(gain.mean),
                "low": math.exp(gain.low),
                "error": max(errors),
                "bytes": fmean(numbers(found, kernel, "bytes")),
                "note": "",
            }
        )
    return rows


def numbers(
    found: Sequence[Mapping[str, Mapping[str, Value]]], kernel: str, key: str
) -> list[float]:
    """One figure of a kernel, in the order of the seeds; those that are missing left out."""
    values = (seed[kernel][key] for seed in found)
    return [float(value) for value in values if value is not None]


def judge(rows: Sequence[Mapping[str, Value]]) -> Finding:
    """The verdict on whole blocks, with the best kernel of each."""
    blocks = dict.fromkeys(
        (str(row["what"]), str(row["tokens"]))
        for row in rows
        if str(row["what"]).startswith("block")
    )
    best: dict[str, Mapping[str, Value] | None] = {
        f"{what}, {tokens} tokens": best_row(rows, what, tokens) for what, tokens in blocks
    }
    met = [n for n, row in best.items() if row is not None and float(row["low"] or 0) >= CLAIMED]
    missed = [name for name in best if name not in met]
    verdict: Verdict = "shown" if not missed else "in part" if met else "not shown"
    told = "; ".join(
        f"{name} {float(row['speedup'] or 0):.3f} (at least {float(row['low'] or 0):.3f}, "
        f"{row['kernel']})"
        if row is not None
        else f"{name}: no kernel"
        for name, row in best.items()
    )
    layers = [
        float(row["speedup"] or 0)
        for row in rows
        if str(row["what"]).startswith("linear")
        and row["kernel"] != "dense"
        and row["speedup"] is not None
    ]
    span = (
        f" Single layers: {min(layers):.3f} to {max(layers):.3f} times, all kernels."
        if layers
        else ""
    )
    why = f"not surely {CLAIMED} times as fast: {'; '.join(missed)}" if missed else ""
    answer = f"Times as fast as dense: {told}.{span}"
    return Finding(verdict, answer, COLUMNS, tuple(rows), why)


def best_row(
    rows: Sequence[Mapping[str, Value]], what: str, tokens: str
) -> Mapping[str, Value] | None:
    """The fastest sparse kernel's row; None where none ran."""
    ran = [
        row
        for row in rows
        if (row["what"], str(row["tokens"])) == (what, tokens)
        and row["kernel"] != "dense"
        and row["speedup"] is not None
    ]
    return max(ran, key=lambda row: float(row["speedup"] or 0), default=None)
