r"""The log-likelihood panel by panel: a path and a quadrature with local steps and local error estimates.

The interval of w = sqrt(phi), from the data to the prior, is covered by panels. On each of them

    1. the path z is a polynomial through Chebyshev nodes, found by Adams-Bashforth steps from node to node, or by
       stabilised steps (`samplers.stabilised`) where the flow is stiff;
    2. g = (div v - score . (dz/dphi - v)) dphi/dw is evaluated at the nodes, and integrated by their Clenshaw-Curtis rule;
    3. the panel counts only if the Chebyshev coefficients of g have decayed as far as the tolerance asks, if the path
       solves its equation, and if the nodes are dense enough to see every mode that the path comes near. If not, it is
       computed again, shorter.

So panels are short where the flow changes fast, as where the path crosses the boundary between two modes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from samplers.blocks import divergence_at_nodes
from samplers.change_of_variables import integrand, velocity
from samplers.chebyshev import adams_weights, coefficients, differentiation, interpolation, nodes
from samplers.stabilised import longest_stable_step, stage_coefficients, stages_for
from sde_lib.denoiser import Denoiser
from sde_lib.numerics import expand

DEGREE = 12
ADAMS_ORDER = 4
MAX_PANELS = 2000
FIRST = 1 / 6  # of the interval: the first panel that is tried
PATH_ERROR = 10.0  # tolerances of log p that the path may be off: it counts only times the relative error of the score
STRICT = 1e-4  # the loosest tolerance: with a looser one a panel may step over what makes an example hard
SHARE = 0.5  # of the tolerance that one panel may use up
DENSITY = 3.0  # most of (distance from the data in standard deviations) x (spacing of nodes in log phi)
ROUNDING = 4.0  # units in the last place that evaluations are off
NOISE = 5e3  # units in the last place, of the largest coefficient, below which level coefficients are rounding


class Integral(NamedTuple):
    """The integral of div v along a path from the data to the prior, of each example.

    change: integral of each form, nats. error: its estimate, nats. z: where the path ends. z_error: estimated, root mean
    square. nfe, divergences: evaluations, and those of them with a divergence. success: whether all panels converged."""

    change: Float[Array, "b n"]
    error: Float[Array, " b"]
    z: Float[Array, "b ..."]
    z_error: Float[Array, " b"]
    nfe: Int[Array, " b"]
    divergences: Int[Array, " b"]
    success: Bool[Array, " b"]


class Progress(NamedTuple):
    """How far each example has come. w, z, v, forms: the end of its last panel. h: the length to try next. direction: the
    eigenvector of the largest eigenvalue of the slope's Jacobian, as estimated. rounding: sum of the squares of estimates
    that are rounding. panels: tried so far."""

    w: Float[Array, " b"]
    z: Float[Array, "b ..."]
    v: Float[Array, "b ..."]
    forms: Float[Array, "b n"]
    h: Float[Array, " b"]
    direction: Float[Array, "b ..."]
    change: Float[Array, "b n"]
    error: Float[Array, " b"]
    rounding: Float[Array, " b"]
    z_error: Float[Array, " b"]
    nfe: Int[Array, " b"]
    panels: Int[Array, " b"]
    active: Bool[Array, " b"]
    success: Bool[Array, " b"]


def norm(a: Float[Array, "n b ..."]) -> Float[Array, "n b"]:
    """Euclidean norm of each example at each node."""
    return jnp.sqrt(jnp.sum(a.reshape(*a.shape[:2], -1) ** 2, -1))


def aligned(c: Array, x: Array) -> Array:
    """c with axes appended so that it multiplies x."""
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))


def node_values(slope, w: Float[Array, "m b"], z, first_slope, stages: Int[Array, " b"]):
    """z and dz/dw at the nodes w of a panel that begins at z [b, ...] with `first_slope`: [m, b, ...] each.

    Adams-Bashforth steps of order `ADAMS_ORDER` for examples with one stage, else stabilised steps of so many stages."""
    dtype, last = z.dtype, len(w) - 1
    weights = jnp.asarray(adams_weights(nodes(last), ADAMS_ORDER), dtype)
    table = jnp.asarray(stage_coefficients(), dtype)
    length, steps, most = w[-1] - w[0], jnp.diff(w, axis=0), jnp.max(stages)

    def stage(state):
        """From F at stage j of the step from node i to the next stage, or to the next node."""
        i, j, start, previous, current, first, f, values, slopes = state
        first = jnp.where(j == 0, f, first)
        step = aligned(steps[i], z)
        mu, nu, mu_tilde, gamma_tilde, c = (aligned(a, z) for a in table[:, stages, jnp.minimum(j + 1, stages)])
        history = jax.lax.dynamic_slice_in_dim(slopes, i, ADAMS_ORDER)
        adams = start + aligned(length, z) * jnp.tensordot(weights[i], history, 1)
        stabilised = (1 - mu - nu) * start + mu * current + nu * previous + mu_tilde * step * f + gamma_tilde * step * first
        stabilised = jnp.where(j == 0, start + mu_tilde * step * first, stabilised)
        new = jnp.where(aligned(stages == 1, z), adams, stabilised)
        new = jnp.where(aligned(j < stages, z), new, current)
        arrived = j + 1 >= most
        values = values.at[i + 1].set(new)
        time = w[i] + jnp.where(arrived | (j + 1 >= stages), 1, c.reshape(-1)) * steps[i]
        f = slope(time, new)
        i, j = jnp.where(arrived, i + 1, i), jnp.where(arrived, 0, j + 1)
        slopes = slopes.at[i + ADAMS_ORDER - 1].set(jnp.where(arrived, f, slopes[i + ADAMS_ORDER - 1]))
        return i, j, jnp.where(arrived, new, start), current, new, first, f, values, slopes

    values = jnp.zeros((last + 1, *z.shape), dtype).at[0].set(z)
    slopes = jnp.zeros((last + ADAMS_ORDER, *z.shape), dtype).at[ADAMS_ORDER - 1].set(first_slope)
    state = jax.lax.while_loop(lambda s: s[0] < last, stage, (0, 0, z, z, z, first_slope, first_slope, values, slopes))
    return state[-2], state[-1][ADAMS_ORDER - 1 :]


def spectral_radius(slope, z, direction):
    """An estimate of the largest absolute eigenvalue of the slope's Jacobian at z, by a step of the power iteration, and its direction."""
    product = jax.jvp(slope, (z,), (direction,))[1]
    size = norm(product[None])[0]
    return size, product / aligned(jnp.maximum(size, jnp.finfo(z.dtype).tiny), z)


def tail_bound(c: Float[Array, "n b"], part: int):
    """What coefficients beyond those of a series c may add, by the decay of its last two parts: at least a tenth of the last."""
    last, before = jnp.max(c[-part:], 0), jnp.max(c[-2 * part : -part], 0)
    return last * jnp.clip(last / jnp.maximum(before, jnp.finfo(c.dtype).tiny), 0.1, 1.0)


def by_panels(den: Denoiser, z_0, w_0, w_T, v_0, forms_0, probes, active, rtol, atol, kind: str, chunk: int) -> Integral:
    """The integral of the active examples z_0 [b, ...] from w_0 to w_T. v_0, forms_0: v and the forms of div v at z_0."""
    dtype, b, dim, m = z_0.dtype, len(z_0), z_0[0].size, DEGREE
    rtol, atol = jnp.minimum(rtol, STRICT), jnp.minimum(atol, STRICT)
    number = lambda a: jnp.asarray(a, dtype)
    y, tiny, ulp = nodes(m), jnp.finfo(dtype).tiny, jnp.finfo(dtype).eps
    widest = float(np.diff(y).max())
    integral, transform = number(interpolation(m, y)[1]), number(coefficients(m))
    weights = integral[-1]
    # the path of a stiff panel is cut to half the degree: the derivative of a full one would be of rounding
    low = np.linalg.inv(coefficients(m))[:, : m // 2 + 1] @ coefficients(m)[: m // 2 + 1]
    derivative = number(differentiation(m) @ low)
    slope = lambda w, z: 2 * expand(w, z) * velocity(den, w**2, z)

    def panel(s: Progress) -> Progress:
        stiffness, direction = spectral_radius(lambda z: slope(s.w, z), s.z, s.direction)
        stiffness = 1.5 * stiffness  # it is estimated from below, and grows along the panel
        remaining = w_T - s.w
        h = jnp.minimum(jnp.minimum(s.h, longest_stable_step(stiffness) / widest), remaining)
        final = h >= remaining
        w = (s.w + h * number(y)[:, None]).at[-1].set(jnp.where(final, w_T, s.w + h))
        stages = stages_for(stiffness * h * widest)
        stiff = stages > 1

        # the path
        values, slopes = node_values(slope, w, s.z, 2 * aligned(s.w, s.v) * s.v, stages)
        lengths = aligned(jnp.broadcast_to(h, (m + 1, b)), values)
        slopes = jnp.where(aligned(jnp.broadcast_to(stiff, (m + 1, b)), values), jnp.tensordot(derivative, values, 1) / lengths, slopes)
        path = s.z + lengths * jnp.tensordot(integral, slopes, 1)
        path_error = jnp.max(norm(path - values), 0) / dim**0.5
        radius = jnp.max(norm(path), 0) / dim**0.5
        z_tolerance = PATH_ERROR * (atol + rtol * jnp.maximum(radius, 1)) + 16 * ulp * radius

        # the integrand along it
        v, forms = divergence_at_nodes(den, w[1:], path[1:], probes, kind, chunk)
        v, forms = jnp.concatenate([s.v[None], v]), jnp.concatenate([s.forms[None], forms])
        g, score, moved = integrand(w, path, slopes, v, forms)
        change = aligned(h, s.change) * jnp.tensordot(weights, g, 1)

        # what the quadrature may be off; the path's own rounding, which moves a stiff panel's slopes, is integrated exactly
        smooth = g.mean(-1) + jnp.where(stiff, moved, 0)
        c = jnp.abs(jnp.tensordot(transform, smooth, 1))
        part = (m + 1) // 4
        of_path = tail_bound(norm(jnp.tensordot(transform, score, 1)), part) * jnp.max(norm(slopes), 0)
        of_path = jnp.where(stiff, of_path, 0)
        resolved = h * (tail_bound(c, part) + of_path)
        tail = c[-2 * part :]
        level = jnp.median(tail, 0)
        size = jnp.max(norm(score) * norm(path), 0)
        floor = ROUNDING * ulp * (size + h * jnp.tensordot(weights, jnp.abs(g.mean(-1)) + jnp.abs(moved), 1))
        nats = jnp.maximum(jnp.abs((s.change + change).mean(-1)), 0.5 * (jnp.sin(w[0] ** 2) * norm(score)[0]) ** 2)
        tolerance = dim * atol + rtol * nats
        quality = resolved / jnp.maximum(SHARE * tolerance, floor)
        quality = jnp.where(jnp.isfinite(quality), quality, jnp.inf)
        rounding = (jnp.max(tail, 0) < jnp.minimum(NOISE * ulp * jnp.max(c, 0), 4 * level)) & (quality > 0.05)
        if_rounding = h * (0.5 * level + of_path)
        rounding_quality = if_rounding / jnp.maximum(tolerance, floor)

        spacing = node_spacing(w, score)
        converged = (quality <= 1) | (rounding & ((rounding_quality <= 1) | (h <= 3e-4 * s.w)))
        ok = s.active & converged & (path_error <= z_tolerance) & (spacing <= DENSITY)
        growth = jnp.where(rounding, 1 / jnp.maximum(rounding_quality, tiny), jnp.maximum(quality, 1e-9) ** (-1 / 8))
        growth = jnp.minimum(growth, (z_tolerance / jnp.maximum(path_error, tiny)) ** (1 / (ADAMS_ORDER + 1)))
        growth = jnp.minimum(growth, DENSITY / jnp.maximum(spacing, tiny))
        longer = h * jnp.clip(0.8 * growth, 0.3, jnp.where(ok, 2.5, 0.5))
        panels = s.panels + s.active
        stuck = ~ok & ((longer < 8 * ulp * s.w) | (panels >= MAX_PANELS))

        take = lambda new, old: jnp.where(aligned(ok, old), new, old)
        keep = lambda new, old: jnp.where(aligned(s.active, old), new, old)
        estimate = jnp.where(rounding, if_rounding, resolved)
        return Progress(
            w=take(w[-1], s.w),
            z=take(path[-1], s.z),
            v=take(v[-1], s.v),
            forms=take(forms[-1], s.forms),
            h=keep(longer, s.h),
            direction=keep(direction, s.direction),
            change=take(s.change + change, s.change),
            error=take(s.error + 0.5 * floor + jnp.where(rounding, 0, estimate), s.error),
            rounding=take(s.rounding + jnp.where(rounding, estimate, 0) ** 2, s.rounding),
            z_error=take(s.z_error + path_error, s.z_error),
            nfe=s.nfe + jnp.where(s.active, 1 + m * stages + m, 0),
            panels=panels,
            active=s.active & ~(ok & final) & ~stuck,
            success=s.success | (ok & final),
        )

    direction = jax.random.normal(jax.random.key(0), z_0.shape[1:], dtype)
    direction = jnp.broadcast_to(direction / jnp.linalg.norm(direction), z_0.shape)
    zero, none = jnp.zeros(b, dtype), jnp.zeros(b, int)
    start = Progress(
        w=jnp.broadcast_to(w_0, (b,)), z=z_0, v=v_0, forms=forms_0, h=jnp.full(b, FIRST, dtype) * (w_T - w_0),
        direction=direction, change=jnp.zeros_like(forms_0), error=zero, rounding=zero, z_error=zero, nfe=none, panels=none,
        active=active, success=jnp.zeros(b, bool),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda s: jnp.any(s.active), panel, start)
    return Integral(end.change, end.error + jnp.sqrt(end.rounding), end.z, end.z_error, end.nfe, m * end.panels, end.success)


def distance_from_data(phi: Float[Array, "n b"], score) -> Float[Array, "n b"]:
    """How far a point is from the data, in standard deviations beyond the typical: 0 for points as the data's own.

    The noise that the network predicts has a squared norm of D at most, with a standard deviation of sqrt(2 D), over noised data."""
    dim = score[0, 0].size
    squared = (jnp.sin(phi) * norm(score)) ** 2
    return jnp.sqrt(jnp.maximum(squared - dim - 2 * (2 * dim) ** 0.5, 0))


def node_spacing(w: Float[Array, "n b"], score) -> Float[Array, " b"]:
    """The largest of (distance from the data in standard deviations) x (distance of two neighbouring nodes in log phi).

    Far from the data, the log-odds of two modes change by as much as that distance squared when phi doubles: a path may
    come near a second mode and leave it again between two nodes unless they are so close."""
    distance = distance_from_data(w**2, score)
    return jnp.max(jnp.maximum(distance[1:], distance[:-1]) * 2 * jnp.diff(w, axis=0) / w[1:], 0)
