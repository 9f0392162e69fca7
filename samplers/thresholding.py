"""Thresholding: the data prediction kept within the range of the data, as a denoiser of a denoiser."""

from dataclasses import replace

import jax.numpy as jnp
from jax.tree_util import Partial

from samplers.checks import check_denoiser
from sde_lib.denoiser import Denoiser


def _bounded(den: Denoiser, bound, quantile, x, t, cond=None):
    data = replace(den, cond=cond).data(x, t)
    if quantile is None:
        return jnp.clip(data, -bound, bound)
    limit = jnp.quantile(jnp.abs(data).reshape(len(data), -1), quantile, axis=1).reshape(-1, *[1] * (data.ndim - 1))
    limit = jnp.maximum(limit, bound)
    return jnp.clip(data, -limit, limit) * (bound / limit)


def threshold(den: Denoiser, bound: float = 1.0, quantile: float | None = None) -> Denoiser:
    """The Denoiser whose data prediction is clipped to [-bound, bound]: static, or dynamic if a quantile is given (Imagen, 2205.11487, section 2.3).

    quantile: e.g. 0.995 (DPM-Solver++'s): each example is clipped to that quantile of its |data| where it is above `bound`, and scaled back to bound.
    All other predictions follow from the clipped data, as in DPM-Solver++. Not for likelihoods: the field is no longer a model's.
    Raises ValueError for a bound not above 0, or a quantile outside (0, 1).
    """
    check_denoiser(den, "threshold")
    if bound <= 0 or (quantile is not None and not 0 < quantile < 1):
        raise ValueError(f"threshold: bound {bound}, quantile {quantile}: expected a bound above 0 and a quantile between 0 and 1")
    return Denoiser(Partial(_bounded, replace(den, cond=None), bound, quantile), den.sde, "data", cond=den.cond, guided=True, coupled=den.coupled)
