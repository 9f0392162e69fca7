"""Straight flows: reflow, distillation, PeRFlow and MeanFlow, by a few equal steps of DDIM in t (of Euler, on the linear path), or of the flow map.

8 gaussians of FFJORD on the linear path, and the digits of --workdir on its own; models are trained here if OUT has none yet. 2-rectified flow: on
pairs of the teacher's flow; distilled (k): on pairs of the 2-rectified flow's, at the k times of its steps; PeRFlow: four windows, eight steps of the
teacher in each; MeanFlow: a flow map of the teacher's data and path, without pairs. All begin from the weights before them. S: straightness
(samplers.straightness), with its standard error over examples. RMSE: in x, to where the teacher's own flow ends from the same x_T, with its standard
error over examples. distance: sliced W2 to the data on 8 gaussians, FD-clf on the digits, of groups of samples, with the standard error over groups,
beside that of test data (floor) and of a Gaussian of the data's moments.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import toy
from experiments import data, evaluate, metrics, plots, reflow, runs
from experiments.tables._training import digits_run, trained
from samplers import jumps, sample, sample_adaptive, solvers
from samplers.straightness import straightness

SEEDS = {"training": 0, "x_T": 1, "dequantization": 2, "Gaussian": 0}
READS = ("workdir",)
PAIRS = {"8gaussians": (40_000, {"solver": "adaptive", "steps": 2, "grid": "log_snr", "tolerance": 1e-4})}
PAIRS["digits"] = (8000, {"solver": "dpm_solver_pp", "steps": 25, "grid": "log_snr", "tolerance": 1e-4})
STEPS = {"8gaussians": 5000, "digits": 1500}
SLOW = {("digits", "perflow"): 600, ("digits", "meanflow"): 1000}  # a step of theirs takes two to four times as long
WINDOWS = 4


def on_the_plane(folder: Path, quick: bool) -> runs.Run:
    """The teacher of 8 gaussians."""
    config = toy.get_config("8gaussians")
    config.training.update(steps=8000, checkpoint_every=8000)
    return trained(config, folder / "8gaussians", quick)


def students(name: str, teacher: runs.Run, folder: Path, quick: bool) -> dict[str, tuple[runs.Run, tuple[int, ...]]]:
    """The models by name, each with the numbers of steps that it is for."""

    def pairs(run: runs.Run, label: str) -> str:
        num, options = PAIRS[name]
        out = folder / f"{label}_pairs"
        if not out.exists():
            reflow.write(run, out, 64 if quick else num, 64, 64 if quick else 2000, **options)
        return str(out)

    def model(label: str, begin: runs.Run, **options) -> runs.Run:
        config = teacher.config.copy_and_resolve_references()
        with config.unlocked():
            config.update(options)
        config.optim.update(learning_rate=config.optim.learning_rate / 2, schedule="cosine")
        steps = SLOW.get((name, label), STEPS[name])
        config.training.update(steps=steps, init=str(begin.workdir), checkpoint_every=steps)
        return trained(config, folder / label, quick)

    first = pairs(teacher, "teacher")
    of = lambda path: {"name": "pairs", "path": path}
    two = model("two_rectified", teacher, data=of(first))
    found = {"teacher": (teacher, (1, 2, 4)), "2-rectified flow": (two, (1, 2, 4))}
    for k in (1, 2):
        options = {"data": of(pairs(two, "two_rectified")), "objective": {"time": {"name": "grid", "count": k}}}
        found[f"2-rectified flow, distilled ({k})"] = model(f"distilled_{k}", two, **options), (k,)
    window = {"objective": {"loss": "perflow", "perflow": {"windows": WINDOWS, "steps": 8}}, "model": {"second_time": True}}
    found["PeRFlow"] = model("perflow", teacher, **window, teacher={"workdir": str(teacher.workdir)}), (WINDOWS,)
    # the velocity of half of the examples, and the paper's weight not in few dimensions (configs/meanflow.py)
    mean = {"loss": "meanflow", "meanflow": {"apart": 0.5, "power": 0.0 if name == "8gaussians" else 1.0}}
    found["MeanFlow"] = model("meanflow", teacher, objective=mean, model={"second_time": True}), (1, 2, 4)
    return found


def few_steps(run: runs.Run, x_T, n: int, path: bool = False):
    """x_0 [B, ...], or all n + 1 x of a Denoiser's path, by n equal steps in t from T to 0: jumps of a flow map, else DDIM."""
    times = np.linspace(run.network.sde.T, 0.0, n + 1)
    if run.config.objective.loss == "meanflow":
        return jumps(run.flow_map(), x_T, times)
    return sample(run.denoiser(), x_T, times, solvers.ddim(), path=path)


def distance(dataset: data.Dataset):
    """(raw values [n, ...]) -> sliced W2 to the training data, or FD-clf where there are classes."""
    train = evaluate.flat(dataset.values["train"][:10_000])
    if not dataset.num_classes:
        return lambda values: metrics.sliced_wasserstein2(evaluate.flat(values), train, 200)
    found = metrics.frechet_to(evaluate.classifier(dataset).features, train)
    return lambda values: found(evaluate.flat(values))


def problem(name: str, teacher: runs.Run, folder: Path, quick: bool) -> tuple[list[dict], dict[str, bool], dict]:
    """Rows and gates of one data set, and the trajectories that are drawn."""
    groups, n = (2, 12) if quick else (8, 2000) if name == "8gaussians" else (4, 360)
    models, dataset = students(name, teacher, folder, quick), data.reference(teacher.dataset)
    measure = distance(dataset)
    x_T = np.asarray(teacher.network.sde.prior_sample(jax.random.key(1), (groups * n, *dataset.shape)))
    batches = lambda fn: np.concatenate([np.asarray(fn(part)) for part in np.array_split(x_T, max(1, len(x_T) // 2000))])
    truth = batches(lambda x: sample_adaptive(teacher.denoiser(), x, 1e-4, 1e-4).x)
    some = jnp.asarray(x_T[: 16 if quick else 1000 if name == "8gaussians" else 128])

    def row(label, steps, x, s=None):
        of = [measure(np.asarray(dataset.from_x(part))) for part in np.split(x, groups)]
        found = {"data": name, "model": label, "steps": steps, "S": None, "± S": None, "RMSE": None, "± RMSE": None}
        if s is not None:
            found |= {"S": float(s.mean()), "± S": metrics.standard_error(np.asarray(s))}
        if x is not truth and steps:
            found["RMSE"], found["± RMSE"] = metrics.rms(np.sum((x - truth).reshape(len(x), -1) ** 2, 1) / dataset.dim)
        return {**found, "distance": float(np.mean(of)), "± distance": metrics.standard_error(np.array(of))}

    rows, ends, straight = [], {}, {}
    for label, (run, counts) in models.items():
        straight[label] = None if "distilled" in label else straightness(run.denoiser(), some, 1e-4, 1e-4).straightness
        for count in counts:
            ends[label, count] = batches(lambda x, run=run, count=count: few_steps(run, x, count))
            rows.append(row(label, count, ends[label, count], straight[label] if count == counts[0] else None))
    rows.append(row("teacher, adaptive", None, truth))
    train, rng = teacher.dataset.to_x(jax.random.split(jax.random.key(2), 1437), dataset.values["train"][:1437]), np.random.default_rng(0)
    flat = np.asarray(train).reshape(len(train), -1)
    gaussian = rng.multivariate_normal(flat.mean(0), np.cov(flat.T), len(x_T)).astype(np.float32).reshape(x_T.shape)
    rows.append(row("Gaussian of the data's moments", None, gaussian))
    floor = measure(dataset.values["test"][:n])
    rows.append(dict.fromkeys(rows[0]) | {"data": name, "model": "test data (floor)", "distance": float(floor)})

    squared = lambda key: np.sum((ends[key] - truth).reshape(len(x_T), -1) ** 2, 1)
    better = lambda key, than: (gain := squared(than) - squared(key)).mean() > 3 * metrics.standard_error(gain)
    reflowed = float(straight["teacher"].mean()) >= 10 * float(straight["2-rectified flow"].mean())
    gates = {f"{name}: reflow makes S ten times smaller": reflowed}
    for label, steps in {"2-rectified flow": 1, "2-rectified flow, distilled (1)": 1, "MeanFlow": 1, "PeRFlow": WINDOWS}.items():
        nearer = f"{name}: {label} is nearer to the teacher's flow than the teacher by as many steps ({steps}), by 3 standard errors"
        gates[nearer] = better((label, steps), ("teacher", steps))
    few = {f"{label}, {count} steps": (models[label][0], count) for label, count in (("teacher", 32), ("2-rectified flow", 32), ("PeRFlow", 32))}
    paths = {title: np.asarray(few_steps(run, jnp.asarray(x_T[:200]), count, path=True)) for title, (run, count) in few.items()}
    return rows, gates, paths


def run(out, quick: bool, workdir: str) -> tuple[list[dict], dict[str, bool]]:
    """Rows and gates of both data sets."""
    teacher = digits_run(workdir)  # first, lest it is missing
    rows, gates, paths = problem("8gaussians", on_the_plane(out, quick), out, quick)
    plots.trajectories(paths, out / "trajectories.png")
    more, others, _ = problem("digits", teacher, out / "digits", quick)
    return rows + more, {} if quick else gates | others
