"""One model sampled as ODE and as SDE of five strengths: whether the samples agree in distribution, on the linear path and on VP.

Two MLPs (3x128, velocity), trained on 8 gaussians by conditional flow matching on each path; 4000 samples in 400 steps of SDE-DPM-Solver++(2M) by
each D(t) of `samplers.strengths`, and as many of the ODE from other starts. distance: the largest two-sample Kolmogorov-Smirnov distance to the ODE's
samples over 8 directions; p: the least of its p-values, times 8 (Bonferroni). Level: 1 % a row, a distance of 0.043. W2: sliced, of four groups of
samples to the test data, with the standard error over groups.
"constant" is shown without a gate: it keeps its noise where sigma -> 0, where a learned velocity gives the score with its error divided by sigma.
Controls, which must fail: the SDE sampler of gnobitab/RectifiedFlow, of the linear path, on which VP's model is told its x in the scale of VP; and
the reverse SDE's noise with the ODE's drift.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from configs import toy
from experiments import plots
from experiments.metrics import sliced_wasserstein2, standard_error
from experiments.tables._training import trained
from samplers import Row, Table, grids, sample, solvers, stack, strengths
from sde_lib import SDE, Denoiser, Linear
from sde_lib.numerics import expand

SEEDS = {"training": 0, "starts": 0, "other starts": 1, "sampler": 2}
DIRECTIONS, LEVEL = 8, 0.01
STRENGTHS = (("sbdm", 1.0), ("sbdm", 0.25), ("sigma", 1.0), ("decreasing", 1.0), ("increasing_decreasing", 1.0))


def rectified_flow_noise(sde: SDE, times: np.ndarray) -> Table:
    """The stochastic sampler of gnobitab/RectifiedFlow (sigma_variance 1; linear path): with data at t = 0 and v' = -v, noise t dw and drift

    v' + (t (1 - t) v'/2 - (1 + t) x/2) / 2, where the marginals would need v' + t^2/2 ((1 - t) v' - x)/t.
    """
    rows = [Row(t, {0: 1 - h * (1 + t) / 4}, {0: -h * (1 + t * (1 - t) / 4)}, t * np.sqrt(h)) for t, h in zip(times[:-1], -np.diff(times))]
    return stack(rows, "velocity")


def noise_alone(sde: SDE, times: np.ndarray) -> Table:
    """The reverse SDE's noise with the ODE's drift."""
    return replace(solvers.euler_maruyama(0.0)(sde, times), noise=solvers.euler_maruyama()(sde, times).noise)


def on_linear(den: Denoiser) -> Denoiser:
    """The denoiser of another path on the linear one, where x is the other's at the same signal-to-noise ratio but for its scale."""
    linear = Linear()

    def data(x, t):
        at = jnp.minimum(den.sde.time(linear.log_snr(jnp.minimum(t, 1 - 1e-4))), den.sde.T)  # at t = 1 the ratio is 0
        return den.data(x * expand(den.sde.sigma(at) / linear.sigma(t), x), at)

    return Denoiser(data, linear, "data")


def agreement(a, b) -> tuple[float, float]:
    """The largest distance of two samples [n, 2] over the directions, and the p-value of all."""
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    tests = [stats.ks_2samp(a @ d, b @ d) for d in np.stack([np.cos(angles), np.sin(angles)], 1)]
    return float(max(test.statistic for test in tests)), min(1.0, DIRECTIONS * float(min(test.pvalue for test in tests)))


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and whether every strength agrees with the ODE at the level and no control does."""
    n, steps, rows, shown, gates = 50 if quick else 4000, 8 if quick else 400, [], {}, {}
    for path in ("Linear", "VP"):
        config = toy.get_config("8gaussians")
        config.sde.name = path
        config.model.width = 128
        config.training.steps = 8000
        model = trained(config, out / path, quick)
        sde, true = model.network.sde, np.asarray(model.dataset.values["test"])
        den, times = model.denoiser(), grids.log_snr(sde, steps)

        def draw(solver, start=0, times=times, den=den, sde=sde):
            x_T = sde.prior_sample(jax.random.key(start), (n, 2))
            return np.asarray(sample(den, x_T, times, solver, jax.random.key(2)))

        of = lambda name, strength, sde=sde: solvers.sde_dpm_solver_pp(eta=strengths.eta(sde, name, strength))
        ode = draw(of("sbdm", 0.0))
        found = {"ODE, other starts": draw(of("sbdm", 0.0), 1), **{f"{name}, {k:g}": draw(of(name, k)) for name, k in STRENGTHS}}
        shown[path] = {"ODE": ode, **found}
        found["constant, 0.5 (no gate)"] = draw(of("constant", 0.5))
        straight = den if path == "Linear" else on_linear(den)
        controls = {
            "noise alone": draw(noise_alone, times=grids.uniform(sde, steps)),
            "gnobitab/RectifiedFlow": draw(rectified_flow_noise, times=grids.uniform(Linear(), steps), den=straight, sde=Linear()),
        }
        for name, x in (found | controls).items():
            distance, p = agreement(x, ode)
            w2 = [sliced_wasserstein2(group, true) for group in np.array_split(model.dataset.from_x(x), 4)]
            rows.append({"path": path, "D": name, "distance": distance, "p": p, "W2": float(np.mean(w2)), "± W2": standard_error(w2)})
            if "no gate" not in name:
                gates[f"{path}: {name} {'differs from' if name in controls else 'agrees with'} the ODE"] = (p < LEVEL) == (name in controls)
        shown[path] |= controls
    times = np.linspace(0.002, 0.998, 300)
    curves = {name: strengths.eta(Linear(), name)(times) ** 2 * Linear().diffusion(times) ** 2 / 2 for name in strengths.ETAS}
    plots.strengths(times, curves, shown, out / "strengths.png")
    return rows, {} if quick else gates
