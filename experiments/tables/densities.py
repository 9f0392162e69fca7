"""Two-dimensional densities of known entropy: what the trained models of configs/density.py lose.

8 gaussians and checkerboard of FFJORD (1810.01367), trained here if OUT has no run of them yet. Nats of the first 10,000 test points, by the exact
trace at 1e-3, with the standard error over points; "above the entropy" is their mean of log p - log p_model, whose standard error is smaller, as
the true density of each point is known; "integral" is that of the model's density over a grid, [-7, 7]^2.
"""

import jax
import numpy as np

from configs import density
from experiments import runs
from experiments.likelihood import complete, score
from experiments.metrics import standard_error
from experiments.tables._training import trained
from experiments.toy import eight_gaussians_mixture
from samplers import log_likelihood

SEEDS = {"training": 0, "dequantization": 0}
SOURCES = {"entropy": "closed form (checkerboard), quadrature (8 gaussians)"}
ENTROPY = {"8gaussians": 2.838, "checkerboard": np.log(32)}
BOUND = {"8gaussians": 0.05, "checkerboard": 0.1}


def true_log_prob(name: str, points) -> np.ndarray:
    """log p of points drawn from it."""
    return np.asarray(eight_gaussians_mixture("ffjord").log_prob(points)) if name == "8gaussians" else np.full(len(points), -np.log(32))


def integral(run: runs.Run, side: int) -> float:
    """Of the model's density over [-7, 7]^2, by midpoints of cells that end where the checkerboard's squares do."""
    line = (np.arange(side) + 0.5) * 14 / side - 7
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2).astype(np.float32)
    x = (grid - run.dataset.shift) / run.dataset.scale
    options = {"rtol": 1e-3, "atol": 1e-3}
    log_p = runs.gather(runs.in_batches(lambda keys, x: log_likelihood(run.denoiser(), x, **options).log_prob, len(x), 4096, jax.random.key(0), x))
    return float(np.exp(np.asarray(log_p, np.float64)).sum() * (14 / side / run.dataset.scale) ** 2)


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows, and whether each density is near the entropy, not better than it, and a density."""
    rows, gates = [], {}
    for name, entropy in ENTROPY.items():
        model = trained(density.get_config(name), out / name, quick)
        n = 8 if quick else 10_000
        options = {"divergence": "exact", "rtol": 1e-3, "atol": 1e-3, "progress": lambda *_, **__: None}
        result = complete(score(model, "test", n, n if quick else 2500, 0, **options))
        gap = result["score"] + true_log_prob(name, model.dataset.values["test"][:n])
        row = {
            "data": name, "parameters": sum(a.size for a in jax.tree.leaves(model.params)), "steps": model.step, "entropy": float(entropy),
            "nats": float(result["score"].mean()), "± nats": standard_error(result["score"]),
            "above the entropy": float(gap.mean()), "± above the entropy": standard_error(gap),
            "integral": integral(model, 14 if quick else 280), "evaluations": float(result["nfe"].mean()),
        }  # fmt: skip
        rows.append(row)
        no_better = row["above the entropy"] > -3 * row["± above the entropy"] and row["nats"] > entropy - 3 * row["± nats"]
        gates |= {
            f"{name}: within {BOUND[name]} of the entropy": abs(row["nats"] - entropy) <= BOUND[name],
            f"{name}: not better than the entropy by 3 standard errors": no_better,
            f"{name}: the density's integral is within 0.001 of 1": abs(row["integral"] - 1) <= 1e-3,
        }
    return rows, {} if quick else gates
