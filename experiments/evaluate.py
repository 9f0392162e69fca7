"""Judge samples against data: python -m experiments.evaluate --workdir=runs/digits

Draws `groups` sets of samples as large as the test set, and prints each distance to the training data beside its floor, that of the test set.
Distances are between raw values; FD-clf is a Frechet distance in a classifier trained here, not FID. With --inception_weights also FID, IS, KID,
precision and recall in Inception's features, of all samples together, against --reference or the training data.

--samples=FILE.npz takes samples from a file instead (arr_0 uint8 [n, H, W, C], arr_1 labels, as ADM and `experiments.sample` write them), judged
against the data of --config, or of the config.json of --workdir, or against --reference alone. Samples and features are kept while they are computed,
so that the same command goes on where it was interrupted. Writes eval/metrics.json (metrics-2.json, ... where that has figures of other settings), a
line for each figure, with all it depends on, to eval/metrics.jsonl (once, however often it is measured), and a picture of samples beside data (in
FILE.eval where there is no --workdir).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import cli, data, guidance, inception, metrics, plots, runs, sources, statistics, weights
from experiments import sample as sampling
from experiments.kept import SETTINGS, Kept, check_finite, claim, quiet, sha256, write_text
from experiments.untrusted import Npz, read_json

TRAINING = 60_000  # at most so many examples train the classifier
LARGEST = 4096  # numbers of an example up to which raw values are compared
DRAWING = (  # flags of `drawn`
    "solver", "option", "steps", "grid", "tolerance", "corrector", "snr", "corrector_steps", "diffusion", "strength",
    *guidance.NAMES, "threshold", "seed", "weights", "checkpoint", "lora", "batch",
)  # fmt: skip
MEASURED = ("value", "stderr", "floor", "deviation_of_parts")  # of a figure, beside what it depends on
IN_CLASSIFIER = ("FD-clf", "classifier confidence", "label agreement")  # figures whose reference they are


@dataclass(frozen=True)
class Samples:
    """values: raw, [n, ...]. images: of 0 to 255, or none. labels: that they were asked for, or None. about: how they were drawn."""

    values: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray | None
    about: dict


def drawn(run: runs.Run, n: int, kept: Kept) -> Samples:
    """n samples of a run, as the flags say."""
    f, options = flags.FLAGS, sampling.from_flags(run)
    values, nfe = sampling.generate(run, n, f.batch, f.seed, kept=kept, progress=print, **options)
    images = statistics.images_of(run.dataset.images, values) if run.dataset.images.is_image else None
    labels = sampling.guided(run, **options)[0].labels(n)
    asked = labels if isinstance(labels, np.ndarray) else None  # of embeddings no classifier knows
    return Samples(values, images, asked, sampling.about(run, n, nfe, f.seed, options))


def from_file(path: str, dataset: data.Dataset | None) -> Samples:
    """Samples of an .npz file, and of the .json beside it how they were drawn. Raises ValueError if they are no samples of the data set."""
    path, file = Path(path), Npz(path)
    if "arr_0" not in file:
        raise ValueError(f"--samples={path} has the arrays {', '.join(file) or 'none'}: expected arr_0, uint8 [n, H, W, C]")
    values, labels = file["arr_0"], file.get("arr_1")
    shape, discrete = values.shape[1:], values.dtype.kind in "biu"
    if values.ndim < 2 or (dataset and (shape != dataset.shape or discrete != bool(dataset.levels))):
        expected = (
            f"{('uint8' if dataset.is_image else 'integers') if dataset.levels else 'floats'} {dataset.shape}, as {dataset.name}"
            if dataset
            else "uint8 [n, H, W, C]"
        )
        raise ValueError(f"--samples={path} has examples {shape} of {values.dtype}: expected {expected}")
    if labels is not None and labels.shape != (len(values),):
        raise ValueError(f"--samples={path} has labels {labels.shape}: expected {len(values)}")
    about = {"samples_file": path.name, "sha256": sha256(path), "samples": len(values)}
    try:
        said = read_json(path.with_suffix(".json"))
        about |= {name: said[name] for name in said if name != SETTINGS} if said["sha256"] == about["sha256"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # of another program, which does not say
    if not discrete:
        check_finite(values, "samples", f"--samples={path}")
    order = np.random.default_rng(0).permutation(len(values))  # a file may be in that of its classes
    values, labels = values[order], None if labels is None else labels[order]
    images = values if values.dtype == np.uint8 and len(shape) == 3 and shape[-1] in (1, 3) else None
    if dataset:
        values = dataset.read(values)
        images = statistics.images_of(dataset, values) if dataset.is_image else None
        labels = None if labels is None else dataset.labels_read(labels)
    return Samples(values, images, labels, about)


def classifier(dataset: data.Dataset) -> metrics.Classifier:
    """Of the training data, trained once and kept in the user's cache."""
    values, labels = dataset.values["train"][:TRAINING], dataset.labels["train"][:TRAINING]
    cached = sources.CACHE / "classifiers" / f"{data.fingerprint(values, labels)[:24]}.npz"
    try:
        return metrics.load_classifier(cached)
    except (OSError, ValueError):
        found = metrics.classifier(flat(values), labels)
    try:
        found.save(cached)
    except OSError as error:
        print(f"{cached} cannot be kept ({error}): it is trained again next time")
    return found


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).astype(np.float64)


def measures(dataset: data.Dataset, limit: int) -> Callable:
    """(raw values [n, ...], labels [n] or None) -> figures by name, against the first `limit` training examples, and in a classifier against all."""
    train = flat(dataset.values["train"][:limit])
    judge = classifier(dataset) if dataset.num_classes else None
    distance = metrics.frechet_to(judge.features, flat(dataset.values["train"][:TRAINING])) if judge else None

    def measure(values, labels):
        values = flat(values)
        found = {
            "sliced W2": metrics.sliced_wasserstein2(values, train),
            "energy distance": metrics.energy_distance(values, train),
            "MMD^2": metrics.mmd2(values, train),
            **metrics.prdc(values, train)._asdict(),
        }
        if dataset.dim == 2:
            found["W2"] = metrics.wasserstein2(values, train[: len(values)])
        if judge:
            found[f"FD-clf ({judge.hash})"] = distance(values)
            found["classifier confidence"] = judge.confidence(values)
        if judge and labels is not None:
            found["label agreement"] = judge.agreement(values, labels)
        return found

    return measure


def count(n: int) -> str:
    """FID-50k is called FID."""
    return "" if n == 50_000 else f"-{n // 1000}k" if n % 1000 == 0 else f"-{n}"


def check_reference(extract: inception.Features, reference: statistics.Statistics) -> None:
    """Raises ValueError for a reference made in another way."""
    for name, ours in extract.about().items():
        if reference.about.get(name, ours) != ours:
            raise ValueError(f"the reference is of {name} {reference.about[name]}, not {ours}: make it again with python -m experiments.statistics")


def in_inception(
    extract: inception.Features, images: np.ndarray, reference: statistics.Statistics, kept: Kept | None = None
) -> dict[str, tuple[float, float]]:
    """Figures of images of 0 to 255 by name, with the standard deviation over the parts that their authors report (NaN if none). kept: where features
    are kept while they are computed.

    Raises ValueError for a reference made in another way.
    """
    check_reference(extract, reference)
    kept = Kept(None) if kept is None else kept
    kept.open({"images": data.fingerprint(images), **extract.about()})
    parts = lambda start: ({"pool": pool, "logits": logits} for pool, logits in extract(images, start))
    found = kept.complete(parts, len(images), "images", print if len(images) > 10_000 else quiet)
    pool, logits = found["pool"], found["logits"]
    check_finite(np.concatenate([pool, logits], 1), "images' features", f"Inception {extract.sha256[:8]}")
    if reference.mu.shape != pool.shape[1:]:
        raise ValueError(f"the reference is of {len(reference.mu)} features: expected {pool.shape[1]}")
    end = count(len(images))
    found = {f"FID{end}": (metrics.frechet_of(*metrics.moments(pool), reference.mu, reference.sigma), np.nan)}
    found[f"IS{end}"] = metrics.inception_score(logits)
    if len(reference.features):
        found[f"KID{end}"] = metrics.kid(pool, reference.features)
        near = metrics.prdc(pool, reference.features, k=3)
        found |= {f"Inception precision{end}": (near.precision, np.nan), f"Inception recall{end}": (near.recall, np.nan)}
    return found


def by_values(dataset: data.Dataset, samples: Samples, n: int) -> dict[str, dict]:
    """The figures of `measures` over groups of n samples, beside their floor, with what they depend on."""
    f, train = flags.FLAGS, dataset.values["train"]
    measure = measures(dataset, f.limit)
    split = lambda a: [None] * f.groups if a is None else np.split(a[: n * f.groups], f.groups)
    series = [measure(*group) for group in zip(split(samples.values), split(samples.labels))]
    floor = measure(dataset.values["test"][:n], None if samples.labels is None else dataset.labels["test"][:n])
    about = {"n": n, "groups": f.groups, "reference": data.fingerprint(train)[:8], "reference_n": min(f.limit, len(train))}
    rows = {}
    for name, value in floor.items():
        of = [group[name] for group in series]
        rows[name] = {"value": np.mean(of), "stderr": metrics.standard_error(of), "floor": value, **about}
        if name.startswith(IN_CLASSIFIER):
            rows[name]["reference_n"] = min(TRAINING, len(train))
    return rows


def by_inception(
    extract: inception.Features, dataset: data.Dataset | None, samples: Samples, reference: statistics.Statistics, kept: Kept
) -> dict[str, dict]:
    """The figures of `in_inception` of all samples, with what they depend on, and their floor where the test set has as many images: a distance of
    fewer is none."""
    n = len(samples.images)
    about = {"n": n, **extract.about(), "reference": reference.hash, "reference_n": reference.n or None}
    enough = dataset and len(dataset.values["test"]) >= n
    floor = in_inception(extract, statistics.images_of(dataset, dataset.values["test"][:n]), reference) if enough else {}
    rows = {}
    for name, (value, deviation) in in_inception(extract, samples.images, reference, kept).items():
        rows[name] = {"value": value, "deviation_of_parts": deviation, "floor": floor.get(name, (np.nan,))[0], **about}
    return rows


def main():
    f = flags.FLAGS
    if f.groups < 2:
        raise ValueError(f"--groups={f.groups}: expected at least 2, for a standard error")
    if f.limit < 10:
        raise ValueError(f"--limit={f.limit}: expected at least 10 examples")
    for name, needed in (("resize", "inception_weights"), ("config", "samples")):
        if f[name].present and not f[needed].value:
            raise ValueError(f"--{name}: is of --{needed}; expected that with it, or no --{name}")
    if f.reference and not f.inception_weights:
        raise ValueError(f"--reference={f.reference}: pass --inception_weights as well, which it is compared in")
    extract = inception.load(f.inception_weights, f.resize) if f.inception_weights else None
    reference = statistics.read(f.reference) if f.reference else None
    if reference:
        check_reference(extract, reference)
    if f.samples:
        for name in DRAWING:
            if f[name].present:
                raise ValueError(f"--{name} is of samples that are drawn, not of --samples={f.samples}: leave one of them out")
        dataset = None
        if f.config or f.workdir:
            dataset = data.reference(data.load(f.config.data) if f.config else weights.dataset(f.workdir, cli.load_config(f.workdir).data))
        if not (dataset or reference):
            raise ValueError(f"--samples={f.samples}: name the data by --config or --workdir, or --reference and --inception_weights")
    else:
        run = runs.from_flags(sources=True)
        dataset = data.reference(run.dataset)
    by_value = dataset is not None and dataset.dim <= LARGEST
    if not (by_value or extract):
        raise ValueError(f"{dataset.name} has {dataset.dim} numbers an example, too many to compare as they are: pass --inception_weights")
    if extract and dataset and not dataset.is_image:
        raise ValueError(f"--inception_weights: examples of {dataset.name} are no images [H, W, 1 or 3] but {dataset.shape}")
    folder = Path(f.workdir) / "eval" if f.workdir else Path(f.samples).with_suffix(".eval")
    keeps = [Kept(folder / name) for name in ("samples", "features")]
    if f.samples:
        samples = from_file(f.samples, dataset)
        n = min(len(dataset.values["test"]), f.limit, len(samples.values) // f.groups) if dataset else 0
        if dataset and n < 10:
            raise ValueError(f"--samples={f.samples} has {len(samples.values)}: expected at least {10 * f.groups}, for {f.groups} groups")
    else:
        n = min(len(dataset.values["test"]), f.limit)
        if n < 10:
            raise ValueError(f"{dataset.name} has {n} test examples: expected at least 10, with which samples are compared")
        samples = drawn(run, n * f.groups, keeps[0])
    folder.mkdir(parents=True, exist_ok=True)

    rows = by_values(dataset, samples, n) if by_value else {}
    if extract:
        if samples.images is None:
            raise ValueError(f"--inception_weights: the samples are no images [H, W, 1 or 3] but {samples.values.shape[1:]}")
        reference = reference or statistics.of_training_data(extract, dataset)
        rows |= by_inception(extract, dataset, samples, reference, keeps[1])
    if bad := [name for name, row in rows.items() if not np.isfinite(row["value"])]:
        raise ValueError(f"{len(bad)} of {len(rows)} figures are not finite, though samples and data are: {', '.join(bad)}; nothing is written")
    rows = {name: {key: None if value != value else value for key, value in row.items()} for name, row in rows.items()}  # JSON has no NaN
    if dataset and np.ndim(dataset.units.step):
        print(f"distances are between standardised coordinates, {dataset.space}")
        rows = {name: row | {"space": dataset.space} for name, row in rows.items()}
    of = {name: {key: row[key] for key in row if key not in MEASURED} for name, row in rows.items()}
    place = claim(folder / "metrics", {**keeps[0].settings, **samples.about, "figures": of})
    place.write({**samples.about, "metrics": rows})
    log, lines = folder / "metrics.jsonl", [json.dumps({"figure": name, **row, **samples.about}) for name, row in rows.items()]
    before = log.read_text().splitlines() if log.exists() else []
    write_text(log, "".join(f"{line}\n" for line in [*before, *(line for line in lines if line not in before)]))

    about = samples.about
    how = f"{about['solver']}, {about['nfe']:.0f} evaluations, {about['weights']} weights of step {about['step']}" if "solver" in about else f.samples
    print(
        f"{f'{f.groups} sets of {n}' if dataset else len(samples.values)} samples ({how}) against {'the training data' if dataset else f.reference};"
    )
    print(f"{'':28}{'samples':>20}   {'test set (floor)':>18}")
    for name, row in rows.items():
        spread = row.get("stderr", row.get("deviation_of_parts"))
        floor = "" if row["floor"] is None else f"{row['floor']:18.4f}"
        print(f"{name:28}{row['value']:11.4f}{'' if spread is None else f' ± {spread:.4f}':9}   {floor}")
    if extract:
        print(f"Inception {extract.sha256[:8]}, resize {f.resize}, reference {reference.hash} of {reference.n or 'unknown'} images, ", end="")
        print(f"{len(samples.images)} samples")
    written = [place.file(".json"), folder / "metrics.jsonl"]
    picture = folder / f"samples_and_data{place.suffix}.png"
    if dataset and dataset.is_image:
        test = statistics.images_of(dataset, dataset.values["test"][: min(100, n)])
        written.append(plots.side_by_side(samples.images[: len(test)], test, picture))
    elif dataset and dataset.shape == (2,):
        written.append(plots.scatter(dataset.plane(samples.values[:n]), dataset.plane(dataset.values["test"][:n]), picture))
    for kept in keeps:
        kept.remove()
    print("wrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    runs.define_flags()
    sampling.define_flags(steps=30)
    inception.define_flags()
    config_flags.DEFINE_config_file("config", None, "With --samples: the experiment whose data they are judged against.")
    flags.DEFINE_string("samples", "", "Samples of an .npz file, arr_0, instead of drawing them.")
    flags.DEFINE_string("reference", "", "Inception statistics, of `experiments.statistics` or another program; the training data's by default.")
    flags.DEFINE_integer("groups", 4, "Sets of samples; the standard error is over them.")
    flags.DEFINE_integer("limit", 2000, "At most so many examples a set.")
    cli.run(main)
