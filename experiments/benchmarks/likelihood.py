"""What a log-likelihood costs: python -m experiments.benchmarks.likelihood

speedup = wall time of score_sde's way / wall time of `log_likelihood`, with the errors of both beside it. Score_sde's way (2011.13456, appendix D.2)
is SciPy's RK45 at 1e-5 around jitted functions, drift and divergence called apart, one step size for the whole batch, from t = eps to T; its
divergence is the exact trace here, or one probe. Errors are root mean squares over examples to the exact density at eps, for one probe to the same
probe's with a fine tolerance.
"""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy import integrate

from experiments import cli
from experiments.benchmarks.timing import medians, report
from samplers import log_likelihood
from sde_lib import GaussianMixture, Linear


def eight_gaussians() -> GaussianMixture:
    angles = np.arange(8) * np.pi / 4
    return GaussianMixture(0.8 * np.stack([np.cos(angles), np.sin(angles)], -1), np.full(8, 0.15))


def mixture(dim: int = 64) -> GaussianMixture:
    rng = np.random.default_rng(0)
    turns = np.stack([np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(5)])
    return GaussianMixture(0.7 * rng.normal(size=(5, dim)), rng.uniform(0.1, 0.5, (5, dim)), eigenvectors=turns)


drift = jax.jit(lambda den, x, t: den.velocity(x, t))


@partial(jax.jit, static_argnames="exact")
def divergence(den, x, t, probe, exact: bool):
    jvp = jax.linearize(lambda x: den.velocity(x, t), x)[1]
    if not exact:
        return jnp.sum(probe * jvp(probe), -1)
    unit = lambda e: jvp(jnp.broadcast_to(e, x.shape))
    return jnp.trace(jax.vmap(unit)(jnp.eye(x.shape[1], dtype=x.dtype)), axis1=0, axis2=2)


def by_scipy(den, x, probe, exact: bool):
    """log p(x) [B] and evaluations, score_sde's way."""
    shape, sde = x.shape, den.sde

    def field(t, state):
        y = jnp.asarray(state[: x.size].reshape(shape), x.dtype)
        return np.concatenate([np.ravel(drift(den, y, t)), np.asarray(divergence(den, y, t, probe, exact))])

    start = np.concatenate([np.ravel(x), np.zeros(len(x))])
    solution = integrate.solve_ivp(field, (sde.eps, sde.T), start, "RK45", rtol=1e-5, atol=1e-5)
    end = solution.y[:, -1]
    return sde.prior_log_prob(jnp.asarray(end[: x.size].reshape(shape), x.dtype)) + end[x.size :], solution.nfev


def measure(gm: GaussianMixture, name: str, batch: int, exact: bool, tolerance: float, repeats: int) -> dict:
    sde = Linear()
    den, x = gm.denoiser(sde), gm.sample(jax.random.key(0), batch)
    keys = jax.random.split(jax.random.key(1), batch)
    probe = jax.vmap(lambda k: jax.random.rademacher(k, (1, *x.shape[1:]), x.dtype))(keys)[:, 0]
    options = {"divergence": "exact"} if exact else {"divergence": "hutchinson", "probes": 1, "key": keys}
    ours = lambda: log_likelihood(den, x, rtol=tolerance, atol=tolerance, **options)
    theirs = lambda: by_scipy(den, x, probe, exact)
    fine = {"rtol": 1e-6, "atol": 1e-6, "adjoint": diffrax.ForwardMode()}
    truth = gm.marginal_log_prob(sde, x, sde.eps) if exact else log_likelihood(den, x, **options, **fine).log_prob
    rmse = lambda log_prob: float(jnp.sqrt(jnp.mean((log_prob - truth) ** 2)))
    result, (log_prob, nfev) = ours(), theirs()  # compile
    seconds = medians({"ours": lambda: ours().log_prob, "theirs": lambda: theirs()[0]}, repeats)
    return {
        "problem": name, "trace": "exact" if exact else "one probe", "tolerance": tolerance, "ms": 1e3 * seconds["ours"],
        "speedup": seconds["theirs"] / seconds["ours"], "RMSE": rmse(result.log_prob), "theirs": rmse(log_prob),
        "evaluations": float(result.nfe.mean()), "divergences": float(result.divergences.mean()), "theirs, each": nfev,
    }  # fmt: skip


def main():
    quick = flags.FLAGS.quick
    rows = []
    for gm, name, batch in ((eight_gaussians(), "8 gaussians", 512), (mixture(), "64-D mixture", 64)):
        for exact in (True, False):
            rows.append(measure(gm, name, 2 if quick else batch, exact, 1e-2 if exact else 1e-4, 1 if quick else 9))
    report(rows, flags.FLAGS.out, "likelihood")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/benchmarks", "Where the JSON goes.")
    flags.DEFINE_bool("quick", False, "Tiny batches, to see that it runs.")
    cli.run(main)
