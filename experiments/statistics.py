"""Inception statistics of a data set, the reference of FID:
python -m experiments.statistics --name=cifar10 --inception_weights=FILE --out=stats.npz

Writes mu [2048] and sigma [2048, 2048] of pool_3 in float64, under the names that EDM, ADM and pytorch-fid read; n, the way images were resized and
the SHA-256 of the weights; and the features of --keep images spread over the data, for KID, precision and recall. --reference of
`experiments.evaluate` is such a file, or one of theirs. The .json beside it has the settings, and a file of others is not written over.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Float

from experiments import cli, data, inception, plots, sources
from experiments.kept import check_finite, reserve, savez
from experiments.untrusted import Npz

LAYOUTS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))  # EDM, ADM and pytorch-fid; meanflow
FEATURES = ("features", "pool_3")  # ours; score_sde, which has no moments
KEEP = 10_000
EVERY = 1024  # images after which sums are kept


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance (over n - 1) of features, in float64. n: of how many images, 0 if unknown. features: of some of them, or none, [0, D].
    about: "inception" and "resize", as in `inception.Features.about`, as far as they are known."""

    mu: Float[np.ndarray, " d"]
    sigma: Float[np.ndarray, "d d"]
    n: int
    features: Float[np.ndarray, "m d"]
    about: dict

    @property
    def hash(self) -> str:
        """To be reported with every distance to them."""
        return hashlib.sha256(self.mu.tobytes() + self.sigma.tobytes()).hexdigest()[:8]

    def save(self, path: Path) -> None:
        savez(path, mu=self.mu, sigma=self.sigma, n=self.n, features=self.features, **self.about)


def images_of(dataset: data.Dataset, values: np.ndarray) -> np.ndarray:
    """Raw values as images of 0 to 255. Raises ValueError if they are no images."""
    if not dataset.is_image:
        raise ValueError(f"{dataset.name} has examples of shape {dataset.shape}: Inception sees images [H, W, 1 or 3] of discrete levels")
    return values if dataset.levels == 256 else plots.to_uint8(values, dataset.levels)


def compute(extract: inception.Features, images: np.ndarray, keep: int = KEEP, partial: Path | None = None) -> Statistics:
    """Of images [n, H, W, C] uint8, batch by batch in float64; the features of `keep` of them, spread evenly as classes may be in order.

    partial: the file where the sums are kept while they are computed, and are gone on with if they are of the same images, extractor and `keep`.
    Raises ValueError for fewer than two images.
    """
    n = len(images)
    if n < 2:
        raise ValueError(f"{n} images: expected at least 2 for a covariance")
    chosen = np.zeros(n, bool)
    chosen[np.linspace(0, n - 1, min(keep, n)).astype(int)] = True
    of = str([data.fingerprint(images), keep, extract.about()])
    names = ("total", "outer", "done", "features")
    total, outer, done, *features = (partial and resumed(partial, of, names)) or (0.0, 0.0, 0)
    for pool, _ in extract(images, int(done)):
        features.append(pool[chosen[done : done + len(pool)]])
        check_finite(pool, "images' features", f"Inception {extract.sha256[:8]}", int(done))
        before, pool = done // EVERY, pool.astype(np.float64)
        total, outer, done = total + pool.sum(0), outer + pool.T @ pool, done + len(pool)
        if partial and done // EVERY > before and done < n:
            savez(partial, of=of, **dict(zip(names, (total, outer, done, np.concatenate(features)))))
            print(f"{done}/{n} images", flush=True)
    mu = total / n
    return Statistics(mu, (outer - n * np.outer(mu, mu)) / (n - 1), n, np.concatenate(features), extract.about())


def resumed(partial: Path, of: str, names: tuple[str, ...]) -> list[np.ndarray] | None:
    """What `compute` had before it was interrupted, if it was of the same."""
    try:
        file = Npz(partial)
        return [file[name][()] for name in names] if str(file["of"]) == of else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def computed(out: Path, extract: inception.Features, images: np.ndarray, keep: int = KEEP) -> Statistics:
    """`compute`, kept in the file `out`, and until then beside it."""
    partial = out.with_suffix(".partial.npz")
    found = compute(extract, images, keep, partial)
    found.save(out)
    partial.unlink(missing_ok=True)
    return found


def of_training_data(extract: inception.Features, dataset: data.Dataset) -> Statistics:
    """Of all training images, kept in the user's cache."""
    images = dataset.values["train"]
    about = f"{data.fingerprint(images)} {dataset.levels} {extract.sha256} {extract.resize} {KEEP}"
    cached = sources.CACHE / "statistics" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.npz"
    if cached.exists():
        return read(cached)
    print(f"statistics of {len(images)} training images of {dataset.name}: computed once, kept in {cached}", flush=True)
    images = images_of(dataset, images)
    try:
        return computed(cached, extract, images)
    except OSError as error:
        print(f"{cached} cannot be kept ({error}): it is computed again next time")
    return compute(extract, images)


def read(path: str | Path) -> Statistics:
    """Statistics in any of the common layouts: mu and sigma; ref_mu and ref_sigma; or the features themselves, pool_3.

    Raises FileNotFoundError if there is no such file, ValueError if it is of another layout or damaged.
    """
    wanted = {*FEATURES, "n", "inception", "resize", *(name for layout in LAYOUTS for name in layout)}
    names = Npz(path)
    arrays = {name: names[name] for name in wanted & {*names}}
    layout = next((layout for layout in LAYOUTS if {*layout} <= {*names}), None)
    features = next((arrays[name] for name in FEATURES if name in names), None)
    if layout is None and "pool_3" not in names:
        raise ValueError(f"--reference={path} has the arrays {', '.join(names) or 'none'}: expected mu and sigma, ref_mu and ref_sigma, or pool_3")
    if features is not None and not (features.ndim == 2 and len(features) != 1 and np.issubdtype(features.dtype, np.floating)):
        raise ValueError(f"--reference={path} has features {features.shape} of {features.dtype}: expected floats [n, 2048]")
    if layout is None:
        mu, sigma, n = features.mean(0, dtype=np.float64), np.cov(features, rowvar=False, dtype=np.float64), len(features)
    else:
        mu, sigma = (arrays[name].astype(np.float64) for name in layout)
        n = int(arrays.get("n", 0))
        features = np.zeros((0, *mu.shape), np.float32) if features is None else features
    if mu.ndim != 1 or sigma.shape != mu.shape * 2 or features.shape[1:] != mu.shape or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"--reference={path} has a mean {mu.shape} and a covariance {sigma.shape}: expected finite [2048] and [2048, 2048]")
    return Statistics(mu, sigma, n, features, {name: str(arrays[name]) for name in ("inception", "resize") if name in names})


def main():
    f = flags.FLAGS
    if not f.inception_weights:
        raise ValueError("--inception_weights is missing: expected a file that `python -m experiments.inception` reads or writes")
    if Path(f.out).suffix != ".npz" or f.keep < 0 or f.keep == 1:
        raise ValueError(f"--out={f.out} --keep={f.keep}: expected a name that ends in .npz, and no features or two and more")
    extract = inception.load(f.inception_weights, f.resize)
    dataset = data.from_flags()
    images = images_of(dataset, dataset.values[f.split])
    settings = {"images": data.fingerprint(images), "split": f.split, "keep": f.keep, **extract.about()}
    place = reserve(Path(f.out).with_suffix(""), settings, "--out")
    found = computed(Path(f.out), extract, images, f.keep)
    place.write({"data": dataset.name, "n": found.n, "hash": found.hash})
    print(f"{found.n} images of {dataset.name} to {f.split}, resize {f.resize}, Inception {extract.sha256[:8]}, hash {found.hash}: wrote {f.out}")


if __name__ == "__main__":
    data.define_flags()
    inception.define_flags()
    flags.DEFINE_enum("split", "train", ["train", "test"], "Part of the data.")
    flags.DEFINE_integer("keep", KEEP, "Images whose features are kept as well.")
    flags.DEFINE_string("out", "stats.npz", "Where they go.")
    cli.run(main)
