r"""Gaussian mixtures: the exact oracle. Noised along any path they stay Gaussian mixtures, so that the density, the score, the
denoiser and the velocity of every marginal are known in closed form.

With components N(m_k, V_k diag(s_k^2) V_k^T) of weight w_k, the marginal at time t has components
N(alpha m_k, V_k diag(alpha^2 s_k^2 + sigma^2) V_k^T), and given component k and x_t, with r = V_k^T (x - alpha m_k) / (alpha^2 s_k^2 + sigma^2),

    E[x_0] = m_k + alpha V_k s_k^2 r,        E[eps] = sigma V_k r.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sde_lib.brief import known, shape_of
from sde_lib.denoiser import Denoiser
from sde_lib.flow_map import FlowMap
from sde_lib.noise import example_keys
from sde_lib.numerics import as_float
from sde_lib.sde import SDE, Time


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of M Gaussians in D dimensions.

    means: [M, D]. stds: [M] (isotropic) or [M, D] (along the eigenvectors). weights: [M], above 0, of any sum; default equal.
    eigenvectors: [M, D, D], columns; default the axes. All become JAX arrays; raises ValueError if the shapes disagree.
    """

    means: Float[Array, "m d"]
    stds: Float[Array, " m"] | Float[Array, "m d"]
    weights: Float[Array, " m"] | None = None
    eigenvectors: Float[Array, "m d d"] | None = None

    def __post_init__(self):
        means = as_float(self.means)
        if means.ndim != 2:
            raise ValueError(f"means of shape {means.shape}: expected [M, D]")
        m, d = means.shape
        stds = jnp.asarray(self.stds, means.dtype)
        weights = jnp.full(m, 1 / m) if self.weights is None else jnp.asarray(self.weights)
        if stds.shape not in ((m,), (m, d)):
            raise ValueError(f"stds of shape {stds.shape}: expected {(m,)} or {(m, d)}")
        if weights.shape != (m,):
            raise ValueError(f"weights of shape {weights.shape}: expected {(m,)}")
        if self.eigenvectors is not None and np.shape(self.eigenvectors) != (m, d, d):
            raise ValueError(f"eigenvectors of shape {np.shape(self.eigenvectors)}: expected {(m, d, d)}")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "stds", jnp.broadcast_to(stds[:, None] if stds.ndim == 1 else stds, (m, d)))
        object.__setattr__(self, "weights", weights.astype(means.dtype))
        if self.eigenvectors is not None:
            object.__setattr__(self, "eigenvectors", jnp.asarray(self.eigenvectors, means.dtype))

    def __repr__(self) -> str:
        stds = known(self.stds)
        if stds is None:
            return f"GaussianMixture(means {shape_of(self.means)}, stds {shape_of(self.stds)})"
        turned = "" if self.eigenvectors is None else ", turned"
        return f"GaussianMixture({len(stds)} components in {stds.shape[-1]} dimensions, stds {stds.min():.4g} to {stds.max():.4g}{turned})"

    def _check(self, x) -> None:
        """Raise ValueError for points of another dimension, with which components would broadcast in silence."""
        d = self.means.shape[-1]
        if x.ndim != 2 or x.shape[1] != d:
            mend = "; pass x[None] for one point" if x.shape == (d,) else "; pass x[:, None]" if x.ndim == d == 1 else ""
            raise ValueError(f"x of shape {x.shape}: expected [B, {d}], points of the {d} dimensions of this mixture{mend}")

    def sample(self, key, n: int) -> Float[Array, "n d"]:
        """n draws, [n, D]; draw i does not depend on n."""

        def one(key):
            choose, draw = jax.random.split(key)
            k = jax.random.categorical(choose, jnp.log(self.weights))
            z = self.stds[k] * jax.random.normal(draw, self.means.shape[1:], self.means.dtype)
            return self.means[k] + (z if self.eigenvectors is None else self.eigenvectors[k] @ z)

        return jax.vmap(one)(example_keys(key, n))

    def _components(self, x, alpha, sigma):
        """Per component: log-density with weight [M, B], and r of the module docstring [M, D, B]. alpha, sigma: [] or [B].

        The batch is the last axis: it is the long one, and the one that a CPU computes in vectors."""
        x = as_float(x)
        self._check(x)
        alpha, sigma = (jnp.asarray(c, x.dtype).reshape(-1) for c in (alpha, sigma))
        variance = (alpha * self.stds[:, :, None]) ** 2 + sigma**2
        y = x.T - alpha * self.means[:, :, None]
        if self.eigenvectors is not None:
            y = self.eigenvectors.mT @ y
        log_prob = -0.5 * jnp.sum(y**2 / variance + jnp.log(2 * np.pi * variance), 1)
        return log_prob + jnp.log(self.weights / self.weights.sum())[:, None], y / variance

    def log_prob(self, x: Float[Array, "b d"]) -> Float[Array, " b"]:
        """log p_0(x) in nats, [B]."""
        return jax.nn.logsumexp(self._components(as_float(x), 1.0, 0.0)[0], 0)

    def marginal_log_prob(self, sde: SDE, x: Float[Array, "b d"], t: Time) -> Float[Array, " b"]:
        """log p_t(x) in nats, [B], of the data noised along `sde` to times t, [] or [B]."""
        x = as_float(x)
        t = jnp.asarray(t, x.dtype)
        return jax.nn.logsumexp(self._components(x, sde.alpha(t), sde.sigma(t))[0], 0)

    def posterior(self, a: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], noise_std: float) -> "GaussianMixture":
        """p(x_0 | y) of the measurement y [N] = A x_0 + noise_std n, n ~ N(0, I): a mixture, of each component's posterior (in float64 on the host).

        With S = V diag(s^2) V^T, M = A S A^T + noise_std^2 I and K = S A^T M^-1: means m + K (y - A m), covariances S - K A S, and
        weights w N(y; A m, M). Raises ValueError if M is singular, as for noise_std = 0 and rows of A that depend on each other.
        """
        a, y = np.asarray(a, np.float64), np.asarray(y, np.float64)
        if a.ndim != 2 or a.shape[1] != self.means.shape[1] or y.shape != a.shape[:1]:
            raise ValueError(f"posterior: a of shape {a.shape} and y of shape {y.shape}: expected [N, {self.means.shape[1]}] and [N]")
        eye = np.eye(self.means.shape[1])
        vs = [eye] * len(self.means) if self.eigenvectors is None else np.asarray(self.eigenvectors, np.float64)
        found = []
        for m, std, w, v in zip(*(np.asarray(c, np.float64) for c in (self.means, self.stds, self.weights)), vs):
            s = (v * std**2) @ v.T
            marginal = a @ s @ a.T + noise_std**2 * np.eye(len(a))
            if np.linalg.cond(marginal) > 1e12:
                raise ValueError(f"posterior: the covariance of y is singular with noise_std = {noise_std}: expected more, or independent rows of A")
            gain, residual = np.linalg.solve(marginal, a @ s).T, y - a @ m
            log_weight = np.log(w) - 0.5 * (residual @ np.linalg.solve(marginal, residual) + np.linalg.slogdet(marginal)[1])
            values, vectors = np.linalg.eigh(s - gain @ a @ s)
            found.append((m + gain @ residual, np.sqrt(np.maximum(values, 0.0)), log_weight, vectors))
        means, stds, log_weights, vectors = (np.stack(c) for c in zip(*found))
        return GaussianMixture(means, stds, np.exp(log_weights - log_weights.max()), vectors)

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """E[x_0], in float64 on the host."""
        weights = np.asarray(self.weights, np.float64)
        return weights / weights.sum() @ np.asarray(self.means, np.float64)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Cov[x_0], in float64 on the host."""
        weights = np.asarray(self.weights, np.float64)
        means, stds = np.asarray(self.means, np.float64), np.asarray(self.stds, np.float64)
        vs = np.eye(means.shape[1])[None] if self.eigenvectors is None else np.asarray(self.eigenvectors, np.float64)
        turned = vs * stds[:, None]
        within, apart = turned @ turned.mT, means - self.mean
        return np.einsum("k,kij->ij", weights / weights.sum(), within + apart[:, :, None] * apart[:, None])

    def denoiser(self, sde: SDE) -> Denoiser:
        """The exact Denoiser, of kind "v": at right angles to x on the plane, so that no conversion cancels at either end."""
        return Denoiser(jax.tree_util.Partial(_exact_v, self, sde), sde, "v")

    def flow_map(self, sde: SDE) -> FlowMap:
        """The exact flow map of one Gaussian, X = alpha(s) m + V (S_s/S_t) V^T (x - alpha(t) m), S^2 = alpha^2 s^2 + sigma^2; of kind "v".

        Raises ValueError for a mixture of more, which has none in closed form.
        """
        if len(self.means) != 1:
            raise ValueError(f"flow_map of a mixture of {len(self.means)} components: only one Gaussian's is in closed form; integrate its denoiser")
        return FlowMap(jax.tree_util.Partial(_exact_jump, self, sde), sde, "v")


FIELDS = ("means", "stds", "weights", "eigenvectors")


def _unflatten(_, children):
    gm = object.__new__(GaussianMixture)  # children may be placeholders or tangents: nothing is checked or converted
    for name, child in zip(FIELDS, children):
        object.__setattr__(gm, name, child)
    return gm


jax.tree_util.register_pytree_node(GaussianMixture, lambda gm: (tuple(getattr(gm, name) for name in FIELDS), None), _unflatten)


def _exact_v(gm: GaussianMixture, sde: SDE, x, t):
    """E[alpha eps - sigma x_0 | x_t] for x [B, D], t [B]."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    log_prob, r = gm._components(x, alpha, sigma)
    # alpha E[eps] - sigma E[x_0 - m] = alpha sigma r - sigma alpha s^2 r
    v = alpha * sigma * (1.0 - gm.stds[:, :, None] ** 2) * r
    if gm.eigenvectors is not None:
        v = gm.eigenvectors @ v
    return jnp.sum(jax.nn.softmax(log_prob, 0)[:, None] * (v - sigma * gm.means[:, :, None]), 0).T


def _exact_jump(gm: GaussianMixture, sde: SDE, x, t, s):
    """alpha_t eps' - sigma_t x' of the x' and eps' that lead from x = alpha_t x' + sigma_t eps' at t to alpha_s x' + sigma_s eps' at s; x [B, D].

    With y = V^T (x - alpha_t m), x' = m + V p y and eps' = V q y solve alpha_t p + sigma_t q = 1 and alpha_s p + sigma_s q = S_s/S_t; here
    without the difference that is 0 at s = t, and with the limit 0 where a denominator is 0.
    """
    gm._check(x)
    alpha_t, sigma_t, alpha_s, sigma_s = (c[:, None] for c in (sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)))
    std, tiny = gm.stds[0], jnp.finfo(x.dtype).tiny
    S_t, S_s = (jnp.sqrt((alpha * std) ** 2 + sigma**2) for alpha, sigma in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
    y = x - alpha_t * gm.means[0]
    if gm.eigenvectors is not None:
        y = y @ gm.eigenvectors[0]
    both = (alpha_t * sigma_s + alpha_s * sigma_t) / S_t
    p = both * std**2 / jnp.maximum(sigma_s * S_t + sigma_t * S_s, tiny)
    q = both / jnp.maximum(alpha_t * S_s + alpha_s * S_t, tiny)
    v = (alpha_t * q - sigma_t * p) * y
    if gm.eigenvectors is not None:
        v = v @ gm.eigenvectors[0].T
    return v - sigma_t * gm.means[0]
