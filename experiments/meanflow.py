r"""MeanFlow (Geng et al. 2025, 2505.13447): a flow map, trained from data alone by what the derivative of a mean velocity is.

With u = (x - X_{s<-t}(x))/(t - s) and the velocity v of the flow, u = v - (t - s) du/dt along it (eq. 6): a jump to s does not change while its start
moves along the flow. The target of u is therefore u + dX/dt, the total derivative along (v, 0, 1) in (x, s, t),

    L = |u - sg(u + dX_{s<-t}/dt)|^2 / sg(|.|^2 + c)^p,        dX/dt = a' x + a v + b' F + b dF/dt  of  X = a x + b F,

with v = alpha' x_0 + sigma' eps of the example in its place (eq. 11), one derivative of the network forwards, and none through the target. On the
linear path, where u is F, that is the paper's loss; on any other, with any prediction F, it is the same error of the same u.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from sde_lib import FlowMap
from sde_lib.numerics import expand


def check(options: ConfigDict, labelled: bool, label_dropout: float) -> None:
    """Raise ValueError for a guided target of a model without labels, or that never sees one hidden, and for kappa outside [0, 1)."""
    if (options.omega, options.kappa) != (1, 0) and not (labelled and label_dropout > 0 and 0 <= options.kappa < 1):
        raise ValueError(
            f"config.objective.meanflow.omega = {options.omega}, kappa = {options.kappa}, objective.label_dropout = {label_dropout}: guided targets "
            "have 0 <= kappa < 1, and a model of labels (config.model.num_classes) some of which are hidden; expected these, or omega = 1, kappa = 0"
        )


def second_times(t: Float[Array, " b"], other: Float[Array, " b"], draw: Float[Array, " b"], apart: float) -> Float[Array, " b"]:
    """s [B]: `other`, which is at most t, for a share `apart` of examples, else t (eq. 11's r; table 1a). draw: uniform in (0, 1)."""
    return jnp.where(draw < apart, other, t)


def guided(
    fm: FlowMap, none, x: Float[Array, "b ..."], t: Float[Array, " b"], v: Float[Array, "b ..."], hidden: Bool[Array, " b"], options: ConfigDict
) -> Float[Array, "b ..."]:
    """The velocity that the network is to have, omega v + kappa u(label) + (1 - omega - kappa) u(no label), u at s = t (appendix B.1): that of
    guidance omega/(1 - kappa). It is v for t > until T, for examples whose label is hidden, and where omega = 1 and kappa = 0."""
    omega, kappa = options.omega, options.kappa
    if fm.cond is None or (omega == 1 and kappa == 0):
        return v
    den = fm.denoiser()
    unconditional = replace(den, cond=jax.tree.map(lambda a, n: jnp.full_like(a, n), fm.cond, none)).velocity(x, t)
    mixed = omega * v + (1 - omega - kappa) * unconditional + (kappa * den.velocity(x, t) if kappa else 0)
    return jnp.where(expand(hidden | (t > options.until * fm.sde.T), x), v, mixed)


def loss(fm: FlowMap, x: Float[Array, "b ..."], t: Float[Array, " b"], s: Float[Array, " b"], v: Float[Array, "b ..."], options: ConfigDict):
    """The weighted squared error of each example's mean velocity, [B], at x [B, ...], with v [B, ...] for the velocity there."""
    v = jax.lax.stop_gradient(v)
    point, d_point = jax.jvp(lambda x, t: fm.raw(x, t, s), (x, t), (v, jnp.ones_like(t)))
    jump = lambda t: fm.combination(t, (fm.sde.alpha(s), fm.sde.sigma(s)))
    (a, b), (a_dot, b_dot) = (tuple(expand(c, x) for c in pair) for pair in jax.jvp(jump, (t,), (jnp.ones_like(t),)))
    d_jump = jax.lax.stop_gradient(a_dot * x + a * v + b_dot * point + b * d_point)
    u = expand(fm.combination(t, fm.mean_slopes(t, s))[1], x) * point  # and a multiple of x, which is the target's too
    error = jnp.sum((u - jax.lax.stop_gradient(u + d_jump)) ** 2, range(1, x.ndim))
    return error / jax.lax.stop_gradient(error + options.constant) ** options.power
