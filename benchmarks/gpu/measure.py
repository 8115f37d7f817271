"""From a timing to its rows: every provider in turn, what can't run with the reason."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from .case import Timing
from .record import Row
from .timing import Ceilings, host_us, measured_ms, peak_bytes

MEGA = 1e6


def rows_of(timing: Timing, device: torch.device, limits: Ceilings, deadline: float, full: bool = True) -> Iterator[Row]:
    """Yield a row for each provider; not ``full``: but those that take long to compile."""
    torch.manual_seed(0)
    inputs = None
    for provider, prepare in timing.providers.items():
        if not full and provider in timing.full_only:
            continue
        about = (timing.op, timing.shape, timing.mode, provider)
        if time.monotonic() > deadline:
            yield Row(*about, note="not measured: out of time")
            continue
        try:
            inputs = timing.inputs(device) if inputs is None else inputs
            call = prepare(inputs)
            median, p20, p80 = measured_ms(call)
            yield Row(
                *about,
                ms_median=median,
                ms_p20=p20,
                ms_p80=p80,
                host_us=host_us(call, 50),
                peak_mb=peak_bytes(call) / MEGA if timing.memory else None,
                share_of_copy=timing.bytes / (median * 1e-3) / limits.copy_bytes_per_s if timing.bytes else None,
                share_of_gemm=timing.flops / (median * 1e-3) / limits.gemm_flops_per_s if timing.flops else None,
            )
        except Exception as error:  # a peer that is missing or fails must not end the run
            yield Row(*about, note=f"not measured: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
        torch.cuda.empty_cache()
