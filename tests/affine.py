"""Tables on Gaussian data, where every prediction is affine in x: exact results, independent of the executor."""

import numpy as np


def propagate(table, sde, std, mean=0.0, x_T=None, prior=None):
    """Exact result of a table on data N(mean, std^2), where every prediction is affine in x: mean and variance of the last x,
    or, given x_T, the last x itself (deterministic tables). Independent of the executor."""
    n = table.nfe
    # everything is an affine function of (1, x_T, xi_0 .. xi_{n-1}): rows of coefficients
    unit = np.eye(n + 2 if table.stochastic else 2)
    xs, ps = [unit[1]], []
    lag = lambda history, k: history[-1 - k] if k < len(history) else 0 * unit[0]
    total_of = lambda coefficients, history: sum((c * lag(history, k) for k, c in enumerate(coefficients) if c), 0 * unit[0])
    for e, t in enumerate(table.times):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        total = (alpha * std) ** 2 + sigma**2
        y = xs[-1]
        if table.at_x is not None:
            y = total_of(table.at_x[e], xs) + total_of(table.at_p[e], ps)
        y = y + (0 if table.at_noise is None else table.at_noise[e] * unit[e + 2])
        data = mean * unit[0] + alpha * std**2 / total * (y - alpha * mean * unit[0])
        if table.prediction == "data":
            ps.append(data)
        else:
            noise = sigma / total * (y - alpha * mean * unit[0])
            ps.append(noise if table.prediction == "noise" else sde.alpha_dot(t) * data + sde.sigma_dot(t) * noise)
        x = total_of(table.x[e], xs) + total_of(table.p[e], ps)
        xs.append(x + (0 if table.noise is None else table.noise[e] * unit[e + 2]))
    if x_T is not None:
        return xs[-1][0] + xs[-1][1] * x_T
    variance_T = (sde.alpha(sde.T) * std) ** 2 + sde.sigma(sde.T) ** 2 if prior is None else prior**2
    return xs[-1][0] + xs[-1][1] * sde.alpha(sde.T) * mean, xs[-1][1] ** 2 * variance_T + np.sum(xs[-1][2:] ** 2)


def exact_flow(sde, std, mean, x_T, t, start=None):
    """Probability flow of data N(mean, std^2) from `start` (T) to t: the standardised variable is constant."""
    start = sde.T if start is None else start
    spread = lambda t: np.sqrt((sde.alpha(t) * std) ** 2 + sde.sigma(t) ** 2)
    return sde.alpha(t) * mean + spread(t) / spread(start) * (x_T - sde.alpha(start) * mean)


def slope_of_error(sde, solver, start, end, ns=(256, 512, 1024)):
    """Slope and last error to the exact flow of three Gaussians, on times of equal steps in (sigma/alpha)^(1/7)."""
    errors = []
    for n in ns:
        times = sde.time(-7 * np.log(np.linspace(*(np.exp(-sde.log_snr(t) / 7) for t in (start, end)), n + 1)))
        table, x = solver(sde, times), 1.3 * sde.sigma(start)
        error = [propagate(table, sde, std, 0.4, x_T=x) - exact_flow(sde, std, 0.4, x, end, start) for std in (0.3, 0.6, 1.5)]
        errors.append(np.linalg.norm(error))
    return -np.polyfit(np.log(ns), np.log(errors), 1)[0], errors[-1]
