"""Linear inverse problems by every method: error against the closed-form posterior of a Gaussian and a mixture, and images.

y = A x + noise of standard deviation 0.1, A of 4 x 8, of 16 draws of an 8-D mixture of five Gaussians with full covariances, and of its first
Gaussian (VP), whose posteriors are in closed form; 512 samples of each; dps with zeta = 0.3, of 0.03, 0.1 and 0.3 the best. Errors of mean
(Euclidean) and covariance (Frobenius) and sliced W2 to as many exact samples: means over the measurements and standard errors; "exact samples" is
the floor. Pairs: 64 x 512 pairs N(0, [[1, 0.9], [0.9, 1]]) of VE of which one is measured as 1.5; the other's mean and variance are 1.35 and 0.19,
by replacement with and without corrector at 1000 steps (score_sde's known answers .937/.315 and 1.349/.195). Images: the first test images of digits
(--workdir) and of Fashion-MNIST (a U-Net that is trained here in minutes), four problems, noise 0.05, CPU-scale: PSNR in dB of samples and of their
mean, RMS of y - A x, standard errors over images. NFE: evaluations, without the reverse passes: one for each evaluation of dps and pigdm, eight of
moment (5 iterations). Samples of images are kept until the table is complete.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np

from configs import fashion
from experiments import inverse, plots, runs
from experiments.kept import Kept
from experiments.metrics import sliced_wasserstein2, standard_error
from experiments.problems import pairs, turned_mixture
from experiments.tables._training import given, trained
from samplers import grids, langevin, operators, replacement, solvers
from sde_lib import VE, VP, GaussianMixture

SEEDS = {"measurements": 0, "operator": 1, "starts": 3, "sampler": 4, "images": 0}
SOURCES = {"pairs": "0.937, 0.315 and 1.349, 0.195: score_sde's predictor-corrector on this problem"}
READS = ("workdir",)
NOISE, ZETA = 0.1, 0.3


def methods(den, operator, times):
    """name -> (y, x_T, key) -> x_0, and evaluations; steps of the reverse SDE, and of the flow by DPM-Solver++(2M)."""
    every, n = {}, len(times) - 1

    def guided(method, solver, y, x_T, key):
        posterior = inverse.guided(method, den, operator, y, times, NOISE, ZETA, sigma_data=0.7)
        return inverse.denoised(posterior, x_T, times, solver, key)

    for name, corrector in (("replacement, predictor alone", None), ("replacement", langevin(0.16))):
        every[name, "SDE"] = (
            lambda y, x_T, key, c=corrector: replacement(den, operator, y, x_T, times, solvers.reverse_diffusion(), c, key),
            n * (1 if corrector is None else 2) + 1,
        )
    for name in ("dps", "pigdm", "moment"):
        for kind, solver in (("SDE", solvers.ancestral()), ("ODE", solvers.dpm_solver_pp())):
            every[name, kind] = lambda y, x_T, key, m=name, s=solver: guided(m, s, y, x_T, key), n + 1
    return every


def posterior_rows(problem: str, gm: GaussianMixture, quick: bool) -> tuple[list[dict], dict]:
    """Of all methods and of exact samples, and the mean sliced W2 of each."""
    rng, sde = np.random.default_rng(1), VP()
    measurements, count = (2, 16) if quick else (16, 512)
    a = rng.normal(size=(4, 8)) / np.sqrt(8)
    y = np.asarray(gm.sample(jax.random.key(0), measurements), np.float64) @ a.T + NOISE * rng.normal(size=(measurements, 4))
    posteriors = [gm.posterior(a, one, NOISE) for one in y]
    exact, others = ([np.asarray(p.sample(jax.random.key(seed), count), np.float64) for p in posteriors] for seed in (1, 2))
    rows = []

    def row(method, sampler, x, nfe):
        of_mean = [np.linalg.norm(s.mean(0) - p.mean) for s, p in zip(x, posteriors)]
        of_covariance = [np.linalg.norm(np.cov(s.T) - p.covariance) for s, p in zip(x, posteriors)]
        w2 = [sliced_wasserstein2(s, e, 200) for s, e in zip(x, exact)]
        figures = {"error of mean": of_mean, "error of covariance": of_covariance, "sliced W2": w2}
        cells = {column: value for name, v in figures.items() for column, value in ((name, float(np.mean(v))), (f"± {name}", standard_error(v)))}
        rows.append({"problem": problem, "method": method, "sampler": sampler, "NFE": nfe, **cells})
        return float(np.mean(w2))

    times = grids.log_snr(sde, 10 if quick else 200)
    every_y = jnp.asarray(np.repeat(y, count, 0), jnp.float32)
    x_T = sde.prior_sample(jax.random.key(3), (len(every_y), 8))
    found = {}
    for (method, sampler), (draw, nfe) in methods(gm.denoiser(sde), operators.matrix(a), times).items():
        x = np.asarray(draw(every_y, x_T, jax.random.key(4)), np.float64).reshape(measurements, count, 8)
        found[method, sampler] = row(method, sampler, x, nfe)
    found["exact samples"] = row("exact samples", "", others, None)
    return rows, found


def pair_moments(n: int, corrector, shape=(64, 512)) -> tuple[float, float]:
    """Mean and variance of the other of each pair by replacement in n steps."""
    sde, known = VE(), np.zeros((shape[1], 2), bool)
    known[:, 0] = True
    x_T, times = sde.prior_sample(jax.random.key(0), (*shape, 2)), grids.uniform(sde, n)
    y = jnp.full(shape, 1.5)
    x = replacement(pairs(sde), operators.inpainting(known), y, x_T, times, solvers.reverse_diffusion(), corrector, jax.random.key(1))
    other = np.asarray(x[..., 1], np.float64)
    return other.mean(), other.var()


def pair_rows(out, quick: bool):
    """Rows at the most steps, whether they are score_sde's known answers, and the figure over the steps."""
    steps, shape = ((10, 20), (4, 16)) if quick else ((30, 100, 300, 1000), (64, 512))
    lines = {"predictor alone": None, "predictor and corrector, r = 0.16": langevin(0.16)}
    found = {name: np.array([pair_moments(n, corrector, shape) for n in steps]) for name, corrector in lines.items()}
    by_steps = lambda k: {name: dict(zip(steps, moments[:, k])) for name, moments in found.items()}
    plots.against_steps({"conditional mean": (1.35, by_steps(0)), "conditional variance": (0.19, by_steps(1))}, out / "replacement.png")
    rows = []
    for (name, moments), nfe in zip(found.items(), (steps[-1] + 1, 2 * steps[-1] + 1)):
        cells = {"mean (exact 1.35)": float(moments[-1, 0]), "variance (exact 0.19)": float(moments[-1, 1])}
        rows.append({"problem": "pairs", "method": f"replacement, {name}", "sampler": "SDE", "NFE": nfe, **cells})
    wanted = np.array([[0.937, 0.315], [1.349, 0.195]])
    return rows, bool(np.all(np.abs(np.array([m[-1] for m in found.values()]) - wanted) < [0.01, 0.006]))  # 4 standard errors: sqrt(0.19/n)


def fashion_config():
    """Of the model of Fashion-MNIST: configs/fashion.py without classes, smaller, in ten minutes on two cores."""
    config = fashion.get_config()
    config.model.update(channels=32, num_classes=0)
    config.objective.label_dropout = 0.0
    config.training.steps = 2000
    return config


def image_rows(out, run: runs.Run, quick: bool) -> list[dict]:
    """Of four problems, by every method inpainting, the others by pseudoinverse guidance and moment matching; the figure is of moment matching."""
    num, count, steps = (2, 2, 3) if quick else (4, 4, 50)
    options = {"solver": "ancestral", "steps": steps, "grid": "log_snr", "noise": 0.05, "zeta": 0.3, "iterations": 5, "snr": 0.16}
    rows, panels = [], {}
    for problem in ("inpainting", "random", "super_resolution", "blur"):
        for method in inverse.METHODS if problem == "inpainting" else ("pigdm", "moment"):
            kept = Kept(out / "kept" / f"{run.dataset.name}_{problem}_{method}")
            found = inverse.solve(run, problem, num, count, num * count, 0, kept=kept, method=method, **options)
            figures, cells = found["figures"], {}
            for column, name in (("PSNR of samples", "psnr"), ("PSNR of their mean", "psnr_mean"), ("RMS of y - A x", "residual")):
                cells |= {column: figures[name], f"± {column}": figures[f"{name}_stderr"]}
            rows.append({"problem": f"{run.dataset.name}: {problem}", "method": method, "sampler": "SDE", "NFE": found["nfe"], **cells})
        panels[problem] = inverse.picture_rows(run, found, 3, 4)
    plots.columns(panels, out / f"{run.dataset.name}.png")
    return rows


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and gates of the posteriors and pairs; figures are written to `out`."""
    config = fashion_config()
    if quick:
        config.model.channels = 8
    models = [given(workdir), trained(config, out / "fashion", quick)]  # first, lest the data are missing
    mixture = turned_mixture(8, 0.4)
    gaussian = GaussianMixture(mixture.means[:1], mixture.stds[:1], eigenvectors=mixture.eigenvectors[:1])
    rows, gaussian_w2 = posterior_rows("Gaussian", gaussian, quick)
    more, mixture_w2 = posterior_rows("mixture", mixture, quick)
    rows += more
    as_exact = {name for name, w2 in gaussian_w2.items() if w2 < 1.2 * gaussian_w2["exact samples"]}
    exact = as_exact == {("moment", "SDE"), ("moment", "ODE"), "exact samples"}
    nearest = sorted(mixture_w2, key=mixture_w2.get)[1] == ("moment", "SDE")  # after exact samples
    of_pairs, known = pair_rows(out, quick)
    rows += of_pairs + [row for model in models for row in image_rows(out, model, quick)]
    shutil.rmtree(out / "kept", ignore_errors=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    gates = {
        "moment matching, and it alone, has the Gaussian's posterior: sliced W2 below 1.2 of exact samples'": exact,
        "moment matching is the nearest of all to the mixture's posterior": nearest,
        "the pairs' moments are score_sde's known answers": known,
    }
    return [{name: row.get(name) for name in names} for row in rows], {} if quick else gates
