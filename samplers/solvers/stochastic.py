"""Solvers of the reverse SDE dx = [f x - g^2 score] dt + g dw."""

from collections.abc import Callable

import numpy as np

from samplers.solvers.steps import (
    check,
    check_final,
    check_flag,
    check_number,
    check_strength,
    combine,
    final_order,
    first_order,
    in_data,
    jump,
    leave_prior,
    of_score,
    one_step_rows,
    phi,
    posterior,
    ratio,
    require_decreasing,
    stepwise,
    strength,
    transition,
)
from samplers.table import Row, Solver, stack


def ancestral(variance: str = "posterior") -> Solver:
    """Ancestral sampling (Ho et al. 2020, 2006.11239, algorithm 2): draw x_s with the mean of p(x_s | x_t, x_0 = D) (for VE 2011.13456, appendix F).

    variance: that of p(x_s | x_t, x_0) ("posterior") or of p(x_t | x_s) ("forward": DDPM's sigma^2 = beta, and score_sde's choice for VP).
    Stochastic, weak order 1, one evaluation a step, consumes the data prediction; exact where alpha_t = 0. A step to sigma = 0 gives D.
    Raises ValueError for another variance.
    """
    check("ancestral", variance=(variance, ("posterior", "forward")))

    def solver(sde, times):
        require_decreasing("ancestral", times)
        t, s = times[:-1], times[1:]
        x, p, noise = posterior(sde, t, s)
        if variance == "forward":
            noise = np.where((sde.sigma(s) > 0) & (sde.alpha(t) > 0), np.sqrt(transition(sde, t, s)[1]), noise)
        return one_step_rows(t, x, p, noise)

    return solver


def euler_maruyama(eta: float | Callable = 1.0) -> Solver:
    """Euler-Maruyama on the reverse SDE (Song et al. 2021, 2011.13456, appendix E): x' = x - h (f x - (1 + eta^2)/2 g^2 score) + eta g sqrt(h) xi.

    eta: strength of the noise as in `SDE.reverse_drift`, a number or a function of the time that a step starts from (`samplers.strengths`).
    Stochastic, weak order 1, one evaluation a step, consumes the data prediction. A step from alpha = 0 is the ancestral one.
    """
    check_strength("euler_maruyama", eta)

    def solver(sde, times):
        def step(t, s):
            h, g, eta_t = t - s, sde.diffusion(t), strength(eta, t)
            x, p = of_score(sde, t, 0.5 * (1 + eta_t**2) * h * g**2)
            return 1 - h * sde.drift_coefficient(t) + x, p, eta_t * g * np.sqrt(h)

        return stepwise(step, sde, times)

    return solver


def reverse_diffusion() -> Solver:
    """Reverse diffusion (Song et al. 2021, 2011.13456, eq. 46), the forward chain's own step x_t = x_s + F x_s + G z reversed:
    x' = x - F x + G^2 score + G xi.

    On a path F = alpha_t/alpha_s - 1 and G^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, which are those of DDPM and NCSN on their chains.
    Stochastic, weak order 1, one evaluation a step, consumes the data prediction. A step from alpha = 0 is the ancestral one.
    """

    def solver(sde, times):
        def step(t, s):
            alpha_ts, variance_ts = transition(sde, t, s)
            x, p = of_score(sde, t, variance_ts)
            return 2 - alpha_ts + x, p, np.sqrt(variance_ts)

        return stepwise(step, sde, times)

    return solver


def probability_flow() -> Solver:
    """Reverse diffusion's step of the probability flow (Song et al. 2021, 2011.13456, eq. 47): x' = x - F x + G^2 score/2, with its F and G.

    Deterministic, order 1, one evaluation a step, consumes the data prediction. A step from alpha = 0 is DDIM's.
    """

    def build(sde, times):
        t, s = times[:-1], times[1:]
        alpha_ts, variance_ts = transition(sde, t, s)
        x, p = of_score(sde, t, 0.5 * variance_ts)
        return [Row(*row) for row in zip(t, ({0: c} for c in 2 - alpha_ts + x), ({0: c} for c in p))]

    return lambda sde, times: leave_prior(sde, times, build, "data")


def edm(churn: float = 0.0, s_min: float = 0.0, s_max: float = np.inf, s_noise: float = 1.0) -> Solver:
    """EDM's sampler (Karras et al. 2022, 2206.00364, algorithm 2): noise is added back before each Heun step in sigma/alpha.

    churn: S_churn; noise is added where sigma/alpha is in [s_min, s_max], raising it by the factor 1 + min(churn/N, sqrt(2) - 1); s_noise: its
    inflation. All four as published (table 5): CIFAR-10 VP 30, 0.01, 1, 1.007; VE 80, 0.05, 1, 1.007; ImageNet 64 40, 0.05, 50, 1.003, of ADM's
    network 80, 0.05, 50, 1.003. Order 2 and deterministic (`heun("sigma")`) at churn = 0, else stochastic. Two evaluations a step, one where it ends
    at sigma = 0: 2N - 1 in all; consumes the data prediction. A step from alpha = 0 is DDIM's. Raises ValueError for a negative churn.
    """
    check_number("edm", least=0.0, churn=churn, s_min=s_min)
    check_number("edm", least=s_min, s_max=s_max)
    check_number("edm", least=0.0, below=np.inf, s_noise=s_noise)

    def solver(sde, times):
        rows, n = [], len(times) - 1
        if churn > 0:
            require_decreasing("edm with churn", times)
        for t, s in zip(times[:-1], times[1:]):
            if sde.alpha(t) == 0 or sde.alpha(s) == 0:
                x, p = jump(sde, t, s)
                rows.append(Row(t, {0: x}, {0: p}))
                continue
            r, r_s, alpha_s = ratio(sde, t), ratio(sde, s), sde.alpha(s)
            gamma = min(churn / n, np.sqrt(2.0) - 1) if s_min <= r <= s_max else 0.0
            raised = float(sde.time(-np.log(r * (1 + gamma)))) if gamma else t
            scale = sde.alpha(raised) / sde.alpha(t)
            std = s_noise * sde.alpha(raised) * np.sqrt(ratio(sde, raised) ** 2 - r**2) if gamma else 0.0
            x, p = jump(sde, raised, s)  # of the raised point y = scale x + std xi
            rows.append(Row(raised, {0: x * scale}, {0: p}, x * std, at_x={0: scale}, at_noise=std))
            if r_s > 0:
                # x' = x_1 + half (eps_1 - eps), eps = (y - alpha D)/sigma of the raised point, y = (x_1 - p D)/x
                half = 0.5 * alpha_s * (r_s - ratio(sde, raised))
                sigma, sigma_s = sde.sigma(raised), sde.sigma(s)
                back = half / sigma
                rows.append(Row(s, {0: 1 + half / sigma_s - back / x}, {0: -half * alpha_s / sigma_s, 1: back * (p / x + sde.alpha(raised))}))
        return stack(rows, "data")

    return solver


def sde_dpm_solver_pp(
    order: int = 2,
    eta: float | Callable = 1.0,
    solver_type: str = "dpmsolver",
    lower_order_final: bool | float = False,
    consistent: bool = False,
) -> Solver:
    """SDE-DPM-Solver++(1), (2M) and (3M) (Lu et al. 2022, 2211.01095, section 5 and appendix D; 3M as in k-diffusion): exponential integrators
    of the reverse SDE; consume the data prediction.

        x_s = (sigma_s/sigma_t) e^(-eta^2 h) x_t + alpha_s (1 - e^(-(1 + eta^2) h)) D + sigma_s sqrt(1 - e^(-2 eta^2 h)) xi

    Stochastic, one evaluation a step; deterministic order `order` (3: see `consistent`), weak order 1, on Gaussians 2. eta: strength of the noise as
    in `SDE.reverse_drift`, a number or a function of the time that a step starts from: 1 is the reverse SDE, 0 DPM-Solver++, and the marginals are
    the same for all (k-diffusion's eta is the square). solver_type: the weight of D' at order 2, half that of D ("dpmsolver") or exact ("taylor";
    "heun" elsewhere). consistent: at order 3 k-diffusion gives D'' half its weight, which leaves order 2; True gives it all (diffusers' order 3 is of
    order 1). lower_order_final: see `final_order`. The first step, and one to sigma = 0, are of order 1. Raises ValueError for unknown options.
    """
    check("sde_dpm_solver_pp", order=(order, (1, 2, 3)), solver_type=(solver_type, ("dpmsolver", "taylor")))
    check_strength("sde_dpm_solver_pp", eta)
    check_flag("sde_dpm_solver_pp", consistent=consistent)
    check_final("sde_dpm_solver_pp", lower_order_final)

    def build(sde, times):
        log_snr = sde.log_snr(times)
        rows, n = [], len(times) - 1
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            if sde.sigma(s) == 0:
                linear, w1 = first_order(sde, t, s, "data")
                rows.append(Row(t, {0: linear}, {0: w1}))
                continue
            eta2, h = strength(eta, t) ** 2, log_snr[i + 1] - log_snr[i]
            z = (1 + eta2) * h
            w1, w2, w3 = -sde.alpha(s) * np.expm1(-z), sde.alpha(s) * z * phi(2, -z), sde.alpha(s) * z * phi(3, -z)
            now = min(final_order(order, lower_order_final, n, i, short=10), i + 1)
            p = [(w1, {0: 1.0})]
            if now > 1:
                r0 = (log_snr[i] - log_snr[i - 1]) / h
                d0 = {0: 1 / r0, 1: -1 / r0}
                p.append((0.5 * w1 if now == 2 and solver_type == "dpmsolver" else w2, d0))
            if now > 2:
                r1 = (log_snr[i - 1] - log_snr[i - 2]) / h
                second = combine((1 / (r0 + r1), d0), (-1 / (r0 + r1), {1: 1 / r1, 2: -1 / r1}))
                p.append((w2 * r0 + (2 * w3 if consistent else w3), second))
            noise = sde.sigma(s) * np.sqrt(-np.expm1(-2 * eta2 * h))
            rows.append(Row(t, {0: sde.sigma(s) / sde.sigma(t) * np.exp(-eta2 * h)}, combine(*p), noise))
        return rows

    def solver(sde, times):
        if np.any(strength(eta, times[:-1])):
            require_decreasing("sde_dpm_solver_pp", times)
        return leave_prior(sde, times, build, "data", eta)

    return solver


def sde_dpm_solver(eta: float | Callable = 1.0, order: int = 1, solver_type: str = "dpmsolver") -> Solver:
    r"""SDE-DPM-Solver-1 and -2M (Lu et al. 2022, 2211.01095, appendix D): the exponential integrators of the reverse SDE in noise
    prediction (order 1 also in DEIS, 2204.13902).

        x_s = (alpha_s/alpha_t) x_t - (1 + eta^2) sigma_s (e^h - 1) [eps + (eps - eps_old)/(2 r)] + eta sigma_s sqrt(e^(2h) - 1) xi

    with r = h_old/h; order 1 is without eps_old. Stochastic, weak order 1, on Gaussians `order`; one evaluation a step; consumes the noise, by way of
    the data prediction. eta: as in `sde_dpm_solver_pp`. solver_type: the weight of eps' at order 2, half that of eps ("dpmsolver") or exact
    ("taylor"). A step from alpha = 0 is the ancestral one. The first step, and one to sigma = 0, are of order 1.
    """
    check("sde_dpm_solver", order=(order, (1, 2)), solver_type=(solver_type, ("dpmsolver", "taylor")))
    check_strength("sde_dpm_solver", eta)

    def build(sde, times):
        log_snr = sde.log_snr(times)
        rows = []
        for i, (t, s) in enumerate(zip(times[:-1], times[1:])):
            eta2, r_t, r_s = strength(eta, t) ** 2, ratio(sde, t), ratio(sde, s)
            w1 = (1 + eta2) * sde.alpha(s) * (r_s - r_t)
            p = [(w1, {0: 1.0})]
            if order == 2 and i > 0 and r_s > 0:
                h = log_snr[i + 1] - log_snr[i]
                w2 = 0.5 * w1 if solver_type == "dpmsolver" else -(1 + eta2) * sde.sigma(s) * h * phi(2, h)
                p.append((w2 * h / (log_snr[i] - log_snr[i - 1]), {0: 1.0, 1: -1.0}))
            noise = np.sqrt(eta2 * (r_t**2 - r_s**2)) * sde.alpha(s) if eta2 else 0.0
            rows.append(Row(t, {0: sde.alpha(s) / sde.alpha(t)}, combine(*p), noise))
        return in_data(rows, sde)

    def solver(sde, times):
        if np.any(strength(eta, times[:-1])):
            require_decreasing("sde_dpm_solver", times)
        return leave_prior(sde, times, build, "data", eta)

    return solver
