r"""Consistency models in continuous time: sCT and sCD (Lu & Song 2025, 2410.11081), the limit of `experiments.consistency` for u -> t.

The consistency function X = X_{0<-t}(x) does not change along the flow. With X = a x + b F of a prediction F (`sde_lib.flow_map`), F is regressed on
F + g, g being minus the change of X along the flow, towards which b has the sign of -1 (TrigFlow's is -sin t sigma_d),

    g = -sign(b) cos(theta) [(a v + b' F) + r (a' x + b dF/dt)] / theta',        tan(theta) = sigma/(sigma_d alpha),

dF/dt being the derivative along (v, 1) in (x, t), v the teacher's velocity (sCD) or the example's, alpha' x_0 + sigma' eps (sCT), and r rising from 0
to 1 (tangent warm-up, section 4.1). On TrigFlow, with kind "edm", that is the paper's tangent, and theta is t; any other path has its own angle.
Then, normalised, and weighted by a learned w(t) (`models.uncertainty`; eq. 8),

    L = exp(w)/d |F - sg(F + g/(|g| + c))|^2 - w.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from sde_lib import SDE, Denoiser, FlowMap
from sde_lib.numerics import expand


def check(objective: ConfigDict, second_time: bool) -> None:
    """Raise ValueError for settings of `config.objective.scm` that are none."""
    o = objective.scm
    if o.step not in ("data", "teacher"):
        raise ValueError(f"config.objective.scm.step = '{o.step}': expected data (sCT) or teacher (sCD)")
    if not 0 <= o.warmup < 1 or o.constant < 0:
        raise ValueError(f"config.objective.scm.warmup = {o.warmup}, constant = {o.constant}: expected a share of training below 1, and at least 0")
    if objective.kind not in ("edm", "v", "velocity"):
        raise ValueError(
            f"config.objective.kind = '{objective.kind}' of loss 'scm': it does not keep the data where they are; expected edm, v or velocity"
        )
    if second_time or objective.weighting != "own" or objective.time.name == "importance":
        raise ValueError("config.objective.loss = 'scm': expected model.second_time = False, its own weighting, and times that are not of importance")


def angle_slope(sde: SDE, sigma_data: float, t: Float[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(cos theta, theta') at t, [B]."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    square = (alpha * sigma_data) ** 2 + sigma**2
    return alpha * sigma_data / jnp.sqrt(square), sigma_data * (sde.sigma_dot(t) * alpha - sigma * sde.alpha_dot(t)) / square


def tangent(fm: FlowMap, x: Float[Array, "b ..."], t: Float[Array, " b"], v: Float[Array, "b ..."], rise: Float[Array, ""] | float):
    """F and g, [B, ...] each; v [B, ...]: the velocity at x. Scaled before the network is differentiated: nothing overflows."""
    sde, zero = fm.sde, jnp.zeros_like(t)
    jump = lambda t: fm.combination(t, (sde.alpha(zero), sde.sigma(zero)))
    (a, b), (a_dot, b_dot) = jax.jvp(jump, (t,), (jnp.ones_like(t),))
    cosine, slope = angle_slope(sde, fm.sigma_data, t)
    k = -jnp.sign(b) * cosine / slope
    along = lambda c: expand(k * c, x)
    point, d_point = jax.jvp(lambda x, t: fm.raw(x, t, zero), (x, t), (along(b) * v, k * b))
    return point, along(a) * v + along(b_dot) * point + rise * (along(a_dot) * x + d_point)


def loss(
    fm: FlowMap,
    teacher: Denoiser | None,
    w: Float[Array, " b"],
    x0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Float[Array, " b"],
    progress: Float[Array, ""] | float,
    options: ConfigDict,
) -> Float[Array, " b"]:
    """The loss of each example, [B]. teacher: of step "teacher". w [B]: the learned weight's exponent. progress: share of training that is done."""
    sde = fm.sde
    mixed = lambda c, d: expand(c, x0) * x0 + expand(d, x0) * noise
    x_t = mixed(sde.alpha(t), sde.sigma(t))
    v = mixed(sde.alpha_dot(t), sde.sigma_dot(t)) if options.step == "data" else teacher.velocity(x_t, t)
    rise = jnp.minimum(progress / options.warmup, 1.0) if options.warmup else 1.0
    point, g = tangent(fm, x_t, t, jax.lax.stop_gradient(v), rise)
    g = jax.lax.stop_gradient(g)
    g = g / expand(jnp.linalg.norm(g.reshape(len(g), -1), axis=1) + options.constant, g)
    error = jnp.sum((point - jax.lax.stop_gradient(point) - g) ** 2, range(1, g.ndim)) / np.prod(g.shape[1:])
    return jnp.exp(w) * error - w
