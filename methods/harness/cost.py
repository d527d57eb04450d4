"""What a compression step spends, seen from outside: the method does not have to count."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

_POLL_SECONDS = 0.05
_STATUS = Path("/proc/self/status")
_CLEAR, _CLEAR_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass
class Cost:
    """Totals of one step of a recipe; complete when the `metered` block ends."""

    seconds: float = 0.0  # wall clock
    cpu_seconds: float = 0.0  # of this process, all threads
    optimizer_steps: int = 0
    denoiser_calls: int = 0  # forward passes of the denoiser, the teacher's included
    denoiser_images: int = 0  # images in them
    peak_bytes: int = 0  # growth of memory while it ran: resident set on a CPU, allocator on CUDA

    def record(self) -> dict[str, Any]:
        """As JSON, times to the millisecond."""
        fields = asdict(self)
        return fields | {key: round(fields[key], 3) for key in ("seconds", "cpu_seconds")}


@contextmanager
def metered(denoiser: type[nn.Module], device: torch.device | str = "cpu") -> Iterator[Cost]:
    """Fill a Cost while the block runs, by hooks on every module and optimizer of the process.

    Calls count when the module's class is exactly `denoiser` and its tensors are real, not meta.
    The hooks are global, so they see models that a method builds for itself, and are gone when the
    block ends, also by an error.
    """
    cost = Cost()

    def called(module: nn.Module, _: Any, output: Any) -> None:
        if type(module) is not denoiser:
            return
        first = output if isinstance(output, Tensor) else output[0]
        if first.device.type != "meta":  # counting MACs computes nothing
            cost.denoiser_calls += 1
            cost.denoiser_images += int(first.shape[0])

    def stepped(*_: Any) -> None:
        cost.optimizer_steps += 1

    hooks = [register_module_forward_hook(called), register_optimizer_step_post_hook(stepped)]
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        with _PeakMemory(torch.device(device)) as memory:
            yield cost
    finally:
        cost.seconds = time.perf_counter() - wall
        cost.cpu_seconds = time.process_time() - cpu
        cost.peak_bytes = memory.growth
        for hook in hooks:
            hook.remove()


class _PeakMemory:
    """Growth of memory above its value at entry: the allocator's own peak on CUDA, else the
    resident set's.

    What freed tensors left with the C allocator is given back first, where the C library can: a
    block that reuses it would otherwise seem to need nothing. Linux keeps the peak itself; where
    it does not, the resident set is polled.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.growth = 0
        self._before = 0
        self._polled = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = int(torch.cuda.memory_allocated(self.device))
            return self
        _release()
        kept = _reset_peak()
        self._before = _resident()
        if not kept:
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.growth = max(0, self._peak() - self._before)

    def _peak(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return int(torch.cuda.max_memory_allocated(self.device))
        if self._thread is None:
            return _resident_peak()
        self._done.set()
        self._thread.join()
        return max(self._polled, _resident())

    def _poll(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._polled = max(self._polled, _resident())


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _release() -> None:
    """Hand freed memory back to the system; only the GNU C library has a call for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _reset_peak() -> bool:
    """Let Linux start its peak of the resident set anew; False where that cannot be done."""
    try:
        _CLEAR.write_text(_CLEAR_PEAK)
        return _resident_peak() > 0
    except OSError:
        return False


def _resident_peak() -> int:
    """Bytes, since `_reset_peak`; 0 where the kernel does not tell."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
