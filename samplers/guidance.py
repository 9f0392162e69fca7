r"""Guidance: what a model knows of a condition, strengthened, as a denoiser of a denoiser.

A guided prediction is extrapolated from a weaker one, P + (omega - 1) (P - P_weak): omega = 1 is the model itself, bitwise, above 1 it is guided. All
predictions are linear in the network's F with the same coefficients, so that it does not matter which of them is extrapolated.

| function            | the weaker prediction                            | network evaluations           |
|---------------------|--------------------------------------------------|-------------------------------|
| classifier_free     | without the condition                            | 2 (1 outside the interval)    |
| autoguidance        | of a worse model                                 | 2 (1 outside the interval)    |
| rectified_cfg       | without the condition, both half a step ahead    | 3                             |
| classifier_guidance | (score + scale grad log p(y, given x_t) instead) | 1, and a classifier's gradient |

They compose with each other and with every sampler, and guide each example by itself. A guided field is no model's: likelihoods refuse it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from samplers.checks import check_denoiser
from samplers.table import check_times
from sde_lib.denoiser import Denoiser, informed, plane_point
from sde_lib.numerics import expand


def check_unguided(den: Denoiser, what: str) -> None:
    """Raises ValueError for a guided denoiser."""
    if den.guided:
        raise ValueError(f"{what} of a guided denoiser, or one with a threshold: its field has no density; pass the denoiser itself")


def _both(den, none, x, t, cond):
    """F with the condition and without, by one call on both, with twice the batch."""
    twice = lambda a, b: jnp.concatenate([a, b])
    conds = jax.tree.map(lambda c, n: twice(c, jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape)), cond, none)
    return jnp.split(replace(den, cond=conds).raw(twice(x, x), twice(t, t)), 2)


def _extrapolate(strong, weak, extra, rescale):
    """strong + extra (strong - weak), its standard deviation brought back by `rescale` towards that of strong; extra: [] or [B]."""
    guided = strong + expand(extra, strong) * (strong - weak)
    std = lambda a: jnp.std(a.reshape(len(a), -1), -1)
    ratio = jnp.where(std(guided) > 0, std(strong) / std(guided), 1.0)
    return expand(1 + rescale * (ratio - 1), guided) * guided


def _within(sde, interval, extra, t, guide, plain):
    """guide(extra [B]), with no extra where sigma/alpha at t [B] is outside the interval; plain() where all are outside."""
    if interval is None:
        return guide(extra)
    low, high = interval
    level = sde.log_snr(t)
    extra = jnp.where((-jnp.log(high) <= level) & (level < -jnp.log(low)), extra, 0.0)
    return jax.lax.cond(jnp.any(extra != 0), guide, lambda _: plain(), extra)


def _check_interval(interval):
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"interval {interval} of guidance: expected (low, high), 0 <= low < high, of sigma/alpha")


def _check_conditional(den: Denoiser, none: Any, what: str) -> None:
    """Raise ValueError for a denoiser without a condition, and for a "no condition" of another structure."""
    check_denoiser(den, what)
    if den.cond is None:
        raise ValueError(f"{what}: the denoiser has no cond, what its examples are conditioned on")
    ours, theirs = (jax.tree.structure(tree) for tree in (den.cond, none))
    if ours != theirs:
        raise ValueError(f"{what}: none = {none!r:.60} has the structure {theirs}: expected that of den.cond, {ours}")


def _classifier_free(den, none, omega, interval, rescale, x, t, cond):
    guide = lambda extra: _extrapolate(*_both(den, none, x, t, cond), extra, rescale)
    return _within(den.sde, interval, omega - 1, t, guide, lambda: replace(den, cond=cond).raw(x, t))


def classifier_free(den: Denoiser, none: Any, omega: float, interval: tuple[float, float] | None = None, rescale: float = 0.0) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, 2207.12598): the weaker prediction is of all channels, without the condition.

    omega: 1 is conditional, 0 unconditional, above 1 guided (theirs is 1 + w with w = omega - 1). none: what stands for "no condition", a pytree as
    den.cond, of one example, or [B, ...] for table solvers.
    interval: (low, high), guide only where low < sigma/alpha <= high (Kynkaanniemi et al. 2024, 2404.07724); an evaluation at which no example is
    within costs one call of the network on the batch, not on twice the batch.
    rescale: phi of Lin et al. 2023 (2305.08891, eq. 15-16; they take 0.7): 1 gives the guided F of the network the standard deviation that the
    conditional one has over each example. F is no longer linear in the two: which prediction the network makes matters (theirs v).
    Raises ValueError if the denoiser is not conditioned on anything, for an impossible interval and a rescale outside [0, 1].
    """
    _check_conditional(den, none, "classifier_free")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale = {rescale} of guidance: expected 0 (none) to 1 (all)")
    _check_interval(interval)
    return replace(den, fn=Partial(_classifier_free, replace(den, cond=None), none, omega, interval, rescale), guided=True)


def _autoguided(den, weak, omega, interval, x, t, conds):
    den, weak = (replace(d, cond=cond) for d, cond in zip((den, weak), conds))
    guide = lambda extra: _extrapolate(den.raw(x, t), weak.predict(den.kind, x, t), extra, 0.0)
    return _within(den.sde, interval, omega - 1, t, guide, lambda: den.raw(x, t))


def autoguidance(den: Denoiser, weak: Denoiser, omega: float, interval: tuple[float, float] | None = None) -> Denoiser:
    """A model guided by a worse one of the same data (Karras et al. 2024, 2406.02507, eq. 3), such as a smaller network or an earlier checkpoint.

    omega: 1 is the model, 0 the worse one; interval: as of `classifier_free`. Both keep what they are conditioned on, if anything.
    Raises ValueError if they are not on the same path and scale, and for an impossible interval.
    """
    check_denoiser(den, "autoguidance")
    check_denoiser(weak, "autoguidance")
    for name in ("sde", "sigma_data"):
        if getattr(den, name) != getattr(weak, name):
            raise ValueError(f"autoguidance: the models have {name} = {getattr(den, name)} and {getattr(weak, name)}: expected the same")
    _check_interval(interval)
    fn = Partial(_autoguided, replace(den, cond=None), replace(weak, cond=None), omega, interval)
    return replace(den, fn=fn, cond=(den.cond, weak.cond), guided=True)


def _rectified(den, none, strength, power, times, x, t, cond):
    times = jnp.asarray(times, x.dtype)
    steps = jnp.append(times[:-1] - times[1:], 0.0)
    half = 0.5 * steps[jnp.maximum(jnp.sum(times >= t[:, None], -1) - 1, 0)]
    conditional = replace(den, cond=cond).raw(x, t)
    a, b = den.linear("velocity", x, t)
    ahead = x - expand(half, x) * (a * x + b * conditional)
    strong, weak = _both(den, none, ahead, t - half, cond)
    _, b_ahead = den.linear("velocity", ahead, t - half)  # the difference of two F's times this is that of the velocities
    return conditional + expand(strength * (1 - t / den.sde.T) ** power, x) * (b_ahead / b) * (strong - weak)


def rectified_cfg(den: Denoiser, none: Any, strength: float, times: Float[np.ndarray, " n"], power: float = 0.0) -> Denoiser:
    """Rectified-CFG++ (Saini et al. 2025, 2510.07631): the conditional velocity, corrected by what guidance is half a conditional step ahead,

        v(x, t) + strength (1 - t/T)^power [v - v_none](x - (dt/2) v(x, t), t - dt/2),

    where dt is the step of the grid `times` (that of the sampler) in which t lies; none is left at its last time. With power = 0 it tends to
    classifier-free guidance of omega = 1 + strength as the steps become short. none: as of `classifier_free`; strength: their lambda_max.
    Made for the straight path and Euler steps; it holds for any path and solver. An evaluation is one call of the network and one of twice the batch.
    Raises ValueError if the denoiser is not conditioned on anything, and for times as `samplers.sample`.
    """
    _check_conditional(den, none, "rectified_cfg")
    return replace(den, fn=Partial(_rectified, replace(den, cond=None), none, strength, power, check_times(den.sde, times)), guided=True)


def _by_classifier(den, log_prob, scale, x, t, conds):
    cond, label = conds
    seen = informed(den.sde, t)
    gradient = jax.grad(lambda x: jnp.sum(log_prob(x, seen, label)))(x)
    alpha, sigma = den.sde.alpha(seen), den.sde.sigma(seen)
    c, d = plane_point(den.sde, den.kind, seen, den.sigma_data)
    by_score = (c * sigma - d * alpha) * sigma / alpha  # dF/dscore at a given x, as eps = -sigma score: nothing is divided by sigma, which may be 0
    return replace(den, cond=cond).raw(x, t) + expand(scale * by_score, x) * gradient


def classifier_guidance(den: Denoiser, log_prob: Callable, label: Any, scale: float = 1.0) -> Denoiser:
    """Classifier guidance (Song et al. 2021, 2011.13456, section 5; Dhariwal & Nichol 2021, 2105.05233, section 4).

    The score becomes score + scale grad log p(y | x_t).

    log_prob: (x [B, ...], t [B], label) -> log p(label | x_t) [B] of each example by itself, for noised x; a `jax.tree_util.Partial` keeps its
    parameters an argument of compiled code. label: a pytree of arrays [B, ...]. scale: 1 is Bayes' rule, above 1 tilts by p(y | x_t)^scale.
    Of paths that reach alpha = 0 the classifier is asked at the last time at which alpha is at least 1e-3 (see `Denoiser`).
    Raises ValueError for a coupled denoiser.
    """
    check_denoiser(den, "classifier_guidance")
    den.check_uncoupled("classifier_guidance")
    return replace(den, fn=Partial(_by_classifier, replace(den, cond=None), Partial(log_prob), scale), cond=(den.cond, label), guided=True)
