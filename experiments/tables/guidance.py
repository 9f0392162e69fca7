"""Guidance on a mixture of two modes, in closed form: what each way of it does to the class that it is asked for.

8-D data on the linear path, half of them of each of two elongated, tilted Gaussian classes, whose exact conditional and unconditional velocities are
the model. Samples of one class by 64 Euler steps in t, in 10 groups of 1000, of the same starts for all ways, with standard errors over groups.
shift: of the mean, away from the other class, in the true standard deviations along that line. spread: the standard deviation along an axis of the
class, of the true one, in the mean over axes. off: the share outside the ellipsoid that holds 99 % of the class. W2: sliced, to true samples.
Evaluations are those of a network on one example. Ways: classifier-free (CFG), rescaled (phi 0.7), within 0.2 < sigma/alpha <= 1 alone (interval),
Rectified-CFG++ of strength omega - 1 (power 0), autoguidance by the same class 1.25 times as wide.
The last rows are check 11: the root mean square distance of Rectified-CFG++ (strength 3) from CFG (omega 4), which halves as the steps double.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.stats import chi2

from experiments import plots
from experiments.metrics import sliced_wasserstein2, standard_error
from samplers import autoguidance, classifier_free, grids, rectified_cfg, sample, solvers
from sde_lib import Denoiser, GaussianMixture, Linear

SEEDS = {"starts": 0, "true samples": 1, "floor": 2, "classes": 0}
DIM, STEPS, SDE, INTERVAL = 8, 64, Linear(), (0.2, 1.0)
OMEGAS = (1.5, 2.0, 4.0, 8.0)
NONE = 2  # beside the labels 0 and 1
WAYS = {
    "CFG": lambda den, weak, omega, times: classifier_free(den, NONE, omega),
    "CFG, rescaled": lambda den, weak, omega, times: classifier_free(den, NONE, omega, rescale=0.7),
    "CFG, interval": lambda den, weak, omega, times: classifier_free(den, NONE, omega, INTERVAL),
    "Rectified-CFG++": lambda den, weak, omega, times: rectified_cfg(den, NONE, omega - 1, times),
    "autoguidance": lambda den, weak, omega, times: autoguidance(den, weak, omega),
}


def evaluations(way: str, times) -> int:
    """Of a network on one example, in Euler steps."""
    if way == "CFG, interval":
        level = SDE.sigma(times[:-1]) / np.maximum(SDE.alpha(times[:-1]), 1e-12)
        return len(level) + int(np.sum((INTERVAL[0] < level) & (level <= INTERVAL[1])))
    return {"none": 1, "Rectified-CFG++": 3}.get(way, 2) * (len(times) - 1)


def problem():
    """Both classes and their mixture; means [2, D], stds [D] and axes [2, D, D]."""
    rng = np.random.default_rng(0)
    axes = np.stack([np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] for _ in range(2)])
    stds, means = np.geomspace(0.6, 0.1, DIM), np.zeros((2, DIM))
    means[:, 0] = -0.6, 0.6
    each = lambda wider: [GaussianMixture(means[[k]], wider * stds[None], None, axes[[k]]) for k in range(2)]
    return each, GaussianMixture(means, np.stack([stds, stds]), None, axes), means, stds, axes


def _velocity(models, x, t, label):
    return jnp.stack([gm.denoiser(SDE).velocity(x, t) for gm in models])[label, jnp.arange(len(x))]


def figures(x, true, means, stds, axes) -> dict[str, float]:
    """Of a group of samples of class 1."""
    line = (means[1] - means[0]) / np.linalg.norm(means[1] - means[0])
    along = (x - means[1]) @ axes[1] / stds
    return {
        "shift": float(((x - means[1]) @ line).mean() / np.linalg.norm(stds * (axes[1].T @ line))),
        "spread": float(along.std(0, ddof=1).mean()),
        "off": float(np.mean(np.sum(along**2, 1) > chi2.ppf(0.99, DIM))),
        "W2": sliced_wasserstein2(x, true, 200),
    }


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and gates of check 11, and of what guidance does."""
    groups, n, steps = (2, 50, 8) if quick else (10, 1000, STEPS)
    each, both, means, stds, axes = problem()
    label = jnp.ones(groups * n, int)
    den = Denoiser(Partial(_velocity, [*each(1.0), both]), SDE, "velocity", cond=label)
    weak = Denoiser(Partial(_velocity, each(1.25)), SDE, "velocity", cond=label)
    x_T = SDE.prior_sample(jax.random.key(0), (groups * n, DIM))
    true = np.split(np.asarray(each(1.0)[1].sample(jax.random.key(1), groups * n)), groups)
    other = np.split(np.asarray(each(1.0)[1].sample(jax.random.key(2), groups * n)), groups)
    times = grids.uniform(SDE, steps)

    def row(way, omega, parts, nfe):
        found = [figures(*pair, means, stds, axes) for pair in zip(parts, true)]
        values = {name: np.array([group[name] for group in found]) for name in found[0]}
        told = {f: v for name, a in values.items() for f, v in ((name, float(a.mean())), (f"± {name}", standard_error(a)))}
        return {"way": way, "omega": omega, "evaluations": nfe, **told}

    draw = lambda den, times: np.asarray(sample(den, x_T, times, solvers.euler()))
    drawn = {("none", 1.0): draw(den, times)}
    for way, guide in WAYS.items():
        drawn |= {(way, omega): draw(guide(den, weak, omega, times), times) for omega in OMEGAS}
    rows = [row("true samples", None, other, None)]
    rows += [row(way, omega, np.split(x, groups), evaluations(way, times)) for (way, omega), x in drawn.items()]

    gaps = {}
    for count in (4, 8) if quick else (16, 32, 64, 128, 256):
        short = grids.uniform(SDE, count)
        apart = draw(rectified_cfg(den, NONE, 3.0, short), short) - draw(classifier_free(den, NONE, 4.0), short)
        gaps[count] = float(np.sqrt(np.mean(apart**2)))
    empty = dict.fromkeys(rows[0])
    rows += [empty | {"way": f"check 11: gap in {count} steps", "W2": gap} for count, gap in gaps.items()]
    panels = {"not guided": drawn["none", 1.0], **{f"{way}, omega 4": drawn[way, 4.0] for way in WAYS}}
    curves = {way: [r for r in rows if r["way"] in ("none", way)] for way in WAYS}
    plots.guidance(panels, np.asarray(both.sample(jax.random.key(3), 4000)), curves, out / "guidance.png")
    ratios = np.array(list(gaps.values()))[:-1] / np.array(list(gaps.values()))[1:]
    by = {(r["way"], r["omega"]): r for r in rows}
    none, cfg = by["none", 1.0], by["CFG", 4.0]
    gates = {
        "without guidance the mean is in place: |shift| < 0.1": abs(none["shift"]) < 0.1,
        "CFG of omega 4 moves the class: shift > 0.5, and W2 at least doubles": cfg["shift"] > 0.5 and cfg["W2"] > 2 * none["W2"],
        "check 11: Rectified-CFG++'s distance to CFG halves as the steps double (1.7 to 2.2)": np.all((1.7 < ratios[1:]) & (ratios[1:] < 2.2)),
    }
    return rows, {} if quick else gates
