"""Runge-Kutta-Chebyshev: an explicit method for stiff flows whose Jacobian has real eigenvalues.

Between two modes the probability flow contracts so fast towards their common boundary that an ordinary explicit
method needs as many steps as the log-likelihood has nats. s stages of this method are stable for steps of up to
0.65 s^2 / (spectral radius), so that the evaluations grow with the square root of the stiffness. Second order
(Sommeijer, Shampine & Verwer 1997, "RKC: an explicit solver for parabolic PDEs", J. Comput. Appl. Math. 88).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MOST_STAGES = 40
DAMPING = 2 / 13
STABILITY = 0.65  # the stability interval of s stages is at least STABILITY (s^2 - 1)
ADAMS_STABILITY = 0.2  # step times spectral radius up to which Adams-Bashforth steps of order 4 are stable


def stages_for(stiffness: Float[Array, " b"]) -> Int[Array, " b"]:
    """Stages of a step whose length times the spectral radius is `stiffness`; 1 stands for an Adams-Bashforth step."""
    needed = jnp.ceil(jnp.sqrt(1 + stiffness / STABILITY)).astype(int)
    return jnp.where(stiffness <= ADAMS_STABILITY, 1, jnp.clip(needed, 2, MOST_STAGES))


def longest_stable_step(spectral_radius: Float[Array, " b"]) -> Float[Array, " b"]:
    """The longest step for which `MOST_STAGES` stages are stable."""
    tiny = jnp.finfo(spectral_radius.dtype).tiny
    return STABILITY * (MOST_STAGES**2 - 1) / jnp.maximum(spectral_radius, tiny)


def stage_coefficients() -> Float[np.ndarray, "5 s j"]:
    """mu, nu, mu~, gamma~ and c of stage j of the method of s stages, for s and j up to `MOST_STAGES`, with which

    Y_j = (1 - mu - nu) y + mu Y_{j-1} + nu Y_{j-2} + mu~ h F_{j-1} + gamma~ h F_0,    F_j = f(t + c_j h, Y_j).
    """
    table = np.zeros((5, MOST_STAGES + 1, MOST_STAGES + 1))
    for s in range(2, MOST_STAGES + 1):
        w0 = 1 + DAMPING / s**2
        t, dt, ddt = np.zeros(s + 1), np.zeros(s + 1), np.zeros(s + 1)  # Chebyshev's polynomials at w0 and their derivatives
        t[:2], dt[1] = (1, w0), 1
        for j in range(2, s + 1):
            t[j] = 2 * w0 * t[j - 1] - t[j - 2]
            dt[j] = 2 * t[j - 1] + 2 * w0 * dt[j - 1] - dt[j - 2]
            ddt[j] = 4 * dt[j - 1] + 2 * w0 * ddt[j - 1] - ddt[j - 2]
        w1 = dt[s] / ddt[s]
        b = np.append([0.0, 0.0], ddt[2:] / dt[2:] ** 2)
        b[:2] = b[2]
        mu, nu, mu_tilde, gamma_tilde, c = table[:, s]
        j = np.arange(2, s + 1)
        mu[j] = 2 * b[j] * w0 / b[j - 1]
        nu[j] = -b[j] / b[j - 2]
        mu_tilde[1], mu_tilde[j] = b[1] * w1, 2 * b[j] * w1 / b[j - 1]
        gamma_tilde[j] = -(1 - b[j - 1] * t[j - 1]) * mu_tilde[j]
        c[j] = w1 * ddt[j] / dt[j]
        c[1] = c[2] / dt[2]
    return table
