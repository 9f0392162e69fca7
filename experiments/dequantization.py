r"""From discrete levels to the continuous data of a model: bounds on log P(level).

A level is a bin of x, of width 1/scale. For any density q on the bin, with the model's own density p,

    log P(level) = log \int_bin p(y) dy >= E_q[log p(y) - log q(y)],

and the log of the mean of K draws of p/q is nearer (IWAE, 1509.00519).

A dequantization is a function (keys [B], values [B, ...]) -> y [B, ...] and what to add to log p(y) before `Dataset.score`, which itself adds the
uniform density's -log q; with the time at which y is data of the model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import Dataset
from sde_lib import SDE


class Dequantization(NamedTuple):
    """draw: (keys [B], values [B, ...]) -> y [B, ...], addend [B]. eps: the time of y; None for the path's own."""

    draw: Callable
    eps: float | None


def uniform(dataset: Dataset, sde: SDE) -> Dequantization:
    """y = x, uniform on the bin (Theis et al. 2016, 1511.01844); the values themselves where they are continuous."""
    return Dequantization(lambda keys, values: (dataset.to_x(keys, values), jnp.zeros(len(values))), None)


def bin_time(dataset: Dataset, sde: SDE, tau: float = 3.0) -> float:
    """The time at which alpha x +- tau sigma is the bin about its middle x; not above 0 where the path has no so little noise."""
    return float(sde.time(np.log(2 * tau * dataset.scale)))


def truncated_normal(dataset: Dataset, sde: SDE, tau: float = 3.0) -> Dequantization:
    """y = alpha x + sigma eps about the middle x of the bin, eps normal cut off at +-tau (i-DODE, 2305.03935, section 3.3): the data as the model
    was trained on it, at the time when alpha x +- tau sigma is the bin. The bins tile y, so that eps is no truncation of the model here.

    Raises ValueError for data that are continuous, and for a path with no so little noise.
    """
    if not dataset.levels:
        raise ValueError(f"truncated-normal dequantization of {dataset.name}: its data are continuous; expected discrete levels")
    eps = bin_time(dataset, sde, tau)
    if not 0 < eps < sde.T:
        raise ValueError(
            f"truncated-normal dequantization: {sde} never has a sigma/alpha of a bin's half / {tau:g} = {0.5 / dataset.scale / tau:.2g}"
        )
    alpha, sigma, inside = float(sde.alpha(eps)), float(sde.sigma(eps)), float(jax.scipy.special.erf(tau / np.sqrt(2)))

    def draw(keys, values):
        middle = dataset.middles(values)
        noise = jax.vmap(lambda k: jax.random.truncated_normal(k, -tau, tau, middle.shape[1:]))(keys)
        log_q = -0.5 * jnp.sum(noise**2, range(1, noise.ndim)) - dataset.dim * np.log(np.sqrt(2 * np.pi) * sigma * inside)
        return alpha * middle + sigma * noise, dataset.dim * np.log(dataset.scale) - log_q

    return Dequantization(draw, eps)


DEQUANTIZATIONS = {"uniform": uniform, "truncated_normal": truncated_normal}
