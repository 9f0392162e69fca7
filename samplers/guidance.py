"""Guidance: what a model knows of a condition, strengthened, as a denoiser of a denoiser."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sde_lib.denoiser import Denoiser


def _guided(den, none, omega, x, t, cond):
    twice = lambda a, b: jnp.concatenate([a, b])
    conds = jax.tree.map(lambda c, n: twice(c, jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape)), cond, none)
    conditional, unconditional = jnp.split(replace(den, cond=conds).raw(twice(x, x), twice(t, t)), 2)
    return unconditional + omega * (conditional - unconditional)


def classifier_free(den: Denoiser, none: Any, omega: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, 2207.12598): every prediction P becomes P_none + omega (P_cond - P_none), of all channels.

    omega: 1 is conditional, 0 unconditional, above 1 guided (theirs is 1 + w with w = omega - 1); as all predictions are linear in F with the same
    coefficients, it does not matter which is guided. none: what stands for "no condition", a pytree as den.cond, of one example or [B, ...].
    An evaluation is one call of the network on both, with twice the batch. Not for likelihoods: the field is no longer a model's.
    Raises ValueError if the denoiser is not conditioned on anything.
    """
    if den.cond is None:
        raise ValueError("classifier_free: the denoiser has no cond, what its examples are conditioned on")
    return Denoiser(Partial(_guided, replace(den, cond=None), none, omega), den.sde, den.kind, den.sigma_data, den.cond)
