"""What the explorer of `experiments.report` shows of a 2-D model, computed here along one grid of times: the page only interpolates."""

import base64

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from experiments import runs
from experiments import sample as sampling
from samplers import grids, sample, solvers
from sde_lib import SDE

TIMES, PARTICLES, CLOUD = 60, 300, 10_000  # CLOUD: particles of the ODE whose histogram is the density
FIELD, ARROWS, CELLS = 32, 16, 64  # points a side: of the velocity, of the score, of the density
BEYOND = 3.0  # of a path whose scale grows by more the view moves with t


def base64_of(a: np.ndarray) -> str:
    """The bytes of an array, little-endian float32 or uint8, row by row."""
    return base64.b64encode(np.ascontiguousarray(a, "u1" if a.dtype == np.uint8 else "<f4").tobytes()).decode()


def mesh(side: int) -> Float[np.ndarray, "n 2"]:
    """The points of a square grid from -1 to 1, y by y."""
    line = np.linspace(-1, 1, side, dtype=np.float32)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def extents(paths: Float[np.ndarray, "k n 2"]) -> Float[np.ndarray, " k"]:
    """Half the side of the view at each time, about 0: constant, unless the scale of the path changes by more than `BEYOND`."""
    found = 1.1 * np.quantile(np.abs(paths).max(2), 0.998, axis=1)
    return np.full_like(found, found.max()) if found.max() < BEYOND * found.min() else found


def density(points: Float[np.ndarray, "n 2"], extent: float) -> np.ndarray:
    """The histogram of points in [-extent, extent]^2, smoothed by a Gaussian of one cell, over its maximum: uint8 [CELLS, CELLS], y by y."""
    edges = np.linspace(-extent, extent, CELLS + 1)
    smooth = gaussian_filter(np.histogram2d(points[:, 1], points[:, 0], (edges, edges))[0], 1.0)
    return np.round(255 * smooth / max(smooth.max(), 1e-12)).astype(np.uint8)


def numbers(sde: SDE, times: np.ndarray) -> dict:
    """What is written beside the time."""
    return {name: [float(f"{float(fn(t)):.6g}") for t in times] for name, fn in (("alpha", sde.alpha), ("sigma", sde.sigma))}


def explore(run: runs.Run, seed: int) -> dict:
    """Times [K] from T to the path's sampling_eps, extents [K], and as base64 of float32: the paths of `PARTICLES` by the probability-flow ODE
    (DPM-Solver++(2M)) and by the reverse SDE (its SDE form) [K, n, 2] from the same starts, the velocity [K, FIELD, FIELD, 2] and the score
    [K, ARROWS, ARROWS, 2] on grids over the view; and the density of the ODE's `CLOUD` as uint8 [K, CELLS, CELLS].

    sde and score are None of a model that has no score (`Denoiser.check_uncoupled`). A conditional model is told class 0.
    Raises ValueError for a model that is no velocity (`Network.denoiser`), and for one whose particles are not finite.
    """
    sde = run.network.sde
    times = grids.cosine(sde, TIMES - 1)
    labels = lambda n: run.labels(n, 0 if run.conditional else -1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(CLOUD))
    x_T = jnp.asarray(sampling.starts(run)(keys, np.arange(CLOUD)))
    cloud = np.asarray(sample(run.denoiser(labels(CLOUD)), x_T, times, solvers.dpm_solver_pp(order=2), path=True))
    if lost := int(np.sum(~np.isfinite(cloud).all((0, 2)))):
        raise ValueError(f"{lost} of {CLOUD} particles of the ODE are not finite")
    extent = extents(cloud)

    def on_grid(name: str, side: int) -> Float[np.ndarray, "k n 2"]:
        den = run.denoiser(labels(side**2))
        at = jax.jit(lambda x, t: den.predict(name, x, t))
        return np.stack([at(jnp.asarray(e * mesh(side), jnp.float32), jnp.float32(t)) for e, t in zip(extent, times)])

    scored = not run.denoiser(labels(1)).coupled
    noisy = lambda: sample(run.denoiser(labels(PARTICLES)), x_T[:PARTICLES], times, solvers.sde_dpm_solver_pp(), key=keys[:PARTICLES], path=True)
    return {
        "times": [float(f"{t:.6g}") for t in times],
        **numbers(sde, times),
        "extent": [float(f"{e:.6g}") for e in extent],
        "particles": PARTICLES,
        "field": FIELD,
        "arrows": ARROWS,
        "cells": CELLS,
        "cloud": CLOUD,
        "ode": base64_of(cloud[:, :PARTICLES]),
        "sde": base64_of(np.asarray(noisy())) if scored else None,
        "velocity": base64_of(on_grid("velocity", FIELD)),
        "score": base64_of(on_grid("score", ARROWS)) if scored else None,
        "density": base64_of(np.stack([density(points, e) for points, e in zip(cloud, extent)])),
    }
