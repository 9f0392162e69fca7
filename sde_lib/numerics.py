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
    """``t`` as it is if it is a JAX array, else as a NumPy array of float64 (complex numbers pass, for `derivative`)."""
    if isinstance(t, jax.Array):
        return t
    t = np.asarray(t)
    return t if np.iscomplexobj(t) else t.astype(np.float64)


def as_float(x) -> Array:
    """`x` as a JAX array of real numbers: integers would round times and coefficients in their own type."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.zeros(()).dtype)


def derivative(fn: Callable, t):
    """df/dt, exact to rounding: forward-mode differentiation on the device, a complex step on the host.

    The complex step Im f(t + ih)/h (Squire & Trapp 1998) has no subtraction, hence no cancellation, for analytic f.
    """
    if isinstance(t, jax.Array):
        return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
    step = 1e-30
    return np.imag(fn(as_time(t) + 1j * step)) / step


def expand(coefficient, x: Float[Array, "b ..."]):
    """A coefficient of shape [] or [B], shaped to multiply x [B, ...] and in its precision."""
    coefficient = jnp.asarray(coefficient, x.dtype)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1)) if coefficient.ndim else coefficient
