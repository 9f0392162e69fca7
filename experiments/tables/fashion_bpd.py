"""Bits/dim of Fashion-MNIST: simple models, and a small variational diffusion model trained here.

Test split, 256 levels. uniform, a full-covariance Gaussian of uniformly dequantized levels, independent categorical pixels with one count more of
each level: all 10,000 images. The model: configs/vdm.py:small (U-Net on 2x2 patches, learned schedule), trained if OUT has no run of it yet; its
variational bound at 64 times on the first 512 images, with the standard error over images. Not its flow: the ODE of a network with Fourier features,
so little trained, is so rough that 1e-3 and 1e-4 differ by 0.1 bits/dim. CPU-scale: minutes of training. Published models are near 3.
"""

import jax
import numpy as np

from configs import vdm
from experiments.likelihood import complete, score, summarize
from experiments.metrics import standard_error
from experiments.tables._baselines import categorical_bits, gaussian_bits
from experiments.tables._training import trained

SEEDS = {"training": 0, "times": 0}


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and whether the Gaussian is the published one, and the variational bound below independent pixels."""
    config = vdm.get_config("small")
    if quick:
        config.model.channels = 8
    model = trained(config, out / "run", quick)
    dataset, rows = model.dataset, []

    def row(name, images, bits, error, over_times=None, evaluations=None):
        size = sum(a.size for a in jax.tree.leaves(model.params)) if name.startswith("the model") else None
        rows.append({"model": name, "parameters": size, "images": images, "bits/dim": float(bits), "± bits/dim": float(error)})
        rows[-1] |= {"over times": over_times, "evaluations": evaluations}

    def baseline(name, bits):
        row(name, len(bits), bits.mean(), standard_error(bits))

    baseline("uniform", np.full(len(dataset.values["test"]), np.log2(dataset.levels)))
    if not quick:
        independent = categorical_bits(dataset)
        baseline("Gaussian", gaussian_bits(dataset, False, 1))
        baseline("independent categorical pixels", independent)
    num = 2 if quick else 512
    scores = complete(score(model, "test", num, min(num, 128), 0, bound="variational", times=64))
    found, variational = summarize(model, scores), scores["score"]
    row("the model, variational bound", num, found["mean"], found["stderr_examples"], found["stderr_probes"], found["nfe_mean"])
    if quick:
        return rows, {}
    above = lambda gain: gain.mean() > 3 * standard_error(gain)
    return rows, {
        "the Gaussian has the published 6.461 +- 0.011": abs(rows[1]["bits/dim"] - 6.461) <= 0.011,
        "below the published 4.588 of independent pixels by 3 standard errors": above(4.588 - variational),
        "below independent pixels on the same images by 3 standard errors of the difference": above(independent[:num] - variational),
    }
