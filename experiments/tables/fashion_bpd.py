"""Bits/dim of Fashion-MNIST: simple models, and a small variational diffusion model trained here.

Test split, 256 levels. uniform, a full-covariance Gaussian of uniformly dequantized levels, independent categorical pixels with one count more of
each level: all 10,000 images. The model: configs/vdm.py:small (U-Net on 2x2 patches, learned schedule), trained if OUT has no run of it yet; its
variational bound at 64 times on the first 512 images, and the bound by its flow with truncated-normal dequantization and one probe on the first 128,
with standard errors over images. CPU-scale: minutes of training. The published models that come from memory are near 3.
"""

import contextlib
import io

import jax
import numpy as np

from configs import vdm
from experiments import runs
from experiments.likelihood import score, summarize
from experiments.tables._baselines import categorical_bits, gaussian_bits
from experiments.train import train


def run(out, quick: bool, workdir: str) -> tuple[list[dict], bool]:
    """Rows, and whether the Gaussian is the published 6.461 +- 0.011, the variational bound below the published 4.588 of independent pixels by three
    standard errors, and both bounds below independent pixels on the same images by three standard errors of the difference."""
    config, folder = vdm.get_config("small"), out / ("quick" if quick else "run")
    if quick:
        config.training.update(steps=2, batch=8)
        config.model.channels = 8
    with contextlib.redirect_stdout(io.StringIO()) if quick else contextlib.nullcontext():
        train(config, folder)
    model = runs.load_run(folder)
    dataset, rows = model.dataset, []

    def row(name, images, bits, error, over_probes=None, evaluations=None):
        size = sum(a.size for a in jax.tree.leaves(model.params)) if name.startswith("the model") else None
        rows.append({"model": name, "parameters": size, "images": images, "bits/dim": float(bits), "over images": float(error)})
        rows[-1] |= {"over probes or times": over_probes, "evaluations": evaluations}

    def baseline(name, bits):
        row(name, len(bits), bits.mean(), bits.std(ddof=1) / np.sqrt(len(bits)))

    def bound(name, num, **options):
        num = 2 if quick else num
        scores = score(model, "test", num, min(num, 128), 0, **options)
        found = summarize(model, scores)
        probes = found["stderr_probes"] if np.isfinite(found["stderr_probes"]) else None
        row(f"the model, {name}", num, found["mean"], found["stderr_examples"], probes, found["nfe_mean"])
        return scores["score"]

    baseline("uniform", np.full(len(dataset.values["test"]), np.log2(dataset.levels)))
    if not quick:
        independent = categorical_bits(dataset)
        baseline("Gaussian", gaussian_bits(dataset, False, 1))
        baseline("independent categorical pixels", independent)
    variational = bound("variational bound", 512, bound="variational", times=64)
    flow = {"dequantization": "truncated_normal", "divergence": "hutchinson", "probes": 1, "rtol": 1e-3, "atol": 1e-3}
    by_flow = bound("flow, truncated-normal dequantization", 128, **flow)
    if quick:
        return rows, True
    above = lambda gain: bool(gain.mean() > 3 * gain.std(ddof=1) / np.sqrt(len(gain)))
    better = all(above(independent[: len(bits)] - bits) for bits in (variational, by_flow))
    return rows, better and above(4.588 - variational) and abs(rows[1]["bits/dim"] - 6.461) <= 0.011
