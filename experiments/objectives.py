r"""One regression on the prediction plane is every objective of diffusion and flow matching.

The network's F is regressed on its point c(t) x_0 + d(t) eps of the plane (`loss` "regression"; "sliced" and "implicit" do without eps, see
`experiments.score_matching`; "variational" is `experiments.vdm`, "autoencoder" and "classifier", which predict no point of it, and "meanflow",
"consistency" and "scm", which predict a jump, the modules of these names; "add", which does too, is `experiments.adversarial`):

    L = E_{t, x_0, eps}  w(t) mean (F(x_t, t) - c x_0 - d eps)^2.

Denoising score matching (Vincent 2011; Song et al. 2021, 2011.13456, eq. 7) is kind "noise" or "score"; at the steps of a chain (time "steps"), in
weighting "noise", it is the loss of NCSN (1907.05600, eq. 6; 2011.13456, eq. 1) and of DDPM (2006.11239, eq. 14). Conditional flow matching (Lipman
et al. 2023, 2210.02747, eq. 9; rectified flow, 2209.03003) is kind "velocity"; EDM (2206.00364, eq. 8) is kind "edm" with t log-normal. Errors of two
predictions differ by a factor b(t), so that weightings are named by the prediction that the error is measured in.
"""

from collections.abc import Callable
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments import adversarial, autoencoder, classifier, consistency, meanflow, perflow, progressive, scm, score_matching, vdm
from experiments.augmentation import augment
from samplers.grids import log_snr_ends
from samplers.guidance import classifier_free
from sde_lib import PLANE, SDE, Denoiser, plane_point
from sde_lib.interpolants import NEAR
from sde_lib.noise import normal
from sde_lib.numerics import expand

# --- weightings: w(t), given the denoiser -----------------------------------------------------------------------------------------


def weighting(name: str, den: Denoiser, x: Float[Array, "b ..."], t: Float[Array, " b"]) -> Float[Array, " b"]:
    """w(t) [B]. A name in `PLANE`: the error of that prediction; "own": of the network's own;

    "likelihood": g^2 |score error|^2 / 2, which integrated over t and summed over dimensions bounds the negative log-likelihood in nats up to a
    constant (2101.09258, theorem 1); the loss is its mean over dimensions and sampled times.
    Raises ValueError for an unknown name.
    """
    if name == "own":
        return jnp.ones_like(t)
    if name == "likelihood":
        _, b = den.linear("score", x, t)
        return 0.5 * den.sde.diffusion(t) ** 2 * b.reshape(-1) ** 2
    if name in PLANE:
        _, b = den.linear(name, x, t)
        return jnp.broadcast_to(b.reshape(-1) ** 2, t.shape)
    raise ValueError(f"config.objective.weighting = '{name}': expected own, likelihood, or one of {', '.join(PLANE)}")


# --- time samplers: the t at which a uniform variable u in (0, 1) lands ---------------------------------------------------------------


def uniform(u, sde: SDE, options: ConfigDict):
    """t uniform on [eps, T] (score_sde, flow matching)."""
    return sde.eps + u * (sde.T - sde.eps)


def logit_normal(u, sde: SDE, options: ConfigDict):
    """logit(t/T) ~ N(mean, std^2) (SD3, 2403.03206, section 3.1)."""
    return sde.T * jax.nn.sigmoid(options.mean + options.std * jax.scipy.special.ndtri(u))


def mode(u, sde: SDE, options: ConfigDict):
    """Heavy in the middle for `scale` above 0 (1.29 in SD3), at the ends below: t/T = 1 - u - scale (cos^2(pi u/2) - 1 + u) (2403.03206, eq. 20).

    Monotone for -1 <= scale <= 2/(pi - 2), else a ValueError."""
    if not -1 <= options.scale <= 2 / (np.pi - 2):
        raise ValueError(f"config.objective.time.scale = {options.scale}: expected -1 to {2 / (np.pi - 2):.4f}")
    return sde.T * (1 - u - options.scale * (jnp.cos(0.5 * np.pi * u) ** 2 - 1 + u))


def cosmap(u, sde: SDE, options: ConfigDict):
    """The log-SNR of the cosine schedule on the linear path (SD3, 2403.03206, eq. 21): t/T = 1 - 1/(tan(pi u/2) + 1)."""
    sine, cosine = jnp.sin(0.5 * np.pi * u), jnp.cos(0.5 * np.pi * u)
    return sde.T * sine / (sine + cosine)


def log_normal(u, sde: SDE, options: ConfigDict):
    """log(sigma/alpha) ~ N(mean, std^2) (EDM, 2206.00364, table 1: -1.2, 1.2), within the path's times (iCT, 2310.14189, table 1: -1.1, 2.0)."""
    ends = (-np.array(log_snr_ends(sde, sde.sampling_eps)) - options.mean) / options.std
    high, low = jax.scipy.stats.norm.cdf(ends)
    return sde.time(-(options.mean + options.std * jax.scipy.special.ndtri(low + u * (high - low))))


def karras(u, sde: SDE, options: ConfigDict):
    """(sigma/alpha)^(1/7) uniform: of the grid of EDM (2206.00364, eq. 5), of which CT draws each point alike (2303.01469)."""
    return consistency.grid_time(sde, "karras", u)


def log_snr(u, sde: SDE, options: ConfigDict):
    """log-SNR uniform on [low, high]: with weighting "noise", the continuous-time variational bound up to a factor (VDM, 2107.00630,
    eq. 18), and the importance sampling of likelihood weighting (ScoreFlow, 2101.09258, section 4): g^2/sigma^2 dt = -2 d(log-SNR)."""
    return sde.time(options.high - u * (options.high - options.low))


def steps(u, sde: SDE, options: ConfigDict):
    """The time of a step 1..N of a chain, each as likely (NCSN, 1907.05600; DDPM, 2006.11239). Raises ValueError for a path in continuous time."""
    if not hasattr(sde, "time_of_step"):
        raise ValueError(f"config.objective.time.name = 'steps': {type(sde).__name__} has none; expected sde.name = DDPM or NCSN, or uniform times")
    return sde.time_of_step(1 + jnp.minimum(jnp.floor(u * sde.N), sde.N - 1))


def grid(u, sde: SDE, options: ConfigDict):
    """One of the times T, T (1 - 1/count), ..., T/count at which `count` equal steps begin: on pairs, the distillation of a flow into so many steps
    (rectified flow, 2209.03003, section 2.2; InstaFlow, 2309.06380, of one), which are those of `grids.few`."""
    return sde.T * (1 + jnp.minimum(jnp.floor(u * options.count), options.count - 1)) / options.count


TIME_SAMPLERS = {
    "uniform": uniform, "logit_normal": logit_normal, "mode": mode, "cosmap": cosmap, "log_normal": log_normal, "log_snr": log_snr, "karras": karras,
    "steps": steps, "grid": grid, "importance": uniform,  # of a u that `experiments.importance` has moved
}  # fmt: skip

GOLDEN = np.uint32(2654435769)  # 2^32 / golden ratio


def low_discrepancy(position: Float[Array, " b"], offset) -> Float[Array, " b"]:
    """u in (0, 1) for global example indices [B]: the golden-ratio sequence frac(offset + position/phi), even over every run of examples, so over
    every batch (stratified, as VDM's u_0 + i/B is, 2107.00630), yet a function of the example alone. Computed in wrapping 32-bit integers, exact at
    any position."""
    bits = position.astype(jnp.uint32) * GOLDEN + offset
    return ((bits >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)  # 23 bits and a half: exact, hence below 1, in float32


# --- losses of a Denoiser at noised examples, by `objective.loss`: those of jumps, bounds and teachers have modules of their own -------------


def regression(den: Denoiser, x0: Float[Array, "b ..."], x_t, noise, t: Float[Array, " b"], keys, objective: ConfigDict) -> Float[Array, " b"]:
    """w(t) mean (F(x_t, t) - c x_0 - d eps)^2, [B]. x0, x_t, noise: [B, ...]; keys [B]: of what else is random."""
    c, d = plane_point(den.sde, den.kind, t, den.sigma_data)
    error = den.raw(x_t, t) - expand(c, x0) * x0 - expand(d, x0) * noise
    return weighting(objective.weighting, den, x0, t) * jnp.mean(error**2, range(1, error.ndim))


def of_the_score(den: Denoiser, x0: Float[Array, "b ..."], x_t, noise, t: Float[Array, " b"], keys, objective: ConfigDict) -> Float[Array, " b"]:
    """`score_matching.implicit` in the weighting that is asked for, [B]."""
    of_score = score_matching.implicit(den, x_t, t, objective.loss, keys)
    return weighting(objective.weighting, den, x0, t) / weighting("score", den, x0, t) * of_score


LOSSES = {"regression": regression} | dict.fromkeys(score_matching.LOSSES, of_the_score)

# what else is random, each folded into the key by a number of its own, which stays: runs resume
STREAMS = {
    "labels": 4, "last noise": 5, "mirror": 6, "augment": 7, "loss": 8, "draw": 9, "second draw": 10, "interpolant": 11, "omega": 12,
    "discriminator's time": 13, "discriminator's noise": 14, "teacher's time": 15, "teacher's noise": 16,
}  # fmt: skip


# --- the loss -------------------------------------------------------------------------------------------------------------------------


def landing(sde: SDE, options: ConfigDict, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """The times t [B] at which u lands, kept off the ends where the path is singular."""
    last = sde.T if sde.alpha(sde.T) > 0 else sde.T - sde.eps  # drift and diffusion are infinite at alpha = 0
    return jnp.clip(TIME_SAMPLERS[options.name](u, sde, options), sde.eps if sde.sigma(0.0) == 0 else 0.0, last)


def uniforms(key, position: Float[Array, " b"]) -> Float[Array, " b"]:
    """The u from which the times of examples are made, [B]."""
    return low_discrepancy(position, jax.random.bits(jax.random.split(key, 4)[3], dtype=jnp.uint32))


def noised(sde: SDE, options: ConfigDict, u: Float[Array, " b"], noise_keys, x0: Float[Array, "b ..."], source=None):
    """x_t [B, ...], the times t [B] at which u lands, and the noise: `source` [B, ...] if given."""
    t = landing(sde, options, u).astype(x0.dtype)
    if source is not None:
        return expand(sde.alpha(t), x0) * x0 + expand(sde.sigma(t), x0) * source, t, source
    x_t, noise = sde.perturb(noise_keys, x0, t)
    return x_t, t, noise


@flax.struct.dataclass
class Given:
    """What a loss is told beside parameters and batch. teacher: of a distillation (`config.teacher`), a Denoiser with no cond yet. target: slowly
    averaged parameters that the loss aims at, theta^-, or None: the parameters themselves. progress: the share of training that is done, [].
    u: instead of `uniforms` (`experiments.importance`). features: (x, t, label) -> the features of the teacher's network,
    where there is a discriminator (`experiments.adversarial`)."""

    teacher: Denoiser | None = None
    target: PyTree | None = None
    progress: Float[Array, ""] | float = 0.0
    u: Float[Array, " b"] | None = None
    features: Callable | None = None


def interpolated(network, params, x0: Float[Array, "b ..."], x1, z, t: Float[Array, " b"], label, training: dict) -> Float[Array, " b"]:
    """The regression at a point of an interpolant between x0 and x1 with noise z, on its velocity or, of kind "noise", on z (2303.08797, eq. 2.13;
    2307.03672, eq. 12, in the weighting of z)."""
    interpolant, T = network.interpolant, network.sde.T
    if interpolant.bridge:
        t = jnp.clip(t, NEAR * T, (1 - NEAR) * T)
    found = network(params, interpolant.point(x0, x1, z, t), t, label, **training)
    target = z if network.kind == "noise" else interpolant.velocity(x0, x1, z, t)
    return jnp.mean((found - target) ** 2, range(1, x0.ndim))


def opposed(network, params, features, objective: ConfigDict, x0, label, ours, theirs, s, draw: Float[Array, " b"], noise) -> Float[Array, " b"]:
    """`adversarial.term` [B] of ours [B, ...] against the data x0 or, of `real` "target", theirs [B, ...]: at s [B], and noised on. draw: uniform in
    (0, 1), of the time."""
    sde, chosen, c = network.sde, objective.adversarial, objective.consistency
    if chosen.real == "target":
        share = consistency.grid_share(sde, c.grid, s) + draw / c.phases
        t, real = consistency.grid_time(sde, c.grid, jnp.minimum(share, 1.0)), theirs
    else:
        t, real = log_normal(draw, sde, chosen), x0
    t = t.astype(x0.dtype)
    ours, real = (adversarial.renoised(sde, x, s, t, noise) for x in (ours, real))
    discriminator = lambda params, found: network.discriminate(params, found, t, label)
    return adversarial.term(discriminator, params["discriminator"], lambda x: features(x, t, label), ours, real, chosen)


def check(network, dataset, objective: ConfigDict) -> None:
    """Evaluate the times and the weighting of a loss at a few points of the path, before a step is compiled.

    Raises ValueError for unknown names, for times that the path does not have, for numbers that are not finite, and for an autoencoder of data that
    are no images.
    """
    if isinstance(network, autoencoder.Autoencoder):
        return autoencoder.check(dataset)
    options = objective.time
    if options.name not in TIME_SAMPLERS:
        raise ValueError(f"config.objective.time.name = '{options.name}': expected one of {', '.join(TIME_SAMPLERS)}")
    if options.name == "log_snr" and not options.low < options.high:
        raise ValueError(f"config.objective.time.low = {options.low}, high = {options.high} of 'log_snr': expected the first below the other")
    t = landing(network.sde, options, jnp.array([0.001, 0.5, 0.999]))
    if not np.isfinite(t).all():
        raise ValueError(
            f"config.objective.time.name = '{options.name}' lands at t = {t} of {network.sde}: expected finite times; change its options"
        )
    if isinstance(network, classifier.Classifier):
        return
    den = Denoiser(lambda x, t: x, network.sde, network.kind, network.sigma_data)
    weights = weighting(objective.weighting, den, jnp.zeros((3, 1)), t)
    if not (np.isfinite(weights).all() and np.any(weights > 0)):
        raise ValueError(f"config.objective.weighting = '{objective.weighting}' of {network.sde} is {weights} at t = {t}: expected finite weights")


def loss(network, params, dataset, objective: ConfigDict, key, batch, given: Given = Given()) -> Float[Array, " b"]:
    """The weighted squared error of each example, up to a constant of `objective.loss` "sliced" and "implicit"; of "variational" its bound
    (`vdm.bound`), of "meanflow" its own, of "classifier" -log p(label | x_t), of "autoencoder" its own, [B].

    batch: value [B, ...] raw, label [B] or a pair, position [B] (see `experiments.data`); source [B, ...], if there, is what each is joined with in
    the place of noise (`experiments.couplings`). All randomness is a function of `key` and the position.
    Raises ValueError for unknown names in `objective`.
    """
    if isinstance(network, autoencoder.Autoencoder):
        return autoencoder.loss(network, params, dataset, objective, key, batch)
    if objective.time.name not in TIME_SAMPLERS:
        raise ValueError(f"config.objective.time.name = '{objective.time.name}': expected one of {', '.join(TIME_SAMPLERS)}")
    data_key, noise_key, dropout_key, _ = jax.random.split(key, 4)
    each = lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
    stream = lambda name: each(jax.random.fold_in(key, STREAMS[name]))
    draw = lambda name: jax.vmap(jax.random.uniform)(stream(name))
    data_keys, noise_keys = each(data_key), each(noise_key)
    u = uniforms(key, batch["position"]) if given.u is None else given.u
    label = hidden = None
    if network.none is not None:
        hidden = jax.vmap(lambda k: jax.random.bernoulli(k, objective.label_dropout))(stream("labels"))
        label = jax.tree.map(lambda a, none: jnp.where(expand(hidden, a), none, a), batch["label"], network.none)
    source = batch.get("source")
    values = dataset.mirror(stream("mirror"), batch["value"]) if source is None else batch["value"]
    x0 = dataset.to_x(data_keys, values)
    training = {"example": batch["position"], "dropout_key": dropout_key}
    if dataset.augment:
        x0, training["augmented"] = augment(stream("augment"), x0, dataset.augment)
    if isinstance(network, classifier.Classifier):
        x_t, t, _ = noised(network.sde, objective.time, u, noise_keys, x0)
        return -network(params, x_t, t, batch["label"], **training)
    den = Denoiser(jax.tree_util.Partial(network, params, **training), network.sde, network.kind, network.sigma_data, label)

    if network.schedule is not None:
        x0 = dataset.middles(values) if dataset.levels else x0
        noise, last_noise = (normal(keys, x0.shape, x0.dtype) for keys in (noise_keys, stream("last noise")))
        return vdm.bound(network.schedule, params["schedule"], den, dataset, x0, u, noise, last_noise)

    if objective.loss == "meanflow":
        second = draw("draw")
        times = jnp.stack([landing(network.sde, objective.time, a) for a in (u, second)])
        u = jnp.where(times[0] < times[1], second, u)  # t is the later one
    teacher = None if given.teacher is None else replace(given.teacher, cond=label)
    x_t, t, noise = noised(network.sde, objective.time, u, noise_keys, x0, source)
    if objective.loss == "progressive":
        return progressive.loss(den, teacher, x0, noise, u, objective.progressive)
    if objective.loss == "scm":
        return scm.loss(network.flow_map(params, label, **training), teacher, network.weight(params, t), x0, noise, t, given.progress, objective.scm)
    adversary = None
    if given.features is not None:
        other = draw("discriminator's time"), normal(stream("discriminator's noise"), x0.shape, x0.dtype)
        adversary = lambda ours, theirs, s: opposed(network, params, given.features, objective, x0, label, ours, theirs, s, *other)
    if objective.loss == "add":
        at = uniform(draw("teacher's time"), network.sde, objective.time).astype(t.dtype)
        ours = network.flow_map(params, label, **training)(x_t, t, 0.0)
        again = normal(stream("teacher's noise"), x0.shape, x0.dtype)
        taught = adversarial.distillation(teacher, ours, at, again, objective.adversarial)
        return taught + adversary(ours, None, jnp.full_like(t, network.sde.sampling_eps))
    if objective.loss == "consistency":
        draws = draw("draw"), draw("second draw")
        omega, (low, high) = 1.0, objective.consistency.omega
        if high:
            omega = low + (high - low) * draw("omega")
            teacher = classifier_free(teacher, network.none, omega)
        student, target = (network.flow_map(p, label, omega, **training) for p in (params, params if given.target is None else given.target))
        return consistency.loss(student, target, teacher, x0, noise, t, draws, given.progress, objective.consistency, adversary)
    if objective.loss == "perflow":
        x0, noise = perflow.ends(teacher, objective.perflow, x0, noise, t)
        x_t = expand(network.sde.alpha(t), x0) * x0 + expand(network.sde.sigma(t), x0) * noise
    if objective.loss == "meanflow":
        s = meanflow.second_times(t, jnp.minimum(times.min(0).astype(t.dtype), t), draw("second draw"), objective.meanflow.apart)
        v = sum(expand(c, x0) * a for c, a in zip(plane_point(network.sde, "velocity", t), (x0, noise)))
        v = meanflow.guided(network.flow_map(params, label), network.none, x_t, t, v, hidden, objective.meanflow)
        return meanflow.loss(network.flow_map(params, label, **training), x_t, t, s, v, objective.meanflow)
    if network.interpolant is not None:
        return interpolated(network, params, x0, noise, normal(stream("interpolant"), x0.shape, x0.dtype), t, label, training)
    chosen = LOSSES["regression" if objective.loss == "perflow" else objective.loss]  # PeRFlow's is one, on other ends
    found = chosen(den, x0, x_t, noise, t, stream("loss"), objective)
    if not objective.get("adaptive"):
        return found
    w = network.weight(params, t)
    return jnp.exp(w) * found - w  # EDM2, 2312.02696, eq. 21, whose u is -w
