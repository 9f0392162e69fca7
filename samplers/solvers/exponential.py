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
from functools import lru_cache

import numpy as np

from samplers.solvers.steps import Prediction, check, combine, first_order, leave_prior, posterior, ratio, stepwise, strength
from samplers.table import Row, Solver, stack
from sde_lib.sde import SDE


@lru_cache
def gauss_legendre(n: int):
    """Nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return 0.5 * (x + 1), 0.5 * w


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^((1-u) z) u^(k-1)/(k-1)! du: phi_1 = (e^z - 1)/z, phi_{k+1} = (phi_k - 1/k!)/z, without their cancellation."""
    u, w = gauss_legendre(64)
    return float(np.sum(w * np.exp((1 - u) * z) * u ** (k - 1)) / math.factorial(k - 1))


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

    def solver(sde, times):
        rows = []
        for t, s in zip(times[:-1], times[1:]):
            std = strength(eta, t) * posterior(sde, t, s)[2]
            if std > sde.sigma(s):
                raise ValueError(f"ddim: eta = {strength(eta, t)} at t = {t:.4g} asks for more noise than there is: expected 0 to 1")
            x = np.sqrt(sde.sigma(s) ** 2 - std**2) / sde.sigma(t)
            rows.append(Row(t, {0: x}, {0: sde.alpha(s) - sde.alpha(t) * x}, std))
        return stack(rows, "data")

    return solver


# --- DPM-Solver and DPM-Solver++ ------------------------------------------------------------------------------------------------------


def dpm_solver(order: int = 3, method: str = "singlestep", **options) -> Solver:
    """DPM-Solver (Lu et al. 2022, 2206.00927, algorithms 1, 2 and 4 to 6): consumes the noise. Deterministic, of the given order.

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


def final_order(order: int, lower_order_final: bool | float, n: int, i: int) -> int:
    """The order of step i of n: lowered towards the end of short runs. lower_order_final: True below ten steps, as the authors do; a number,
    below that many (diffusers: 15; diff-sampler: math.inf)."""
    below = 10 if lower_order_final is True else lower_order_final
    return min(order, n - i) if n < below else order


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

    def build(sde, times):
        log_snr = sde.log_snr(times)
        rows, n = [], len(times) - 1
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            now = min(final_order(order, lower_order_final, n, i), i + 1)
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
    prediction: Prediction, order: int, solver_type="dpmsolver", r1: float | None = None, r2: float = 2 / 3, inner: str = "log_snr"
) -> Solver:
    """Singlestep DPM-Solver(++): each step has `order` evaluations, the inner ones at lambda_t + r1 h (and r2 h). No history.

    r1: by default 1/2 at order 2, 1/3 at order 3. solver_type: as in `multistep`; at order 3 "taylor" keeps P''.
    inner: "log_snr": every interval of the grid is a step. "grid": the grid has a time for every evaluation, split into steps by
    `singlestep_orders`; the inner times are the grid's, and r1, r2 what they are (the authors' rule on grids in t). A step to sigma = 0 is of
    order 1.
    """
    check("singlestep DPM-Solver", solver_type=(solver_type, ("dpmsolver", "taylor")), inner=(inner, ("log_snr", "grid")))

    def steps(sde, times):
        """The times of the evaluations of each step, and its end."""
        if inner == "grid":
            ends = np.cumsum([0, *singlestep_orders(len(times) - 1, order)])
            return [list(times[a : b + 1]) for a, b in zip(ends[:-1], ends[1:])]
        result = []
        for t, s in zip(times[:-1], times[1:]):
            fractions = [[], [r1 or 1 / 2], [r1 or 1 / 3, r2]][order - 1] if sde.sigma(s) > 0 else []
            a, b = (sde.log_snr(u) for u in (t, s)) if fractions else (0, 0)
            result.append([t, *(float(sde.time(a + f * (b - a))) for f in fractions), s])
        return result

    def build(sde, times):
        rows = []
        for points in steps(sde, times):
            t, s, now = points[0], points[-1], len(points) - 1
            if now > 1 and sde.sigma(s) == 0:
                raise ValueError("singlestep DPM-Solver with inner='grid': expected a grid that ends above sigma = 0")
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


def unipc(order: int = 3, variant: str = "bh2", prediction: Prediction = "data", corrector: bool = True, lower_order_final: bool = True) -> Solver:
    """UniPC (Zhao et al. 2023, 2302.04867, algorithms 5 to 8): a predictor of any order and a corrector that reuses the next evaluation.

    Order order + 1 with the corrector, else `order`; one evaluation a step; consumes `prediction`; deterministic.
    variant: B(h) = z ("bh1") or e^z - 1 ("bh2"), z = -h for data, h for noise. As in the authors' code the predictor of order 2 and the corrector
    of order 1 have coefficient 1/2, and the last step is not corrected. lower_order_final: orders fall to 1 at the last steps, in runs of any
    length. A step to sigma = 0 is of order 1. Raises ValueError for unknown options.
    """
    check("unipc", variant=(variant, ("bh1", "bh2")), prediction=(prediction, ("noise", "data")))
    if order < 1:
        raise ValueError(f"unipc: order {order}: expected at least 1")

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
            now = min(order, i + 1, n - i if lower_order_final else order)
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


# --- exponential integrators of the reverse SDE ---------------------------------------------------------------------------------------


def sde_dpm_solver_pp(order: int = 2, eta: float | Callable = 1.0, solver_type: str = "dpmsolver", lower_order_final: bool | float = False) -> Solver:
    """SDE-DPM-Solver++(1) and (2M) (Lu et al. 2022, 2211.01095, section 5 and appendix D): exponential integrators
    of the reverse SDE; consume the data prediction.

        x_s = (sigma_s/sigma_t) e^(-eta^2 h) x_t + alpha_s (1 - e^(-(1 + eta^2) h)) D + sigma_s sqrt(1 - e^(-2 eta^2 h)) xi

    Stochastic, one evaluation a step; deterministic order `order`, weak order 1. eta: strength of the noise as in `SDE.reverse_drift`, a number or a
    function of the time that a step starts from: 1 is the reverse SDE, 0 DPM-Solver++, and the marginals are the same for all (k-diffusion's eta is
    the square). solver_type: the weight of D' at order 2, half that of D ("dpmsolver") or exact ("taylor"; "heun" elsewhere). lower_order_final: see
    `final_order`. The first step, and one to sigma = 0, are of order 1. Raises ValueError for unknown options.
    """
    check("sde_dpm_solver_pp", order=(order, (1, 2)), solver_type=(solver_type, ("dpmsolver", "taylor")))

    def build(sde, times):
        log_snr = sde.log_snr(times)
        rows, n = [], len(times) - 1
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            eta2, h = strength(eta, t) ** 2, log_snr[i + 1] - log_snr[i]
            if eta2 == 0 or np.isinf(h):
                linear, w1 = first_order(sde, t, s, "data")
                noise = 0.0
                if eta2 > 0 and sde.sigma(s) > 0:  # from alpha = 0: all that was x is forgotten
                    linear, w1, noise = 0.0, sde.alpha(s), sde.sigma(s)
            else:
                linear = sde.sigma(s) / sde.sigma(t) * np.exp(-eta2 * h)
                w1 = -sde.alpha(s) * np.expm1(-(1 + eta2) * h)
                noise = sde.sigma(s) * np.sqrt(-np.expm1(-2 * eta2 * h))
            p = {0: w1}
            if min(final_order(order, lower_order_final, n, i), i + 1) == 2 and np.isfinite(h) and np.isfinite(log_snr[i - 1]):
                r0 = (log_snr[i] - log_snr[i - 1]) / h
                w2 = 0.5 * w1 if solver_type == "dpmsolver" else sde.alpha(s) * (1 + eta2) * h * phi(2, -(1 + eta2) * h)
                p = combine((1.0, p), (w2 / r0, {0: 1.0, 1: -1.0}))
            rows.append(Row(t, {0: linear}, p, noise))
        return rows

    return lambda sde, times: stack(build(sde, times), "data")


def sde_dpm_solver(eta: float | Callable = 1.0) -> Solver:
    r"""SDE-DPM-Solver-1 (Lu et al. 2022, 2211.01095, appendix D): the exponential integrator of the reverse SDE in noise
    prediction (also in DEIS, 2204.13902).

        x_s = (alpha_s/alpha_t) x_t - (1 + eta^2) sigma_s (e^h - 1) eps + eta sigma_s sqrt(e^(2h) - 1) xi

    Stochastic, weak order 1, one evaluation a step; consumes the noise, by way of the data prediction. eta: as in `sde_dpm_solver_pp`. A step from
    alpha = 0 is the ancestral one.
    """

    def solver(sde, times):
        def step(t, s):
            eta2 = np.array([strength(eta, u) for u in np.atleast_1d(t)]) ** 2
            r_t, r_s, alpha = ratio(sde, t), ratio(sde, s), sde.alpha(s)
            c = (1 + eta2) * alpha * (r_s - r_t) / sde.sigma(t)  # of eps sigma_t = x - alpha_t D
            return alpha / sde.alpha(t) + c, -c * sde.alpha(t), np.sqrt(eta2 * (r_t**2 - r_s**2)) * alpha

        return stepwise(step, sde, times)

    return solver
