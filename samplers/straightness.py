r"""How straight a flow is (Liu et al. 2023, 2209.03003, section 2.2): how far its velocity is from the chord between its own ends,

    S = \int E |alpha'(t) x_0 + sigma'(t) eps - v(x_t, t)|^2 dt

along x_t from t = T to an end near 0, with (x_0, eps) by which alpha x_0 + sigma eps has both ends (`chord`). On the linear path the chord's velocity
is x_T - x_0, and S = 0 if and only if one Euler step is exact: S is the excess of \int E |v|^2 dt over E |x_T - x_0|^2. On other paths S = 0 if and
only if one step of DDIM is exact; where sigma' is infinite at t = 0 (VP), S grows without bound as the end goes to 0.
"""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from samplers.adaptive import check_tolerances, per_example, solve_ode
from samplers.checks import check_denoiser, checked
from sde_lib.brief import results
from sde_lib.denoiser import Denoiser
from sde_lib.numerics import expand
from sde_lib.sde import SDE, Time


class Straightness(NamedTuple):
    """Of each example: straightness, \\int |chord - v|^2 dt; energy, \\int |v|^2 dt, both sums over dimensions; x, where its path ends; success:
    False, and all NaN, where the solve needed too many steps. S is the mean of the first, std/sqrt(B) its standard error."""

    straightness: Float[Array, " b"]
    energy: Float[Array, " b"]
    x: Float[Array, "b ..."]
    success: Bool[Array, " b"]
    __repr__ = results


def chord(sde: SDE, x_t: Float[Array, "b ..."], t: Time, x_s: Float[Array, "b ..."], s: Time) -> tuple[Array, Array]:
    """(x_0, eps), [B, ...] each, by which alpha x_0 + sigma eps is x_t at t and x_s at s < t: both are [] or [B]."""
    (a_t, b_t), (a_s, b_s) = ((expand(sde.alpha(r), x_t), expand(sde.sigma(r), x_t)) for r in (t, s))
    det = a_s * b_t - a_t * b_s
    return (b_t * x_s - b_s * x_t) / det, (a_s * x_t - a_t * x_s) / det


@eqx.filter_jit
def _straightness(den, x_T, nodes, weights, end, rtol, atol):
    sde = den.sde

    def one(den, x_T):
        field = lambda t, x: den.velocity(x[None], t)[0]
        xs, _, success = solve_ode(field, x_T, sde.T, end, rtol, atol, diffrax.Tsit5(), diffrax.ForwardMode(), ts=jnp.append(nodes, end))
        last, xs = xs[-1], xs[:-1]
        x_0, eps = chord(sde, x_T, sde.T, last, end)
        v = jax.vmap(field)(nodes, xs)
        straight = expand(sde.alpha_dot(nodes), xs) * x_0 + expand(sde.sigma_dot(nodes), xs) * eps
        integral = lambda a: weights @ jnp.sum(a.reshape(len(nodes), -1) ** 2, -1)
        return integral(straight - v), integral(v), last, success

    return Straightness(*per_example(den, one, x_T))


def straightness(den: Denoiser, x_T: Float[Array, "b ..."], rtol=1e-5, atol=1e-5, end: float | None = None, nodes: int = 32) -> Straightness:
    """S of the module docstring, of each example that starts from x_T [B, ...] at t = T: adaptive steps, and Gauss-Legendre nodes in t.

    end: the time where paths end, by default `den.sde.eps`. Raises ValueError for impossible tolerances, an end outside [0, T), and no nodes.
    """
    check_denoiser(den, "straightness")
    x_T = checked(den, x_T, "x_T")
    check_tolerances(rtol, atol, diffrax.Tsit5())
    sde = den.sde
    end = sde.eps if end is None else end
    if not 0 <= end < sde.T or nodes < 1:
        raise ValueError(f"end = {end}, nodes = {nodes}: expected 0 <= end < T = {sde.T}, and at least one node")
    at, weights = np.polynomial.legendre.leggauss(nodes)
    length = (sde.T - end) / 2
    times, weights = (jnp.asarray(a, x_T.dtype) for a in (sde.T - length * (at + 1), length * weights))
    return _straightness(den, x_T, times, weights, *(jnp.asarray(c, x_T.dtype) for c in (end, rtol, atol)))


def normalized_path_energy(energy: float, w2: float) -> float:
    """NPE = |\\int E|v|^2 dt - W2^2| / W2^2 of the linear path (Tong et al. 2023, 2302.00482, section 5.1): 0 of optimal transport. w2: W2 between
    the prior and the data."""
    return abs(energy - w2**2) / w2**2
