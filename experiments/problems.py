"""Gaussian mixtures on which solvers and likelihoods are measured: their scores, flows and densities are exact."""

import jax.numpy as jnp
import numpy as np

from experiments.toy import ring
from sde_lib import SDE, Denoiser, GaussianMixture


def eight_gaussians() -> GaussianMixture:
    """In 2-D: radius 0.8, standard deviation 0.15."""
    return GaussianMixture(ring(0.8), np.full(8, 0.15))


def turned_mixture(dim: int, widest: float) -> GaussianMixture:
    """Five Gaussians in `dim` dimensions, each with axes of its own and standard deviations from 0.1 to `widest` along them."""
    rng = np.random.default_rng(0)
    turns = np.stack([np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(5)])
    return GaussianMixture(0.7 * rng.normal(size=(5, dim)), rng.uniform(0.1, widest, (5, dim)), eigenvectors=turns)


def pairs(sde: SDE, rho: float = 0.9) -> Denoiser:
    """The exact Denoiser of examples [..., 2] of independent pairs N(0, [[1, rho], [rho, 1]]): many of them for Langevin steps, whose norms should
    be those of many dimensions."""
    turn = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)

    def data(x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        gains = jnp.stack([alpha * v / (alpha**2 * v + sigma**2) for v in (1 + rho, 1 - rho)], -1)
        return (x @ turn * gains.reshape(len(x), *[1] * (x.ndim - 2), 2)) @ turn.T

    return Denoiser(data, sde, "data")
