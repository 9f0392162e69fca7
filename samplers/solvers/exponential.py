r"""Exponential integrators: the linear part of the probability-flow ODE is solved exactly, the data prediction D is extrapolated in log-SNR.

With h = lambda_s - lambda_t the exact solution from t to s is (DPM-Solver++, 2211.01095, eq. 8)

    x_s = (sigma_s/sigma_t) x_t + sigma_s \int_{lambda_t}^{lambda_s} e^lambda D dlambda.

Holding D constant gives x_s = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) D, which stays finite where alpha_t = 0 and where
sigma_s = 0. All solvers here consume D ("data").
"""

import numpy as np

from samplers.table import Row, Solver, stack


def jump(sde, t: float, s: float) -> tuple[float, float]:
    """The coefficients of x and D in the first-order step from t to s."""
    ratio = sde.sigma(s) / sde.sigma(t)
    return ratio, sde.alpha(s) - sde.alpha(t) * ratio


def ddim() -> Solver:
    """DDIM (Song et al. 2021, 2010.02502, eq. 12 with eta = 0) = DPM-Solver(++)-1. Order 1, one evaluation a step."""

    def solver(sde, times):
        rows = []
        for t, s in zip(times[:-1], times[1:]):
            x, p = jump(sde, t, s)
            rows.append(Row(t, {0: x}, {0: p}))
        return stack(rows, "data")

    return solver


def dpm_solver_pp(order: int = 2, lower_order_final: bool = True) -> Solver:
    """Multistep DPM-Solver++ (Lu et al. 2022, 2211.01095, algorithm 2: "2M"). One evaluation a step.

    order: 1 (DDIM) or 2. lower_order_final: as in the authors' code, the last step is of order 1 when there are fewer than 10.
    The first step is of order 1, as is a step that ends at sigma = 0 or whose predecessor began at alpha = 0 (both in the limit of the
    formula). Raises ValueError for another order.
    """
    if order not in (1, 2):
        raise ValueError(f"dpm_solver_pp: order {order}: expected 1 or 2")

    def solver(sde, times):
        with np.errstate(divide="ignore"):
            log_snr = sde.log_snr(times)
        n, rows = len(times) - 1, []
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            x, p = jump(sde, t, s)
            first = i == 0 or order == 1 or sde.sigma(s) == 0 or (lower_order_final and n < 10 and i == n - 1)
            # extrapolation of D: (1 + 1/(2r)) D_i - 1/(2r) D_{i-1}, with r the ratio of the last step to this one
            slope = 0.0 if first else 0.5 * (log_snr[i + 1] - log_snr[i]) / (log_snr[i] - log_snr[i - 1])
            rows.append(Row(t, {0: x}, {0: p * (1 + slope), 1: -p * slope}))
        return stack(rows, "data")

    return solver
