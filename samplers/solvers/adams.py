r"""Linear multistep methods on the noise prediction: past evaluations are interpolated by a polynomial, one evaluation a step.

With y = x/alpha and s = sigma/alpha the probability-flow ODE is dy = eps ds. Adams-Bashforth methods replace eps by the polynomial through the
last evaluations in some variable u, so that

    x' = (alpha'/alpha) x + sum_j b_j eps_{i-j},        b_j = alpha' \int_s^{s'} l_j(u(s)) ds,     l_j Lagrange's polynomials,

integrated here by Gauss-Legendre quadrature to rounding. In the variable sigma/alpha these are LMS and DEIS-rhoAB, in t DEIS-tAB, in lambda
DPM-Solver. PNDM and iPNDM keep the weights of equal steps.
"""

from collections.abc import Callable

import numpy as np

from samplers.solvers.steps import check, check_final, check_whole, final_order, first_order, gauss_legendre, lagrange, leave_prior, ratio
from samplers.table import Row, Solver
from sde_lib.sde import SDE

# the Adams-Bashforth weights of equal steps, by number of evaluations
EQUAL_STEPS = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def variable_of(sde: SDE, variable: str | Callable) -> Callable:
    """u as a function of s = sigma/alpha (array, float64)."""
    if variable == "sigma":
        return lambda s: s
    of_log_snr = {"log_snr": lambda log_snr: log_snr, "t": sde.time}.get(variable, variable)
    return lambda s: of_log_snr(-np.log(s))


def adams_weights(sde: SDE, times: np.ndarray, i: int, count: int, variable: str | Callable) -> np.ndarray:
    """b_j of the module docstring for step i of the grid and the last `count` evaluations."""
    u = variable_of(sde, variable)
    nodes = u(np.array([ratio(sde, t) for t in times[i - count + 1 : i + 1]]))[::-1]
    start, end = ratio(sde, times[i]), ratio(sde, times[i + 1])
    theta, weight = gauss_legendre(200)
    if end > 0:  # in log s, where u is smooth over many octaves
        s = start * np.exp(theta * np.log(end / start))
        weight = weight * s * np.log(end / start)
    else:
        s, weight = start * (1 - theta), -weight * start
    return sde.alpha(times[i + 1]) * np.sum(weight * lagrange(nodes, u(s)), 1)


def adams_bashforth(count: int, variable: str | Callable, lower_order_final: bool | float = False) -> Solver:
    """The method through the last `count` evaluations, polynomial in `variable`: "sigma", "t", "log_snr", or a function of log-SNR.

    Order `count`, started by its lower orders; one evaluation a step; consumes the noise; deterministic. A step from alpha = 0 is DDIM's.
    lower_order_final: see `samplers.solvers.steps.final_order`.
    """
    check_whole("adams_bashforth", 1, count=count)
    check_final("adams_bashforth", lower_order_final)
    if not callable(variable):
        check("adams_bashforth", variable=(variable, ("sigma", "t", "log_snr")))

    def build(sde, times):
        rows = []
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            now = min(final_order(count, lower_order_final, len(times) - 1, i), i + 1)
            b = adams_weights(sde, times, i, now, variable)
            if variable == "log_snr" and sde.sigma(s) == 0:
                b = [first_order(sde, t, s, "noise")[1]]
            rows.append(Row(t, {0: sde.alpha(s) / sde.alpha(t)}, dict(enumerate(b))))
        return rows

    return lambda sde, times: leave_prior(sde, times, build, "noise")


def deis(order: int = 3, variant: str = "tab", variable: Callable | None = None, lower_order_final: bool | float = False) -> Solver:
    """DEIS (Zhang & Chen 2023, 2204.13902, section 3.3): tAB (polynomial in t) and rhoAB (in sigma/alpha), of `order` 0 (DDIM) to 3 and more.

    The paper's order r is the degree of the polynomial through r + 1 evaluations: of convergence r + 1, started by its lower orders; one evaluation
    a step; consumes the noise; deterministic. variant: "tab" or "rhoab". variable: a function of log-SNR in which "tab" interpolates, if not
    the path's own time: on the EDM path, whose t is sigma, tab is rhoab, and the authors' choice is VP's time, `grids.vp_time(sde)`.
    The authors' coefficients are a sum of 10,000 points, good to 4e-4; these are exact. Raises ValueError for unknown options.
    """
    check("deis", variant=(variant, ("tab", "rhoab")))
    check_whole("deis", 0, order=order)
    if variable is not None and (variant == "rhoab" or not callable(variable)):
        raise ValueError(f"deis: variable {variable!r} of variant '{variant}': expected a function of log-SNR, and variant 'tab'")
    return adams_bashforth(order + 1, "sigma" if variant == "rhoab" else variable or "t", lower_order_final)


def lms(order: int = 4) -> Solver:
    """The linear multistep method of k-diffusion (Adams-Bashforth in sigma/alpha with unequal steps; rhoAB-DEIS of one degree less).

    Order `order`, one evaluation a step, consumes the noise, deterministic.
    """
    check_whole("lms", 1, order=order)
    return adams_bashforth(order, "sigma")


def ipndm(order: int = 4) -> Solver:
    """Improved PNDM (Zhang & Chen 2023, 2204.13902, eq. 42): DDIM steps with the Adams-Bashforth weights of equal steps, started by lower orders.

    One evaluation a step, consumes the noise, deterministic. `order` (1 to 4) is that on grids of equal steps in sigma/alpha; on others it is at
    most 2, with a small constant. Raises ValueError for another order.
    """
    check("ipndm", order=(order, tuple(EQUAL_STEPS)))

    def build(sde, times):
        rows = []
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            linear, w = first_order(sde, t, s, "noise")
            rows.append(Row(t, {0: linear}, {j: w * b for j, b in enumerate(EQUAL_STEPS[min(order, i + 1)])}))
        return rows

    return lambda sde, times: leave_prior(sde, times, build, "noise")


def pndm(warmup: str = "runge_kutta") -> Solver:
    """PNDM (Liu et al. 2022, 2202.09778, algorithm 2): DDIM steps along a pseudo-linear multistep slope of four evaluations (PLMS).

    warmup: "runge_kutta", three pseudo Runge-Kutta steps of four evaluations each, at t, twice halfway in t, and at the end (F-PNDM): N + 9
    evaluations; or "heun", a first step of two evaluations and then lower orders (PLMS of latent diffusion; diffusers' skip_prk_steps): N + 1.
    Consumes the noise, deterministic; its order is that of `ipndm`. A step to sigma = 0 has no warm-up of its own. Raises ValueError for
    another warm-up.
    """
    check("pndm", warmup=(warmup, ("runge_kutta", "heun")))

    def build(sde, times):
        rows, slopes = [], []  # slopes: the rows at whose points the steps' own evaluations were made

        def row(t, start, s, base, average):
            """A step from `start` to s along sum average[e] eps_e (e: rows), x being that before row `base`."""
            linear, w = first_order(sde, start, s, "noise")
            e = len(rows)
            rows.append(Row(t, {e - base: linear}, {e - k: w * c for k, c in average.items()}))

        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            e = len(rows)
            slopes.append(e)
            if i < 3 and warmup == "runge_kutta" and sde.sigma(s) > 0:
                half = 0.5 * (t + s)
                row(t, t, half, e, {e: 1.0})
                row(half, t, half, e, {e + 1: 1.0})
                row(half, t, s, e, {e + 2: 1.0})
                row(s, t, s, e, {e: 1 / 6, e + 1: 2 / 6, e + 2: 2 / 6, e + 3: 1 / 6})
            elif i == 0 and warmup == "heun" and sde.sigma(s) > 0:
                row(t, t, s, e, {e: 1.0})
                row(s, t, s, e, {e: 0.5, e + 1: 0.5})
            else:
                row(t, t, s, e, dict(zip(slopes[:-5:-1], EQUAL_STEPS[min(4, i + 1)])))
        return rows

    return lambda sde, times: leave_prior(sde, times, build, "noise")
