r"""Adversarial terms: a discriminator on the features of the teacher's own network tells a student's samples from others.

D_k of each features F_k is a light head (`models.discriminator`), F_k the activations of the frozen network at a noised sample, whatever it predicts
(LADD, Sauer et al. 2024, 2403.12015). One loss trains both, as each sees the other's parameters through a stop-gradient (hinge, 1705.02894):

    L_G = -sum_k D_k(F_k(ours)),    L_D = sum_k max(0, 1 + D_k(F_k(sg ours))) + max(0, 1 - D_k(F_k(real))) + gamma |d D_k / d F_k(real)|^2,

means over the places of D_k; the penalty is R1's (1801.04406), on features (ADD, section 3.2). L = weight L_G + L_D is added to a student's own loss.
Of `config.objective.adversarial`, as `real`:

  data    ours is a jump to the data, of ADD (below) and of CTM (2310.02279, eq. 14), real are data; both are noised to a time of
          log(sigma/alpha) ~ N(mean, std^2): on the linear path LADD's logit-normal times, of mean and standard deviation 1.
  target  of PCM (2405.18407, section 3.4): the prediction and the target of a consistency loss, at a phase's edge, both noised to a time in it.

Loss "add" (adversarial diffusion distillation, 2311.17042, eq. 1 and 4) is that of a consistency function at N = 4 times (`config.objective.time`:
grid) that begins as the teacher:

    L = L_G + lambda c(t) mean (ours - sg D_teacher(alpha_t sg ours + sigma_t eps, t))^2 + L_D,    t uniform, c(t) = alpha_t,

alpha_t being that of variance preserving paths, alpha/sqrt(alpha^2 + sigma^2), and lambda = 2.5, gamma = 1e-5. Theirs has DINOv2's features of the
samples themselves in the place of the teacher's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from sde_lib import SDE, Denoiser
from sde_lib.numerics import expand

steady = jax.lax.stop_gradient


def used(objective: ConfigDict) -> bool:
    """Whether there is a discriminator."""
    return objective.adversarial.weight > 0


def check(objective: ConfigDict, second_time: bool) -> None:
    """Raise ValueError for settings of `config.objective.adversarial` that are none."""
    a, c, of = objective.adversarial, objective.consistency, "config.objective.adversarial"
    if a.real not in ("data", "target"):
        raise ValueError(f"{of}.real = '{a.real}': expected data or target")
    if min(a.weight, a.penalty, a.distillation) < 0 or a.std <= 0:
        raise ValueError(f"{of}: weight {a.weight}, penalty {a.penalty}, distillation {a.distillation}, std {a.std}: expected 0 or above, std above")
    if objective.loss == "add":
        if not used(objective) or a.real != "data" or second_time or objective.weighting != "own" or objective.time.name != "grid":
            raise ValueError(
                f"config.objective.loss = 'add', adversarial.weight = {a.weight}, real = '{a.real}', weighting = '{objective.weighting}', "
                f"time.name = '{objective.time.name}', model.second_time = {second_time}: expected a weight above 0 (1), data, own, grid, False"
            )
    elif used(objective):
        if objective.loss != "consistency" or c.step == "data":
            raise ValueError(f"{of}.weight = {a.weight} of loss '{objective.loss}': expected add, or consistency with a teacher's step, or 0")
        if a.real == "target" and c.to != "phase":
            raise ValueError(f"{of}.real = 'target' with consistency.to = '{c.to}': expected phase (PCM), or real = data")
        if a.real == "data" and c.to != "data" and not c.through:
            raise ValueError(f"{of}.real = 'data' with consistency.to = '{c.to}': expected samples at the data, of to = data or through (CTM)")


def renoised(sde: SDE, x: Float[Array, "b ..."], s: Float[Array, " b"], t: Float[Array, " b"], noise: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """x [B, ...] of the times s [B], noised to t >= s: r x + sqrt(sigma_t^2 - r^2 sigma_s^2) noise, r = alpha_t/alpha_s."""
    there = jnp.maximum(t, s)
    gained = -jnp.expm1(2 * jnp.minimum(sde.log_snr(there) - sde.log_snr(s), 0))
    some = gained > 0  # the root has no derivative at 0
    std = jnp.where(some, sde.sigma(there) * jnp.sqrt(jnp.where(some, gained, 1.0)), 0.0)
    return expand(sde.alpha(there) / sde.alpha(s), x) * x + expand(std, x) * noise


def places(logits: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """The mean over places, [B]."""
    return logits.reshape(len(logits), -1).mean(1)


def penalty(heads: Callable, features: tuple) -> Float[Array, " b"]:
    """sum_k |d D_k / d F_k|^2, [B]. heads: features -> logits."""
    slopes = jax.grad(lambda f: sum(places(logits).sum() for logits in heads(f)))(features)
    return sum(jnp.sum(a**2, range(1, a.ndim)) for a in slopes)


def term(
    discriminator: Callable, params, features: Callable, ours: Float[Array, "b ..."], real: Float[Array, "b ..."], options: ConfigDict
) -> Float[Array, " b"]:
    """weight L_G + L_D of each example, [B], at noised samples, ours and real [B, ...].

    discriminator: (its params, features) -> logits. features: [B, ...] -> a tuple of arrays [B, ...], of a frozen network.
    """
    fake, true = features(ours), steady(features(steady(real)))
    generator = -sum(places(logits) for logits in discriminator(steady(params), fake))
    hinge = sum(places(jax.nn.relu(1 + logits)) for logits in discriminator(params, steady(fake)))
    hinge += sum(places(jax.nn.relu(1 - logits)) for logits in discriminator(params, true))
    hinge += options.penalty * penalty(lambda f: discriminator(params, f), true)
    return options.weight * generator + hinge


def distillation(
    teacher: Denoiser, ours: Float[Array, "b ..."], t: Float[Array, " b"], noise: Float[Array, "b ..."], options: ConfigDict
) -> Float[Array, " b"]:
    """ADD's lambda c(t) mean (ours - sg D(noised ours, t))^2, [B]."""
    sde, x = teacher.sde, steady(ours)
    told = steady(teacher.data(expand(sde.alpha(t), x) * x + expand(sde.sigma(t), x) * noise, t))
    c = jax.lax.rsqrt(1 + jnp.exp(-2 * sde.log_snr(t)))
    return options.distillation * c * jnp.mean((ours - told) ** 2, range(1, x.ndim))
