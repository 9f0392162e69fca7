r"""How much noise a model is sampled with: SiT's six diffusion strengths (Ma et al. 2024, 2401.08740, section 2.4 and appendix A) on any path.

For every D(t) >= 0 the process run from T down, v the velocity of the probability flow,

    dx = (v - D score) dt + sqrt(2 D) dw,

has the marginals of the model (flow matching, diffusion: one model, any strength). `SDE.reverse_drift` and the solvers count it as eta,
D = eta^2 g^2 / 2: eta = 0 is the ODE, eta = 1 the reverse SDE. SiT writes w = 2 D; its w^KL = 2 (sigma' sigma - alpha' sigma^2 / alpha) is g^2,
which is "sbdm". Its paper has the data at t = 0, as here; its code has them at t = 1, so that "linear", 1 - t there, is t here.

The forms are of u = t/T, and of T = 1 and sigma <= 1 as published. Elsewhere D is in units of max(1, sigma)^2 / T, or a strength that suits the
data would be none where the noise is a hundred times as wide, and more than any step allows the other way round.
"""

from functools import partial

import jax
import numpy as np

from sde_lib.numerics import as_time, namespace
from sde_lib.sde import SDE, Time

# D in those units, of u and sigma
FORMS = {
    "constant": lambda xp, u, sigma: 1.0 + 0 * u,
    "sigma": lambda xp, u, sigma: xp.minimum(1.0, sigma),
    "linear": lambda xp, u, sigma: u,
    "decreasing": lambda xp, u, sigma: 0.25 * (1 - xp.cos(np.pi * u)) ** 2,
    "increasing_decreasing": lambda xp, u, sigma: xp.sin(np.pi * u) ** 2,
}


def diffusion(name: str, sde: SDE, strength: float, t: Time):
    """D(t) of a name in `FORMS`, shaped as t."""
    t = as_time(t)
    xp, sigma = namespace(t), sde.sigma(t)
    return strength * FORMS[name](xp, t / sde.T, sigma) * xp.maximum(1.0, sigma) ** 2 / sde.T


def _eta(name: str, sde: SDE, strength, t: Time):
    d, xp = diffusion(name, sde, strength, t), namespace(as_time(t))
    # g is 0 at t = 0 of some paths, where no step starts, and infinite at alpha = 0
    return xp.sqrt(2 * d / xp.maximum(sde.diffusion(t) ** 2, 1e-30))


def _sbdm(sde: SDE, strength, t: Time):
    return namespace(t).sqrt(strength) + 0 * t


ETAS = {"sbdm": _sbdm, **{name: partial(_eta, name) for name in FORMS}}


def eta(sde: SDE, name: str, strength: float = 1.0) -> jax.tree_util.Partial:
    """The function eta(t) of a named D, `strength` times: of every solver that takes eta, and of `sample_sde`.

    name: of `ETAS`; "sbdm" is D = g^2/2, the reverse SDE. Finite at both ends. Raises ValueError for another name or a negative strength.
    """
    if name not in ETAS:
        raise ValueError(f"unknown diffusion '{name}': expected one of {', '.join(ETAS)}")
    if not 0 <= strength < np.inf:
        raise ValueError(f"strength = {strength} of diffusion '{name}': expected 0 (the ODE) or more")
    return jax.tree_util.Partial(ETAS[name], sde, strength)
