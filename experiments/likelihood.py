"""Score a data split: python -m experiments.likelihood --workdir=runs/digits --split=test

bits/dim of discrete data (a bound, by --dequantization and --draws), nats of continuous data, every example of the split, with the standard errors
over examples, dequantization draws and probes kept apart. Writes eval/likelihood_<split>.json, .npz (by example index) and a histogram; each batch
is kept at once, so that the same command goes on where it was interrupted.
"""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from sklearn.metrics import roc_auc_score

from experiments import cli, plots, runs
from experiments.dequantization import DEQUANTIZATIONS, bin_time
from experiments.kept import Kept, claim, savez
from experiments.metrics import standard_error
from samplers import log_likelihood, variational_bound
from samplers.likelihood import DIVERGENCES

METHOD = "Chebyshev nodes over the whole interval in sqrt(arctan(sigma/alpha)), else panel by panel"
TRUNCATION = (
    "publish the mean: it is of data with the noise at eps. If the score there is accurate, data without it would have about this much more; "
    "train longer or from a smaller eps until it is small"
)
BOUNDS = ("mean", "importance", "variational")


def score(
    run: runs.Run,
    split: str,
    num: int,
    batch: int,
    seed: int,
    dequantization: str = "uniform",
    draws: int = 1,
    bound: str = "mean",
    times: int = 64,
    kept: Kept | None = None,
    progress=print,
    **options,
) -> dict[str, np.ndarray]:
    """Scores of the first `num` examples (0: all), in bits/dim or nats: score [n]; stderr [n] of each over probes (variational: times), stderr_draws
    [n] over draws with their probes, NaN where they are unknown; truncation [n], what to add to the score for data without the noise at eps (0 for
    truncated_normal, to which it is no error); of each draw, nfe, divergences and error (nats) of `samplers.log_likelihood` [n]; and success [n],
    where it is False the score is NaN.

    bound: "mean" of log p/q over `draws`; "importance", the log of the mean of p/q, which is nearer to log P; or "variational", that of
    `samplers.variational_bound` by `times` evaluations, of the levels themselves. kept: where results are kept while they are computed.
    options: of `log_likelihood`. Raises ValueError for unknown names, for importance weights of an estimated trace or of one draw.
    """
    dataset = run.dataset
    for flag, value, allowed in (("split", split, dataset.values), ("dequantization", dequantization, DEQUANTIZATIONS), ("bound", bound, BOUNDS)):
        if value not in allowed:
            raise ValueError(f"--{flag}={value}: expected {' or '.join(allowed)}")
    if num < 0:
        raise ValueError(f"--num={num}: expected 0 (all) or more")
    if draws < 1 or not dataset.levels and (draws > 1 or bound == "importance"):
        raise ValueError(f"--bound={bound} --draws={draws} of {dataset.name}: expected at least 1 draw, and no more for continuous data")
    if bound == "importance" and options.get("divergence", "exact") != "exact":
        raise ValueError("--bound=importance with an estimated trace: the logarithm of a mean makes bias of its noise; pass --divergence=exact")
    if bound == "importance" and draws == 1:
        raise ValueError("--bound=importance --draws=1: expected two or more draws to average")
    if bound == "variational" and draws > 1:
        raise ValueError(f"--bound=variational --draws={draws}: it has no dequantization to draw; give it more --times")
    draw, own, about = DEQUANTIZATIONS[dequantization](run)
    last, start = last_time(run, bound, dequantization), run.network.ends(run.params)[1]
    values, labels = dataset.values[split], dataset.labels[split]
    n = min(num or len(values), len(values))

    def by_flow(den, keys, values):
        data_keys, probe_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        y, addend = draw(data_keys, values)
        result = log_likelihood(den, y, key=probe_keys, eps=last, start=start, prior_std=run.network.prior_std, **options)
        return {**result._asdict(), "log_prob": result.log_prob + addend}

    def by_bound(den, keys, values):
        if dataset.levels:  # of the level itself: `Dataset.score` is told of no density
            middles, addend = dataset.middles(np.arange(dataset.levels)), dataset.dim * np.log(dataset.scale)
            result = variational_bound(den, dataset.middles(values), keys, times, None, last, start, middles)
        else:
            addend, result = 0.0, variational_bound(den, dataset.to_x(keys, values), keys, times, None, last, start)
        zero = jnp.zeros_like(result.total)
        rest = {"truncation": zero, "nfe": zero + times, "divergences": zero, "error": zero, "success": jnp.isfinite(result.total)}
        return {"log_prob": addend - result.total, "stderr": result.stderr, **rest}

    def one_batch(keys, values, labels):
        den, method = run.denoiser(labels if run.conditional else None), by_bound if bound == "variational" else by_flow
        found = [method(den, jax.vmap(jax.random.fold_in, (0, None))(keys, i), values) for i in range(draws)]
        names = ("log_prob", "stderr", "truncation", "nfe", "divergences", "error", "success")
        return {name: jnp.stack([part[name] for part in found], 1) for name in names}

    chosen = {"times": times} if bound == "variational" else {"dequantization": dequantization, **about, "draws": draws, **options}
    chosen |= {"ends": (last, start), "method": METHOD}
    kept = Kept(None) if kept is None else kept
    kept.open({"weights": run.fingerprint(), "data": dataset.name, "split": split, "seed": seed, **chosen})
    parts = lambda start: runs.in_batches(one_batch, n, batch, jax.random.key(seed), values, labels, start=start)
    result = kept.complete(parts, n, "examples", progress)
    success = result["success"].all(1) & np.isfinite(result["log_prob"]).all(1)
    log_prob = np.where(success[:, None], result["log_prob"], np.nan).astype(np.float64)
    best = np.logaddexp.reduce(log_prob, 1) - np.log(draws) if bound == "importance" else log_prob.mean(1)
    per_nat = dataset.dim * np.log(2) if dataset.levels else 1.0
    return {
        "score": dataset.score(best),
        "stderr": np.sqrt(np.mean(result["stderr"] ** 2, 1) / draws) / per_nat,
        "stderr_draws": (log_prob.std(1, ddof=1) / np.sqrt(draws) if draws > 1 and bound == "mean" else np.full(n, np.nan)) / per_nat,
        "truncation": -result["truncation"].mean(1) / per_nat * (own is None),
        **{name: result[name].mean(1) for name in ("nfe", "divergences", "error")},
        "success": success,
    }


def complete(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The result of `score`, or ValueError, which names the examples, if the solve of one did not succeed."""
    if not result["success"].all():
        raise ValueError(failures(result["success"]))
    return result


def failures(success: np.ndarray) -> str:
    """How many examples did not succeed, and which they are."""
    failed = np.flatnonzero(~success)
    few = ", ".join(map(str, failed[:8])) + ", ..." * (len(failed) > 8)
    return f"{len(failed)} of {len(success)} examples did not succeed ({few}): not finite, or not converged; looser --rtol and --atol may help"


STRANGERS = {  # out-of-distribution data of the same shape, from values [n, ...] and the highest level
    "inverted": lambda rng, values, top: top - values,
    "shuffled": lambda rng, values, top: rng.permuted(values.reshape(len(values), -1), axis=1).reshape(values.shape),
    "noise": lambda rng, values, top: rng.integers(0, top + 1, values.shape).astype(values.dtype),
}


def stranger(run: runs.Run, split: str, name: str, seed: int) -> runs.Run:
    """The run with other data, discrete, in the place of its own: "inverted", "shuffled" (pixels, in each example) or "noise" (uniform levels)."""
    if not run.dataset.levels or name not in STRANGERS:
        raise ValueError(f"--ood={name} of {run.dataset.name}: expected {', '.join(STRANGERS)}, and data of discrete levels")
    values = run.dataset.values
    other = STRANGERS[name](np.random.default_rng(seed), np.asarray(values[split][:]), run.dataset.levels - 1)
    return replace(run, dataset=replace(run.dataset, name=name, values={**values, split: other}))


def last_time(run: runs.Run, bound: str, dequantization: str) -> float:
    """The time nearest to the data: that of the dequantization, or the first that the model was trained on; for the variational bound of levels one
    where a bin is +-3 sigma, unless the model has learned its own."""
    first = run.network.ends(run.params)[0]
    if bound == "variational":
        return first if run.network.schedule or not run.dataset.levels else max(bin_time(run.dataset, run.network.sde), first)
    return DEQUANTIZATIONS[dequantization](run).eps or first


def summarize(run: runs.Run, result: dict[str, np.ndarray]) -> dict:
    """What is reported of `score`'s results, with its standard errors apart: means over the examples that succeeded, and which did not.

    truncation is there only if it is more than half of the standard error of the mean: smaller, nobody can see it."""
    ok = result["success"]
    if not ok.any():
        raise ValueError(failures(ok))
    kept = {name: values[ok] for name, values in result.items()}
    n = len(kept["score"])
    over = lambda variance: float(np.sqrt(np.maximum(np.sum(variance), 0)) / n)
    of_probes = kept["stderr"] ** 2
    summary = {
        "n": n,
        "unit": run.dataset.unit,
        "mean": float(kept["score"].mean()),
        "stderr_examples": standard_error(kept["score"]) if n > 1 else float("nan"),
        "stderr_draws": over(kept["stderr_draws"] ** 2 - np.nan_to_num(of_probes)),
        "stderr_probes": over(of_probes),
        "nfe_mean": float(kept["nfe"].mean()),
        "divergences_mean": float(kept["divergences"].mean()),
        "quadrature_error_mean_nats": float(kept["error"].mean()),
    }
    truncation, known = float(kept["truncation"].mean()), np.nan_to_num([summary["stderr_examples"], summary["stderr_probes"]])
    if abs(truncation) > max(0.5 * float(np.hypot(*known)), 1e-4):
        summary |= {"truncation": truncation, "truncation_means": TRUNCATION}
    if not ok.all():
        summary |= {"failed": int((~ok).sum()), "failed_index": np.flatnonzero(~ok).tolist()}
    return summary


def finite(value):
    """Without NaN, which JSON has not."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main():
    f = flags.FLAGS
    run = runs.from_flags()
    dataset, sde = run.dataset, run.network.sde
    foreign = ("dequantization", "divergence", "probes", "noise", "rtol", "atol") if f.bound == "variational" else ("times",)
    for name in foreign:
        if f[name].present:
            raise ValueError(f"--{name} means nothing with --bound={f.bound}: leave it out")
    divergence = f.divergence if f.divergence != "auto" else "exact" if dataset.dim <= 16 else "hutchinson"
    options = {"divergence": divergence, "rtol": f.rtol, "atol": f.atol}
    if divergence != "exact":
        options |= {"probes": f.probes, "noise": f.noise}
    elif f["probes"].present or f["noise"].present:
        raise ValueError("--probes and --noise mean nothing with an exact trace: leave them out, or pass --divergence=hutchinson")
    kind = {"bound": f.bound, "dequantization": f.dequantization, "draws": f.draws}
    if f.bound == "variational":
        method = {"bound": f.bound, "times": f.times, "decoder": "categorical" if dataset.levels else "Gaussian"}
    else:
        about = DEQUANTIZATIONS[f.dequantization](run).about
        method = {
            **({**kind, **about} if dataset.levels else {"dequantization": "none"}),
            **options,
            "solver": METHOD,
        }
    folder = run.workdir / "eval"
    folder.mkdir(exist_ok=True)
    name = folder / f"likelihood_{f.split}"
    kept = {which: Kept(name) for which in (f.split, *f.ood)}
    others = {other: stranger(run, f.split, other, f.seed) for other in f.ood}
    clock = time.perf_counter()
    result = score(run, f.split, f.num, f.batch, f.seed, **kind, times=f.times, kept=kept[f.split], **options)
    results, ood = {f.split: result}, {}
    for other, strange in others.items():
        found = score(strange, f.split, f.num, f.batch, f.seed, **kind, times=f.times, kept=kept[other], **options)
        results[other] = found
        summary = summarize(run, found)
        both = [part["score"][part["success"]] for part in (result, found)]
        auroc = float(roc_auc_score(np.repeat([0, 1], [len(part) for part in both]), np.concatenate(both)))
        ood[other] = {**summary, "auroc": auroc}
    eps = last_time(run, f.bound, kind["dequantization"])
    summary = {
        **run.description(),
        "split": f.split,
        **summarize(run, result),
        "space": dataset.space,
        "levels": dataset.levels,
        **method,
        "class_conditional": run.conditional,
        **({"ood": ood} if ood else {}),
        "eps": eps,
        "noise_at_eps": float(np.hypot(sde.sigma(eps), run.network.gamma(eps)) / sde.alpha(eps)),
        "seed": f.seed,
        "seconds": time.perf_counter() - clock,
    }
    place = claim(name, {**kept[f.split].settings, "num": len(result["score"]), "ood": f.ood})
    savez(place.file(".npz"), index=np.arange(len(result["score"])), **result)
    scores = {which: found["score"][found["success"]] for which, found in results.items()}
    figure = plots.histogram(scores, dataset.unit, place.file(".png"))
    place.write(finite(summary))
    for file in kept.values():
        file.remove()
    drawn = f"{f.times} times" if f.bound == "variational" else "" if divergence == "exact" else f"{f.probes} probes"
    of_probes = f"± {summary['stderr_probes']:.4f} over {drawn}" if np.isfinite(summary["stderr_probes"]) else "± unknown by one probe"
    of_probes = of_probes if drawn else "exact trace"
    of_draws = f", ± {summary['stderr_draws']:.4f} over {f.draws} draws" if np.isfinite(summary["stderr_draws"]) else ""
    print(
        f"{f.split}: {summary['mean']:.4f} {dataset.unit} ± {summary['stderr_examples']:.4f} over {summary['n']} examples, {of_probes}{of_draws}; "
        f"{summary['nfe_mean']:.0f} evaluations each; {run.weights} weights of step {run.step}"
    )
    if "truncation" in summary:
        noise = f"noise of {summary['noise_at_eps']:.2g} standard deviations at eps = {eps:g}"
        print(f"truncation: {noise} may change it by {summary['truncation']:+.4f} {dataset.unit}: {TRUNCATION}")
    error, nats = summary["quadrature_error_mean_nats"], abs(summary["mean"]) * (dataset.dim * np.log(2) if dataset.levels else 1)
    wanted = 3 * (dataset.dim * f.atol + f.rtol * nats)
    if f.bound != "variational" and error > wanted:
        print(f"not converged: a quadrature error of {error:.3g} nats is left where the tolerances ask for {wanted:.3g}: a network rough in time")
    for other, found in ood.items():
        print(f"{other}: {found['mean']:.4f} {dataset.unit} ± {found['stderr_examples']:.4f}; AUROC against {f.split} {found['auroc']:.3f}")
    print(f"wrote {place.file('.json')}, .npz and {figure}")
    left_out = [f"{which}: {failures(found['success'])}" for which, found in results.items() if not found["success"].all()]
    if left_out:
        message = f"{'; '.join(left_out)}. The mean is over the others, and {place.file('.json')} has all indices"
        if not f.allow_failed:
            raise ValueError(f"{message}; pass --allow_failed to end without an error")
        print(message)


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_enum("split", "test", ["train", "test"], "Data to score.")
    flags.DEFINE_enum("dequantization", "uniform", list(DEQUANTIZATIONS), "How levels become continuous data.")
    flags.DEFINE_integer("draws", 1, "Dequantizations of each example.")
    flags.DEFINE_enum("bound", "mean", BOUNDS, "Mean over draws of log p/q; importance, the log of the mean of p/q (exact trace only); variational.")
    flags.DEFINE_integer("times", 64, "variational: evaluations of each example, at random times.")
    flags.DEFINE_enum("divergence", "auto", ["auto", *DIVERGENCES], "auto: exact up to 16 dimensions, else hutchinson.")
    flags.DEFINE_integer("probes", 4, "Probes of each example (hutch++: three products each).")
    flags.DEFINE_enum("noise", "rademacher", ["rademacher", "gaussian"], "Law of the probes.")
    flags.DEFINE_list("ood", [], f"Other data to score as well, in the same histogram: {', '.join(STRANGERS)}.")
    flags.DEFINE_bool("allow_failed", False, "End without an error although the solve of some examples did not succeed.")
    flags.DEFINE_float("rtol", 1e-5, "Relative tolerance.")
    flags.DEFINE_float("atol", 1e-5, "Absolute tolerance.")
    flags.DEFINE_integer("num", 0, "Examples to score; 0 for all.")
    cli.run(main)
