"""What every block of a denoiser costs, once and for all: seconds measured, or MACs counted.

Seconds are of one thread on a CPU, where other processes do not count, and of the stream on CUDA,
which is not made to wait between blocks.

SnapFusion (Li et al., NeurIPS 2023, arXiv 2306.00980, "Efficient UNet") decides with such a table
instead of timing every candidate model anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .measure import macs_inside

Clock = Literal["measured", "macs"]
_ROUNDS = 6  # the first is a warm-up


@dataclass(frozen=True)
class BlockCosts:
    """Seconds, or MACs, of the whole denoiser and of the blocks that were asked for."""

    total: float
    blocks: Mapping[str, float]

    def shares(self) -> dict[str, float]:
        """Each block's fraction of the whole."""
        return {name: cost / self.total for name, cost in self.blocks.items()}


def block_costs(
    model: nn.Module, names: Sequence[str], inputs: Mapping[str, Any], clock: Clock
) -> BlockCosts:
    """The table for `model(**inputs)`; "macs" is there for results that have to repeat exactly."""
    if clock == "measured":
        return _measured(model, names, inputs)
    macs = {name: float(count) for name, count in macs_inside(model, inputs, names).items()}
    return BlockCosts(macs.pop(""), macs)


@torch.no_grad()
def _measured(model: nn.Module, names: Sequence[str], inputs: Mapping[str, Any]) -> BlockCosts:
    """Least of some rounds; all blocks are timed in the same passes as the whole."""
    device = next(model.parameters()).device
    training, threads = model.training, torch.get_num_threads()
    model.eval()
    torch.set_num_threads(1)  # a process's time adds up its threads
    spent: dict[str, list[float]] = {name: [] for name in ["", *names]}
    started: dict[str, Any] = {}
    marks: list[tuple[str, Any, Any]] = []  # name, start and end

    def mark() -> Any:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(device))
            return event
        return time.process_time()  # other processes do not count

    def before(name: str) -> Callable[..., None]:
        def start(*_: Any) -> None:
            started[name] = mark()

        return start

    def after(name: str) -> Callable[..., None]:
        def stop(*_: Any) -> None:
            marks.append((name, started[name], mark()))

        return stop

    def take() -> None:
        """Turn the marks of a pass into seconds."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for name, start, end in marks:
            span = start.elapsed_time(end) / 1000 if device.type == "cuda" else end - start
            spent[name].append(span)
        marks.clear()

    handles = []
    for name in spent:
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(before(name)))
        handles.append(layer.register_forward_hook(after(name)))
    try:
        for _ in range(_ROUNDS):
            model(**inputs)
            take()
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
        torch.set_num_threads(threads)
    least = {name: min(found[1:]) for name, found in spent.items()}
    return BlockCosts(least.pop(""), least)
