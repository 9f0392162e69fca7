r"""Exponential integrators: the linear part of the probability-flow ODE is solved exactly, a prediction is extrapolated in log-SNR.

With h = lambda_s - lambda_t the exact solution from t to s is either of (DPM-Solver, 2206.00927, eq. 3.4; DPM-Solver++, 2211.01095, eq. 8)

    x_s = (alpha_s/alpha_t) x_t - sigma_s \int_0^h e^(h-u) eps du          noise prediction
    x_s = (sigma_s/sigma_t) x_t + alpha_s \int_0^h e^-(h-u) D du           data prediction

so that with a prediction P = P_t + P' u + P'' u^2/2, both are x_s = L x_t + w_1 P_t + w_2 h P' + w_3 h^2 P'' with w_k = S h phi_k(z),

    L, S, z  =  alpha_s/alpha_t, -sigma_s, h  (noise)      or      sigma_s/sigma_t, alpha_s, -h  (data).

Every solver here is a choice of P' and P'' from evaluations at hand. The data form stays finite where alpha_t = 0 and where sigma_s = 0.
"""

import math
from collections.abc import Callable

import numpy as np

from samplers.solvers.steps import (
    Prediction,
    check,
    check_final,
    check_flag,
    check_number,
    check_strength,
    check_whole,
    combine,
    final_order,
    first_order,
    leave_prior,
    phi,
    posterior,
    require_decreasing,
    strength,
)
from samplers.table import Row, Solver, stack
from sde_lib.sde import SDE


def weights(sde: SDE, t: float, s: float, prediction: Prediction):
    """L, w_1, w_2, w_3 and h of the module docstring."""
    linear, w1 = first_order(sde, t, s, prediction)
    h = float(sde.log_snr(s) - sde.log_snr(t))
    scale, z = (sde.alpha(s), -h) if prediction == "data" else (-sde.sigma(s), h)
    return linear, w1, scale * h * phi(2, z), scale * h * phi(3, z), h


# --- DDIM ---------------------------------------------------------------------------------------------------------------------------


def ddim(eta: float | Callable = 0.0) -> Solver:
    """DDIM (Song et al. 2021, 2010.02502, eq. 12 and 16); eta = 0 is DPM-Solver(++)-1, eta = 1 ancestral sampling.

    Order 1, one evaluation a step, consumes the data prediction; stochastic where eta > 0. eta: a number, or a function of the time that a step
    starts from, by which noise can be early only; the marginals are those of the path whatever it is.
    """
    check_strength("ddim", eta)

    def solver(sde, times):
        rows = []
        if np.any(strength(eta, times[:-1])):
            require_decreasing("ddim with eta above 0", times)
        for t, s in zip(times[:-1], times[1:]):
            std = strength(eta, t) * posterior(sde, t, s)[2] if strength(eta, t) > 0 else 0.0
            if std > sde.sigma(s) * (1 + 1e-9):
                raise ValueError(f"ddim: eta = {strength(eta, t)} at t = {t:.4g} asks for more noise than there is: expected 0 to 1")
            x = np.sqrt(max(sde.sigma(s) ** 2 - std**2, 0.0)) / sde.sigma(t)
            rows.append(Row(t, {0: x}, {0: sde.alpha(s) - sde.alpha(t) * x}, std))
        return stack(rows, "data")

    return solver


# --- DPM-Solver and DPM-Solver++ ------------------------------------------------------------------------------------------------------


def dpm_solver(order: int = 3, method: str = "singlestep", **options) -> Solver:
    """DPM-Solver (Lu et al. 2022, 2206.00927, algorithms 1, 2 and 4 to 6): consumes the noise. Deterministic, of the given order (3M: of
    order 2 unless consistent=True).

    order: 1 (DDIM), 2 (at r1 = 1/2 also k-diffusion's DPM-2) or 3. method: "singlestep", `order` evaluations a step, or "multistep", one.
    options: see `singlestep` and `multistep`. Raises ValueError for unknown ones.
    """
    return _dpm("dpm_solver", "noise", order, method, options)


def dpm_solver_pp(order: int = 2, method: str = "multistep", **options) -> Solver:
    """DPM-Solver++ (Lu et al. 2022, 2211.01095, algorithm 1 "2S", algorithm 2 "2M"; 3S and 3M as in the authors' code): consumes the data prediction.

    Deterministic, of the given order (3M: of order 2 unless consistent=True). order: 1 (DDIM), 2 or 3. method: "multistep", one evaluation a
    step, or "singlestep", `order`. options: see `singlestep` and `multistep`. Raises ValueError for unknown ones.
    """
    return _dpm("dpm_solver_pp", "data", order, method, options)


def _dpm(name, prediction, order, method, options):
    check(name, order=(order, (1, 2, 3)), method=(method, ("singlestep", "multistep")))
    return (singlestep if method == "singlestep" else multistep)(prediction, order, **options)


def multistep(
    prediction: Prediction, order: int, solver_type="dpmsolver", consistent: bool = False, lower_order_final: bool | float = True
) -> Solver:
    """Multistep DPM-Solver(++): P' and P'' by differences of the last evaluations. One evaluation a step.

    solver_type: the weight of P' at order 2, w_1/2 ("dpmsolver") or w_2 ("taylor"); "taylor" is Adams-Bashforth in lambda. consistent: at order 3
    the authors' code, and those derived from it, give P'' half its weight, which leaves order 2; True gives it all, which is Adams-Bashforth of
    order 3 in lambda. lower_order_final: see `final_order`. Steps at the start have the order that the history allows; a step to sigma = 0 is
    of order 1.
    """
    check("multistep DPM-Solver", solver_type=(solver_type, ("dpmsolver", "taylor")))
    check_flag("multistep DPM-Solver", consistent=consistent)
    check_final("multistep DPM-Solver", lower_order_final)

    def build(sde, times):
        log_snr = sde.log_snr(times)
        rows, n = [], len(times) - 1
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            now = min(final_order(order, lower_order_final, n, i, short=10), i + 1)
            if now == 1 or sde.sigma(s) == 0:
                linear, w1 = first_order(sde, t, s, prediction)
                rows.append(Row(t, {0: linear}, {0: w1}))
                continue
            linear, w1, w2, w3, h = weights(sde, t, s, prediction)
            r0 = (log_snr[i] - log_snr[i - 1]) / h
            d0 = {0: 1 / r0, 1: -1 / r0}
            if now == 2:
                p = combine((w1, {0: 1.0}), (0.5 * w1 if solver_type == "dpmsolver" else w2, d0))
            else:
                r1 = (log_snr[i - 1] - log_snr[i - 2]) / h
                d1 = {1: 1 / r1, 2: -1 / r1}
                second = combine((1 / (r0 + r1), d0), (-1 / (r0 + r1), d1))
                p = combine((w1, {0: 1.0}), (w2, d0), (w2 * r0, second), (2 * w3 if consistent else w3, second))
            rows.append(Row(t, {0: linear}, p))
        return rows

    return lambda sde, times: leave_prior(sde, times, build, prediction)


def singlestep_orders(nfe: int, order: int) -> list[int]:
    """How DPM-Solver's authors spend `nfe` evaluations on steps of up to `order` (2206.00927, section 3.4; 2, ..., 2(, 1) for order 2)."""
    full, rest = divmod(nfe, order)
    if order == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0)


def singlestep(
    prediction: Prediction, order: int, solver_type="dpmsolver", r1: float | None = None, r2: float | None = None, inner: str = "log_snr"
) -> Solver:
    """Singlestep DPM-Solver(++): each step has `order` evaluations, the inner ones at lambda_t + r1 h (and r2 h). No history.

    r1: by default 1/2 at order 2, 1/3 at order 3; r2: of order 3, by default 2/3.
    solver_type: as in `multistep`; at order 3 "taylor" keeps P''.
    inner: "log_snr": every interval of the grid is a step. "grid": the grid has a time for every evaluation, split into steps by
    `singlestep_orders`; the inner times are the grid's, and r1, r2 what they are (the authors' rule on grids in t).
    "uniform_logsnr": as many evaluations as the grid has intervals, from its first time to its last, in steps of
    `singlestep_orders` and equal length in log-SNR, with r1 and r2 (the authors' rule on log-SNR grids). A step to sigma = 0
    is of order 1; the last two rules expect a grid that ends above it.
    """
    name = f"singlestep DPM-Solver of order {order}"
    check(name, solver_type=(solver_type, ("dpmsolver", "taylor")), inner=(inner, ("log_snr", "grid", "uniform_logsnr")))
    unused = [option for option, value, least in (("r1", r1, 2), ("r2", r2, 3)) if value is not None and (order < least or inner == "grid")]
    if unused:
        raise ValueError(f"{name}, inner='{inner}': {' and '.join(unused)} would not be used: leave it out")

    def ratios_of(now):
        """r1 and r2 of a step of order `now`; a lower one than `order` has its own defaults."""
        first, second = (r1, r2) if now == order else (None, None)
        return [[], [1 / 2 if first is None else first], [1 / 3 if first is None else first, 2 / 3 if second is None else second]][now - 1]

    ratios = ratios_of(order)
    check_number(name, above=0.0, below=1.0, **dict(zip(("r1", "r2"), ratios)))
    if ratios != sorted(set(ratios)):
        raise ValueError(f"{name}: r1 = {ratios[0]}, r2 = {ratios[1]}: expected r1 < r2")

    def steps(sde, times):
        """The times of the evaluations of each step, and its end."""
        if inner == "grid":
            ends = np.cumsum([0, *singlestep_orders(len(times) - 1, order)])
            return [list(times[a : b + 1]) for a, b in zip(ends[:-1], ends[1:])]
        orders = [order] * (len(times) - 1)
        if inner == "uniform_logsnr":
            orders = singlestep_orders(len(times) - 1, order)
            log_snr = np.linspace(*sde.log_snr(times[[0, -1]]), len(orders) + 1)
            times = np.concatenate([times[:1], sde.time(log_snr[1:-1]), times[-1:]])
        result = []
        for t, s, now in zip(times[:-1], times[1:], orders):
            fractions = ratios_of(now) if sde.sigma(s) > 0 else []
            a, b = (sde.log_snr(u) for u in (t, s)) if fractions else (0, 0)
            result.append([t, *(float(sde.time(a + f * (b - a))) for f in fractions), s])
        return result

    def build(sde, times):
        rows = []
        if inner == "uniform_logsnr" and sde.sigma(times[-1]) == 0:
            raise ValueError(f"{name}, inner='{inner}': expected a grid that ends above sigma = 0")
        for points in steps(sde, times):
            t, s, now = points[0], points[-1], len(points) - 1
            if now > 1 and sde.sigma(s) == 0:
                raise ValueError(f"{name}, inner='{inner}': expected a grid that ends above sigma = 0")
            linear, w1 = first_order(sde, t, points[1], prediction)
            rows.append(Row(t, {0: linear}, {0: w1}))
            if now == 1:
                continue
            linear, w1, w2, w3, h = weights(sde, t, s, prediction)
            difference = {k: float(sde.log_snr(points[k]) - sde.log_snr(t)) / h for k in range(1, now)}  # r1, r2
            slope = lambda k, row, r=difference: {row - k: 1 / r[k], row: -1 / r[k]}  # (P_k - P_0)/r_k, seen from row `row` of the step
            if now == 2:
                p = combine((w1, {1: 1.0}), (0.5 * w1 if solver_type == "dpmsolver" else w2, slope(1, 1)))
                rows.append(Row(points[1], {1: linear}, p))
                continue
            linear2, v1, v2, _, h2 = weights(sde, t, points[2], prediction)
            rows.append(Row(points[1], {1: linear2}, combine((v1, {1: 1.0}), (v2 * h2 / h, slope(1, 1)))))
            a, b, gap = slope(1, 2), slope(2, 2), difference[2] - difference[1]
            if solver_type == "dpmsolver":
                p = combine((w1, {2: 1.0}), (w2, b))
            else:
                first = combine((difference[2] / gap, a), (-difference[1] / gap, b))
                p = combine((w1, {2: 1.0}), (w2, first), (2 * w3 / gap, b), (-2 * w3 / gap, a))
            rows.append(Row(points[2], {2: linear}, p))
        return rows

    return lambda sde, times: leave_prior(sde, times, build, prediction)


# --- UniPC ----------------------------------------------------------------------------------------------------------------------------


def unipc(
    order: int = 3, variant: str = "bh2", prediction: Prediction = "data", corrector: bool = True, lower_order_final: bool | float = True
) -> Solver:
    """UniPC (Zhao et al. 2023, 2302.04867, algorithms 5 to 8): a predictor of any order and a corrector that reuses the next evaluation.

    Order order + 1 with the corrector, else `order`, and 2 at most where the last step is of order 1. One evaluation a step; consumes
    `prediction`; deterministic.
    variant: B(h) = z ("bh1") or e^z - 1 ("bh2"), z = -h for data, h for noise. As in the authors' code the predictor of order 2 and the corrector
    of order 1 have coefficient 1/2, and the last step is not corrected. lower_order_final: see `final_order`; True lowers the last
    orders in runs of any length. A step to sigma = 0 is of order 1.
    In few steps on Karras' grid the default can be worse than DDIM, and so it is as released (the same to 1e-13): steps
    in log-SNR grow along this grid, to 2.3 in the last of 10, too far to extrapolate data predictions by a parabola. On
    a mixture, 10 steps to sigma = 0, DDIM has an RMSE of .156, order 3 of .222 and order 2 of .128; prediction="noise"
    has .050, and order 3 on `grids.log_snr` .066. Raises ValueError for unknown options.
    """
    check("unipc", variant=(variant, ("bh1", "bh2")), prediction=(prediction, ("noise", "data")))
    check_whole("unipc", 1, order=order)
    check_flag("unipc", corrector=corrector)
    check_final("unipc", lower_order_final)

    def update(sde, log_snr, times, i, now):
        """Step i of order `now`: L, w_1, then what multiplies (P_{i-j} - P_i), j = 1.. in predictor and corrector, and (P_{i+1} - P_i)."""
        linear, w1, _, _, h = weights(sde, times[i], times[i + 1], prediction)
        z = -h if prediction == "data" else h
        base = z if variant == "bh1" else np.expm1(z)
        # r_j, with r of P_{i+1} being 1; sum_j rho_j r_j^(k-1) = k! z phi_{k+1}(z)/B
        r = np.array([*((log_snr[i - j] - log_snr[i]) / h for j in range(1, now)), 1.0])
        matrix = np.array([r ** (k - 1) for k in range(1, now + 1)])
        right = np.array([math.factorial(k) * z * phi(k + 1, z) / base for k in range(1, now + 1)])
        predictor = np.array([0.5]) if now == 2 else np.linalg.solve(matrix[:-1, :-1], right[:-1])
        corrected = np.array([0.5]) if now == 1 else np.linalg.solve(matrix, right)
        scale = (sde.alpha(times[i + 1]) if prediction == "data" else sde.sigma(times[i + 1])) * -base
        return linear, w1, scale * predictor / r[:-1], scale * corrected / r

    def build(sde, times):
        log_snr = sde.log_snr(times)
        rows, n, correction = [], len(times) - 1, {}
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            now = min(final_order(order, lower_order_final, n, i), i + 1)
            # x_i is the prediction of step i - 1; P_i corrects it by `correction`, whose lags are seen from here
            if sde.sigma(s) == 0:
                linear, w1 = first_order(sde, t, s, prediction)
                rows.append(Row(t, {0: linear}, combine((linear, correction), (w1, {0: 1.0}))))
                continue
            linear, w1, predictor, corrected = update(sde, log_snr, times, i, now)
            step = combine((w1, {0: 1.0}), *((c, {j: 1.0, 0: -1.0}) for j, c in enumerate(predictor, 1)))
            rows.append(Row(t, {0: linear}, combine((linear, correction), (1.0, step))))
            # from the next row's point of view P_{i+1} has lag 0, P_{i-j} lag j + 1
            change = np.append(corrected[:-1] - predictor, corrected[-1])
            lags = [*range(2, now + 1), 0]
            correction = combine(*((c, {lag: 1.0, 1: -1.0}) for lag, c in zip(lags, change))) if corrector else {}
        return rows

    return lambda sde, times: leave_prior(sde, times, build, prediction)
