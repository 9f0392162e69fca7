r"""SA-Solver: stochastic Adams methods in log-SNR, a predictor and a corrector that share their noise.

With h = lambda_s - lambda_t and the noise strength eta (the paper's tau) constant over the step from t to s,

    x_s = (sigma_s/sigma_t) e^(-eta^2 h) x_t + alpha_s (1 + eta^2) \int_0^h e^(-(1 + eta^2)(h - u)) D du + sigma_s sqrt(1 - e^(-2 eta^2 h)) xi

where D is replaced by the polynomial in lambda through the last evaluations (predictor), and with the evaluation at the
predicted x_s as well (corrector, from the same x_t and with the same xi). In noise prediction it is

    x_s = (alpha_s/alpha_t) x_t - sigma_s (1 + eta^2) \int_0^h e^(h - u) eps du + eta sigma_s sqrt(e^(2h) - 1) xi.
"""

from collections.abc import Callable

import numpy as np

from samplers.solvers.steps import (
    Prediction,
    check,
    check_final,
    check_number,
    check_strength,
    check_whole,
    combine,
    final_order,
    first_order,
    gauss_legendre,
    lagrange,
    leave_prior,
    ratio,
    require_decreasing,
    strength,
)
from samplers.table import Row, Solver
from sde_lib.sde import SDE


def adams_step(sde: SDE, t: float, s: float, eta: float, prediction: Prediction, nodes: np.ndarray):
    """What multiplies x_t, the predictions at `nodes` (log-SNR less that of t) and the noise."""
    h = float(sde.log_snr(s) - sde.log_snr(t))
    theta, weight = gauss_legendre(64)
    polynomials = lagrange(nodes, theta * h)
    if prediction == "data":
        growth = np.exp(-(1 + eta**2) * h * (1 - theta))
        x, scale = sde.sigma(s) / sde.sigma(t) * np.exp(-(eta**2) * h), sde.alpha(s)
        noise = np.sqrt(-np.expm1(-2 * eta**2 * h))
    else:
        growth = np.exp(h * (1 - theta))
        x, scale = sde.alpha(s) / sde.alpha(t), -sde.sigma(s)
        noise = eta * np.sqrt(np.expm1(2 * h)) if eta else 0.0
    return x, scale * (1 + eta**2) * h * (polynomials @ (weight * growth)), sde.sigma(s) * noise


def sa_solver(
    predictor: int = 3,
    corrector: int = 4,
    eta: float | Callable = 1.0,
    s_min: float = 0.72,
    s_max: float = 25.1,
    prediction: Prediction = "data",
    lower_order_final: bool | float = True,
) -> Solver:
    """SA-Solver (Xue et al. 2023, 2309.05019, algorithm 1): a stochastic Adams-Bashforth predictor and an Adams-Moulton corrector.

    Stochastic, weak order 1, on Gaussians 2; at eta = 0 deterministic, of order max(predictor, corrector). One evaluation a
    step; consumes `prediction` (the noise by way of the data from alpha = 0).
    predictor, corrector: evaluations that each interpolates, the corrector's with the new one; corrector 0 is none. The
    authors' are 3 and 4. The first steps have fewer, and the last one is not corrected.
    eta: strength of the noise as in `SDE.reverse_drift`, the paper's tau, a number or a function of the time that a step
    starts from. s_min, s_max: noise is drawn where sigma/alpha is between them; the authors' t from .2 to .8 of VP is .72 to
    25.1 (EDM's CIFAR-10: .05 to 1). lower_order_final: see `final_order`; True lowers the last orders in runs of any length.
    A step to sigma = 0 is of order 1. The authors' coefficients are antiderivatives that cancel, these are quadratures;
    their code also changes those of order 2 in data prediction by a term of order h^3, which is left out here.
    Raises ValueError for unknown options.
    """
    check_whole("sa_solver", 1, predictor=predictor)
    check_whole("sa_solver", 0, corrector=corrector)
    check_strength("sa_solver", eta)
    check_number("sa_solver", least=0.0, s_min=s_min)
    check_number("sa_solver", least=s_min, s_max=s_max)
    check("sa_solver", prediction=(prediction, ("data", "noise")))
    check_final("sa_solver", lower_order_final)

    def strengths(sde, times):
        """eta of the step from each time."""
        s = np.array([ratio(sde, t) if sde.alpha(t) > 0 else np.inf for t in times])
        return np.where((s_min <= s) & (s <= s_max), strength(eta, times), 0.0)

    def build(sde, times):
        log_snr, eta_of = sde.log_snr(times), strengths(sde, times[:-1])
        rows, n, correction = [], len(times) - 1, {}
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            # x_i is the prediction of step i - 1; P_i corrects it by `correction`, whose lags are seen from here
            if sde.sigma(s) == 0:
                linear, w1 = first_order(sde, t, s, prediction)
                rows.append(Row(t, {0: linear}, combine((linear, correction), (w1, {0: 1.0}))))
                continue
            adams = lambda indices: adams_step(sde, t, s, eta_of[i], prediction, log_snr[indices] - log_snr[i])  # noqa: B023
            past = np.arange(i, max(i - min(final_order(predictor, lower_order_final, n, i), i + 1), -1), -1)
            linear, weights, noise = adams(past)
            rows.append(Row(t, {0: linear}, combine((linear, correction), (1.0, dict(enumerate(weights)))), noise))
            count = min(final_order(corrector, lower_order_final, n + 1, i), i + 2)
            if not corrector or i == n - 1:
                correction = {}
                continue
            with_new = np.arange(i + 1, i + 1 - count, -1)
            correction = combine((1.0, dict(enumerate(adams(with_new)[1]))), (-1.0, {j + 1: w for j, w in enumerate(weights)}))
        return rows

    def solver(sde, times):
        eta_of = strengths(sde, times[:-1])
        if np.any(eta_of):
            require_decreasing("sa_solver", times)
        return leave_prior(sde, times, build, prediction, float(eta_of[0]))

    return solver
