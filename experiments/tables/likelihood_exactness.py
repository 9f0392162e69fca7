"""Log-likelihoods against closed forms: what tolerance, eps and evaluations give what error.

Exact scores on the linear path (8 gaussians, 64-D mixture of full covariances; exact trace) and on VP (isotropic Gaussians in 784
dimensions; one Rademacher probe, which is exact there), float32 unless float64 is named. Nats for mixtures, bits/dim for Gaussians. "error" is
the root mean square and "largest" the largest error, over 256, 64 or 8 points, to the density of data noised by sigma(eps), which is what is
computed; "of the noise at eps" what that noise changes on average, "first order" the estimate of it that comes with the result. "coupled" is the
error of solving path and divergence together, by Tsit5 at the same tolerance.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from experiments.problems import eight_gaussians, turned_mixture
from samplers import log_likelihood
from sde_lib import VP, GaussianMixture, Linear

SEEDS = {"points": 0, "probes": 1}


def row(problem: str, gm: GaussianMixture, sde, n: int, tolerance: float, eps: float, options: dict, per_dim: float = 1.0) -> dict:
    """A row; errors divided by per_dim."""
    den, x = gm.denoiser(sde), gm.sample(jax.random.key(0), n)
    want = gm.marginal_log_prob(sde, x, eps)
    # the path's end is not quite the prior: what that adds is no error of the solve
    mismatch = lambda latent: gm.marginal_log_prob(sde, latent, sde.T) - sde.prior_log_prob(latent)

    def errors(**more):
        result = log_likelihood(den, x, rtol=tolerance, atol=tolerance, eps=eps, **options, **more)
        return result, np.asarray(result.log_prob + mismatch(result.latent) - want, np.float64) / per_dim

    (result, ours), (coupled, theirs) = errors(), errors(adjoint=diffrax.ForwardMode())
    rms = lambda e: float(np.sqrt(np.mean(e**2)))
    return {
        "problem": problem, "eps": eps, "tolerance": tolerance, "error": rms(ours), "largest": float(np.abs(ours).max()), "coupled": rms(theirs),
        "evaluations": float(result.nfe.mean()), "with a divergence": float(result.divergences.mean()), "coupled, each": float(coupled.nfe.mean()),
        "of the noise at eps": float(jnp.mean(gm.log_prob(x) - want)) / per_dim, "first order": float(jnp.mean(result.truncation)) / per_dim,
    }  # fmt: skip


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and whether they are within the bounds."""
    n, gate, rows = 4 if quick else 256, {}, []
    exact = {"divergence": "exact"}
    for tolerance in (1e-2,) if quick else (1e-2, 1e-3, 1e-4, 1e-5):
        rows.append(row("8 gaussians", eight_gaussians(), Linear(), n, tolerance, 1e-5, exact))
        gate[tolerance] = rows[-1]["largest"]
    if not quick:
        with jax.enable_x64(True):
            rows.append(row("8 gaussians, float64", eight_gaussians(), Linear(), 64, 1e-7, 1e-5, exact))
        gate[1e-7] = rows[-1]["largest"]
        rows += [row("64-D mixture", turned_mixture(64, 0.5), Linear(), 64, tolerance, 1e-5, exact) for tolerance in (1e-2, 1e-3, 1e-4)]
    probe = {"divergence": "hutchinson", "probes": 1, "key": jax.random.key(1)}
    bits = 784 * np.log(2)
    gaussians = []
    for eps in (1e-6, 1e-5, 1e-3):
        for s in (0.1,) if quick else (1.0, 0.1, 0.01, 0.004):
            gm = GaussianMixture(np.zeros((1, 784)), np.array([s]))
            gaussians.append(row(f"N(0, {s:g}^2), 784-D", gm, VP(), 2 if quick else 8, 1e-5, eps, probe, bits))
    rows += gaussians
    within = all(r["largest"] + (abs(r["of the noise at eps"]) if r["eps"] == 1e-6 else 0.0) <= 0.001 for r in gaussians if r["eps"] <= 1e-5)
    if quick:
        return rows, {}
    return rows, {
        "8 gaussians: 1e-4 nats at a tolerance of 1e-5": gate[1e-5] <= 1e-4,
        "8 gaussians: 5e-6 nats at a tolerance of 1e-7": gate[1e-7] <= 5e-6,
        "Gaussians: 0.001 bits/dim at eps = 1e-5, and at 1e-6 with what the noise there adds": within,
    }
