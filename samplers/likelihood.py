r"""Log-likelihood by the instantaneous change of variables (Chen et al. 2018, 1806.07366; Song et al. 2021, 2011.13456, eq. 39).

In the angle phi = arctan(sigma/alpha), and with z = x/c for c = sqrt(alpha^2 + sigma^2), the probability-flow ODE of every path is the same,

    dz/dphi = v(z, phi) = E[cos(phi) eps - sin(phi) x_0 | z],        d log p(z)/dphi = -div v,

and bounded at both ends. The divergence is the cost, and does not feed back into z: path and divergence are computed apart, on Chebyshev nodes of
w = sqrt(phi), which are close together near the data, and resolve its small scales,

    1. z by an Adams-Bashforth method from node to node, without any divergence, on more nodes for an example until the Picard iterate
       z_0 + \int P dw, with P the polynomial through its slopes, agrees with it; where many do not suffice, by diffrax with adaptive steps;
    2. the divergence along that iterate by nested Clenshaw-Curtis rules, on as few nodes as the example's error estimate allows.

The path is not quite a solution. But log p is a function of z and phi, so that along ANY path

    log p(z_0) = log p(z_T) + \int div v - score . (dz/dphi - v) dphi,

and the network knows the score: errors of the path count in proportion to errors of the score. With an exact score they do not count at all.

It is the density of x at t = eps: of the data noised by sigma(eps). With the network's point F of the prediction plane v = a z + b F, so that
div v = a D + b tr(dF/dz) with only the trace of its Jacobian to compute or to estimate (`trace_forms`).
"""

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from samplers.adaptive import check_eps, check_tolerances, per_example, solve_ode
from samplers.chebyshev import interpolation, nodes, path_plan, quadrature_plan
from samplers.guidance import check_unguided
from sde_lib.denoiser import Denoiser
from sde_lib.noise import example_keys
from sde_lib.numerics import as_float, expand, namespace

PATHS = (12, 24, 48, 96)  # intervals of the path
PATH_ERRORS = (0.1, 3e-3, 2e-4)  # of all but the last, in the root mean square over z, as measured on mixtures and on networks
PATH_ERROR = 10.0  # tolerances of log p that the path may be off: it counts only times the relative error of the score
LEVELS = (12, 24, 48, 96, 192)  # intervals of the quadrature; estimates of its error use a half and a quarter of them too
NUMBERS = 2048  # coordinates: fewer are computed at once as fast as a part of them
VECTORS = 1024  # examples x nodes x tangents that are evaluated at once, where there are fewer examples x tangents: what a cache holds

DIVERGENCES = ("exact", "hutchinson", "hutch++")


class LogLikelihood(NamedTuple):
    """log_prob: nats. latent: x_T, to the path's tolerance. nfe: evaluations of each example. stderr: standard error of log_prob over probes,
    0 if the trace is exact, NaN if one probe leaves it unknown. success: False, with NaN results, where the path needed too many steps or the
    network was not finite.
    divergences: those of the evaluations that had a divergence with them. error: of the quadrature, estimated, in nats (NaN where `adjoint`
    chose the coupled solve, whose tolerance covers both). truncation: log p_0(x) - log p_eps(x), what the noise at eps costs, to first order in
    (sigma/alpha)^2 there, and only where the score at eps is accurate (the error e of a predicted noise adds some -|e|^2/2): a statement of size, to
    be added where it is small. Its mean over data of the model's own is of second order."""

    log_prob: Float[Array, " b"]
    latent: Float[Array, "b ..."]
    nfe: Int[Array, " b"]
    stderr: Float[Array, " b"]
    success: Bool[Array, " b"]
    divergences: Int[Array, " b"]
    error: Float[Array, " b"]
    truncation: Float[Array, " b"]


# --- the ODE in the angle ---------------------------------------------------------------------------------------------------------------


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


def summary(sde, latent, change, nfe, success, divergences, error, truncation, radii, exact: bool) -> LogLikelihood:
    """The result, from change [B, n]: estimates of the integral of div v."""
    n, dim = change.shape[-1], latent[0].size
    probed = change.std(-1, ddof=1) / n**0.5 if n > 1 else jnp.full_like(error, jnp.nan)
    stderr = jnp.where(success, jnp.zeros_like(error) if exact else probed, jnp.nan)
    log_prob = sde.prior_log_prob(latent) + change.mean(-1) + dim * jnp.log(radii[1] / radii[0])
    return LogLikelihood(jnp.where(success, log_prob, jnp.nan), latent, nfe, stderr, success, divergences, error, truncation)


@partial(jax.jit, static_argnames=("shape", "noise"))
def drawn(key, x, shape: tuple[int, ...], noise: str):
    """Probes [*shape, B, ...] for x [B, ...], each example's from its own key."""
    draw = jax.random.rademacher if noise == "rademacher" else jax.random.normal
    return jax.vmap(lambda k: draw(k, (*shape, *x.shape[1:]), x.dtype), out_axes=len(shape))(example_keys(key, len(x)))


# --- the decoupled solve --------------------------------------------------------------------------------------------------------------


def by_nodes(fn, w: Float[Array, " n"], xs, tangents: int):
    """fn(w, *xs, of) of all examples at all nodes, [n, b, ...], for xs of [n, b, ...]: nodes are joined to batches of no more than `VECTORS` examples
    x tangents, without remainder, in which `of` says which example each is."""
    n, b = xs[0].shape[:2]
    size = max(k for k in range(1, n + 1) if n % k == 0 and (k == 1 or k * b * tangents <= VECTORS))
    join = lambda a: a.reshape(n // size, size * b, *a.shape[2:])
    of = jnp.tile(jnp.arange(b), size)
    w = w if size == 1 else join(jnp.broadcast_to(w[:, None], (n, b)))
    found = jax.lax.map(lambda row: fn(*row, of), (w, *map(join, xs)))
    return found.reshape(n, b, *found.shape[2:])


def rows_of(den: Denoiser, rows) -> Denoiser:
    """The denoiser of some examples of the batch."""
    return replace(den, cond=jax.tree.map(lambda c: c[rows], den.cond))


def over_active(active: Bool[Array, " b"], fn, state, parts: int, dim: int):
    """state = fn(rows, state) for the active examples, in chunks of about B/parts that are filled up with others, so that none pays for another's
    needs. fn may see an example twice. Chunks of fewer than `NUMBERS` coordinates are not worth it."""
    size = max(32, -(-NUMBERS // dim), -(-len(active) // parts))
    order = jnp.argsort(~active, stable=True)
    one = lambda i, state: fn(jax.lax.dynamic_slice(order, (i * size,), (size,)), state)
    some = lambda state: jax.lax.fori_loop(0, -(-jnp.sum(active) // size), one, state)
    loop = some if size < len(active) else lambda state: fn(slice(None), state)
    return jax.lax.cond(jnp.any(active), loop, lambda state: state, state)  # without the condition XLA computes a part of a loop that does not run


def march(den: Denoiser, z, w, n, weights):
    """Slopes dz/dw [len(w), b, ...] at nodes w of which the first n + 1 are visited, by Adams-Bashforth steps of `weights` from z at w[0]."""
    count = weights.shape[1]

    def step(i, carry):
        z, slopes = carry
        slopes = slopes.at[i + count - 1].set(2 * w[i] * velocity(den, w[i] ** 2, z))
        return z + jnp.tensordot(weights[i], jax.lax.dynamic_slice_in_dim(slopes, i, count), 1), slopes

    return jax.lax.fori_loop(0, n + 1, step, (z, jnp.zeros((len(w) + count - 1, *z.shape), z.dtype)))[1][count - 1 :]


def smooth_path(den: Denoiser, z_0, w, rtol, atol, solver, least):
    """Slopes dz/dw of a path for each z_0 [B, ...], at the nodes of the last of PATHS [N + 1, B, ...]; evaluations [B] and success [B].

    w: from [0, 1]. Levels below `least`, and those whose error is expected to be too large, are left out."""
    dtype, batch = z_0.dtype, len(z_0)
    points, weights, finest, defects = jax.tree.map(lambda c: jnp.asarray(c, dtype), path_plan(PATHS))
    span, tolerance = w(1.0) - w(0.0), PATH_ERROR * (atol + rtol)  # z is of order 1
    rms = lambda e: jnp.sqrt(jnp.max(jnp.mean(e.reshape(*e.shape[:2], -1) ** 2, -1), 0))
    judge = lambda fine, defect: (
        lambda slopes: (jnp.tensordot(fine, slopes[: len(defect)], 1), rms(span * jnp.tensordot(defect, slopes[: len(defect)], 1)))
    )
    judged = [judge(*matrices) for matrices in zip(finest, defects)]
    chosen = lambda active, new, old: jnp.where(active.reshape(-1, *(1,) * (z_0.ndim - 1)), new, old)

    def level(state):
        k, active, slopes, nfe = state

        def fill(rows, state):
            slopes, error = state
            found = march(rows_of(den, rows), z_0[rows], w(points[k]), jnp.asarray(PATHS)[k], span * weights[k])
            new, defect = jax.lax.switch(k, judged, found)
            return slopes.at[:, rows].set(chosen(active[rows], new, slopes[:, rows])), error.at[rows].set(defect)

        slopes, error = over_active(active, fill, (slopes, jnp.zeros(batch, dtype)), 2, z_0[0].size)
        return k + 1, active & ~(error <= tolerance), slopes, nfe + jnp.where(active, jnp.asarray(PATHS)[k] + 1, 0)

    first = jnp.maximum(least, jnp.sum(np.array(PATH_ERRORS) > tolerance))
    start = (first, jnp.ones(batch, bool), jnp.zeros((PATHS[-1] + 1, *z_0.shape), dtype), jnp.zeros(batch, int))
    _, active, slopes, nfe = jax.lax.while_loop(lambda state: (state[0] < len(PATHS)) & jnp.any(state[1]), level, start)

    def adaptive(rows, state):
        slopes, nfe, success = state
        some, here = rows_of(den, rows), w(points[-1])
        field = lambda den: lambda phi, z: velocity(den, phi, z[None])[0]
        one = lambda den, z: solve_ode(field(den), z, here[0] ** 2, here[-1] ** 2, rtol, atol, solver, diffrax.ForwardMode(), here**2)
        z, steps, good = per_example(some, one, z_0[rows])
        slope = lambda w, z, of: 2 * expand(w, z) * velocity(rows_of(some, of), w**2, z)
        found = by_nodes(slope, here, (jnp.moveaxis(z, 1, 0),), 1)
        slopes = slopes.at[:, rows].set(chosen(active[rows], found, slopes[:, rows]))
        return slopes, nfe.at[rows].set(steps + len(here)), success.at[rows].set(good | ~active[rows])

    slopes, more, success = over_active(active, adaptive, (slopes, jnp.zeros(batch, int), jnp.ones(batch, bool)), 8, z_0[0].size)
    return slopes, nfe + jnp.where(active, more, 0), success


@eqx.filter_jit
def _decoupled(den, x, probes, ends, radii, rtol, atol, solver, kind, chunk):
    batch, dim = len(x), x[0].size
    w_0, w_T = jnp.sqrt(ends[0]), jnp.sqrt(ends[1])
    span = w_T - w_0
    w = lambda y: w_0 + span * jnp.asarray(y, x.dtype)
    z_0 = x / radii[0]
    # the first levels are the least sure: they serve loose tolerances, where the probes' noise is larger by far
    least = jnp.where((kind == "hutchinson") & (rtol + atol > 0.01), 0, 1)
    slopes, path_nfe, success = smooth_path(den, z_0, w, rtol, atol, solver, least)

    # the divergence, for the examples that need a level
    n_forms = 1 if kind == "exact" else probes.shape[-1 - x.ndim]
    tangents = min(chunk, dim) if kind == "exact" else n_forms
    fine = w(nodes(LEVELS[-1]))
    values, integral = (jnp.asarray(m, x.dtype) for m in interpolation(PATHS[-1], nodes(LEVELS[-1])))

    def integrand(den, w, z, slope, probes):
        """(div v - score . (dz/dphi - v)) dphi/dw of examples [b] at nodes w, [] or [b]."""
        v, forms = divergence_forms(den, w**2, z, probes, kind, chunk)
        score = -(z + v / expand(jnp.tan(w**2), z))
        return 2 * expand(w, forms) * forms - jnp.sum((score * (slope - 2 * expand(w, z) * v)).reshape(len(z), -1), -1)[:, None]

    probes_of = lambda probes, rows: None if probes is None else probes[..., rows, *(slice(None),) * (x.ndim - 1)]

    def evaluate(indices, active, table):
        """The table of integrands [nodes, B, n] with those of the active examples filled in at some nodes."""

        def fill(rows, table):
            some, vectors = rows_of(den, rows), probes_of(probes, rows)
            one = lambda w, z, slope, of: integrand(rows_of(some, of), w, z, slope, probes_of(vectors, of))
            of_nodes = lambda matrix: jnp.tensordot(matrix[indices], slopes[:, rows], 1)
            path = z_0[rows] + span * of_nodes(integral)
            return table.at[indices].set(table[indices].at[:, rows].set(by_nodes(one, fine[indices], (path, of_nodes(values)), tangents)))

        return over_active(active, fill, table, 4, dim)

    rules, blocks, first = (jnp.asarray(c) for c in quadrature_plan(LEVELS))
    rules = rules.astype(x.dtype)

    def level(state):
        """One level for all examples that still need it: their integral so far, and the estimate of its error."""
        k, active, table, change, error, used = state
        new = jnp.where(k == least, 0, first[k])
        table = jax.lax.fori_loop(new, first[k + 1], lambda i, table: evaluate(blocks[i], active, table), table)
        quarter, half, best = (span * jnp.tensordot(rules[k + i], table, 1) for i in range(3))
        last, before = jnp.abs(jnp.mean(best - half, -1)), jnp.abs(jnp.mean(half - quarter, -1))
        # these rules converge geometrically; a change that is small by chance is not taken for more than a factor of 64
        estimate = last * jnp.clip(last / jnp.maximum(before, jnp.finfo(x.dtype).tiny), 1 / 64, 1)
        change, error = jnp.where(active[:, None], best, change), jnp.where(active, estimate, error)
        used = jnp.where(active, jnp.asarray(LEVELS)[k] + 1, used)
        rounding = 8 * jnp.finfo(x.dtype).eps * span * jnp.tensordot(rules[k + 2], jnp.abs(table), 1).mean(-1)
        active &= estimate > jnp.maximum(dim * atol + rtol * jnp.abs(best.mean(-1)), rounding)
        return k + 1, active, table, change, error, used

    table, change = jnp.zeros((LEVELS[-1] + 1, batch, n_forms), x.dtype), jnp.zeros((batch, n_forms), x.dtype)
    start = (least, success, table, change, jnp.full(batch, jnp.nan, x.dtype), jnp.zeros(batch, int))
    _, _, table, change, error, used = jax.lax.while_loop(lambda state: (state[0] < len(LEVELS)) & jnp.any(state[1]), level, start)

    whole = jnp.asarray(integral[-1], x.dtype)
    latent = radii[1] * (z_0 + span * jnp.tensordot(whole, slopes, 1))
    success &= jnp.all(jnp.isfinite(change), -1)
    # at the first node the path's slope is 2 w v, and its defect 0
    truncation = first_order_truncation(ends[0], z_0, slopes[0] / (2 * w_0), table[0].mean(-1) / (2 * w_0), radii[0])
    return summary(den.sde, latent, change, path_nfe + used, success, used, error, truncation, radii, kind == "exact")


# --- the coupled solve, which has derivatives ---------------------------------------------------------------------------------------------


@eqx.filter_jit
def _coupled(den, x, probes, ends, radii, rtol, atol, solver, kind, chunk, adjoint):
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
    return summary(den.sde, radii[1] * z, change, nfe + 1, success, nfe + 1, jnp.full(len(x), jnp.nan, x.dtype), truncation, radii, kind == "exact")


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
    solver=diffrax.Tsit5(),
    chunk: int = 64,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> LogLikelihood:
    """log p(x) in nats for each x [B, ...], with its own steps and nodes: no result depends on batch-mates.

    divergence: "exact", at the cost of D Jacobian-vector products an evaluation, `chunk` of them at a time (memory: B x chunk activations, beside
        some 300 numbers for each coordinate of x for the path);
        "hutchinson", unbiased, with `probes` fixed probes of law `noise` for each example, drawn from `key` (one, or one per example);
        "hutch++", unbiased, with 3 x probes products (see `trace_forms`).
    rtol, atol: of the quadrature, whose error is at most D atol + rtol |log p(z_0) - log p(z_T)| by its estimate, unless the finest of LEVELS leaves
        more (see `error`); the path is right to PATH_ERROR times as much, in the root mean square over z, by Adams-Bashforth steps, or where these
        fail to atol and rtol by `solver`, an explicit Runge-Kutta method of diffrax.
    eps: the time at which x is taken (default `den.sde.eps`); what is computed is the density of data noised by sigma(eps).
    start: the time at which x is distributed as the prior (default T; earlier for a model that was trained up to there).
    adjoint: None, or a diffrax adjoint, e.g. `diffrax.RecursiveCheckpointAdjoint()`, for derivatives of log_prob in x and parameters in reverse
        mode: path and divergence are then solved together, at rtol and atol, in the root mean square over both.
    Raises ValueError for unknown options, impossible tolerances and a missing key, and for a guided denoiser.
    """
    if not isinstance(den, Denoiser):
        raise ValueError(f"log_likelihood of a {type(den).__name__}: expected a sde_lib.Denoiser; a few-step map has no density, its D(x, t, t) has")
    check_unguided(den, "log_likelihood")
    check_tolerances(rtol, atol, solver)
    x = as_float(x)
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
    sde, times = den.sde, (check_eps(den, eps), den.sde.T if start is None else start)
    if not times[0] < times[1] <= sde.T:
        raise ValueError(f"eps = {times[0]}, start = {start}: expected eps < start <= T = {sde.T}")
    number = lambda c: namespace(c).asarray(c, x.dtype)  # an argument of the compiled solve
    ends, radii = (tuple(number(fn(sde, t)) for t in times) for fn in (angle, radius))
    arguments = (den, x, vectors, ends, radii, number(rtol), number(atol), solver, divergence, chunk)
    return _decoupled(*arguments) if adjoint is None else _coupled(*arguments, adjoint)
