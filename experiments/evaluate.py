"""Judge samples against data: python -m experiments.evaluate --workdir=runs/digits

Draws `groups` sets of samples as large as the test set, and prints each distance to the training data beside its floor, which is
that of the test set. Writes eval/metrics.json and a figure of samples beside data. Distances are between raw values; FD-clf is a
Frechet distance in a classifier trained here, not FID.
"""

import json

import numpy as np
from absl import flags

from experiments import cli, metrics, plots, runs
from experiments import sample as sampling


def measures(run: runs.Run, limit: int):
    """name -> function of a set of flat values [n, D], against the training data."""
    data = run.reference()
    train = data.values["train"][:limit].reshape(-1, data.dim).astype(np.float64)
    result = {
        "sliced W2": lambda a: metrics.sliced_wasserstein2(a, train),
        "energy distance": lambda a: metrics.energy_distance(a, train),
        "precision": lambda a: metrics.precision_recall(a, train)[0],
        "recall": lambda a: metrics.precision_recall(a, train)[1],
    }
    if data.dim == 2:
        result["W2"] = lambda a: metrics.wasserstein2(a, train[: len(a)])
    if data.num_classes:
        classifier = metrics.Classifier(train, data.labels["train"][:limit])
        reference = classifier.features(train)
        result[f"FD-clf ({classifier.hash})"] = lambda a: metrics.frechet(classifier.features(a), reference)
        result["classifier confidence"] = classifier.confidence
    return result


def main():
    f = flags.FLAGS
    if f.groups < 2:
        raise ValueError(f"--groups={f.groups}: expected at least 2, for a standard error")
    if f.limit < 10:
        raise ValueError(f"--limit={f.limit}: expected at least 10 examples")
    run = runs.from_flags()
    data = run.reference()
    test = data.values["test"][: f.limit]
    n = len(test)
    options = sampling.from_flags()
    values, nfe = sampling.generate(run, n * f.groups, f.batch, f.seed, **options)
    flat = lambda v: v.reshape(len(v), -1).astype(np.float64)
    rows = {}
    for name, measure in measures(run, f.limit).items():
        series = [measure(flat(group)) for group in np.split(values, f.groups)]
        rows[name] = {"value": np.mean(series), "stderr": np.std(series, ddof=1) / np.sqrt(f.groups), "floor": measure(flat(test))}
    report = {**run.description(), "n": n, "groups": f.groups, "nfe": nfe, **options, "metrics": rows}
    folder = run.workdir / "eval"
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(report, indent=1))
    print(f"{f.groups} sets of {n} samples ({f.solver}, {nfe:.0f} evaluations, {run.weights} weights of step {run.step}) against the training data;")
    print(f"{'':28}{'samples':>20}   {'test set (floor)':>18}")
    for name, row in rows.items():
        print(f"{name:28}{row['value']:11.4f} ± {row['stderr']:.4f}   {row['floor']:18.4f}")
    figure = folder / "samples_and_data.png"
    if data.is_image:
        plots.side_by_side(*(plots.to_uint8(v[: min(100, n)], data.levels) for v in (values, test)), figure)
    elif data.shape == (2,):
        plots.scatter(values[:n], test, figure)
    print(f"wrote {folder / 'metrics.json'}" + f" and {figure}" * (data.is_image or data.shape == (2,)))


if __name__ == "__main__":
    runs.define_flags()
    sampling.define_flags(steps=30)
    flags.DEFINE_integer("groups", 4, "Sets of samples; the standard error is over them.")
    flags.DEFINE_integer("limit", 2000, "At most so many examples a set.")
    cli.run(main)
