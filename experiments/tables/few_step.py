"""Generators of one to four steps, each by its config, beside their teachers: consistency, trajectory and phased models, mean flows and others.

8 gaussians of FFJORD by the configs _8gaussians, on EDM's, TrigFlow's and the linear path, whose exact flows end alike from the same noise; the
digits of --workdir by the configs _digits; and the digits by class, at guidance 2, of a teacher that knows them: LCM, and LCM-LoRA, whose adapter is
then added to a fine-tune of that teacher to mirrored digits. Models, teachers too, are trained here if OUT has none yet; those of reflow, PeRFlow and
MeanFlow are those of --table=rectification, in OUT/rectification. A teacher takes steps of DDIM, equal in t (Karras's on EDM's path); consistency
functions jump to the data and restart, other flow maps go on without noise.
RMSE: to where the exact flow (of the digits the teacher's, at its guidance) ends from the same noise, in standard deviations of the data, with its
standard error over examples. W2 (exact) and energy distance, of groups of 2000, or FD-clf, precision and recall, of groups of 360, with the standard
error over groups, beside test data's (floor). cost: seconds of training, without the teacher's and the pairs'. FID published: of
CIFAR-10 without classes, by as many steps.
"""

import importlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

from configs import consistency, digits, distill, edm, toy
from experiments import data, evaluate, export, metrics, plots, runs, weights
from experiments.guidance import guide
from experiments.kept import savez
from experiments.progressive import rounds
from experiments.tables import rectification
from experiments.tables._training import digits_run, trained
from experiments.toy import eight_gaussians_in_x
from samplers import grids, jumps, sample, sample_adaptive, solvers
from sde_lib import SDE, Denoiser, FlowMap, GaussianMixture

SEEDS = {"training": 0, "noise": 1, "restarts": 5, "Gaussian": 0}
SOURCES = {
    "FID published": "CIFAR-10: CT, CD 2303.01469; iCT 2310.14189; ECT 2406.14548; sCT, sCD 2410.11081; CTM 2310.02279; "
    "progressive 2202.00512; distilled 2-rectified flow 2209.03003; MeanFlow 2505.13447"
}
READS = ("workdir", "rectification")
PHASED, PROGRESSIVE = ("PCM", "PeRFlow"), "progressive distillation"  # of four steps alone; of one model for each number of steps
# config without the data, and FID of CIFAR-10 by one and two steps
METHODS = {
    "CT": ("consistency:ct", (8.70, 5.83)),
    "iCT": ("consistency:ict", (2.83, 2.46)),
    "ECT": ("consistency:ect", (3.60, 2.11)),
    "sCT": ("consistency:sct", (2.85, 2.06)),
    "CD": ("distill:cd", (3.55, 2.93)),
    "sCD": ("distill:scd", (3.66, 2.52)),
    "CTM": ("distill:ctm", (1.98, 1.87)),
    "TCD": ("distill:tcd", ()),
    "PCM": ("distill:pcm", ()),
    PROGRESSIVE: ("distill:progressive", (9.12, 4.51)),
    "ADD": ("distill:add", ()),
}
OF_RECTIFICATION = {"2-rectified flow": (), "2-rectified flow, distilled (1)": (4.85,), "PeRFlow": (), "MeanFlow": (2.92,)}
# of RMSE by one step and energy distance by four, after 5000 iterations: few_step.md's, of a ring half as wide, which tells |x - x*|
BOUNDS = {"CT": 0.2, "MeanFlow": 0.2} | dict.fromkeys(("iCT", "ECT", "sCT", "CD", "sCD", "TCD"), 0.12)
BOUNDS = {label: bound * 2 / np.sqrt(2) for label, bound in BOUNDS.items()} | dict.fromkeys(PHASED, 2 * 4e-3)
GUIDANCE = 2.0
Draw = Callable[[Float[Array, "b ..."], np.ndarray], Float[Array, "b ..."]]  # x_T [B, ...], and which examples these are -> x_0


class Model(NamedTuple):
    """draws: by number of steps. teacher: the label of the one that it is compared with, and whose flow its RMSE is to. flow: of a teacher, that
    flow. restarts: from other noise, after one step. cost, published: see above."""

    sde: SDE
    draws: dict[int, Draw]
    teacher: str = ""
    flow: Draw | None = None
    restarts: bool = False
    cost: float | None = None
    published: tuple[float, ...] = ()


class Judge(NamedTuple):
    """Of samples [groups n, ...]: measure, (group, x [n, ...]) -> figures by name; unit, the data's standard deviation."""

    data: str
    groups: int
    n: int
    shape: tuple[int, ...]
    unit: float
    measure: Callable

    def row(self, label: str, steps: int | None, x, truth=None, cost=None, published=()) -> tuple[dict, np.ndarray]:
        """A row, and the first figure of each group."""
        with threadpool_limits(1), ThreadPoolExecutor() as pool:  # SciPy's assignment lets others run; BLAS would take their cores
            of = list(pool.map(self.measure, range(self.groups), np.split(x, self.groups)))
        found = {"data": self.data, "model": label, "steps": steps, "RMSE": None, "± RMSE": None}
        if truth is not None:
            square = np.mean((x - truth).reshape(len(x), -1) ** 2, 1) / self.unit**2
            found["RMSE"], found["± RMSE"] = metrics.rms(square)
        for name in ("W2", "energy distance", "FD-clf", "precision", "recall"):
            series = [a[name] for a in of if name in a]
            found |= {name: float(np.mean(series)), f"± {name}": metrics.standard_error(series)} if series else {name: None, f"± {name}": None}
        told = published[steps - 1] if steps and steps <= len(published) else None
        return found | {"cost": cost, "FID published": told}, np.array([next(iter(a.values())) for a in of])


def of_the_plane(groups: int, n: int) -> tuple[Judge, GaussianMixture]:
    """By W2 and energy distance to as many fresh examples of 8 gaussians; and their density, of x."""
    dataset = data.load(toy.get_config().data)
    mixture = eight_gaussians_in_x(dataset)
    fresh = lambda group: np.asarray(mixture.sample(jax.random.key(group), n))
    measure = lambda group, x: {"W2": metrics.wasserstein2(x, fresh(group)), "energy distance": metrics.energy_distance(x, fresh(group))}
    return Judge("8gaussians", groups, n, (2,), 1.0, measure), mixture


def of_images(dataset: data.Dataset, name: str, groups: int, n: int) -> Judge:
    """By FD-clf, precision and recall to the training data."""
    train = evaluate.flat(dataset.values["train"])
    distance = metrics.frechet_to(evaluate.classifier(dataset).features, train)

    def measure(group, x):
        values = evaluate.flat(dataset.from_x(x))
        near = metrics.prdc(values, train)
        return {"FD-clf": distance(values), "precision": near.precision, "recall": near.recall}

    return Judge(name, groups, n, dataset.shape, float(train.std() / dataset.scale), measure)


def compare(judge: Judge, models: dict[str, Model], train, test) -> tuple[list[dict], dict, dict]:
    """The rows of models, teachers before their students, of a Gaussian of the moments of x of the training data, and of x of test data; the first
    figure of each group by (label, steps); and x_0 by (label, steps), and of the flows by (label, None), all from the same noise."""
    count, rows, series, ends = judge.groups * judge.n, [], {}, {}

    def drawn(draw: Draw, sde: SDE):
        x_T = np.asarray(sde.prior_sample(jax.random.key(1), (count, *judge.shape)))
        return np.concatenate([np.asarray(draw(x_T[i], i)) for i in np.array_split(np.arange(count), max(1, count // 2000))])

    def add(label, steps, x, *rest):
        row, series[label, steps] = judge.row(label, steps, x, *rest)
        rows.append(row)

    for label, model in models.items():
        if model.flow:
            ends[label, None] = drawn(model.flow, model.sde)
        for steps, draw in model.draws.items():
            ends[label, steps] = drawn(draw, model.sde)
            truth = None if model.restarts and steps > 1 else ends[model.teacher or label, None]
            first = steps == min(model.draws)
            add(label, steps, ends[label, steps], truth, model.cost if first else None, model.published)
    flat = train.reshape(len(train), -1)
    gaussian = np.random.default_rng(0).multivariate_normal(flat.mean(0), np.cov(flat.T), count).astype(np.float32)
    add("Gaussian of the data's moments", None, gaussian.reshape(count, *judge.shape))
    add("test data (floor)", None, np.concatenate([test] * judge.groups)[:count])
    return rows, series, ends


def better(name: str, models: dict[str, Model], series: dict) -> dict[str, bool]:
    """Whether each model by the fewest of its steps is nearer to the data than its teacher by as many, by three standard errors."""
    gates = {}
    for label, model in models.items():
        if model.teacher:
            gain = series[model.teacher, min(model.draws)] - series[label, min(model.draws)]
            held = gain.mean() > 3 * metrics.standard_error(gain)
            gates[f"{name}: {label} is better than its teacher by as many steps ({min(model.draws)})"] = held
    return gates


def by_ddim(den: Denoiser, n: int, x_T):
    """x_0 [B, ...] by n steps."""
    return sample(den, x_T, few(den.sde, n), solvers.ddim())


def by_flow(den: Denoiser, x_T):
    """x_0 [B, ...] by 32 steps; of digits within 0.010 (RMSE; guided 0.003) of an adaptive solver at 1e-4, where the nearest student is at 0.13."""
    return sample(den, x_T, grids.with_zero(grids.log_snr(den.sde, 32)), solvers.unipc())


def by_jumps(flow_map: FlowMap, n: int, x_T, index):
    """x_0 [B, ...] by n jumps, of a consistency function with restarts; index [B]: which examples these are, each of which has its own noise."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), index)
    return jumps(flow_map, x_T, few(flow_map.sde, n), 1.0 if flow_map.final else 0.0, keys)


def few(sde: SDE, n: int) -> np.ndarray:
    """The times of n steps from T to 0."""
    return np.append(grids.karras(sde, n)[:-1] if sde.few_grid == "karras" else grids.few(sde, n - 1), 0.0)


def draws(run: runs.Run, n: int) -> Draw:
    """Of a model without labels."""
    if run.network.jumps:
        return lambda x_T, index: by_jumps(run.flow_map(), n, x_T, index)
    return lambda x_T, index: by_ddim(run.denoiser(), n, x_T)


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
    """The models by label, for each number of steps, and the teacher of each."""
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
            steps, last = {}, teacher
            for own, folder in rounds(config, out / name / method):
                own.teacher.workdir = str(last.workdir)
                steps[own.objective.progressive.steps] = last = trained(own, folder, quick)
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
    """Seconds of training by log.jsonl, of all rounds of progressive distillation."""
    folders = {f for run in models.values() for f in (run.workdir.parent.glob("steps_*") if run.workdir.name.startswith("steps_") else [run.workdir])}
    logged = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in folders]
    return float(sum((b["step"] - a["step"]) / b["steps_per_second"] for lines in logged for a, b in zip([{"step": 0}, *lines], lines)))


def unguided(name: str, out: Path, quick: bool, given: runs.Run | None) -> dict[str, Model]:
    """The teachers and the students of one data set."""
    found, teachers = students(name, out, quick, given), {}
    title = lambda run: f"teacher, {type(run.network.sde).__name__}, {run.network.kind}"
    mixture = None if given else of_the_plane(1, 1)[1]
    exact = lambda run, x_T: by_flow(run.denoiser(), x_T) if given else sample_adaptive(mixture.denoiser(run.network.sde), x_T, 1e-4, 1e-4).x
    for _, run in found.values():
        flow = lambda x_T, index, run=run: exact(run, x_T)
        teachers[title(run)] = Model(run.network.sde, {n: draws(run, n) for n in (1, 2, 4, 16)}, flow=flow)
    models = {}
    for label, (of, teacher) in found.items():
        run, published = of[min(of)], METHODS[label][1] if label in METHODS else OF_RECTIFICATION[label]
        by_steps = {n: draws(run, n) for n, run in of.items()}
        models[label] = Model(run.network.sde, by_steps, title(teacher), None, run.network.final, cost(of), published)
    return teachers | models


def on_the_plane(out: Path, quick: bool) -> tuple[list[dict], dict[str, bool]]:
    """8 gaussians: rows, the order of methods beside the published one, and whether all are better than their teachers and within their bounds."""
    judge, mixture = of_the_plane(*((2, 16) if quick else (4, 2000)))
    models = unguided("8gaussians", out, quick, None)
    rows, series, ends = compare(judge, models, *(np.asarray(mixture.sample(jax.random.key(i), judge.groups * judge.n)) for i in (100, 101)))
    one = {row["model"]: row for row in rows if row["steps"] and row["steps"] == min(models[row["model"]].draws)}
    gates = better("8gaussians", models, series)
    for label, bound in BOUNDS.items():
        figure = "energy distance" if label in PHASED else "RMSE"
        gates[f"8gaussians: {label} has a {figure} of at most {bound:.3g}"] = one[label][figure] <= bound
    known = [(row["RMSE"], row["FID published"]) for row in one.values() if row["FID published"]]
    order = float(spearmanr(*zip(*known)).statistic)
    rows.append(dict.fromkeys(rows[0]) | {"data": "8gaussians", "model": "rank correlation of RMSE and FID by one step", "RMSE": order})
    shown = {label: ends[label, min(model.draws)] for label, model in models.items() if model.teacher}
    flow = next(ends[label, None] for label, model in models.items() if model.flow)
    plots.clouds(shown | {"exact flow": flow}, out / "8gaussians.png")
    return rows, gates


def on_digits(out: Path, quick: bool, given: runs.Run) -> tuple[list[dict], dict[str, bool]]:
    """Digits: rows, and whether all are better than their teachers."""
    judge = of_images(given.dataset, "digits", *((2, 16) if quick else (4, 360)))
    models = unguided("digits", out, quick, given)
    rows, series, ends = compare(judge, models, *in_x(given.dataset))
    shown = {label: ends[label, min(model.draws)] for label, model in models.items() if model.teacher}
    flow = next(ends[label, None] for label, model in models.items() if model.flow)
    draw(given.dataset, shown | {"teacher's flow": flow}, "by one step (PCM, PeRFlow: by four) from the same noise", out / "digits.png")
    return rows, better("digits", models, series)


def in_x(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """x of the training and of the test data, at the middles of their levels."""
    return tuple(np.asarray(dataset.middles(dataset.values[part])) for part in ("train", "test"))


def draw(dataset: data.Dataset, shown: dict[str, np.ndarray], title: str, path: Path) -> None:
    """A row of 16 images for each."""
    images = np.stack([plots.to_uint8(dataset.from_x(x[:16]), dataset.levels) for x in shown.values()])
    plots.panels({title: images}, list(shown), [""] * 16, path)


def by_class(out: Path, quick: bool) -> tuple[list[dict], dict[str, bool]]:
    """Guided digits of a class: rows of LCM and of LCM-LoRA, the adapter on the teacher and on its fine-tune, and whether all are better than the
    teacher, and the fine-tune."""
    folder, groups, n = out / "by_class", *((2, 16) if quick else (4, 360))
    config = digits.get_config()
    config.model.num_classes, config.objective.label_dropout = 10, 0.1
    teacher = trained(config, folder / "teacher", quick)
    mirrored = folder / "mirrored.npz"
    if not mirrored.exists():
        values, labels = {split: a[:, :, ::-1] for split, a in teacher.dataset.values.items()}, teacher.dataset.labels
        savez(mirrored, x=15 * values["train"], y=labels["train"], x_test=15 * values["test"], y_test=labels["test"])
    config.data.update(name="npz", path=str(mirrored), levels=256)
    config.training.update(steps=1000, init=str(teacher.workdir))
    tuned = trained(config, folder / "mirrored", quick)
    found = {}
    for name in ("lcm", "lcm_lora"):
        config = distill.get_config(f"{name}_digits")
        config.teacher.workdir, config.training.checkpoint_every = str(teacher.workdir), config.training.steps
        config.lora.base = str(teacher.workdir) if config.lora.rank else ""
        found[name] = trained(config, folder / name, quick)
    adapter = folder / "adapter"
    if not (adapter / weights.SAID).exists():
        export.write(str(found["lcm_lora"].workdir), adapter, which=("ema",))
    moved = runs.adapted(tuned, [str(adapter / "lora.safetensors")])

    def base(run):
        den = lambda index: guide(run, GUIDANCE).denoiser(index % 10)
        flow = lambda x_T, index: by_flow(den(index), x_T)
        return Model(run.network.sde, {k: partial(lambda k, x_T, index: by_ddim(den(index), k, x_T), k) for k in (1, 2, 4, 16)}, flow=flow)

    def student(run, of, omega, seconds=None):
        one = lambda k, x_T, index: by_jumps(run.flow_map(index % 10, omega), k, x_T, index)
        return Model(run.network.sde, {k: partial(one, k) for k in (1, 2, 4)}, of, None, True, seconds)

    rows, gates = [], {}
    seconds = {name: cost({1: run}) for name, run in found.items()}
    for name, run, title, of in (
        (
            "digits by class",
            teacher,
            "teacher",
            {"LCM": (found["lcm"], GUIDANCE, seconds["lcm"]), "LCM-LoRA": (found["lcm_lora"], 1.0, seconds["lcm_lora"])},
        ),
        ("mirrored digits by class", tuned, "fine-tune", {"LCM-LoRA of the teacher": (moved, 1.0)}),
    ):
        models = {title: base(run)} | {label: student(given[0], title, *given[1:]) for label, given in of.items()}
        more, series, ends = compare(of_images(run.dataset, name, groups, n), models, *in_x(run.dataset))
        rows, gates = rows + more, gates | better(name, models, series)
        shown = {f"{label}, {k} step{'s' * (k > 1)}": ends[label, k] for label in models for k in (1, 4)} | {"flow": ends[title, None]}
        draw(run.dataset, shown, f"{name}, guidance {GUIDANCE:g}", out / f"{name.replace(' ', '_')}.png")
    return rows, gates


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows and gates: each model, by one step (by four of those in phases), is nearer to the data than its teacher by as many, by more than three
    standard errors, and on 8 gaussians within its bound."""
    teacher = digits_run(workdir)  # first, lest it is missing
    parts = on_the_plane(out, quick), on_digits(out, quick, teacher), by_class(out, quick)
    return sum((rows for rows, _ in parts), []), {} if quick else {name: held for _, gates in parts for name, held in gates.items()}
