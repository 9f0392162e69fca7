"""The probability flow in the angle phi = arctan(sigma/alpha), its divergence, and the log-likelihood that follows; see `samplers.likelihood`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sde_lib.brief import results
from sde_lib.denoiser import Denoiser
from sde_lib.numerics import expand, namespace


class LogLikelihood(NamedTuple):
    """The log-likelihood of each example, and how far it can be trusted.

    log_prob: nats. latent: x_T. nfe: evaluations of each example. stderr: standard error of log_prob over probes, 0 if the trace is exact, NaN if one
    probe leaves it unknown. error: how far log_prob may be from the exact density of the flow, in nats, beside the probes' noise: an estimate that is
    meant to be an upper bound, and that includes the rounding of float32. success: whether the solve reached the prior with all its parts converged
    to the tolerance, or to rounding; False, with NaN results, where it did not, or where the network was not finite.
    divergences: those of the evaluations that had a divergence with them. truncation: log p_0(x) - log p_eps(x), what the noise at eps costs, to
    first order in (sigma/alpha)^2 there, and only where the score at eps is accurate (the error e of a predicted noise adds some -|e|^2/2). Its mean
    over data of the model's own is of second order. NaN of a coupled denoiser. latent_error: of latent, its estimated root mean square."""

    log_prob: Float[Array, " b"]
    latent: Float[Array, "b ..."]
    nfe: Int[Array, " b"]
    stderr: Float[Array, " b"]
    success: Bool[Array, " b"]
    divergences: Int[Array, " b"]
    error: Float[Array, " b"]
    truncation: Float[Array, " b"]
    latent_error: Float[Array, " b"]
    __repr__ = results


def angle(sde, t: float) -> float:
    """phi(t), on the host."""
    return float(np.arctan2(sde.sigma(t), sde.alpha(t)))


def radius(sde, t):
    """c(t)."""
    return namespace(t).hypot(sde.alpha(t), sde.sigma(t))


def linear(den: Denoiser, phi, z):
    """a, b and F(z) with v = a z + b F(z), at phi [] or [B], z [B, ...]."""
    cos, sin = jnp.maximum(jnp.cos(phi), 1e-12), jnp.sin(phi)
    t = jnp.minimum(den.sde.time(jnp.log(cos) - jnp.log(sin)), den.sde.T)
    c = expand(radius(den.sde, t), z)
    a, b = den.linear("v", z, t)
    return a, b / c, lambda z: den.raw(c * z, t)


def velocity(den: Denoiser, phi, z):
    """v [B, ...]."""
    a, b, prediction = linear(den, phi, z)
    return a * z + b * prediction(z)


def divergence_forms(den: Denoiser, phi, z, probes, kind: str, chunk: int):
    """v [B, ...] and estimates of div v [B, n], whose mean estimates it; phi: [] or [B]."""
    a, b, function = linear(den, phi, z)
    prediction, jvp = jax.linearize(function, z)
    forms = trace_forms(jvp, probes, z, kind, chunk)
    scalar = lambda c: jnp.broadcast_to(c.reshape(-1), z.shape[:1])[:, None]
    return a * z + b * prediction, scalar(a) * z[0].size + scalar(b) * forms


def integrand(w: Float[Array, "n b"], z, slope, v, forms: Float[Array, "n b k"]):
    """g = (div v - score . (dz/dphi - v)) dphi/dw at nodes w of a path z [n, b, ...] with dz/dw = slope, for each form of div v: [n, b, k].

    And the network's score [n, b, ...], and score . dz/dw [n, b]."""
    inner = lambda a, b: jnp.sum((a * b).reshape(*w.shape, -1), -1)
    trailing = lambda c: c.reshape(c.shape + (1,) * (z.ndim - c.ndim))
    score = -(z + v / trailing(jnp.tan(w**2)))
    moved = inner(score, slope)
    return 2 * w[..., None] * forms - (moved - 2 * w * inner(score, v))[..., None], score, moved


def first_order_truncation(phi, z, v, divergence, c):
    """log p_0(x) - log p_eps(x) [B] at x = c z, from v and div v [B] at phi = phi(eps).

    d log p(z)/dphi = -div v - score . v is linear in phi to first order, and c z in place of z moves log p by (c - 1) score . z + D log c."""
    inner = lambda a, b: jnp.sum((a * b).reshape(len(z), -1), -1)
    score = -(z + v / jnp.tan(phi))
    return 0.5 * phi * (divergence + inner(score, v)) + (c - 1) * inner(score, z) + z[0].size * jnp.log(c)


def trace_forms(jvp, probes, z, kind: str, chunk: int):
    """Unbiased estimates of the trace of each example's Jacobian, [B, n]. jvp: [B, ...] -> [B, ...]; at most `chunk` of its calls at once.

    exact: sum of e_i^T J e_i, n = 1. hutchinson: p^T J p for each of probes [n, B, ...]. hutch++ (2010.09649, algorithm 1): the range of J on
    probes [0, :], orthonormalised to Q, is traced exactly, and what is orthogonal to it by Hutchinson's estimate with probes [1, :], of
    [2, n, B, ...]: 3 n Jacobian-vector products.
    """
    form = lambda p: jnp.sum(p * jvp(p), range(1, p.ndim))

    def products(fn, vectors):
        return jax.vmap(fn)(vectors) if len(vectors) <= chunk else jax.lax.map(fn, vectors, batch_size=chunk)

    if kind == "exact":
        unit = lambda i: jnp.zeros(z[0].size, z.dtype).at[i].set(1).reshape(z[0].shape)
        return products(lambda i: form(jnp.broadcast_to(unit(i), z.shape)), jnp.arange(z[0].size)).sum(0)[:, None]
    if kind == "hutchinson":
        return products(form, probes).T
    columns = lambda vectors: jnp.moveaxis(vectors.reshape(*vectors.shape[:2], -1), 0, -1)  # [n, B, ...] -> [B, D, n]
    back = lambda matrix: jnp.moveaxis(matrix, -1, 0).reshape(-1, *z.shape)
    q = jnp.linalg.qr(columns(products(jvp, probes[0])))[0]
    g = columns(probes[1])
    rest = back(g - q @ (q.mT @ g))
    return products(form, back(q)).sum(0)[:, None] + products(form, rest).T


def summary(sde, prior_std, latent, change, nfe, success, divergences, error, latent_error, truncation, radii, exact: bool) -> LogLikelihood:
    """The result, from change [B, n]: estimates of the integral of div v."""
    n, dim = change.shape[-1], latent[0].size
    probed = change.std(-1, ddof=1) / n**0.5 if n > 1 else jnp.full_like(error, jnp.nan)
    stderr = jnp.where(success, jnp.zeros_like(error) if exact else probed, jnp.nan)
    log_prob = sde.prior_log_prob(latent, prior_std) + change.mean(-1) + dim * jnp.log(radii[1] / radii[0])
    return LogLikelihood(jnp.where(success, log_prob, jnp.nan), latent, nfe, stderr, success, divergences, error, truncation, latent_error)
