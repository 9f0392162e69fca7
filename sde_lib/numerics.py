"""Arithmetic shared by all paths: one formula for host (NumPy, float64) and device (JAX), and exact time derivatives.

A schedule such as ``alpha(t)`` is written once, with ``xp = namespace(t)``. Given a JAX array (traced or not) it is a JAX
computation in that array's precision; given a Python number or a NumPy array it is a float64 computation on the host, which
is where solver tables come from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def namespace(t):
    """``jax.numpy`` if ``t`` is a JAX array, else ``numpy``."""
    return jnp if isinstance(t, jax.Array) else np


def as_time(t):
    """``t`` in its own precision (at least float32) if it is a JAX array, else as a NumPy array of float64.

    Complex numbers pass, for `derivative`.
    """
    if isinstance(t, jax.Array):
        return as_float(t)
    t = np.asarray(t)
    return t if np.iscomplexobj(t) else t.astype(np.float64)


def as_float(x) -> Array:
    """`x` as a JAX array of float32 or float64.

    Integers become JAX's default float. A 16-bit `x` becomes float32: states, times and coefficients
    are never rounded to 16 bits, in which the small steps of a sampler are lost.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.zeros(()).dtype)
    return x.astype(at_least_float32(x.dtype))


def at_least_float32(dtype):
    """The dtype itself, or float32 for a float of 16 bits or fewer."""
    return jnp.promote_types(dtype, jnp.float32)


def derivative(fn: Callable, t):
    """df/dt, exact to rounding: forward-mode differentiation on the device, a complex step on the host.

    The complex step Im f(t + ih)/h (Squire & Trapp 1998) has no subtraction, hence no cancellation, for analytic f.
    """
    if isinstance(t, jax.Array):
        return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
    step = 1e-30
    return np.imag(fn(as_time(t) + 1j * step)) / step


def expand(coefficient, x: Float[Array, "b ..."]):
    """A coefficient of shape [] or [B], shaped to multiply x [B, ...], in the precision of `as_float(x)`."""
    coefficient = jnp.asarray(coefficient, at_least_float32(x.dtype))
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1)) if coefficient.ndim else coefficient
