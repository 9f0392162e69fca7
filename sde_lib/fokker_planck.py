r"""The Fokker-Planck equation on a grid: the density p that an SDE dx = b(x, t) dt + g(t) dw carries,

    dp/dt = -div(b p) + (g^2/2) laplacian p = -div F,        F = b p - (g^2/2) grad p.

Finite volumes on an even grid in one or more dimensions, no flux through the boundary: what leaves a cell enters its neighbour, so that the mass
stays. Between cells of width h the flux is the exponentially fitted one (Scharfetter & Gummel 1969; Chang & Cooper 1970), exact for constant b and F,
with D = g^2/2 and w = b h / D:

    F = (D/h) (B(-w) p_left - B(w) p_right),        B(w) = w/(e^w - 1),

of second order in h, upwind where D -> 0, and never of a sign that makes p negative. A step is Crank-Nicolson at the operator of its middle, of
second order in time (theta = 1/2), or implicit Euler (theta = 1); in several dimensions one axis after another and back (Strang 1968), each a
tridiagonal solve.

No cell is ever below 0. Implicit Euler keeps it so whatever the step dt; Crank-Nicolson surely where dt (D/h^2) (B(-w) + B(w)) <= 2, about where dt
<= h^2/D, and beyond as long as it resolves p in time. Where it does not, as of a peak narrower than sqrt(D dt), a step that would leave a cell below
0 is one of implicit Euler in its place; that smooths the peak, so that such steps are few and the order stays 2 (as by Rannacher's start, 1984). What
is within a ten-thousandth of p's greatest below 0, in tails, is set to 0 and the rest scaled to the same mass.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from sde_lib.denoiser import Denoiser
from sde_lib.numerics import as_float
from sde_lib.sde import SDE

NEGATIVE = 1e-4  # of the greatest density: less below 0 is of tails, more of a step that does not resolve the density


class Process(NamedTuple):
    """dx = drift(x [N, d], s) ds + diffusion(s) dw in the time s in which it runs: t forward, T - t in reverse."""

    drift: Partial
    diffusion: Partial


def forward_process(sde: SDE) -> Process:
    """dx = f x dt + g dw, from the data on."""
    return Process(Partial(sde.drift), Partial(sde.diffusion))


def reverse_process(den: Denoiser, eta: float = 1.0) -> Process:
    """dx = [-f x + (1 + eta^2)/2 g^2 score] ds + eta g dw, s = T - t: the process that samples from the score of `den`, exact or learned.

    eta = 1 is the reverse SDE, 0 the probability flow (`SDE.reverse_drift`). The score is computed in the precision of its parameters. With an exact
    one the density at s is p_t; with a learned one it is that of the samples, and not that of eta = 0.
    """
    return Process(Partial(_reverse_drift, den, eta), Partial(_reverse_diffusion, den.sde, eta))


def _reverse_drift(den, eta, x, s):
    t, floats = den.sde.T - s, [a for a in jax.tree.leaves(den.fn) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]
    narrow = jnp.result_type(jnp.float32, *floats) if floats else x.dtype  # float64 would only slow down a network in float32
    return -den.sde.reverse_drift(x, t, den.score(x.astype(narrow), t).astype(x.dtype), eta)


def _reverse_diffusion(sde, eta, s):
    return eta * sde.diffusion(sde.T - s)


def bernoulli(w: Array) -> Array:
    """B(w) = w/(e^w - 1), 1 at w = 0."""
    safe = jnp.where(w == 0, 1.0, w)
    return jnp.where(w == 0, 1.0, safe / jnp.expm1(safe))


def _theta_step(p, b, d, h: float, dt, theta: float):
    """A step of dt along the last axis of p [..., n]; b: the drift at the n - 1 faces [..., n - 1]."""
    d = jnp.maximum(d, jnp.finfo(p.dtype).eps * jnp.abs(b) * h + jnp.finfo(p.dtype).tiny)  # d = 0: upwind
    w, size = b * h / d, d / h**2
    gain, loss = size * bernoulli(-w), size * bernoulli(w)  # of p_left and p_right in F/h
    pad = lambda a, left, right: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(left, right)])
    lower, upper, diagonal = pad(gain, 1, 0), pad(loss, 0, 1), -(pad(gain, 0, 1) + pad(loss, 1, 0))
    flux = gain * p[..., :-1] - loss * p[..., 1:]
    right = p + (1 - theta) * dt * (pad(flux, 1, 0) - pad(flux, 0, 1))
    k = theta * dt
    return jax.lax.linalg.tridiagonal_solve(-k * lower, 1 - k * diagonal, -k * upper, right[..., None])[..., 0]


def _step(p, b, d, h: float, dt, theta: float):
    """`_theta_step` without cells below 0, as the module docstring says."""
    q = _theta_step(p, b, d, h, dt, theta)
    kept = jnp.maximum(q, 0)
    scaled = lambda: kept * (q.sum() / kept.sum())  # by 1 if nothing is below 0
    return jax.lax.cond(q.min() < -NEGATIVE * q.max(), lambda: _theta_step(p, b, d, h, dt, 1.0), scaled)


@partial(jax.jit, static_argnames=("widths", "theta"))
def _run(p, faces, steps, drift, diffusion, widths, theta):
    n = p.ndim
    order = [(axis, 0.5) for axis in range(n - 1)] + [(n - 1, 1.0)] + [(axis, 0.5) for axis in reversed(range(n - 1))]

    def step(p, row):
        t, dt = row
        d = 0.5 * jnp.asarray(diffusion(t), p.dtype) ** 2
        for axis, share in order:
            b = jnp.moveaxis(drift(faces[axis].reshape(-1, n), t)[:, axis].reshape(faces[axis].shape[:-1]), axis, -1)
            p = jnp.moveaxis(_step(jnp.moveaxis(p, axis, -1), b, d, widths[axis], share * dt, theta), -1, axis)
        return p, None

    return jax.lax.scan(step, p, steps)[0]


def _require(ok: bool, given: str, expected: str) -> None:
    if not ok:
        raise ValueError(f"fokker_planck: {given}: expected {expected}")


def _line(values) -> str:
    return np.array2string(values.ravel(), threshold=6, edgeitems=2, max_line_width=10**6)


def _check_arguments(p, centres, times, drift, diffusion, sde, theta) -> None:
    """Raises ValueError for what `fokker_planck` would make no density of; a traced p is not looked at."""
    given = [name for name, value in (("drift", drift), ("diffusion", diffusion), ("sde", sde)) if value is not None]
    _require(given in (["sde"], ["drift", "diffusion"]), f"{' and '.join(given) or 'no process'} given", "sde, or drift and diffusion")
    _require(theta in (0.5, 1.0), f"theta = {theta}", "0.5 (Crank-Nicolson) or 1.0 (implicit Euler)")
    _require(isinstance(centres, list | tuple) and len(centres) > 0, f"centres as {type(centres).__name__}", "a list of one array [n] for each axis")
    shapes = [np.shape(c) for c in centres]
    _require(all(len(shape) == 1 for shape in shapes), f"centres of shapes {shapes}", "a list of one array [n] for each axis")
    _require(p.shape == sum(shapes, ()), f"p of shape {p.shape}", f"{sum(shapes, ())}, that of centres")
    for c in (np.asarray(c, np.float64) for c in centres):
        even = len(c) > 2 and np.all(np.isfinite(c)) and c[0] < c[-1] and np.allclose(np.diff(c), (c[-1] - c[0]) / (len(c) - 1), rtol=1e-4, atol=0)
        _require(even, f"centres {_line(c)}", "three or more along each axis, increasing and evenly apart")
    ran = times.ndim == 1 and len(times) > 1 and np.all(np.isfinite(times)) and np.all(np.diff(times) > 0)
    _require(ran, f"times {_line(times)}", "two or more that increase; a reverse process runs in s = T - t")
    if sde is not None:
        _require(0 <= times[0] and times[-1] <= sde.T, f"times from {times[0]:g} to {times[-1]:g}", f"0 to T = {sde.T:g} of {sde}")
    if not isinstance(p, jax.core.Tracer):
        density = bool(jnp.all(jnp.isfinite(p))) and p.min() >= 0 and p.max() > 0
        _require(density, f"p from {p.min():g} to {p.max():g}", "a density: finite, at least 0, somewhere above")


def fokker_planck(
    p: Float[Array, "..."],
    centres: list[Float[np.ndarray, " n"]],
    times: Float[np.ndarray, " k"],
    drift: Callable | None = None,
    diffusion: Callable | None = None,
    sde: SDE | None = None,
    theta: float = 0.5,
) -> Float[Array, "..."]:
    """The density at times[-1] that is p [n_1, ..., n_d] at times[0], in the precision of p (float64 for a mass kept to 1e-8).

    centres: of the cells along each axis, evenly apart. times: increasing; a step between each two. The SDE: `sde`, forward, or drift(x [N, d], t) ->
    [N, d] and diffusion(t) -> g of any other, in the time in which it runs: *reverse_process(den) of an exact or learned score. A learned drift of
    another kind is a `jax.tree_util.Partial(function, denoiser)`, so that its parameters are an argument of compiled code, as a `Denoiser`'s are.
    theta: 1/2 or 1 of the module docstring. One compiled scan. Raises ValueError for arguments of which no density comes, and if what comes is not
    finite.
    """
    p, times = as_float(p), np.asarray(times, np.float64)
    _check_arguments(p, centres, times, drift, diffusion, sde, theta)
    centres = [np.asarray(c, np.float64) for c in centres]
    between = lambda c: 0.5 * (c[1:] + c[:-1])
    axes = [[between(c) if i == axis else c for i, c in enumerate(centres)] for axis in range(len(centres))]
    faces = [jnp.asarray(np.stack(np.meshgrid(*grid, indexing="ij"), -1), p.dtype) for grid in axes]
    steps = jnp.asarray(between(times), p.dtype), jnp.asarray(np.diff(times), p.dtype)
    widths = tuple(float(c[-1] - c[0]) / (len(c) - 1) for c in centres)
    process = (drift, diffusion) if sde is None else forward_process(sde)
    drift, diffusion = (fn if isinstance(fn, Partial) else Partial(fn) for fn in process)
    x, t = faces[0].reshape(-1, p.ndim), steps[0][0]
    of_drift, of_diffusion = jax.eval_shape(drift, x, t).shape, jax.eval_shape(diffusion, t).shape
    _require(of_drift == x.shape, f"a drift of shape {of_drift} at x of {x.shape}", "the shape of x")
    _require(math.prod(of_diffusion) == 1, f"a diffusion of shape {of_diffusion}", "a number g(t)")
    p = _run(p, faces, steps, drift, diffusion, widths, theta)
    finite = isinstance(p, jax.core.Tracer) or bool(jnp.all(jnp.isfinite(p)))
    _require(finite, f"a density that is not finite at {times[-1]:g}", f"drift and diffusion that are finite from {times[0]:g} on")
    return p
