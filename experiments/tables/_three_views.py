"""The three views of one process, for --table=three_views: particles, the change of variables, and the distances between what they carry.

The third, the density on a grid, is `sde_lib.fokker_planck`, as are the processes that all of them carry.
"""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.adaptive import solve_ode
from sde_lib import Denoiser, Process, reverse_process


@jax.jit
def particles(key, x: Float[Array, "n d"], times: Float[Array, " k"], process: Process) -> Float[Array, "n d"]:
    """x at times[0] carried to times[-1] by Heun's method in the drift and one increment of additive noise a step: weak order 2."""
    drift, diffusion = process

    def step(x, row):
        t, dt, key = row
        noise = diffusion(t + 0.5 * dt).astype(x.dtype) * jnp.sqrt(dt) * jax.random.normal(key, x.shape, x.dtype)
        slope = drift(x, t)
        return x + 0.5 * dt * (slope + drift(x + dt * slope + noise, t + dt)) + noise, None

    times = jnp.asarray(times, x.dtype)
    return jax.lax.scan(step, x, (times[:-1], jnp.diff(times), jax.random.split(key, len(times) - 1)))[0]


@jax.jit
def _flow(den, x, at, known, tolerance):
    drift = reverse_process(den, 0.0).drift

    def one(x):
        def slope(t, state):
            velocity = lambda x: -drift(x[None], den.sde.T - t)[0]
            return velocity(state[0]), jnp.trace(jax.jacfwd(velocity)(state[0]))

        return solve_ode(slope, (x, jnp.zeros((), x.dtype)), at, known, tolerance, tolerance, diffrax.Tsit5(), diffrax.ForwardMode())[0]

    return jax.vmap(one)(x)


def flow(den: Denoiser, x: Float[Array, "n d"], at: float, known: float, tolerance: float = 1e-7):
    """x [N, d] at time `at` carried by the probability flow to time `known`, and the integral c [N] of its divergence: with the density known there,

    log p_at(x) = log p_known(x') + c,   dx/dt = v = f x - g^2/2 score,   d log p/dt = -div v along it (2011.13456, eq. 39). NaN if it fails.
    """
    return _flow(den, x, *(jnp.asarray(c, x.dtype) for c in (at, known, tolerance)))


class Agreement(NamedTuple):
    """distance: sum of |share - probability| over the bins. due: what it is, on average, of so many draws from the density itself. z: Pearson's
    statistic less its degrees of freedom, in its standard errors sqrt(2 (bins - 1))."""

    distance: float
    due: float
    z: float


def agreement(x: Float[np.ndarray, "n d"], density, centres: list[np.ndarray], bins: int, block: int = 1) -> Agreement:
    """Of draws x with a density on the grid [n_1, ...], in so many `bins` of about equal mass, fixed by the density alone: runs of neighbouring
    blocks of `block` cells along each axis. What is beyond the grid counts with its outermost cells. ValueError if the blocks do not divide it, and
    if draws are not finite."""
    mass, shape, lost = np.asarray(density, np.float64), np.shape(density), int(np.sum(~np.isfinite(x).all(1)))
    if lost:
        raise ValueError(f"agreement: {lost} of {len(x)} draws are not finite")
    if any(n % block for n in shape):
        raise ValueError(f"agreement: blocks of {block} cells do not divide a grid of {shape}")
    coarse = tuple(n // block for n in shape)
    for axis, n in enumerate(coarse):
        mass = mass.reshape(*coarse[:axis], n, block, *mass.shape[axis + 1 :]).sum(axis + 1)
    mass = mass.ravel() / mass.sum()
    bin_of = np.unique(np.minimum(np.floor((np.cumsum(mass) - 0.5 * mass) * bins), bins - 1), return_inverse=True)[1]
    cell = [np.clip(np.floor((x[:, i] - c[0]) / (c[1] - c[0]) + 0.5).astype(int), 0, len(c) - 1) // block for i, c in enumerate(centres)]
    p, count = np.bincount(bin_of, mass), np.bincount(bin_of[np.ravel_multi_index(cell, coarse)], minlength=bin_of.max() + 1)
    chi2, freedom = float(((count - len(x) * p) ** 2 / (len(x) * p)).sum()), len(p) - 1
    due = np.sqrt(2 * p * (1 - p) / (np.pi * len(x))).sum()
    return Agreement(float(np.abs(count / len(x) - p).sum()), float(due), (chi2 - freedom) / np.sqrt(2 * freedom))


def l1(p, q, widths: list[float]) -> float:
    """Integral of |p - q| over a grid: twice the total variation."""
    return float(jnp.abs(p - q).sum() * np.prod(widths))


def kl(p, q, widths: list[float]) -> float:
    """Integral of p log(p/q) over a grid, in nats, without the cells in which p < 1e-12."""
    p, q = np.asarray(p, np.float64), np.maximum(np.asarray(q, np.float64), 1e-300)
    return float(np.where(p > 1e-12, p * np.log(np.maximum(p, 1e-300) / q), 0.0).sum() * np.prod(widths))


@jax.jit
def _errors(den, exact, draws, times):
    wrong, right = reverse_process(den), reverse_process(exact)

    def one(row):
        t, x0, key = row
        x, s = den.sde.perturb(key, x0, t)[0], den.sde.T - t
        return 0.5 * jnp.sum(((wrong.drift(x, s) - right.drift(x, s)) / right.diffusion(s)) ** 2, -1).mean()

    return jax.lax.map(one, (times, *draws))


def girsanov(den: Denoiser, exact: Denoiser, x0: Float[Array, "k n d"], eps: float, start: float, key) -> float:
    """Integral of g^2/2 E|score - exact score|^2 from eps to start, at the middles of k steps with n draws of the data each.

    It is that of E|drift - exact drift|^2/(2 g^2) of the reverse SDEs, a bound of KL(p_eps || what the one of `den` makes), but for its start (Song
    et al. 2021, 2101.09258, theorem 1).
    """
    edges = np.linspace(eps, start, len(x0) + 1)
    times = jnp.asarray(0.5 * (edges[1:] + edges[:-1]), x0.dtype)
    return float(_errors(den, exact, (x0, jax.random.split(key, len(x0))), times).mean() * (start - eps))
