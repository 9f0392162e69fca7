"""Score a data split: python -m experiments.likelihood --workdir=runs/digits --split=test

bits/dim of discrete data (uniform dequantization: an upper bound in expectation), nats of continuous data, every example of the split, with the
standard errors over examples and over Hutchinson probes kept apart. Writes eval/likelihood_<split>.json, .npz (by example index) and a histogram.
"""

import json
import time

import jax
import numpy as np
from absl import flags

from experiments import cli, plots, runs
from samplers import log_likelihood
from samplers.likelihood import DIVERGENCES


def score(run: runs.Run, split: str, num: int, batch: int, seed: int, progress=print, **options) -> dict[str, np.ndarray]:
    """Scores of the first `num` examples (0: all): score [n] in bits/dim or nats, stderr [n] of each over probes in that unit, nfe [n].

    options: of `samplers.log_likelihood`. Raises ValueError for an unknown split, for conditional models without labels, for failed solves.
    """
    dataset = run.dataset
    if split not in dataset.values:
        raise ValueError(f"--split={split}: expected {' or '.join(dataset.values)}")
    values, labels = dataset.values[split], dataset.labels[split]
    if num < 0:
        raise ValueError(f"--num={num}: expected 0 (all) or more")
    n = min(num or len(values), len(values))

    def one_batch(keys, values, labels):
        data_keys, probe_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = dataset.to_x(data_keys, values)
        result = log_likelihood(run.denoiser(labels if run.conditional else None), x, key=probe_keys, **options)
        return {"log_prob": result.log_prob, "stderr": result.stderr, "nfe": result.nfe, "success": result.success}

    parts, clock = [], time.perf_counter()
    for part in runs.in_batches(one_batch, n, batch, jax.random.key(seed), values, labels):
        parts.append(part)
        done = sum(len(p["nfe"]) for p in parts)
        spent = time.perf_counter() - clock
        progress(f"{done}/{n} examples, {spent:.0f} s, ETA {spent * (n - done) / done:.0f} s", flush=True)
    result = runs.gather(parts)
    failed = int(np.sum(~result.pop("success")))
    if failed:
        raise ValueError(f"{failed} of {n} examples needed too many steps: loosen --rtol and --atol")
    scores = dataset.score(result["log_prob"])
    per_nat = dataset.dim * np.log(2) if dataset.levels else 1.0
    return {"score": scores, "stderr": result["stderr"] / per_nat, "nfe": result["nfe"]}


def main():
    f = flags.FLAGS
    run = runs.from_flags()
    divergence = f.divergence if f.divergence != "auto" else "exact" if run.dataset.dim <= 16 else "hutchinson"
    options = {"divergence": divergence, "probes": f.probes, "noise": f.noise, "rtol": f.rtol, "atol": f.atol}
    clock = time.perf_counter()
    result = score(run, f.split, f.num, f.batch, f.seed, **options)
    scores, n = result["score"], len(result["score"])
    summary = {
        **run.description(),
        "split": f.split,
        "n": n,
        "unit": run.dataset.unit,
        "mean": float(scores.mean()),
        "stderr_examples": float(scores.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        "stderr_probes": float(np.sqrt(np.sum(result["stderr"] ** 2)) / n),
        "nfe_mean": float(result["nfe"].mean()),
        "levels": run.dataset.levels,
        "dequantization": "uniform, one draw" if run.dataset.levels else "none",
        "class_conditional": run.conditional,
        "solver": "Tsit5",
        "eps": run.network.sde.eps,
        **options,
        "seconds": time.perf_counter() - clock,
    }
    folder = run.workdir / "eval"
    folder.mkdir(exist_ok=True)
    finite = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in summary.items()}  # JSON has no NaN
    (folder / f"likelihood_{f.split}.json").write_text(json.dumps(finite, indent=1))
    np.savez(folder / f"likelihood_{f.split}.npz", index=np.arange(n), **result)
    figure = plots.histogram({f.split: scores}, run.dataset.unit, folder / f"likelihood_{f.split}.png")
    probes = "exact trace" if divergence == "exact" else f"± {summary['stderr_probes']:.4f} over {f.probes} probes"
    print(
        f"{f.split}: {summary['mean']:.4f} {run.dataset.unit} ± {summary['stderr_examples']:.4f} over {n} examples, {probes}; "
        f"{summary['nfe_mean']:.0f} evaluations each; {run.weights} weights of step {run.step}"
    )
    print(f"wrote {folder / f'likelihood_{f.split}.json'}, .npz and {figure}")


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_enum("split", "test", ["train", "test"], "Data to score.")
    flags.DEFINE_enum("divergence", "auto", ["auto", *DIVERGENCES], "auto: exact up to 16 dimensions, else hutchinson.")
    flags.DEFINE_integer("probes", 4, "Probes of each example (hutch++: three products each).")
    flags.DEFINE_enum("noise", "rademacher", ["rademacher", "gaussian"], "Law of the probes.")
    flags.DEFINE_float("rtol", 1e-5, "Relative tolerance.")
    flags.DEFINE_float("atol", 1e-5, "Absolute tolerance.")
    flags.DEFINE_integer("num", 0, "Examples to score; 0 for all.")
    cli.run(main)
