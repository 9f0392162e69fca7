r"""The Fokker-Planck equation on a grid: the density p that an SDE dx = b(x, t) dt + g(t) dw carries,

    dp/dt = -div(b p) + (g^2/2) laplacian p = -div F,        F = b p - (g^2/2) grad p.

Finite volumes on an even grid in one or more dimensions, no flux through the boundary: what leaves a cell enters its neighbour, so that the mass
stays. Between cells of width h the flux is the exponentially fitted one (Scharfetter & Gummel 1969; Chang & Cooper 1970), exact for constant b and F,
with D = g^2/2 and w = b h / D:

    F = (D/h) (B(-w) p_left - B(w) p_right),        B(w) = w/(e^w - 1),

of second order in h, upwind where D -> 0, and never of a sign that makes p negative. A step is Crank-Nicolson at the operator of its middle, of
second order in time (theta = 1/2), or implicit Euler (theta = 1); in several dimensions one axis after another and back (Strang 1968), each a
tridiagonal solve. Crank-Nicolson is positive where it resolves the density; implicit Euler whatever the step.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from sde_lib.sde import SDE


def bernoulli(w: Array) -> Array:
    """B(w) = w/(e^w - 1), 1 at w = 0."""
    safe = jnp.where(w == 0, 1.0, w)
    return jnp.where(w == 0, 1.0, safe / jnp.expm1(safe))


def _step(p, b, d, h: float, dt, theta: float):
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

    centres: of the cells along each axis, evenly apart. times: increasing; a step between each two. The SDE: `sde`, forward, or drift(x [N, d], t)
    -> [N, d] and diffusion(t) -> g of any other; of a reverse SDE or a probability flow, in the time in which it runs. A learned drift is a
    `jax.tree_util.Partial(function, denoiser)`, so that its parameters are an argument of compiled code, as a `Denoiser`'s are. theta: 1/2 or 1 of
    the module docstring. One compiled scan. Raises ValueError for a grid that is not even or not that of p, times that do not increase, and other
    thetas.
    """
    p, times = jnp.asarray(p), np.asarray(times, np.float64)
    if (sde is None) == (drift is None or diffusion is None):
        raise ValueError("fokker_planck: expected sde, or drift and diffusion")
    if theta not in (0.5, 1.0):
        raise ValueError(f"fokker_planck: theta = {theta}: expected 0.5 (Crank-Nicolson) or 1.0 (implicit Euler)")
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) > 0):
        raise ValueError("fokker_planck: expected two or more times that increase; a reverse process runs in s = T - t")
    if p.shape != tuple(len(c) for c in centres):
        raise ValueError(f"fokker_planck: p of shape {p.shape}: expected {tuple(len(c) for c in centres)}, that of centres")
    centres = [np.asarray(c, np.float64) for c in centres]
    for c in centres:
        if len(c) < 3 or not np.allclose(np.diff(c), c[1] - c[0], rtol=1e-6):
            raise ValueError("fokker_planck: expected three or more centres along each axis, evenly apart")
    between = lambda c: 0.5 * (c[1:] + c[:-1])
    axes = [[between(c) if i == axis else c for i, c in enumerate(centres)] for axis in range(len(centres))]
    faces = [jnp.asarray(np.stack(np.meshgrid(*grid, indexing="ij"), -1), p.dtype) for grid in axes]
    steps = jnp.asarray(0.5 * (times[1:] + times[:-1]), p.dtype), jnp.asarray(np.diff(times), p.dtype)
    widths = tuple(float(c[1] - c[0]) for c in centres)
    drift, diffusion = (drift, diffusion) if sde is None else (sde.drift, sde.diffusion)
    drift, diffusion = (fn if isinstance(fn, Partial) else Partial(fn) for fn in (drift, diffusion))
    return _run(p, faces, steps, drift, diffusion, widths, theta)
