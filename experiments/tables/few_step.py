"""Generators of one to four steps, each by its config, beside their teachers: consistency, trajectory and phased models, mean flows and others.

8 gaussians of FFJORD by the configs _8gaussians, on EDM's, TrigFlow's and the linear path, whose exact flows end alike from the same noise; the
digits of --workdir by the configs _digits. Models, teachers too, are trained here if OUT has none yet; those of reflow, PeRFlow and MeanFlow are
those of --table=rectification, in OUT/rectification. A teacher takes steps of DDIM, equal in t (Karras's on EDM's path); consistency functions jump
to the data and restart, other flow maps go on without noise.
RMSE: to where the exact flow (of the digits the teacher's) ends from the same noise, in standard deviations of the data, with its standard error over
examples. W2 (exact) and energy distance, of groups of 2000, or FD-clf, precision and recall, of groups of 360, with the standard error over groups,
beside test data's (floor). cost: seconds of training, without the teacher's. FID published: of CIFAR-10 by as many steps.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from configs import consistency, edm, toy
from experiments import data, evaluate, metrics, plots, runs
from experiments.progressive import rounds
from experiments.tables import rectification
from experiments.tables._training import trained
from experiments.toy import eight_gaussians_mixture
from samplers import grids, jumps, sample, sample_adaptive, solvers
from sde_lib import GaussianMixture

PHASED, PROGRESSIVE = ("PCM", "PeRFlow"), "progressive distillation"  # of four steps alone; of one model for each number of steps
# config without the data, and FID of CIFAR-10 by one and two steps (few_step: of their papers)
METHODS = {
    "CT": ("consistency:ct", (8.70, 5.83)),
    "iCT": ("consistency:ict", (2.83, 2.46)),
    "ECT": ("consistency:ect", (3.60, 2.11)),
    "sCT": ("consistency:sct", (2.85, 2.06)),
    "CD": ("distill:cd", (3.55, 2.93)),
    "sCD": ("distill:scd", (3.66, 2.52)),
    "CTM": ("distill:ctm", (1.73, 1.63)),
    "TCD": ("distill:tcd", ()),
    "PCM": ("distill:pcm", ()),
    PROGRESSIVE: ("distill:progressive", (9.12, 4.51)),
    "ADD": ("distill:add", ()),
}
OF_RECTIFICATION = {"2-rectified flow": (), "2-rectified flow, distilled (1)": (4.85,), "PeRFlow": (), "MeanFlow": (2.92,)}
# of RMSE by one step and energy distance by four, after 5000 iterations: few_step.md's, of a ring half as wide, which tells |x - x*|
BOUNDS = {"CT": 0.2, "MeanFlow": 0.2} | dict.fromkeys(("iCT", "ECT", "sCT", "CD", "sCD", "TCD"), 0.12)
BOUNDS = {label: bound * 2 / np.sqrt(2) for label, bound in BOUNDS.items()} | dict.fromkeys(PHASED, 2 * 4e-3)


def begin(config: ConfigDict, name: str, out: Path, quick: bool, given: runs.Run | None) -> runs.Run:
    """The teacher on the path and of the kind of this student: of 8 gaussians trained here, of the digits `given` but for sCM's."""
    if config.objective.loss == "scm":
        return trained(consistency.get_config(f"trig_{name}"), out / name / "trig", quick)
    if given:
        return given
    if config.sde.name == "EDM":
        return trained(edm.get_config(name), out / name / "edm", quick)
    return rectification.on_the_plane(out.parent / "rectification", quick)


def students(name: str, out: Path, quick: bool, given: runs.Run | None) -> dict[str, tuple[dict[int, runs.Run], runs.Run]]:
    """The models by name, for each number of steps, and the teacher of each."""
    found = {}
    for label, (method, _) in METHODS.items():
        module, _, method = method.partition(":")
        config = importlib.import_module(f"configs.{module}").get_config(f"{method}_{name}")
        teacher = begin(config, name, out, quick, given)
        config.training.checkpoint_every = config.training.steps
        if module == "distill":
            config.teacher.workdir = str(teacher.workdir)
        elif given or label == "ECT":
            config.training.init = str(teacher.workdir)
        if label in PHASED:
            config.objective.consistency.update(phases=4, count=53)  # which divide its intervals
        counts = (4,) if label in PHASED else (1, 2, 4)
        if label == PROGRESSIVE:
            steps = {own.objective.progressive.steps: trained(own, folder, quick) for own, folder in rounds(config, out / name / method)}
            found[label] = {n: steps[n] for n in counts}, teacher
        else:
            found[label] = dict.fromkeys(counts, trained(config, out / name / method, quick)), teacher
    folder = out.parent / "rectification"
    teacher = given or rectification.on_the_plane(folder, quick)
    for label, (run, counts) in rectification.students(name, teacher, folder / name if given else folder, quick).items():
        if label in OF_RECTIFICATION:
            found[label] = dict.fromkeys(counts, run), teacher
    return found


def cost(models: dict[int, runs.Run]) -> float:
    """Seconds of training, of all rounds of progressive distillation."""
    folders = {f for run in models.values() for f in (run.workdir.parent.glob("steps_*") if run.workdir.name.startswith("steps_") else [run.workdir])}
    seconds = 0.0
    for folder in folders:
        logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        before = 0
        for line in logged:
            seconds += (line["step"] - before) / line["steps_per_second"]
            before = line["step"]
    return seconds


def drawn(run: runs.Run, x_T, n: int):
    """x_0 [B, ...] by n jumps, or by n steps of DDIM of a model that is none."""
    sde, jumping = run.network.sde, run.network.final or run.config.objective.loss in ("consistency", "meanflow")
    times = grids.karras(sde, n) if sde.T > 1 else np.append(grids.few(sde, n - 1), 0.0)
    times[-1] = 0.0
    if jumping:
        return jumps(run.flow_map(), x_T, times, 1.0 if run.network.final else 0.0, jax.random.key(5))
    return sample(run.denoiser(), x_T, times, solvers.ddim())


def spread(of) -> float:
    """The standard error of the mean."""
    return float(np.std(of, ddof=1) / np.sqrt(len(of)))


def title(teacher: runs.Run) -> str:
    return f"teacher, {type(teacher.network.sde).__name__}, {teacher.network.kind}"


def of_the_plane(n: int) -> tuple[GaussianMixture, Callable]:
    """The density of x of 8 gaussians, and (group, x [n, 2]) -> W2 and energy distance to as many fresh examples of it."""
    dataset, raw = data.load(toy.get_config().data), eight_gaussians_mixture("ffjord")
    mixture = GaussianMixture((raw.means - dataset.shift) / dataset.scale, raw.stds / dataset.scale)
    fresh = lambda group: np.asarray(mixture.sample(jax.random.key(group), n))
    return mixture, lambda group, x: {"W2": metrics.wasserstein2(x, fresh(group)), "energy distance": metrics.energy_distance(x, fresh(group))}


def of_images(dataset: data.Dataset) -> Callable:
    """(group, x [n, ...]) -> FD-clf, precision and recall to the training data."""
    judge, train = evaluate.classifier(dataset), evaluate.flat(dataset.values["train"])
    reference = metrics.moments(judge.features(train))

    def measure(group, x):
        values = evaluate.flat(dataset.from_x(x))
        near = metrics.prdc(values, train)
        frechet = metrics.frechet_of(*metrics.moments(judge.features(values)), *reference)
        return {"FD-clf": frechet, "precision": near.precision, "recall": near.recall}

    return measure


def problem(name: str, out: Path, quick: bool, given: runs.Run | None) -> tuple[list[dict], bool, dict]:
    """Rows and gates of one data set, and x_0 [n, ...] of each model by the fewest of its steps, all from the same noise."""
    groups, n = (2, 16) if quick else (4, 360 if given else 2000)
    models, rng = students(name, out, quick, given), np.random.default_rng(0)
    if given:
        dataset, measure, exact = given.dataset, of_images(given.dataset), lambda teacher: teacher.denoiser()
        train, test = (np.asarray(dataset.middles(dataset.values[part])) for part in ("train", "test"))
        test = np.concatenate([test] * groups)[: groups * n]
    else:
        mixture, measure = of_the_plane(n)
        exact = lambda teacher: mixture.denoiser(teacher.network.sde)
        train, test = (np.asarray(mixture.sample(jax.random.key(seed), groups * n)) for seed in (100, 101))
    unit, shape = float(train.std()), train.shape[1:]
    noise = lambda run: run.network.sde.prior_sample(jax.random.key(1), (groups * n, *shape))
    batches = lambda fn, x: np.concatenate([np.asarray(fn(part)) for part in np.array_split(x, max(1, len(x) // 2000))])
    found, ends, truths = {}, {}, {}

    def row(label, steps, x, truth=None, models=None, published=()):
        of = [measure(group, part) for group, part in enumerate(np.split(x, groups))]
        found[label, steps] = np.array([next(iter(a.values())) for a in of])
        entry = {"data": name, "model": label, "steps": steps} | dict.fromkeys(("RMSE", "± RMSE"))
        if truth is not None:
            square = np.mean((x - truth).reshape(len(x), -1) ** 2, 1) / unit**2
            entry |= {"RMSE": float(np.sqrt(square.mean())), "± RMSE": spread(square) / (2 * float(np.sqrt(square.mean())))}
        for measured in ("W2", "energy distance", "FD-clf", "precision", "recall"):
            series = [a.get(measured) for a in of]
            entry |= {measured: None, f"± {measured}": None} if series[0] is None else {measured: np.mean(series), f"± {measured}": spread(series)}
        told = published[steps - 1] if steps and steps <= len(published) else None
        return entry | {"cost": None if models is None else cost(models), "FID published": told}

    rows = []
    for teacher in {str(teacher.workdir): teacher for _, teacher in models.values()}.values():
        truths[teacher.workdir] = batches(lambda x, teacher=teacher: sample_adaptive(exact(teacher), x, 1e-4, 1e-4).x, noise(teacher))
        for count in (1, 2, 4, 16):
            x = batches(lambda x, teacher=teacher, count=count: drawn(teacher, x, count), noise(teacher))
            rows.append(row(title(teacher), count, x, truths[teacher.workdir]))
    for label, (of, teacher) in models.items():
        for count, run in of.items():
            x = ends[label, count] = batches(lambda x, run=run, count=count: drawn(run, x, count), noise(run))
            published = METHODS[label][1] if label in METHODS else OF_RECTIFICATION[label]
            truth = None if run.network.final and count > 1 else truths[teacher.workdir]  # it restarts from other noise
            rows.append(row(label, count, x, truth, of if count == min(of) else None, published))
    rows.append(row("Gaussian of the data's moments", None, moments_matched(rng, train, groups * n)))
    rows.append(row("test data (floor)", None, test))

    passed = True
    one = {entry["model"]: entry for entry in rows if entry["steps"] == 1 or (entry["steps"] == 4 and entry["model"] in PHASED)}
    for label, (of, teacher) in models.items():
        gain = found[title(teacher), 1] - found[label, min(of)]
        better = gain.mean() > 3 * spread(gain)
        within = given or label not in BOUNDS or one[label]["energy distance" if label in PHASED else "RMSE"] <= BOUNDS[label]
        if not (better and within):
            print(f"{name}, {label}: {'above its bound' if better else 'no better than its teacher'}")
        passed &= better and within
    known = [(entry["RMSE"], entry["FID published"]) for entry in one.values() if entry["FID published"]]
    if not given:
        rows.append(
            dict.fromkeys(rows[0]) | {"data": name, "model": "rank correlation of RMSE and FID by one step", "RMSE": spearmanr(*zip(*known))[0]}
        )
    return rows, bool(passed), {label: ends[label, min(of)] for label, (of, _) in models.items()} | {"exact flow": next(iter(truths.values()))}


def moments_matched(rng, x, n: int):
    """n examples of the Gaussian of the moments of x [m, ...]."""
    flat = x.reshape(len(x), -1)
    return rng.multivariate_normal(flat.mean(0), np.cov(flat.T), n).astype(np.float32).reshape(n, *x.shape[1:])


def run(out, quick: bool, workdir: str) -> tuple[list[dict], bool]:
    """Rows, and whether each model, by one step (by four of those in phases), is nearer to the data than its teacher by one, by more than three
    standard errors, and on 8 gaussians within its bound."""
    rows, passed, x = problem("8gaussians", out, quick, None)
    plots.clouds(x, out / "8gaussians.png")
    given = runs.load_run(workdir)
    more, also, x = problem("digits", out, quick, given)
    images = {label: plots.to_uint8(given.dataset.from_x(a[:16]), given.dataset.levels) for label, a in x.items()}
    plots.panels(
        {"by one step (PCM, PeRFlow: by four) from the same noise": np.stack(list(images.values()))}, list(images), [""] * 16, out / "digits.png"
    )
    return rows + more, quick or (passed and also)
