r"""Linear inverse problems: samples of p(x_0 | y) from a prior's denoiser, given y = A x_0 + noise_std n (`samplers.operators`), n ~ N(0, I).

By guidance, as a denoiser of a denoiser: by Tweedie's formula the posterior's score gives its data prediction,

    D_y(x, t) = E[x_0 | x_t, y] = D + (sigma^2/alpha) grad_x log p(y | x_t),

of which the methods know the likelihood p(y | x_t) approximately, from N(D, C) in the place of p(x_0 | x_t); with r = y - A D and J = dD/dx,

    dps               grad log p = zeta-weighted gradient of |r|               (Chung et al. 2023, 2209.14687)
    pigdm             C = sigma^2 s^2/(alpha^2 s^2 + sigma^2) I                (Song et al. 2023, "Pseudoinverse-guided diffusion models", eq. 7)
    moment_matching   C = Cov[x_0 | x_t] = (sigma^2/alpha) J                   (Boys et al. 2023, 2310.06721; Rozet et al. 2024, 2405.13712)

These run with every solver of `samplers`, ODE or SDE; `moment_matching` is exact for Gaussian data. They have no likelihoods: D_y is no model's.
By replacement, with a predictor-corrector: what is measured of x_t is drawn anew from p(x_t | y) after each move (2011.13456, appendix I.2).
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import gmres
from jax.tree_util import Partial
from jaxtyping import Array, Float

from samplers.adaptive import per_example
from samplers.checks import check_denoiser, checked
from samplers.operators import LinearOperator
from samplers.predictor_corrector import predictor_corrector
from samplers.solvers.steps import posterior
from samplers.table import Solver, check_times
from sde_lib.denoiser import Denoiser, informed
from sde_lib.noise import normal
from sde_lib.numerics import as_float, expand


def _posterior(method, den: Denoiser, operator: LinearOperator, y, **options) -> Denoiser:
    """The Denoiser of D_y: cond is the measurement and the prior's own, so that each example keeps its own."""
    check_denoiser(den, "a posterior")
    y = as_float(y)
    operator.check(y)
    den.check_uncoupled("a posterior")
    return Denoiser(Partial(method, replace(den, cond=None), operator, **options), den.sde, "data", cond=(y, den.cond), guided=True)


def _linearized(den: Denoiser, x, t):
    """D and u -> J^T u."""
    data, pull = jax.vjp(lambda x: den.data(x, t), x)
    return data, lambda u: pull(u)[0]


def _noise(noise_std: float) -> float:
    if not (noise_std >= 0 and np.isfinite(noise_std)):
        raise ValueError(f"noise_std = {noise_std}: expected the standard deviation of the measurement's noise, 0 or more")
    return noise_std


def _dps(den, operator, x, t, cond, *, times, weights, zeta):
    y, cond = cond
    data, pull = _linearized(replace(den, cond=cond), x, t)
    residual = y - operator.forward(data)
    norm = jnp.sqrt(jnp.sum(residual**2, range(1, y.ndim)))
    step = jnp.where(norm > 0, 2 * zeta / jnp.where(norm > 0, norm, 1.0), 0.0) / jnp.interp(t, times, weights)
    return data + expand(step, x) * pull(operator.transpose(residual))


def dps(den: Denoiser, operator: LinearOperator, y: Float[Array, "b ..."], times: Float[np.ndarray, " n"], zeta: float = 1.0) -> Denoiser:
    """Diffusion posterior sampling (Chung et al. 2023, 2209.14687, algorithm 1): after each step from x_t, x <- x - (zeta/|r|) grad_{x_t} |r|^2.

    times: the grid that is sampled on. D is moved by what has that effect in an ancestral step of this grid (with `ancestral()` it is algorithm 1),
    and in the last evaluation, which denoises; other solvers follow the same D. zeta: 0.1 to 1 in the paper, of 1000 steps and images of
    256 x 256; |r| comes to rest within about 2 zeta |A|^2 of 0, so that small problems need less. Knows nothing of the measurement's noise.
    One evaluation and one reverse pass each. Raises ValueError for y of another shape, bad times, or zeta not above 0.
    """
    if not 0 < zeta < np.inf:
        raise ValueError(f"dps: zeta = {zeta}: expected a step above 0")
    times = check_times(den.sde, times)
    weights = np.append(posterior(den.sde, times[:-1], times[1:])[1], 1.0)
    return _posterior(_dps, den, operator, y, times=times[::-1], weights=weights[::-1], zeta=zeta)


def _pigdm(den, operator, x, t, cond, *, noise_std, sigma_data):
    y, cond = cond
    t = informed(den.sde, t)
    alpha, sigma = den.sde.alpha(t), den.sde.sigma(t)
    data, pull = _linearized(replace(den, cond=cond), x, t)
    total = (alpha * sigma_data) ** 2 + sigma**2
    variance = (sigma * sigma_data) ** 2 / total
    c = noise_std**2 / jnp.maximum(variance, jnp.finfo(x.dtype).tiny)
    # (sigma^2/alpha) J^T A^T (variance A A^T + noise_std^2)^+ r, without dividing by sigma
    return data + expand(total / (alpha * sigma_data**2), x) * pull(operator.transpose(operator.solve(y - operator.forward(data), c)))


def pigdm(den: Denoiser, operator: LinearOperator, y: Float[Array, "b ..."], noise_std: float = 0.0, sigma_data: float = 1.0) -> Denoiser:
    """Pseudoinverse guidance (Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", eq. 7): Cov[x_0 | x_t] = r_t^2 I.

    r_t^2 = sigma^2 s^2/(alpha^2 s^2 + sigma^2), the paper's sigma^2/(1 + sigma^2) of VE with s = sigma_data = 1; exact for data N(m, s^2 I).
    One evaluation and one reverse pass each. Raises ValueError for y of another shape, or a noise_std or sigma_data that are none.
    """
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"pigdm: sigma_data = {sigma_data}: expected the standard deviation of the data")
    return _posterior(_pigdm, den, operator, y, noise_std=_noise(noise_std), sigma_data=sigma_data)


@functools.lru_cache
def _moment_matching(iterations: int):
    """One function, hence one compiled program, for each number of iterations."""

    def method(den, operator, x, t, cond, *, noise_std):
        y, cond = cond
        t = informed(den.sde, t)
        scale = den.sde.sigma(t) ** 2 / den.sde.alpha(t)

        def one(den, x, t, y, scale):
            data, pull = _linearized(den, x[None], t)
            covariance = lambda v: scale * pull(operator.transpose(v[None]))
            marginal = lambda v: operator.forward(covariance(v))[0] + noise_std**2 * v
            solution, _ = gmres(marginal, y - operator.forward(data)[0], restart=iterations, maxiter=1)
            return (data + covariance(solution))[0]

        return per_example(replace(den, cond=cond), one, x, t, y, scale)

    return method


def moment_matching(den: Denoiser, operator: LinearOperator, y: Float[Array, "b ..."], noise_std: float = 0.0, iterations: int = 5) -> Denoiser:
    """Moment matching with the whole covariance (sigma^2/alpha) J: TMPD (Boys et al. 2023, 2310.06721), without its diagonal approximation, and
    MMPS (Rozet et al. 2024, 2405.13712, algorithm 2), which solves (A C A^T + noise_std^2 I) v = r by a few iterations: of GMRES in the place of
    conjugate gradients, which break down where the Jacobian of a network is not symmetric and positive.

    iterations: at most, of each example; as many as measurements make it exact for any Gaussian data. noise_std = 0 may be ill-conditioned.
    One evaluation, and a reverse pass for each iteration and three more. Raises ValueError for y of another shape, noise_std < 0, or no iteration.
    """
    if iterations < 1 or iterations != int(iterations):
        raise ValueError(f"moment_matching: iterations = {iterations}: expected a whole number, at least 1")
    return _posterior(_moment_matching(int(iterations)), den, operator, y, noise_std=_noise(noise_std))


def _replaced(sde, operator, known, keys, x, t):
    """x with its measured part drawn from p(x_t | y): alpha A^+ y + sigma A^+ A noise."""
    drawn = expand(sde.alpha(t), x) * known + expand(sde.sigma(t), x) * normal(keys, x.shape, x.dtype)
    return x + operator.project(drawn - x)


def consistent(operator: LinearOperator, y: Float[Array, "b ..."], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """x + A^+ (y - A x): the x nearest to x that measures as y."""
    return x + operator.pseudo_inverse(y - operator.forward(x))


def replacement(
    den: Denoiser,
    operator: LinearOperator,
    y: Float[Array, "b ..."],
    x_T: Float[Array, "b ..."],
    times: Float[np.ndarray, " n"],
    predictor: Solver | None,
    corrector=None,
    key=None,
) -> Float[Array, "b ..."]:
    """Samples of p(x_0 | A x_0 = y) by replacement in a predictor-corrector (2011.13456, appendix I.2 and I.3, of any A by its pseudo-inverse).

    After each move to t the measured part of x becomes that of alpha y + sigma A eps, and the last evaluation denoises all of x and puts y into it.
    Takes y as exact. Without a corrector the rest does not learn of y what it should: the samples are too far from the posterior however many the
    steps. Arguments as of `samplers.predictor_corrector`; one evaluation more. Raises ValueError for y of another shape.
    """
    check_denoiser(den, "replacement")
    y, x_T = as_float(y), checked(den, x_T, "x_T", key)
    operator.check(y)
    if len(y) != len(x_T):
        raise ValueError(f"replacement: {len(y)} measurements and {len(x_T)} x_T: expected one of each")
    constrain = Partial(_replaced, den.sde, operator, operator.pseudo_inverse(y))
    x = predictor_corrector(den, x_T, times, predictor, corrector, key, constrain=constrain)
    return consistent(operator, y, jax.jit(Denoiser.data)(den, x, times[-1]))
