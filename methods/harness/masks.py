"""Which single weights go: patterns, masks made from scores, and the layers that are masked.

A mask here is True where the weight becomes zero. Weights are seen as matrices of one row per
output and one column per input of the layer; a convolution's columns run over kernel positions
first and input channels last, so that neighbouring columns are neighbouring input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .pipeline import NoisedBatch
from .surgery import check_fraction

Layer = nn.Conv2d | nn.Linear
Values = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Along = Literal["input", "flattened"]
Per = Literal["layer", "row"]
PatternName = Literal["unstructured", "n:m"]
Which = Literal["inner", "all"]

# What stays dense by custom: the first and last layers and the embeddings of time and class.
DENSE_LAYERS = ("conv_in", "conv_out", "time_embedding", "pos_embed", "proj_out_")
_ADAPTIVE_NORM = ".norm1."  # of a DiT block: embeds time and class, gives scales and shifts

_PAIRWISE = 8  # runs up to this length are ranked by comparing all pairs
_CHUNK = 1 << 18  # weights ranked at a time, so that the copies stay in the cache
_SAMPLE = 1 << 16  # values that bracket a threshold in a long row
_WORTH_THREADS = 1 << 20  # weights below which starting threads takes longer than selecting


# --- patterns --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unstructured:
    """The fraction `ratio` of weights goes, rounded down, wherever it stands.

    `per` is what the scores are compared within: the whole layer, or one output row of it.
    """

    ratio: float
    per: Per = "layer"

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)
        if self.per not in ("layer", "row"):
            raise ValueError(f"per must be layer or row, not {self.per!r}")


@dataclass(frozen=True)
class NOfM:
    """n weights of every run of m stay (papers that count what is pruned write the same 2:4).

    along="input": runs follow the input channels of one output and one kernel position, which is
    what sparse kernels need. along="flattened": the same order, but the matrix is cut into runs
    as one long row (the layout of SparseDM's code), so that runs may cross rows; `crossing` tells
    where.
    """

    n: int
    m: int
    along: Along = "input"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n must lie in 1..m, not {self.n} of m={self.m}")
        if self.along not in ("input", "flattened"):
            raise ValueError(f"along must be input or flattened, not {self.along!r}")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def check(self, shape: Sequence[int], name: str = "the layer") -> None:
        """Refuse a weight shape (out, in, ...) that does not divide into runs, naming the layer."""
        size = torch.Size(shape).numel()
        if self.along == "input" and shape[1] % self.m:
            raise ValueError(
                f"{name}: {shape[1]} inputs do not divide into runs of {self.m}; leave this "
                "layer dense or choose another m"
            )
        if size % self.m:
            raise ValueError(f"{name}: {size} weights do not divide into runs of {self.m}")


Pattern = Unstructured | NOfM


def requested_pattern(
    pattern: PatternName, ratio: float, n: int, m: int, per: Per = "layer"
) -> Pattern:
    """What the four fields that layer-wise methods share ask for; `per` is the method's own.

    Raises:
        ValueError: an unknown name, or a ratio, n or m out of range.
    """
    if pattern == "n:m":
        return NOfM(n, m)
    if pattern == "unstructured":
        return Unstructured(ratio, per)
    raise ValueError(f"pattern must be unstructured or n:m, not {pattern!r}")


def crossing(layers: Mapping[str, Layer], pattern: NOfM) -> dict[str, str]:
    """Layers whose runs cross rows or kernel positions, so that no hardware runs them, and why."""
    if pattern.along == "input":
        return {}
    return {
        name: f"{layer.weight.shape[1]} inputs: runs of {pattern.m} cross "
        + ("kernel positions and filters" if layer.weight.ndim == 4 else "rows")
        for name, layer in layers.items()
        if layer.weight.shape[1] % pattern.m
    }


# --- masks -----------------------------------------------------------------------------------


@torch.no_grad()
def removed(scores: Tensor, pattern: Pattern, name: str = "the layer") -> Tensor:
    """Boolean mask of the lowest scores, shaped as they are: (out, in) or (out, in, kh, kw).

    Of equal scores the lower index goes first.

    Raises:
        ValueError: a score is not a number, or the shape does not fit; the text begins with `name`.
    """
    if bool(scores.sum().isnan()):
        raise ValueError(f"{name}: a score is not a number")
    return lowest(scores, pattern, name)


@torch.no_grad()
def lowest(scores: Tensor, pattern: Pattern, name: str = "the layer") -> Tensor:
    """`removed` for scores that are known to be numbers: a training loop need not wait to ask."""
    if isinstance(pattern, Unstructured):
        rows = scores.reshape(1 if pattern.per == "layer" else len(scores), -1)
        return _lowest(rows, int(rows.shape[1] * pattern.ratio)).reshape(scores.shape)
    pattern.check(scores.shape, name)
    runs = as_matrix(scores).reshape(-1, pattern.m)
    count = pattern.m - pattern.n
    mask = _lowest_in_short_runs(runs, count) if pattern.m <= _PAIRWISE else _lowest(runs, count)
    return as_weight(mask, scores.shape)


def smallest(weight: Tensor, ratio: float) -> Tensor:
    """Boolean mask, shaped as the weight, of its int(n * ratio) entries of smallest |w|."""
    return removed(weight.detach().abs(), Unstructured(ratio))


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as (out, columns), input channels last."""
    return weight.movedim(1, -1).reshape(len(weight), -1)


def as_weight(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `as_matrix` for a weight of this shape (out, in, ...)."""
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def _lowest_in_short_runs(runs: Tensor, count: int) -> Tensor:
    """The `count` lowest of every row of (R, m), each value's place found by m - 1 comparisons."""
    if runs.device.type != "cpu":
        return _lowest_by_pairs(runs, count)
    m = runs.shape[1]
    mask = torch.empty(runs.shape, dtype=torch.bool, device=runs.device)
    step = max(1, _CHUNK // m)
    for start in range(0, len(runs), step):
        values = [runs[start : start + step, i].contiguous() for i in range(m)]
        # How many of the run stay before this value goes; ties go in order of their index.
        above = [torch.full_like(values[i], m - 1 - i, dtype=torch.int8) for i in range(m)]
        for i in range(1, m):
            for j in range(i):
                earlier_is_higher = (values[j] > values[i]).view(torch.int8)
                above[i] += earlier_is_higher
                above[j] -= earlier_is_higher
        for i in range(m):
            mask[start : start + step, i] = above[i] >= m - count
    return mask


def _lowest_by_pairs(runs: Tensor, count: int) -> Tensor:
    """The same in few calls and m times the memory, which suits a GPU."""
    value, other = runs[:, :, None], runs[:, None, :]  # (R, m, 1), (R, 1, m)
    m = runs.shape[1]
    earlier = torch.ones(m, m, dtype=torch.bool, device=runs.device).tril(-1)
    goes_first = (other < value) | ((other == value) & earlier)  # (R, m, m)
    return goes_first.sum(dim=2) < count


def _lowest(rows: Tensor, count: int) -> Tensor:
    """The `count` lowest of every row of (R, C)."""
    if count == 0:
        return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    if rows.device.type != "cpu":
        threshold = rows.sort(dim=1).values[:, count - 1 : count]
        return _with_ties(rows, threshold, count)
    # numpy selects several times faster than torch; half precision is exact in float32.
    array = (rows if rows.dtype == torch.float64 else rows.float()).detach().numpy()
    if len(array) == 1:
        return torch.from_numpy(_lowest_of_one(array[0], count))[None]
    threshold = torch.from_numpy(_lowest_value(array, count))
    return _with_ties(torch.from_numpy(array), threshold, count)


def _lowest_value(rows: Values, count: int) -> Values:
    """The `count`-th lowest value of every row of (R, C): (R, 1), on all of torch's threads."""

    def select(part: Values) -> Values:
        return np.partition(part, count - 1, axis=1)[:, count - 1 : count]

    threads = torch.get_num_threads()
    if threads == 1 or rows.size < _WORTH_THREADS:
        return select(rows)
    with ThreadPoolExecutor(threads) as pool:  # numpy selects without holding the lock
        return np.concatenate(list(pool.map(select, np.array_split(rows, threads))))


def _with_ties(rows: Tensor, threshold: Tensor, count: int) -> Tensor:
    """What lies below the thresholds (R, 1), and of what equals them the first to make `count`."""
    mask = rows <= threshold
    if int(mask.count_nonzero()) == count * len(rows):
        return mask
    below, ties = rows < threshold, rows == threshold
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (ties & (ties.cumsum(dim=1) <= missing))


def _lowest_of_one(values: Values, count: int) -> Mask:
    """The `count` lowest of (C,): a sample says what surely goes, the rest is looked at."""
    low, high = _bracket(values, count)
    mask = values < low
    missing = count - int(np.count_nonzero(mask))
    close = np.flatnonzero((values <= high) & ~mask)
    if not 0 <= missing <= len(close):  # the sample misled
        mask[:] = False
        close, missing = np.arange(len(values)), count
    if missing:
        candidates = values[close]
        threshold = np.partition(candidates, missing - 1)[missing - 1]
        below = candidates < threshold
        mask[close[below]] = True
        ties = close[candidates == threshold]
        mask[ties[: missing - int(np.count_nonzero(below))]] = True
    return mask


def _bracket(values: Values, count: int) -> tuple[float, float]:
    """Two values that the `count`-th lowest most likely lies between, ends included."""
    if len(values) <= 4 * _SAMPLE:
        return float("-inf"), float("inf")
    # An odd step visits all columns of a matrix whose width is a power of two.
    sample = np.sort(values[:: (len(values) // _SAMPLE) | 1])
    place = len(sample) * count / len(values)
    margin = 3.0 * len(sample) ** 0.5  # six standard deviations at the median
    low, high = int(place - margin), int(place + margin) + 1
    return (
        float(sample[low - 1]) if low >= 1 else float("-inf"),
        float(sample[high - 1]) if high <= len(sample) else float("inf"),
    )


# --- layers of a model -----------------------------------------------------------------------


def sparse_layers(model: nn.Module, which: Which = "inner") -> dict[str, Layer]:
    """Convolutions and linear layers by name; "inner" leaves out `DENSE_LAYERS`."""
    if which not in ("inner", "all"):
        raise ValueError(f"layers must be inner or all, not {which!r}")
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        and (which == "all" or not (name.startswith(DENSE_LAYERS) or _ADAPTIVE_NORM in name))
    }


def zero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Where convolution and linear weights are exactly zero, for layers that have any."""
    masks = {}
    for name, layer in sparse_layers(model, "all").items():
        mask = layer.weight == 0
        if bool(mask.any()):
            masks[f"{name}.weight"] = mask
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set masked weights to zero; names are those of parameters."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].masked_fill_(mask, 0.0)


def kept_zero(
    objective: Callable[[nn.Module, NoisedBatch], Tensor], masks: dict[str, Tensor]
) -> Callable[[nn.Module, NoisedBatch], Tensor]:
    """An objective that re-applies the masks before every forward pass."""
    if not masks:
        return objective

    def masked(model: nn.Module, batch: NoisedBatch) -> Tensor:
        apply_masks(model, masks)
        return objective(model, batch)

    return masked
