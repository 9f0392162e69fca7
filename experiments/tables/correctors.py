"""Errors of the predictors against their steps, and of the Langevin corrector against its r, on exact Gaussians.

Predictors: relative error of the standard deviation at t = 0 of data N(0, 0.25) (VE ends at sigma_min, of N(0, 0.25 + sigma_min^2)), from N steps of
equal length in t, by the exact recursion of the variance in float64; "order" is its slope from 100 to 1000 steps. "score_sde": of its samplers at
N = 1000, whose steps and times do not match. Corrector: variance over v on N(0, v I) in 2048-D where alpha = 1, of 8 examples at 36 times 50 moves
apart (seed 0), against 1 + r^2.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import plots
from samplers import langevin, predictor_corrector, solvers
from sde_lib import VE, VP, Denoiser, SubVP, normal

SEEDS = {"start": 1, "corrector": 0}
SOURCES = {"score_sde, N = 1000": "the exact recursion of the variance by the steps of yang-song/score_sde_pytorch, sampling.py"}
STD = 0.5
# VP's ancestral sampling is of DDPM's forward variance, VE's of the posterior's (2011.13456, appendix F)
PREDICTORS = {
    "Euler-Maruyama": (solvers.euler_maruyama(), {"VP": 7.05e-4, "SubVP": 7.96e-4, "VE": 7.02e-4}),
    "reverse diffusion": (solvers.reverse_diffusion(), {"VP": 3.97e-3, "VE": 4.32e-3}),
    "ancestral": (solvers.ancestral(), {"VE": -4.40e-3}),
    "ancestral, forward variance": (solvers.ancestral("forward"), {"VP": 2.72e-3}),
    "probability flow": (solvers.probability_flow(), {"VP": 2.12e-2, "VE": 1.78e-2}),
}


def relative_error(sde, predictor, steps: int) -> float:
    """Of the standard deviation after `steps` of a predictor, every one of which is affine in x here; from the exact marginal at T."""
    times = np.linspace(sde.T, 0.0, steps + 1)
    table = predictor(sde, times)
    variance = (sde.alpha(sde.T) * STD) ** 2 + sde.sigma(sde.T) ** 2
    noise = np.zeros(steps) if table.noise is None else table.noise
    for t, x, p, c in zip(table.times, table.x[:, 0], table.p[:, 0], noise):
        gain = sde.alpha(t) * STD**2 / ((sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2)  # D = gain x
        variance = (x + p * gain) ** 2 * variance + c**2
    return float(np.sqrt(variance / (STD**2 + sde.sigma(0.0) ** 2)) - 1)


def stationary_variance(r: float, examples: int, dim: int, moves: int) -> float:
    """Of Langevin's moves on N(0, v I), over v: the mean over the last 36 of 40 times `moves` apart."""
    v = STD**2
    den = Denoiser(lambda x, t: -x / v, VE(), "score")
    x = STD * normal(jax.random.key(1), (examples, dim))
    path = predictor_corrector(den, x, np.linspace(0.5, 0.4, 41), None, langevin(r, moves), jax.random.key(0), path=True)
    return float(jnp.mean(path[5:] ** 2)) / v


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and gates of the orders, which are 1 (Euler-Maruyama's is 2 on VE), and of the corrector's variances."""
    steps = (10, 100, 1000)
    rows, curves = [], {}
    for sde in (VE(), VP(), SubVP()):
        for name, (predictor, published) in PREDICTORS.items():
            label = type(sde).__name__
            errors = {n: relative_error(sde, predictor, n) for n in (10, 20, 50, 100, 200, 500, 1000)}
            curves[label, name] = errors
            order = -np.log10(abs(errors[1000] / errors[100]))
            row = {"SDE": label, "method": name} | {f"N = {n}": errors[n] for n in steps}
            rows.append(row | {"order": float(order), "score_sde, N = 1000": published.get(label)})
    gates = {"all orders are above 0.85": all(row["order"] > 0.85 for row in rows)}
    size = (2, 64, 2) if quick else (8, 2048, 50)
    found = {r: stationary_variance(r, *size) for r in ((0.16,) if quick else (0.05, 0.1, 0.16, 0.3, 0.5))}
    for r, value in found.items():
        rows.append({"SDE": "alpha = 1", "method": f"Langevin, r = {r}: variance/v {value:.4f}, 1 + r^2 = {1 + r**2:.4f}"})
        rows[-1] |= dict.fromkeys((*(f"N = {n}" for n in steps), "order", "score_sde, N = 1000"))
        # states further apart than v/e = (1 + r^2)/(2 r^2) moves are as good as independent
        states = 36 * min(1.0, 50 * 2 * r**2)
        near = abs(value - 1 - r**2) < 4 * (1 + r**2) * np.sqrt(2 / (8 * 2048 * states))
        gates[f"the variance for r = {r} is within 4 standard errors of 1 + r^2"] = near
    plots.discretization(curves, found, out / "correctors.png")
    return rows, {} if quick else gates
