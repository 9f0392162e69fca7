"""Two-dimensional sets, each under the definition of a named source, since the field uses several for one name.

`ffjord`: Grathwohl et al. 2019 (1810.01367), its `toy_data.py`. `torchcfm`: Tong et al. 2023 (2302.00482) and [SF]2M (2307.03672).
Each function draws n points [n, 2], float64, from a NumPy generator.
"""

import numpy as np
from jaxtyping import Float
from sklearn import datasets

from sde_lib import GaussianMixture


def ring(radius: float) -> Float[np.ndarray, "8 2"]:
    """Eight points equally spaced on a circle."""
    angles = np.arange(8) * np.pi / 4
    return radius * np.stack([np.cos(angles), np.sin(angles)], -1)


# radius and standard deviation of the ring; ffjord: (4, 0.5)/1.414; torchcfm passes sqrt(0.1) I as a covariance
EIGHT_GAUSSIANS = {"ffjord": (4 / 1.414, 0.5 / 1.414), "torchcfm": (5.0, 0.1**0.25)}


def eight_gaussians_mixture(variant: str) -> GaussianMixture:
    """The exact density of `eight_gaussians`. Entropy of the ffjord one: 2.838 nats."""
    radius, std = EIGHT_GAUSSIANS[variant]
    return GaussianMixture(ring(radius), np.full(8, std))


def eight_gaussians_in_x(dataset) -> GaussianMixture:
    """The exact density of x of a dataset of the ffjord ones."""
    raw = eight_gaussians_mixture("ffjord")
    return GaussianMixture((raw.means - dataset.shift) / dataset.scale, raw.stds / dataset.scale)


def eight_gaussians(rng: np.random.Generator, n: int, variant: str) -> Float[np.ndarray, "n 2"]:
    radius, std = EIGHT_GAUSSIANS[variant]
    return ring(radius)[rng.integers(8, size=n)] + std * rng.standard_normal((n, 2))


def moons(rng: np.random.Generator, n: int, variant: str) -> Float[np.ndarray, "n 2"]:
    noise = {"ffjord": 0.1, "torchcfm": 0.05}[variant]
    points = datasets.make_moons(n, noise=noise, random_state=int(rng.integers(2**31)))[0]
    return 2 * points + np.array([-1.0, -0.2] if variant == "ffjord" else [-1.0, -1.0])


def checkerboard(rng: np.random.Generator, n: int, variant: str) -> Float[np.ndarray, "n 2"]:
    """Uniform on 8 of 16 squares of side 2 in [-4, 4]^2: entropy ln 32 = 3.466 nats."""
    x = 4 * rng.random(n) - 2
    y = rng.random(n) - 2 * rng.integers(2, size=n) + np.floor(x) % 2
    return 2 * np.stack([x, y], -1)


def s_curve(rng: np.random.Generator, n: int, variant: str) -> Float[np.ndarray, "n 2"]:
    points = datasets.make_s_curve(n, noise=0.05, random_state=int(rng.integers(2**31)))[0]
    return 1.5 * points[:, [0, 2]]


# name in a config -> (function, its variants)
TOYS = {
    "8gaussians": (eight_gaussians, ("ffjord", "torchcfm")),
    "moons": (moons, ("ffjord", "torchcfm")),
    "checkerboard": (checkerboard, ("ffjord",)),
    "s_curve": (s_curve, ("torchcfm",)),
}
