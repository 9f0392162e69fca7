r"""The log-likelihood by one rule over the whole interval: the cheapest way where the flow is smooth.

The path is a polynomial in w = sqrt(phi) through Chebyshev nodes, of as few levels as an example needs, by Adams-Bashforth
steps whose Picard iterate z_0 + \int P dw, with P the polynomial through its slopes, agrees with them. Along that iterate
nested Clenshaw-Curtis rules integrate the divergence. A rule is accepted by the decay of its Chebyshev coefficients, and
only if its nodes are dense enough for how far the path is from the data. All else is left to `samplers.panels`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from samplers.blocks import divergence_at_nodes
from samplers.change_of_variables import integrand, velocity
from samplers.chebyshev import coefficients, interpolation, nodes, path_plan, quadrature_plan
from samplers.panels import DENSITY, PATH_ERROR, Integral, aligned, distance_from_data, norm
from sde_lib.denoiser import Denoiser

PATHS = (12, 24, 48, 96)  # intervals of the path
PATH_ERRORS = (0.1, 3e-3, 2e-4)  # of all but the last, in the root mean square over z, as measured on mixtures and on networks
LEVELS = (12, 24, 48, 96)  # intervals of the quadrature
FAR = 3.0  # most of a path's `distance_from_data`
NEAR = 0.5  # up to which an example is as the data are; beyond it all bounds are stricter, unless a nat is allowed
ATYPICAL = 0.1
LOOSE = 5e-4  # atol + rtol from which on a rule may look converged that has missed something
ACCEPT = 3.0  # tolerances that the estimate, which is an upper bound, may be
HOPELESS = 1e3  # tolerances that an error may exceed before finer levels are not tried


def z_tolerance(rtol, atol):
    """The error that a path may have, in the root mean square over z, which is of order 1."""
    return jnp.minimum(PATH_ERROR * (atol + rtol), PATH_ERRORS[0])


def march(den: Denoiser, z, w, n, weights):
    """Slopes dz/dw [len(w), b, ...] at nodes w of which the first n + 1 are visited, by Adams-Bashforth steps of `weights` from z at w[0]."""
    count = weights.shape[1]

    def step(i, carry):
        z, slopes = carry
        slopes = slopes.at[i + count - 1].set(2 * w[i] * velocity(den, w[i] ** 2, z))
        return z + jnp.tensordot(weights[i], jax.lax.dynamic_slice_in_dim(slopes, i, count), 1), slopes

    return jax.lax.fori_loop(0, n + 1, step, (z, jnp.zeros((len(w) + count - 1, *z.shape), z.dtype)))[1][count - 1 :]


def smooth_path(den: Denoiser, z_0, w, rtol, atol, least):
    """Slopes dz/dw of a path for each z_0 [b, ...], at the nodes of the last of PATHS [N + 1, b, ...]; the error of the path [b],
    evaluations [b], the intervals of its last level [b], and whether it is sharper than expected [b].

    w: from [0, 1]. Levels below `least`, and those whose error is expected to be too large, are left out."""
    dtype, batch = z_0.dtype, len(z_0)
    points, weights, finest, defects = jax.tree.map(lambda c: jnp.asarray(c, dtype), path_plan(PATHS))
    span, tolerance = w(1.0) - w(0.0), z_tolerance(rtol, atol)
    counts = jnp.asarray(PATHS)

    def judged(fine, defect):
        def of(slopes):
            own = slopes[: len(defect)]
            return jnp.tensordot(fine, own, 1), jnp.max(norm(span * jnp.tensordot(defect, own, 1)), 0) / z_0[0].size ** 0.5

        return of

    branches = [judged(*matrices) for matrices in zip(finest, defects)]

    def level(state):
        k, active, slopes, error, nfe, last = state
        new, defect = jax.lax.switch(k, branches, march(den, z_0, w(points[k]), counts[k], span * weights[k]))
        slopes, error = jnp.where(aligned(active, z_0), new, slopes), jnp.where(active, defect, error)
        wanted = active & ~(defect <= tolerance) & (defect <= HOPELESS * tolerance)
        last = jnp.where(active, counts[k], last)
        return k + 1, wanted, slopes, error, nfe + jnp.where(active, counts[k] + 1, 0), last

    first = jnp.maximum(least, jnp.sum(np.array(PATH_ERRORS) > tolerance))
    zero = jnp.zeros(batch, dtype)
    start = (first, jnp.ones(batch, bool), jnp.zeros((PATHS[-1] + 1, *z_0.shape), dtype), zero, jnp.zeros(batch, int), jnp.zeros(batch, int))
    _, _, slopes, error, nfe, last = jax.lax.while_loop(lambda state: (state[0] < len(PATHS)) & jnp.any(state[1]), level, start)
    return slopes, error, nfe, last, last > jnp.maximum(counts[first], PATHS[1])


def level_plan(levels: tuple[int, ...]):
    """For each level, [len(levels), N + 1, N + 1], the matrix from values at the last level's nodes to its own Chebyshev coefficients; the masks of
    their last quarter and of the second; and, at each node of the last level, the two ends of the level's interval in which it is."""
    finest = levels[-1]
    fine = nodes(finest)
    matrices, last, before = np.zeros((len(levels), finest + 1, finest + 1)), *np.zeros((2, len(levels), finest + 1), bool)
    left, right = np.zeros((2, len(levels), finest + 1))
    for i, n in enumerate(levels):
        every = np.arange(0, finest + 1, finest // n)
        matrices[i, : n + 1, every] = coefficients(n).T
        last[i, n + 1 - n // 4 : n + 1] = True
        before[i, n // 4 + 1 : n // 2 + 1] = True
        at = np.clip(np.searchsorted(nodes(n), fine, side="right") - 1, 0, n - 1)
        left[i], right[i] = nodes(n)[at], nodes(n)[at + 1]
    return matrices, last, before, left, right


def by_whole(den: Denoiser, z_0, w_0, w_T, probes, rtol, atol, kind: str, chunk: int):
    """The `Integral` of z_0 [b, ...] from w_0 to w_T, and v [b, ...] and the forms of div v [b, n] at z_0."""
    dtype, b, dim = z_0.dtype, len(z_0), z_0[0].size
    number = lambda a: jnp.asarray(a, dtype)
    span = w_T - w_0
    w = lambda y: w_0 + span * number(y)
    # the first levels are the least sure: they serve loose tolerances, where the probes' noise is larger by far
    least = jnp.where((kind == "hutchinson") & (rtol + atol > 0.01), 0, 1)
    slopes, z_error, path_nfe, path_level, sharp = smooth_path(den, z_0, w, rtol, atol, least)

    n_forms = 1 if kind == "exact" else probes.shape[-1 - z_0.ndim]
    fine = w(nodes(LEVELS[-1]))
    to_nodes, integral = (number(m) for m in interpolation(PATHS[-1], nodes(LEVELS[-1])))
    rules, blocks, first = (jnp.asarray(c) for c in quadrature_plan(LEVELS))
    rules = rules.astype(dtype)
    transforms, last, before, left, right = level_plan(LEVELS)
    transforms, last, before = number(transforms), jnp.asarray(last), jnp.asarray(before)

    def evaluate(indices, table):
        """The table of integrands [nodes, b, n] with those at some nodes filled in."""
        here, slope = jnp.broadcast_to(fine[indices][:, None], (len(indices), b)), jnp.tensordot(to_nodes[indices], slopes, 1)
        path = z_0 + span * jnp.tensordot(integral[indices], slopes, 1)
        v, forms = divergence_at_nodes(den, here, path, probes, kind, chunk)
        return table.at[indices].set(integrand(here, path, slope, v, forms)[0])

    # how dense the nodes have to be, from the path alone
    z = z_0 + span * jnp.tensordot(integral, slopes, 1)
    phi = (fine**2)[:, None]
    v = jnp.tensordot(to_nodes, slopes, 1) / aligned(2 * fine, z)
    distance = distance_from_data(phi, z + v / aligned(jnp.tan(phi), z))
    spacing = jnp.max(distance * (2 * span * number(right - left) / w(right))[..., None], 1)  # [levels, b]

    def level(state):
        """One level for all examples that still need it: their integral so far, and the estimate of its error."""
        k, active, done, table, change, error, used = state
        new = jnp.where(k == least, 0, first[k])
        table = jax.lax.fori_loop(new, first[k + 1], lambda i, table: evaluate(blocks[i], table), table)
        best = span * jnp.tensordot(rules[k + 2], table, 1)
        c = jnp.abs(jnp.tensordot(transforms[k], table.mean(-1), 1))
        end, middle = (jnp.max(jnp.where(mask[k][:, None], c, 0), 0) for mask in (last, before))
        decay = jnp.clip(end / jnp.maximum(middle, jnp.finfo(dtype).tiny), 0.1, 1.0)
        estimate = span * end * decay
        rounding = 8 * jnp.finfo(dtype).eps * span * jnp.tensordot(rules[k + 2], jnp.abs(table), 1).mean(-1)
        tolerance = jnp.maximum(dim * atol + rtol * jnp.abs(best.mean(-1)), rounding)
        dense = (spacing[k] <= DENSITY) & (~sharp | ~loose | (jnp.asarray(LEVELS)[k] >= path_level))
        change = jnp.where(active[:, None], best, change)
        error = jnp.where(active, estimate + rounding, error)
        used = jnp.where(active, jnp.asarray(LEVELS)[k] + 1, used)
        good = active & dense & (estimate <= strict * ACCEPT * tolerance)
        # what a finer level is expected to leave: twice the nodes square the decay of all coefficients
        hopeful = jnp.where(dense, estimate * decay**4, 0) <= HOPELESS * strict * tolerance
        return k + 1, active & ~good & hopeful, done | good, table, change, error, used

    zero = jnp.zeros(b, dtype)
    # two modes that a path passes unseen are worth about a nat, and so is the noise of probes at loose tolerances
    loose = (least > 0) & (atol + rtol > LOOSE)
    allowed = jnp.where(loose, jnp.clip(dim * (atol + rtol), ATYPICAL, 1), 1)
    strict = jnp.where((jnp.max(distance, 0) <= NEAR) & ~sharp, 1, allowed)
    possible = (z_error <= strict * z_tolerance(rtol, atol)) & (spacing[-1] <= DENSITY) & (jnp.max(distance, 0) <= FAR)
    table = jnp.zeros((LEVELS[-1] + 1, b, n_forms), dtype)
    start = (least, possible, jnp.zeros(b, bool), table, jnp.zeros((b, n_forms), dtype), zero, jnp.zeros(b, int))
    wanted = lambda s: (s[0] == least) | (s[0] < len(LEVELS)) & jnp.any(s[1])
    _, _, done, table, change, error, used = jax.lax.while_loop(wanted, level, start)
    used = jnp.maximum(used, jnp.asarray(LEVELS)[least] + 1)
    # at the first node the path solves its equation exactly
    v_0, forms_0 = slopes[0] / (2 * w_0), table[0] / (2 * w_0)
    return Integral(change, error, z[-1], z_error, path_nfe + used, used, done), v_0, forms_0
