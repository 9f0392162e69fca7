"""Bits/dim of the 8x8 digits: what must be beaten, and bounds of the model in --workdir by dequantization and draws.

Test split (360 images, 17 levels), standard errors over images, draws and probes apart. Baselines are fitted to the training split:
the uniform distribution; a Gaussian, and a mixture of one Gaussian for each class, of uniformly dequantized levels; independent categorical
pixels, with one count more of each level. Rows of the model: Hutchinson's estimate with 2 probes on all images; the exact trace with 4 draws on
the first 32, once as the mean and once importance-weighted; the variational bound. Half the tolerance shows that the number does not rest on it,
Gaussian probes what Rademacher's save.
"""

import numpy as np
from scipy import special, stats

from experiments import runs
from experiments.data import Dataset
from experiments.likelihood import Kept, score, summarize


def levels_of(dataset: Dataset, split: str) -> np.ndarray:
    return dataset.values[split].reshape(len(dataset.values[split]), -1)


def gaussian_bits(dataset: Dataset, by_class: bool, draws: int = 16) -> np.ndarray:
    """Bits/dim of the test images under one Gaussian, or one for each class (and the classes' frequencies), mean over uniform dequantizations."""
    rng = np.random.default_rng(0)
    train, test = levels_of(dataset, "train"), levels_of(dataset, "test")
    dequantized = lambda levels: levels + rng.uniform(size=levels.shape)
    groups = [dataset.labels["train"] == k for k in range(dataset.num_classes)] if by_class else [np.ones(len(train), bool)]
    fits = []
    for group in groups:
        u = np.concatenate([dequantized(train[group]) for _ in range(draws)])
        # a class has few more images than pixels: a variance of half a level^2 more keeps its covariance well-conditioned
        fits.append((np.log(group.mean()), stats.multivariate_normal(u.mean(0), np.cov(u.T) + (0.5 if by_class else 0) * np.eye(u.shape[1]))))
    log_p = lambda u: special.logsumexp([w + fit.logpdf(u) for w, fit in fits], 0)
    return -np.mean([log_p(dequantized(test)) for _ in range(draws)], 0) / (dataset.dim * np.log(2))


def categorical_bits(dataset: Dataset) -> np.ndarray:
    """Bits/dim of the test images under independent pixels."""
    counts = (levels_of(dataset, "train")[:, :, None] == np.arange(dataset.levels)).sum(0) + 1
    log_p = np.log2(counts / counts.sum(-1, keepdims=True))
    return -log_p[np.arange(dataset.dim), levels_of(dataset, "test")].mean(1)


def run(out, quick: bool, workdir: str) -> tuple[list[dict], bool]:
    """Rows, and whether the model beats independent pixels by three standard errors, agrees with half its tolerance to 0.005, has its mean bound
    above the importance-weighted one, and Gaussian probes four times the variance of Rademacher's."""
    trained = runs.load_run(workdir)
    dataset = trained.dataset
    if dataset.name != "digits":
        raise ValueError(f"--workdir={workdir}: its data are {dataset.name}; expected a run on digits (make demo)")
    rows = []

    def row(model, images, bits, over_images, over_draws=None, over_probes=None, evaluations=None):
        finite = lambda v: None if v is None or not np.isfinite(v) else float(v)
        rest = {"over draws": over_draws, "over probes": over_probes, "evaluations": evaluations}
        rows.append({"model": model, "images": images, "bits/dim": float(bits), "over images": float(over_images)})
        rows[-1] |= {name: finite(value) for name, value in rest.items()}

    def baseline(name, bits):
        row(name, len(bits), bits.mean(), bits.std(ddof=1) / np.sqrt(len(bits)))

    def bound(name, num, **options):
        options = {"progress": lambda *_, **__: None, **options}
        found = summarize(trained, score(trained, "test", 2 if quick else num, 2 if quick else 180, 0, **options))
        row(
            f"the model, {name}",
            found["n"],
            found["mean"],
            found["stderr_examples"],
            found["stderr_draws"],
            found["stderr_probes"],
            found["nfe_mean"],
        )
        return found

    baseline("uniform", np.full(len(dataset.values["test"]), np.log2(dataset.levels)))
    baseline("Gaussian", gaussian_bits(dataset, False))
    baseline("mixture of a Gaussian per class", gaussian_bits(dataset, True))
    baseline("independent categorical pixels", categorical_bits(dataset))
    floor = rows[-1]["bits/dim"]
    estimated = {"divergence": "hutchinson", "probes": 2}
    first = bound("uniform, 2 probes", 0, **estimated, rtol=1e-3, atol=1e-3)
    again = bound("the same at half the tolerance", 0, **estimated, rtol=5e-4, atol=5e-4)
    gaussian = bound("uniform, 2 Gaussian probes", 0, **estimated, noise="gaussian", rtol=1e-3, atol=1e-3)
    bound("variational, 64 times", 0, bound="variational")
    bound("truncated normal, 2 probes", 0, dequantization="truncated_normal", **estimated, rtol=1e-3, atol=1e-3)
    kept = Kept(out / "exact")
    exact = {"divergence": "exact", "draws": 2 if quick else 4, "rtol": 1e-3, "atol": 1e-3, "kept": kept}  # computed once
    mean, importance = (bound(f"exact trace, {exact['draws']} draws, {name}", 32, bound=name, **exact) for name in ("mean", "importance"))
    kept.remove()
    variance = (gaussian["stderr_probes"] / first["stderr_probes"]) ** 2
    good = first["mean"] + 3 * first["stderr_examples"] < floor and abs(first["mean"] - again["mean"]) < 0.005 and importance["mean"] < mean["mean"]
    return rows, quick or (good and variance >= 4)
