"""Mixtures and points on which log-likelihoods are hard, and the exact log-density of the flow from its prior, in float64."""

import jax
import numpy as np
from scipy.special import logsumexp

from sde_lib import SDE, GaussianMixture


def marginal(gm: GaussianMixture, sde: SDE, x, t: float) -> np.ndarray:
    """log p_t(x) [B] in float64."""
    x = np.asarray(x, np.float64)
    means, stds, weights = (np.asarray(a, np.float64) for a in (gm.means, gm.stds, gm.weights))
    alpha, variance = float(sde.alpha(t)), (float(sde.alpha(t)) * stds) ** 2 + float(sde.sigma(t)) ** 2
    y = x[:, None] - alpha * means
    if gm.eigenvectors is not None:
        y = np.einsum("kij,bki->bkj", np.asarray(gm.eigenvectors, np.float64), y)
    log_prob = -0.5 * np.sum(y**2 / variance + np.log(2 * np.pi * variance), -1)
    return logsumexp(log_prob + np.log(weights / weights.sum()), axis=1)


def flow_density(gm: GaussianMixture, sde: SDE, x, latent) -> np.ndarray:
    """log-density [B] at x of the flow from the prior: the mixture's at eps, corrected for the prior's own at the latents."""
    latent = np.asarray(latent, np.float64)
    std = float(sde.sigma(sde.T))
    prior = -0.5 * np.sum((latent / std) ** 2, -1) - latent.shape[1] * (0.5 * np.log(2 * np.pi) + np.log(std))
    return marginal(gm, sde, x, sde.eps) + prior - marginal(gm, sde, latent, sde.T)


def mixture(name: str, dim: int, std: float, seed: int) -> GaussianMixture:
    """two: modes at distance 2. five: of one width and random weights. wide: far apart, of different widths along each axis.
    scales: one within the other, 100 times as narrow. turned: anisotropic and rotated, from std to 100 std."""
    rng = np.random.default_rng(seed)
    if name == "two":
        direction = np.ones(dim) / np.sqrt(dim)
        return GaussianMixture(np.stack([-direction, direction]), np.full(2, std))
    if name == "five":
        return GaussianMixture(rng.normal(size=(5, dim)) / np.sqrt(dim), np.full(5, std), rng.uniform(0.2, 1, 5))
    if name == "wide":
        return GaussianMixture(rng.normal(size=(5, dim)), std * rng.uniform(0.5, 1.5, (5, dim)))
    if name == "scales":
        return GaussianMixture(np.zeros((2, dim)), np.array([100 * std, std]))
    turns = np.stack([np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(3)])
    stds = np.exp(rng.uniform(np.log(std), np.log(min(1.0, 100 * std)), (3, dim)))
    return GaussianMixture(0.7 * rng.normal(size=(3, dim)), stds, None, turns)


def points(gm: GaussianMixture, n: int, seed: int) -> np.ndarray:
    """n data points, n between two modes (some in the middle, some beside the line) and n far from all modes, [3 n, D]."""
    rng, means = np.random.default_rng(seed), np.asarray(gm.means)
    dim, count = means.shape[1], len(means)
    data = np.asarray(gm.sample(jax.random.key(seed), n))
    one, other = rng.integers(count, size=(2, n))
    weight = rng.uniform(size=(n, 1))
    weight[::4] = 0.5
    beside = 0.05 * rng.normal(size=(n, dim)) * rng.choice([0, 0.1, 1], size=(n, 1))
    between = weight * means[one] + (1 - weight) * means[other] + beside
    far = means[one] + rng.choice([2, 5], size=(n, 1)) * rng.normal(size=(n, dim)) / np.sqrt(dim)
    return np.concatenate([data, between, far]).astype(np.float32)
