"""Interleaved timing: the machine's noise falls on all candidates alike, and medians leave the rest out."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.kept import claim


def seconds_of(fn: Callable) -> float:
    """Seconds of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def medians(candidates: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of a call of each candidate, run in turn `repeats` times; compile them before. Results are waited for."""
    seconds = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, fn in candidates.items():
            seconds[name].append(seconds_of(fn))
    return {name: float(np.median(s)) for name, s in seconds.items()}


def report(rows: list[dict], out: str, name: str, **settings) -> None:
    """Print rows of ratios, and write them to OUT/NAME.json, or NAME-2.json, ... where that has those of other settings."""
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    device = jax.devices()[0].device_kind
    place = claim(Path(out) / name, {"device": device, **settings})
    print(f"wrote {place.write({'device': device, 'rows': rows})}")
