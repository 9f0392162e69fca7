r"""Log-likelihood by the instantaneous change of variables (Chen et al. 2018, 1806.07366; Song et al. 2021, 2011.13456, eq. 39).

Along the probability-flow ODE dx/dt = v(x, t) the log-density changes by -div v, so that

    log p(x) = log p_T(x_T) + \int_eps^T div v(x_t, t) dt,      x_eps = x.

It is the density of x at t = eps: of the data noised by sigma(eps). On the prediction plane v = a(t) x + b(t) F(x, t), so that
div v = a D + b tr(dF/dx) with only the trace of the network's Jacobian to compute ("exact", D forward derivatives) or to estimate
("hutchinson": E[z^T J z] with z of zero mean and unit covariance; Hutchinson 1990, Grathwohl et al. 2019, 1810.01367).
"""

from typing import Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from samplers.adaptive import check_eps, check_tolerances, per_example, solve_ode
from sde_lib.denoiser import Denoiser
from sde_lib.noise import example_keys
from sde_lib.numerics import as_float


class LogLikelihood(NamedTuple):
    """log_prob: nats. latent: x_T. nfe: evaluations of each example (each with its divergence). stderr: standard error of log_prob over probes,
    0 if the trace is exact, NaN if one probe leaves it unknown. success: False, with NaN results, where the solve needed too many steps."""

    log_prob: Float[Array, " b"]
    latent: Float[Array, "b ..."]
    nfe: Int[Array, " b"]
    stderr: Float[Array, " b"]
    success: Bool[Array, " b"]


def trace(jvp, probes, exact: bool, chunk: int):
    """Tr J [1] by the unit vectors in `probes` if exact, else z^T J z of each probe [n]. jvp: x -> J x; probes: [n, ...]."""
    quadratic_form = lambda z: jnp.vdot(z, jvp(z))
    if len(probes) <= chunk:
        forms = jax.vmap(quadratic_form)(probes)
    else:
        forms = jax.lax.map(quadratic_form, probes, batch_size=chunk)
    return forms.sum(keepdims=True) if exact else forms


@eqx.filter_jit
def _log_likelihood(den, x, probes, t0, t1, rtol, atol, solver, exact, chunk):
    def one(den, x, probes):
        if exact:
            probes = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)

        def field(t, state):
            x, _ = state
            a, b = (c.reshape(()) for c in den.linear("velocity", x[None], t))
            prediction, jvp = jax.linearize(lambda x: den.raw(x[None], t)[0], x)
            return a * x + b * prediction, a * x.size + b * trace(jvp, probes, exact, chunk)

        change = jnp.zeros(1 if exact else len(probes), x.dtype)
        return solve_ode(field, (x, change), t0, t1, rtol, atol, solver, diffrax.ForwardMode())

    (latent, change), nfe, success = per_example(den, one, x, probes)
    n = change.shape[-1]
    stderr = jnp.zeros_like(change[:, 0]) if exact else change.std(-1, ddof=1) / jnp.sqrt(n) if n > 1 else jnp.full_like(change[:, 0], jnp.nan)
    return LogLikelihood(den.sde.prior_log_prob(latent) + change.mean(-1), latent, nfe, stderr, success)


def log_likelihood(
    den: Denoiser,
    x: Float[Array, "b ..."],
    divergence: Literal["exact", "hutchinson"] = "exact",
    key=None,
    rtol=1e-5,
    atol=1e-5,
    probes: int = 4,
    noise: Literal["rademacher", "gaussian"] = "rademacher",
    eps: float | None = None,
    solver=diffrax.Tsit5(),
    chunk: int = 64,
) -> LogLikelihood:
    """log p(x) in nats for each x [B, ...], with its own step sizes: no result depends on batch-mates.

    divergence: "exact", at the cost of D forward derivatives an evaluation, `chunk` of them at a time (memory: B x chunk activations);
        or "hutchinson", unbiased, with `probes` fixed probes of law `noise` for each example, drawn from `key` (one, or one per example).
    eps: the time at which x is taken (default `den.sde.eps`); what is computed is the density of data noised by sigma(eps).
    solver: an explicit Runge-Kutta method of diffrax; rtol, atol: its tolerances, in the root mean square over x and log p together.
    Raises ValueError for unknown options, impossible tolerances and a missing key.
    """
    check_tolerances(rtol, atol, solver)
    x = as_float(x)
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"unknown divergence '{divergence}': expected exact or hutchinson")
    if noise not in ("rademacher", "gaussian"):
        raise ValueError(f"unknown noise '{noise}': expected rademacher or gaussian")
    vectors = None
    if divergence == "hutchinson":
        if key is None:
            raise ValueError("divergence 'hutchinson' draws probes: pass key=jax.random.key(seed)")
        if probes < 1:
            raise ValueError(f"probes = {probes}: expected at least 1")
        draw = jax.random.rademacher if noise == "rademacher" else jax.random.normal
        vectors = jax.vmap(lambda k: draw(k, (probes, *x.shape[1:]), x.dtype))(example_keys(key, x.shape[0]))
    limits = (jnp.asarray(c, x.dtype) for c in (check_eps(den, eps), den.sde.T, rtol, atol))
    return _log_likelihood(den, x, vectors, *limits, solver, divergence == "exact", chunk)
