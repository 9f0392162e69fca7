"""The log-likelihood's path without divergences, and then the divergence along it, on as few nodes as an example needs; see `samplers.likelihood`."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from samplers.adaptive import per_example, solve_ode
from samplers.change_of_variables import divergence_forms, first_order_truncation, summary, velocity
from samplers.chebyshev import interpolation, nodes, path_plan, quadrature_plan
from sde_lib.denoiser import Denoiser
from sde_lib.numerics import expand

PATHS = (12, 24, 48, 96)  # intervals of the path
PATH_ERRORS = (0.1, 3e-3, 2e-4)  # of all but the last, in the root mean square over z, as measured on mixtures and on networks
PATH_ERROR = 10.0  # tolerances of log p that the path may be off: it counts only times the relative error of the score
LEVELS = (12, 24, 48, 96, 192)  # intervals of the quadrature; estimates of its error use a half and a quarter of them too
NUMBERS = 2048  # coordinates: fewer are computed at once as fast as a part of them
VECTORS = 1024  # examples x nodes x tangents that are evaluated at once, where there are fewer examples x tangents: what a cache holds


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
def decoupled(den, x, probes, ends, radii, rtol, atol, solver, kind, chunk, prior_std):
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
    return summary(den.sde, prior_std, latent, change, path_nfe + used, success, used, error, truncation, radii, kind == "exact")
