r"""Log-likelihood by the instantaneous change of variables (Chen et al. 2018, 1806.07366; Song et al. 2021, 2011.13456, eq. 39).

In the angle phi = arctan(sigma/alpha), and with z = x/c for c = sqrt(alpha^2 + sigma^2), the probability-flow ODE of every path is the same,

    dz/dphi = v(z, phi) = E[cos(phi) eps - sin(phi) x_0 | z],        d log p(z)/dphi = -div v,

and bounded at both ends. The divergence is the cost, and does not feed back into z: path and divergence are computed apart, in w = sqrt(phi),

    1. where the flow is smooth, by one rule of Chebyshev nodes over the whole interval (`samplers.whole`), on as few nodes as an example needs;
    2. else panel by panel (`samplers.panels`), with steps as short as the flow asks for, and stabilised ones where it is stiff.

A rule is believed if the Chebyshev coefficients of what it integrates have decayed, and if its nodes are dense enough for how far the path is from
the data: not because two rules agree. Examples are computed in blocks of a fixed size (`samplers.blocks`), so that an example's result is the same
alone, in any batch and in any order.

The path is not quite a solution. But log p is a function of z and phi, so that along ANY path

    log p(z_0) = log p(z_T) + \int div v - score . (dz/dphi - v) dphi,

and the network knows the score: errors of the path count in proportion to errors of the score. With an exact score they do not count at all.

It is the density of x at t = eps: of the data noised by sigma(eps). With the network's point F of the prediction plane v = a z + b F, so that
div v = a D + b tr(dF/dz) with only the trace of its Jacobian to compute or to estimate (`trace_forms`).
"""

from functools import partial
from typing import Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.adaptive import check_eps, check_tolerances, per_example, solve_ode, stopped, without_derivative
from samplers.change_of_variables import LogLikelihood, angle, divergence_forms, first_order_truncation, radius, summary
from samplers.checks import check_denoiser, checked
from samplers.decoupled import decoupled
from samplers.guidance import check_unguided
from sde_lib.denoiser import Denoiser
from sde_lib.noise import example_keys
from sde_lib.numerics import namespace

DIVERGENCES = ("exact", "hutchinson", "hutch++")


@partial(jax.jit, static_argnames=("shape", "noise"))
def drawn(key, x, shape: tuple[int, ...], noise: str):
    """Probes [*shape, B, ...] for x [B, ...], each example's from its own key."""
    draw = jax.random.rademacher if noise == "rademacher" else jax.random.normal
    return jax.vmap(lambda k: draw(k, (*shape, *x.shape[1:]), x.dtype), out_axes=len(shape))(example_keys(key, len(x)))


@eqx.filter_jit
def _coupled(den, x, probes, ends, radii, rtol, atol, solver, kind, chunk, prior_std, adjoint):
    def one(den, z, probes):
        vectors = None if probes is None else jnp.expand_dims(probes, -z.ndim - 1)

        def field(phi, state):
            v, forms = divergence_forms(den, phi, state[0][None], vectors, kind, chunk)
            return v[0], forms[0]

        change = jnp.zeros(1 if kind == "exact" else probes.shape[-1 - z.ndim], z.dtype)
        return solve_ode(field, (z, change), *ends, rtol, atol, solver, adjoint)

    each = None if probes is None else jnp.moveaxis(probes, -x.ndim, 0)
    z_0 = x / radii[0]
    (z, change), nfe, success = per_example(den, one, z_0, each)
    v, forms = divergence_forms(den, ends[0], z_0, probes, kind, chunk)
    truncation = first_order_truncation(ends[0], z_0, v, forms.mean(-1), radii[0])
    truncation = jnp.full_like(truncation, jnp.nan) if den.coupled else truncation  # it takes a score
    unknown = jnp.full(len(x), jnp.nan, x.dtype)
    rest = (nfe + 1, success, nfe + 1, unknown, unknown, truncation, radii, kind == "exact")
    return summary(den.sde, prior_std, radii[1] * z, change, *rest)


def log_likelihood(
    den: Denoiser,
    x: Float[Array, "b ..."],
    divergence: Literal["exact", "hutchinson", "hutch++"] = "exact",
    key=None,
    rtol=1e-5,
    atol=1e-5,
    probes: int = 4,
    noise: Literal["rademacher", "gaussian"] = "rademacher",
    eps: float | None = None,
    start: float | None = None,
    prior_std: float | None = None,
    solver=diffrax.Tsit5(),
    chunk: int = 64,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> LogLikelihood:
    """log p(x) in nats for each x [B, ...], with its own steps and nodes: no result depends on batch-mates.

    divergence: "exact", at the cost of D Jacobian-vector products an evaluation, `chunk` of them at a time (memory: B x chunk activations, beside
        some 300 numbers for each coordinate of x for the path);
        "hutchinson", unbiased, with `probes` fixed probes of law `noise` for each example, drawn from `key` (one, or one per example);
        "hutch++", unbiased, with 3 x probes products (see `trace_forms`).
    rtol, atol: of log p: its error is meant to be at most D atol + rtol |log p| nats. Where float32 cannot give that, `error` is larger and says so.
        The path is right to some ten times as much, relative to the root mean square of z.
    solver: the explicit Runge-Kutta method of diffrax that solves path and divergence together where `adjoint` is given.
    eps: the time at which x is taken (default `den.sde.eps`); what is computed is the density of data noised by sigma(eps).
    start: the time at which x is distributed as the prior (default T; earlier for a model that was trained up to there).
    prior_std: the prior's standard deviation there, sigma(T) by default; of an interpolant (sigma(T)^2 + gamma(T)^2)^0.5 (`sde_lib.interpolants`), of
        whose data what is computed is the density of those with its noise at eps, too.
    adjoint: None, or a diffrax adjoint for derivatives of log_prob in x and parameters: `diffrax.RecursiveCheckpointAdjoint()` for `jax.grad`,
        `diffrax.ForwardMode()` for `jax.jvp`. Path and divergence are then solved together, at rtol and atol, in the root mean square over both;
        `error` is the distance to the result without an adjoint. So they are of a coupled denoiser, whose `error` is the distance to a solve
        with ten times the tolerances. The evaluations of what it is compared with are not counted.
    Raises ValueError for unknown options, impossible tolerances and a missing key, for a guided denoiser, and for a
    derivative without an adjoint.
    """
    check_denoiser(den, "log_likelihood")
    x = checked(den, x, "x", key)
    check_unguided(den, "log_likelihood")
    check_tolerances(rtol, atol, solver)
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence '{divergence}': expected {' or '.join(DIVERGENCES)}")
    if noise not in ("rademacher", "gaussian"):
        raise ValueError(f"unknown noise '{noise}': expected rademacher or gaussian")
    if chunk < 1:
        raise ValueError(f"chunk = {chunk}: expected at least 1")
    vectors = None
    if divergence != "exact":
        if key is None:
            raise ValueError(f"divergence '{divergence}' draws probes: pass key=jax.random.key(seed)")
        if probes < 1:
            raise ValueError(f"probes = {probes}: expected at least 1")
        if divergence == "hutch++" and probes > x[0].size:
            raise ValueError(f"probes = {probes}: hutch++ expected at most the dimension, {x[0].size}")
        vectors = drawn(key, x, (probes,) if divergence == "hutchinson" else (2, probes), noise)
    if prior_std is not None and not 0 < prior_std < np.inf:
        raise ValueError(f"prior_std = {prior_std}: expected a finite number above 0")
    sde, times = den.sde, (check_eps(den, eps), den.sde.T if start is None else start)
    if not times[0] < times[1] <= sde.T:
        raise ValueError(f"eps = {times[0]}, start = {start}: expected eps < start <= T = {sde.T}")
    number = lambda c: namespace(c).asarray(c, x.dtype)  # an argument of the compiled solve
    ends, radii = (tuple(number(fn(sde, t)) for t in times) for fn in (angle, radius))
    numbers = ends, radii, number(rtol), number(atol)
    if adjoint is None:
        den, x = without_derivative((den, x), "log_likelihood")
        if not den.coupled:
            return decoupled(den, x, vectors, *numbers, divergence, chunk, prior_std)
        adjoint = diffrax.ForwardMode()  # without a score errors of the path count in full
    together = partial(_coupled, solver=solver, kind=divergence, chunk=chunk, prior_std=prior_std)
    result = together(den, x, vectors, *numbers, adjoint=adjoint)
    if den.coupled:
        looser = ends, radii, *(jnp.minimum(10 * c, 0.5) for c in numbers[2:])
        other = together(stopped(den), stopped(x), vectors, *looser, adjoint=diffrax.ForwardMode())
        known = jnp.zeros_like(other.error)
    else:
        other = decoupled(stopped(den), stopped(x), vectors, *numbers, divergence, chunk, prior_std)
        known = other.error
    difference = stopped(result.latent) - other.latent
    return result._replace(
        success=result.success & other.success,
        error=known + jnp.abs(stopped(result.log_prob) - other.log_prob),
        latent_error=jnp.sqrt(jnp.mean(difference.reshape(len(x), -1) ** 2, -1)),
    )
