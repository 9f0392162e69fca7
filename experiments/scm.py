r"""Continuous-time consistency: sCT and sCD (Lu & Song 2025, 2410.11081), on any path.

Every path is the paper's TrigFlow up to a scale and a clock: with S^2 = alpha^2 sigma_d^2 + sigma^2, y = sigma_d x/S and tan theta = sigma/(sigma_d
alpha), y = cos(theta) x_0 + sin(theta) sigma_d eps, and dy/dtheta = -sigma_d E* with E* the point "edm" of the plane (`sde_lib.denoiser`): the
paper's F is -E. The jump to the data is f = cos(phi) y + sigma_d sin(phi) E, where phi = theta - theta(0), which is theta but on VE. At the
consistency function df/dtheta = 0 along the flow, and

    L = e^w/d |E - sg(E + g/(|g| + c))|^2 - w,        g = cos(theta) [cos(phi) sigma_d (E* - E) + r (sin(phi) y - sigma_d sin(phi) dE/dtheta)]

of d dimensions (algorithm 1), which at r = 1 is -cos(theta) df/dtheta, warmed up in its second term alone (section 4.2; there over 10,000
steps), with an E* that is the example's own (consistency training, sCT), or a teacher's (distillation, sCD). w(t) is a network of time alone,
`models.uncertainty` (eq. 8). As sin(theta) cos(theta) d/dtheta = -d/dlambda, lambda = log(alpha/sigma), the derivative is one of the network in
(x, t) along -(dt/dlambda) (v, 1), which is bounded at both ends. Kind "edm" is the paper's; of another, E is its point of the plane, and the loss
the same.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from sde_lib import SDE, Denoiser, FlowMap, plane_point
from sde_lib.denoiser import combination
from sde_lib.numerics import derivative, expand


def check(objective: ConfigDict, second_time: bool) -> None:
    """Raise ValueError for settings of loss "scm" that are none."""
    o, of = objective.scm, "config.objective.scm"
    if o.step not in ("data", "teacher"):
        raise ValueError(f"{of}.step = '{o.step}': expected data or teacher")
    if not (o.constant > 0 and 0 <= o.warmup <= 1):
        raise ValueError(f"{of}.constant = {o.constant}, warmup = {o.warmup}: expected a constant above 0, and a share of training from 0 to 1")
    if second_time or objective.weighting != "own" or objective.time.name == "importance":
        raise ValueError(
            "config.objective.loss = 'scm' is of a network of one time, with a weight of its own: expected model.second_time = False, and neither "
            "objective.weighting nor times of importance"
        )


def clock(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """-dt/dlambda = sigma^2 alpha/((sigma^2)' alpha/2 - alpha' sigma^2), [B]."""
    variance, alpha = sde.variance(t), sde.alpha(t)
    return variance * alpha / (0.5 * derivative(sde.variance, t) * alpha - sde.alpha_dot(t) * variance)


def tangent(fm: FlowMap, x: Float[Array, "b ..."], t: Float[Array, " b"], v: Float[Array, "b ..."], rise: Float[Array, ""] | float = 1.0):
    """E and g, [B, ...] each, at x [B, ...]; v [B, ...]: the point "v" of the plane that the flow goes by there, alpha eps - sigma x_0."""
    sde, std = fm.sde, fm.sigma_data

    def of_v(point):
        a, b = combination(sde, "v", t, point)
        return expand(a, x) * x + expand(b, x) * v

    flow = of_v(plane_point(sde, "edm", t, std))
    pace = clock(sde, t)
    along = expand(pace, x) * of_v(plane_point(sde, "velocity", t))
    point, d_point = jax.jvp(lambda x, t: fm.towards(0.0).predict("edm", x, t), (x, t), (along, pace))

    def angle(alpha, sigma):
        scale = jnp.sqrt((alpha * std) ** 2 + sigma**2)
        return alpha * std / scale, sigma / scale, scale

    cos, sin, scale = angle(sde.alpha(t), sde.sigma(t))
    cos_0, sin_0, _ = angle(*(jnp.asarray(c, x.dtype) for c in (sde.alpha(0.0), sde.sigma(0.0))))
    cos_phi, sin_phi = cos * cos_0 + sin * sin_0, sin * cos_0 - cos * sin_0
    first = expand(std * cos * cos_phi, x) * (flow - point)
    second = expand(std * cos * sin_phi / scale, x) * x - expand(std * sin_phi / sin, x) * d_point
    return point, first + rise * second


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
    sde, steady = fm.sde, jax.lax.stop_gradient
    mixed = lambda c, d: expand(c, x0) * x0 + expand(d, x0) * noise
    x = mixed(sde.alpha(t), sde.sigma(t))
    v = mixed(*plane_point(sde, "v", t)) if options.step == "data" else teacher.v(x, t)
    rise = jnp.minimum(progress / options.warmup, 1.0) if options.warmup else 1.0
    point, g = steady(tangent(fm, x, t, steady(v), rise))
    norm = jnp.sqrt(jnp.sum(g**2, range(1, x.ndim), keepdims=True))
    error = fm.towards(0.0).predict("edm", x, t) - point - g / (norm + options.constant)
    return jnp.exp(w) * jnp.mean(error**2, range(1, x.ndim)) - w
