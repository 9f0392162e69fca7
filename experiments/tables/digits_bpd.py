"""Bits/dim of the 8x8 digits: what must be beaten, and bounds of the model in --workdir by dequantization and draws.

Test split (360 images, 17 levels), standard errors over images (±), draws and probes apart. Baselines are fitted to the training split:
the uniform distribution; a Gaussian, and a mixture of one Gaussian for each class, of uniformly dequantized levels; independent categorical
pixels, with one count more of each level. Rows of the model: Hutchinson's estimate with 2 probes on all images, by three dequantizations (the
variational one is fitted first, if --workdir has none); the exact trace with 4 draws on the first 32, once as the mean and once importance-weighted;
the variational bound. Half the tolerance shows that the number does not rest on it, Gaussian probes what Rademacher's save.
"""

import numpy as np

from experiments import dequantization
from experiments.kept import Kept
from experiments.likelihood import complete, score, summarize
from experiments.metrics import standard_error
from experiments.tables._baselines import categorical_bits, gaussian_bits
from experiments.tables._training import digits_run

SEEDS = {"probes, draws and times": 0}
READS = ("workdir",)


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and whether the model beats simple ones, and the bounds are in their order."""
    trained = digits_run(workdir)
    dataset, rows = trained.dataset, []

    def row(model, images, bits, over_images, over_draws=None, over_probes=None, evaluations=None):
        finite = lambda v: None if v is None or not np.isfinite(v) else float(v)
        rest = {"over draws": over_draws, "over probes": over_probes, "evaluations": evaluations}
        rows.append({"model": model, "images": images, "bits/dim": float(bits), "± bits/dim": float(over_images)})
        rows[-1] |= {name: finite(value) for name, value in rest.items()}

    def baseline(name, bits):
        row(name, len(bits), bits.mean(), standard_error(bits))

    def bound(name, num, **options):
        options = {"progress": lambda *_, **__: None, **options}
        found = summarize(trained, complete(score(trained, "test", 2 if quick else num, 2 if quick else 180, 0, **options)))
        errors = (found[f"stderr_{over}"] for over in ("examples", "draws", "probes"))
        row(f"the model, {name}", found["n"], found["mean"], *errors, found["nfe_mean"])
        return found

    baseline("uniform", np.full(len(dataset.values["test"]), np.log2(dataset.levels)))
    baseline("Gaussian", gaussian_bits(dataset, False, 16))
    baseline("mixture of a Gaussian per class", gaussian_bits(dataset, True, 16))
    baseline("independent categorical pixels", categorical_bits(dataset))
    floor = rows[-1]["bits/dim"]
    estimated = {"divergence": "hutchinson", "probes": 2}
    first = bound("uniform, 2 probes", 0, **estimated, rtol=1e-3, atol=1e-3)
    again = bound("the same at half the tolerance", 0, **estimated, rtol=5e-4, atol=5e-4)
    gaussian = bound("uniform, 2 Gaussian probes", 0, **estimated, noise="gaussian", rtol=1e-3, atol=1e-3)
    elbo = bound("variational, 64 times", 0, bound="variational")
    if not (trained.workdir / "dequantization.npz").exists():
        dequantization.save(trained, dequantization.fit(trained, 1000, progress=lambda *_, **__: None))
    better = bound("variational dequantization, 2 probes", 0, dequantization="variational", **estimated, rtol=1e-3, atol=1e-3)
    bound("truncated normal, 2 probes", 0, dequantization="truncated_normal", **estimated, rtol=1e-3, atol=1e-3)
    kept = Kept(out / "exact")
    exact = {"divergence": "exact", "draws": 2 if quick else 4, "rtol": 1e-3, "atol": 1e-3, "kept": kept}  # computed once
    mean, importance = (bound(f"exact trace, {exact['draws']} draws, {name}", 32, bound=name, **exact) for name in ("mean", "importance"))
    kept.remove()
    variance = (gaussian["stderr_probes"] / first["stderr_probes"]) ** 2
    gates = {
        "better than independent pixels by 3 standard errors": first["mean"] + 3 * first["stderr_examples"] < floor,
        "half the tolerance agrees to 0.005": abs(first["mean"] - again["mean"]) < 0.005,
        "importance weights tighten the bound": importance["mean"] < mean["mean"],
        "variational dequantization, uniform, variational bound: in this order": better["mean"] < first["mean"] < elbo["mean"],
        "Gaussian probes have four times the variance of Rademacher's": variance >= 4,
    }
    return rows, {} if quick else gates
