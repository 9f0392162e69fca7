"""The latent space of a run's probability flow (Song et al. 2021, 2011.13456, section 4.3 and appendix D.4):

    python -m experiments.latent --workdir=runs/digits --job=encode

--job=encode: the first --num examples of --split to their latents x_T, how nearly these are N(0, sigma(T)^2), and how nearly they decode to the
examples again. What is encoded is x as the model was trained on it, dequantized by uniform noise, or with --dequantization=middle the middles of the
levels, which are not data of the model: their latents are short of noise. decode: the --latents of such a file, as they are or changed, to samples.
interpolate: between pairs of --ends, examples of the split or draws of the prior, along the chord and along the great circle. temperature: draws of
the prior multiplied by each of --tau. identifiability: latents of the same examples by the run and by that in --other, trained independently.

Writes latent/<job>_<of what>.npz, .json with every number and how it was made, and .png, into the workdir. Adaptive diffrax throughout; each batch is
kept at once, so that the same command goes on where it was interrupted. Example i depends on --seed and i alone.
"""

import functools
import hashlib
import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from scipy import stats

import samplers
from experiments import cli, plots, runs
from experiments.autoencoder import Autoencoder
from experiments.kept import Kept, check_finite, claim, name_of, quiet, savez, sha256, short
from experiments.untrusted import Npz
from samplers import sample_adaptive, slerp

DEQUANTIZATIONS = ("uniform", "middle")
ENDS = ("examples", "prior")
EMBEDDINGS = ("tokens", "pooled")


def solved(found: dict, tolerance: float) -> dict:
    """What was found, or ValueError if a solve failed."""
    failed = np.flatnonzero(~found.pop("success"))
    if len(failed):
        few = ", ".join(map(str, failed[:8]))
        raise ValueError(f"--tolerance={tolerance}: {len(failed)} examples ({few}{', ...' * (len(failed) > 8)}) need too many steps; loosen it")
    check_finite(next(found[name] for name in ("latent", "x") if name in found), "results", f"--tolerance={tolerance}")
    return found


def encode(
    run: runs.Run, split: str, num: int, batch: int, seed: int, tolerance: float, dequantization: str, kept: Kept | None = None, progress=quiet
) -> dict[str, np.ndarray]:
    """The first `num` examples (0: all) as x [n, ...], their latents [n, ...] and evaluations nfe [n]; of a conditional model, given their labels.

    Raises ValueError for more examples than there are, for middles of data without levels, and for failed solves."""
    dataset, last = run.dataset, run.network.ends(run.params)[0]
    values, labels = dataset.values[split], dataset.labels[split]
    if not 0 <= num <= len(values):
        raise ValueError(f"--num={num}: expected 1 to {len(values)} examples of {split}, or 0 for all")
    if dequantization == "middle" and not dataset.levels:
        raise ValueError(f"--dequantization=middle of {dataset.name}: its data are continuous; leave it out")

    def one_batch(keys, values, labels):
        den = run.denoiser(labels if run.conditional else None)
        x = dataset.to_x(keys, values) if dequantization == "uniform" else dataset.middles(values)
        return {"x": x, **renamed(samplers.encode(den, x, tolerance, tolerance, last), "latent")}

    n, kept = num or len(values), Kept(None) if kept is None else kept
    settings = {"weights": run.fingerprint(), "data": dataset.name, "split": split, "seed": seed, "tolerance": tolerance}
    kept.open({**settings, "dequantization": dequantization})
    parts = lambda start: runs.in_batches(one_batch, n, batch, jax.random.key(seed), values, labels, start=start)
    return solved(kept.complete(parts, n, "examples encoded", progress), tolerance)


def decode(run: runs.Run, latent: Float[np.ndarray, "n ..."], labels, batch: int, tolerance: float, kept: Kept | None = None, progress=quiet) -> dict:
    """x [n, ...] of latents, given labels (None of an unconditional model), and evaluations nfe [n]. Raises ValueError for failed solves."""
    last = run.network.ends(run.params)[0]

    def one_batch(_, latent, labels):
        return renamed(sample_adaptive(run.denoiser(labels), latent, tolerance, tolerance, last), "x")

    kept = Kept(None) if kept is None else kept
    given = [hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for a in (latent, *jax.tree.leaves(labels))]
    kept.open({"weights": run.fingerprint(), "latents": given, "tolerance": tolerance})
    parts = lambda start: runs.in_batches(one_batch, len(latent), batch, jax.random.key(0), latent, labels, start=start)
    return solved(kept.complete(parts, len(latent), "latents decoded", progress), tolerance)


def renamed(solution: samplers.Solution, x: str) -> dict:
    """The fields of a solution, with its x under another name."""
    return {x: solution.x, "nfe": solution.nfe, "success": solution.success}


def labels_of(run: runs.Run, split: str, index: np.ndarray):
    """The labels of examples of a split, None of an unconditional model."""
    return jax.tree.map(lambda a: a[index], run.dataset.labels[split]) if run.conditional else None


def prior(run: runs.Run, n: int, seed: int) -> np.ndarray:
    """n draws x_T of the prior; draw i depends on the seed and i alone."""
    return np.asarray(run.network.prior_sample(jax.random.key(seed), (n, *run.dataset.shape)))


def standard(run: runs.Run, latent: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
    """Latents in standard deviations of the prior, float64."""
    return latent.reshape(len(latent), -1).astype(np.float64) / run.network.prior_std


def length(z: Float[np.ndarray, "n d"]) -> float:
    """The mean of |z|/sqrt(d), which for N(0, I) is near to 1."""
    return float(np.mean(np.linalg.norm(z, axis=1)) / np.sqrt(z.shape[1]))


def gaussianity(z: Float[np.ndarray, "n d"]) -> dict[str, float]:
    """How nearly z is N(0, I): moments of all coordinates with the standard errors that independent ones would have, the Kolmogorov-Smirnov distance
    of all with its 5 % level, and the share of coordinates whose n values pass that test at 5 % (0.95 of N(0, I))."""
    count = z.size
    return {
        "mean": float(z.mean()),
        "mean_stderr": 1 / np.sqrt(count),
        "std": float(z.std()),
        "std_stderr": 1 / np.sqrt(2 * count),
        "kurtosis_excess": float(stats.kurtosis(z, None)),
        "kurtosis_stderr": np.sqrt(24 / count),
        "ks": float(stats.kstest(z.ravel(), "norm").statistic),
        "ks_level_5_percent": float(stats.kstwo.isf(0.05, count)),
        "coordinates_passing_ks_at_5_percent": float(np.mean([stats.kstest(c, "norm").pvalue > 0.05 for c in z.T])),
    }


def correlations(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """Over examples, of each coordinate."""
    a, b = a - a.mean(0), b - b.mean(0)
    return np.sum(a * b, 0) / np.sqrt(np.sum(a**2, 0) * np.sum(b**2, 0))


def agreement(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"], seed: int) -> dict[str, dict[str, float]]:
    """How alike the latents of two models are, in standard deviations of the prior: of the same examples, of each example and the next (shuffled),
    and of random latents: mean and least correlation of a coordinate, mean of |difference| (of independent N(0, 1): 0 and 2/sqrt(pi) = 1.128)."""
    noise = np.random.default_rng(seed).standard_normal((2, *a.shape))
    pairs = {"same": (a, b), "shuffled": (a, np.roll(b, 1, 0)), "random": tuple(noise)}
    figures = lambda a, b: (correlations(a, b).mean(), correlations(a, b).min(), np.abs(a - b).mean())
    names = ("correlation_mean", "correlation_least", "difference_mean")
    return {kind: dict(zip(names, map(float, figures(*pair)))) for kind, pair in pairs.items()}


def images(run: runs.Run, x: Float[np.ndarray, "n ..."]) -> np.ndarray:
    """What is written of x: uint8 images, or other values as in the user's file."""
    return run.dataset.images.written(run.dataset.from_x(x))


# a job returns what is said of its results, their arrays, the function that draws their picture into a file (or None), and what it has kept
def encode_job(run, f, stem: Path):
    kept = Kept(stem), Kept(f"{stem}_decoded")
    found = encode(run, f.split, f.num, f.batch, f.seed, f.tolerance, f.dequantization, kept[0], print)
    index = np.arange(len(found["x"]))
    labels = labels_of(run, f.split, index)
    error = decode(run, found["latent"], labels, f.batch, f.tolerance, kept[1], print)["x"] - found["x"]
    z = standard(run, found["latent"])
    said = {
        "split": f.split,
        "encoded": f"x dequantized by {f.dequantization} noise" if f.dequantization == "uniform" else "middles of the levels",
        "examples": len(z),
        "nfe": float(found["nfe"].mean()),
        "gaussianity": gaussianity(z),
        "length": length(z),
        "round_trip": {"rms": float(np.sqrt(np.mean(error**2))), "max": float(np.abs(error).max())},
    }
    named = dict(zip(EMBEDDINGS, labels)) if isinstance(labels, tuple) else {"label": labels} if run.conditional else {}
    arrays = {"latent": found["latent"], "index": index, **named}
    return said, arrays, functools.partial(plots.latents, z), kept


def decode_job(run, f, stem: Path):
    if f.latents is None:
        raise ValueError("--latents is missing: expected a file that --job=encode wrote")
    try:
        file = Npz(f.latents)
        latent = np.asarray(file["latent"], np.float32)
        labels = tuple(file[name] for name in EMBEDDINGS) if "tokens" in file else file["label"] if "label" in file else None
    except (KeyError, ValueError) as error:
        raise ValueError(f"--latents={f.latents} ({error}): expected an npz with `latent`, as --job=encode writes it") from None
    if latent.shape[1:] != run.dataset.shape or run.conditional != (labels is not None):
        raise ValueError(f"--latents={f.latents}: latents {latent.shape[1:]} {'with' if labels is not None else 'without'} labels; this run is of "
                         f"{run.dataset.shape} {'with' if run.conditional else 'without'} labels")  # fmt: skip
    kept = Kept(stem)
    found = decode(run, latent, labels, f.batch, f.tolerance, kept, print)
    pictures = images(run, found["x"])
    said = {"latents": str(f.latents), "latents_sha256": sha256(f.latents), "samples": len(latent), "nfe": float(found["nfe"].mean())}
    draw = functools.partial(plots.grid, pictures[:100]) if run.dataset.images.is_image else None
    arrays = {"arr_0": pictures}
    if isinstance(labels, np.ndarray):
        arrays["arr_1"] = run.dataset.labels_written(labels)
    return said, arrays, draw, (kept,)


def interpolate(a: Float[np.ndarray, "n ..."], b: Float[np.ndarray, "n ..."], weights: Float[np.ndarray, " w"]) -> dict[str, np.ndarray]:
    """Latents [n, w, ...] between a and b: "linear", (1 - w) a + w b, and "spherical" (`samplers.slerp`)."""
    between = {"linear": lambda w: (1 - w) * a + w * b, "spherical": lambda w: np.asarray(slerp(a, b, w))}
    return {kind: np.stack([at(w) for w in weights], 1).astype(np.float32) for kind, at in between.items()}


def interpolate_job(run, f, stem: Path):
    if f.pairs < 1 or f.frames < 2:
        raise ValueError(f"--pairs={f.pairs}, --frames={f.frames}: expected at least 1 and 2")
    n, weights = 2 * f.pairs, np.linspace(0, 1, f.frames)
    kept = Kept(stem), Kept(f"{stem}_decoded")
    if f.ends == "examples":
        latent = encode(run, f.split, n, f.batch, f.seed, f.tolerance, f.dequantization, kept[0], print)["latent"]
        labels = labels_of(run, f.split, np.arange(n))
    else:
        latent, labels = prior(run, n, f.seed), run.labels(n)
    frames = interpolate(latent[::2], latent[1::2], weights)
    every = np.stack([*frames.values()])  # [kind, pair, frame, ...]
    nearer = (2 * np.arange(f.pairs)[:, None] + (weights > 0.5)).ravel()  # whose label a frame has
    given = jax.tree.map(lambda a: np.tile(a[nearer], (len(frames), *(1,) * (a.ndim - 1))), labels)
    found = decode(run, every.reshape(-1, *run.dataset.shape), given, f.batch, f.tolerance, kept[1], print)
    pictures = images(run, found["x"])
    pictures = pictures.reshape(*every.shape[:3], *pictures.shape[1:])
    lengths = {kind: [length(standard(run, z[:, i])) for i in range(f.frames)] for kind, z in frames.items()}
    said = {"ends": f.ends, "split": f.split, "encoded": f.dequantization, "pairs": f.pairs, "weights": weights.tolist(), "length": lengths}
    draw = None
    if run.dataset.images.is_image:
        panels = {f"{kind} (length {min(lengths[kind]):.2f} to {max(lengths[kind]):.2f})": x for kind, x in zip(frames, pictures)}
        draw = functools.partial(plots.panels, panels, [""] * f.pairs, [f"{w:.2g}" for w in weights])
    return said | {"nfe": float(found["nfe"].mean())}, {"latent": every, **dict(zip(frames, pictures))}, draw, kept


def temperature_job(run, f, stem: Path):
    try:
        taus = [float(tau) for tau in f.tau]
    except ValueError:
        raise ValueError(f"--tau={','.join(f.tau)}: expected numbers, e.g. 0.6,0.8,1") from None
    if not taus or not all(0 <= tau < np.inf for tau in taus) or f.num < 2:
        raise ValueError(f"--tau={','.join(f.tau)} --num={f.num}: expected finite numbers of 0 or more, and at least 2 draws")
    latent, labels, kept = prior(run, f.num, f.seed), run.labels(f.num), Kept(stem)
    every = np.stack([np.float32(tau) * latent for tau in taus])
    given = jax.tree.map(lambda a: np.tile(a, (len(taus), *(1,) * (a.ndim - 1))), labels)
    found = decode(run, every.reshape(-1, *run.dataset.shape), given, f.batch, f.tolerance, kept, print)
    x = found["x"].reshape(every.shape).astype(np.float64)
    deviation = [float(np.sqrt(x_tau.var(0, ddof=1).mean())) for x_tau in x]
    pictures = images(run, found["x"])
    pictures = pictures.reshape(len(taus), f.num, *pictures.shape[1:])
    said = {"tau": taus, "samples": f.num, "deviation": deviation, "nfe": found["nfe"].reshape(len(taus), -1).mean(1).tolist()}
    draw = None
    if run.dataset.images.is_image:
        rows = [f"{tau:g} (deviation {d:.2f})" for tau, d in zip(taus, deviation)]
        draw = functools.partial(plots.panels, {"temperature": pictures[:, :12]}, rows, [""] * min(12, f.num))
    return said, {"arr_0": pictures}, draw, (kept,)


def identifiability_job(run, f, stem: Path):
    if f.other is None:
        raise ValueError("--other is missing: expected the workdir of another run on the same data")
    if f.num == 1:
        raise ValueError("--num=1: the correlation is over examples; expected at least 2")
    other = runs.load_run(f.other, weights=f.weights)
    if isinstance(other.network, Autoencoder) or other.dataset.facts != run.dataset.facts or other.dataset.name != run.dataset.name:
        raise ValueError(f"--other={f.other}: expected a run on the data of --workdir, {run.dataset.name}, not {other.dataset.name}")
    if other.fingerprint() == run.fingerprint():
        raise ValueError(f"--other={f.other} has the very weights of --workdir={f.workdir}: expected a run that was trained independently")
    kept = Kept(stem), Kept(f"{stem}_other")
    found = [encode(r, f.split, f.num, f.batch, f.seed, f.tolerance, f.dequantization, k, print) for r, k in zip((run, other), kept)]
    a, b = (standard(r, part["latent"]) for r, part in zip((run, other), found))
    said = {"other": other.description(), "split": f.split, "encoded": f.dequantization, "examples": len(a), "agreement": agreement(a, b, f.seed)}
    return said, {"latent": found[0]["latent"], "latent_other": found[1]["latent"]}, functools.partial(plots.identifiability, a, b), kept


JOBS = {  # and of what their files are named
    "encode": (encode_job, lambda f: f.split),
    "decode": (decode_job, lambda f: Path(f.latents or "").stem),
    "interpolate": (interpolate_job, lambda f: f.split if f.ends == "examples" else f.ends),
    "temperature": (temperature_job, lambda f: "prior"),
    "identifiability": (identifiability_job, lambda f: Path(f.other or "").name),
}
# flags of one job or some, and in the name those of all that are not at their defaults
OPTIONS = {
    "encode": ("split", "num", "dequantization"),
    "decode": ("latents",),
    "interpolate": ("ends", "split", "dequantization", "pairs", "frames"),
    "temperature": ("num", "tau"),
    "identifiability": ("other", "split", "num", "dequantization"),
}
NAMING = ("seed", "dequantization", "weights", "checkpoint", "lora", "tolerance", "pairs", "frames", "tau")


def check_options(f) -> None:
    """Raise ValueError for a flag that the job does not look at."""
    for name in {name for names in OPTIONS.values() for name in names} - {*OPTIONS[f.job]}:
        if f[name].present:
            raise ValueError(f"--{name}={short(f[name].value)}: --job={f.job} has no such option; it has {', '.join(OPTIONS[f.job])}")
    if f.job == "interpolate" and f.ends == "prior":
        for name in ("split", "dequantization"):
            if f[name].present:
                raise ValueError(f"--{name}={f[name].value}: of examples; expected --ends=examples with it")


def main():
    f = flags.FLAGS
    check_options(f)
    run, clock = runs.from_flags(), time.perf_counter()
    job, of = JOBS[f.job]
    other = {name: f[name].value for name in NAMING if f[name].value != f[name].default}
    stem = run.workdir / "latent" / name_of([f.job, of(f)], other)
    said, arrays, draw, kept = job(run, f, stem)
    chosen = {name: f[name].value for name in OPTIONS[f.job] if name not in ("latents", "other")}
    place = claim(stem, {"job": f.job, "seed": f.seed, "of": [part.settings for part in kept], **chosen})
    file = place.file(".npz")
    savez(file, **arrays)
    made = {**run.description(), "job": f.job, **said, "tolerance": f.tolerance, "eps": run.network.ends(run.params)[0], "seed": f.seed}
    about = place.write({**made, "sha256": sha256(file), "seconds": time.perf_counter() - clock})
    figure = draw(place.file(".png")) if draw else None
    print(json.dumps(said))
    print("\n".join(f"wrote {written}" for written in (file, about, figure) if written))
    for part in kept:
        part.remove()


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_enum("job", "encode", [*JOBS], "What to do.")
    flags.DEFINE_enum("split", "test", ["train", "test"], "Data to encode.")
    flags.DEFINE_integer("num", 64, "Examples or draws; 0 for all examples of the split.")
    flags.DEFINE_enum("dequantization", "uniform", DEQUANTIZATIONS, "What x of discrete levels is encoded.")
    flags.DEFINE_float("tolerance", 1e-5, "rtol and atol.")
    flags.DEFINE_string("latents", None, "decode: a file that --job=encode wrote.")
    flags.DEFINE_enum("ends", "examples", ENDS, "interpolate: between what.")
    flags.DEFINE_integer("pairs", 6, "interpolate: between so many.")
    flags.DEFINE_integer("frames", 9, "interpolate: with both ends.")
    flags.DEFINE_list("tau", ["0", "0.4", "0.6", "0.8", "1", "1.2"], "temperature: what draws are multiplied by.")
    flags.DEFINE_string("other", None, "identifiability: the workdir of the other run.")
    cli.run(main)
