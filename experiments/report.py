"""One page of a run: python -m experiments.report --workdir=runs/moons

Writes report.html (--out), a single file that opens offline: samples by steps, trajectories, the loss, quality against evaluations, likelihoods,
metrics, the run's own samples, the config, and of a 2-D model an explorer of its density, score and particles (`experiments.explorer`). What other
commands have written (log.jsonl, eval/, samples/) is shown as they say it; the samples of the first two and of the curve are drawn here, and those of
the curve kept while they are drawn, so that the same command goes on where it was interrupted. The same run and flags give the same bytes. A page of
other settings stays: report-2.html is then written, or an --out of one's own refused. The settings are in the .json beside it.
"""

import base64
import bisect
import html
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from string import Template

import jax
import numpy as np
from absl import flags

from experiments import cli, data, evaluate, explorer, metrics, parallel, plots, runs
from experiments import sample as sampling
from experiments.kept import SETTINGS, Kept, check_finite, claim, reserve, write_text
from experiments.untrusted import read_json
from samplers import grids

PAGE = Path(__file__).parent / "report_page"
STEPS, SHOWN = (1, 2, 4, 8, 16, 32), 6  # of "samples by steps": images of each
SOLVERS = ("ddim", "dpm_solver_pp", "heun")  # of the curve
LIMIT = 2000  # training examples that samples without classes are compared with, as `evaluate` does
DIRECTIONS = 100  # of the sliced distance: a tenth of those of `evaluate`, and of its time
PATHS = ("dpm_solver_pp", "sde_dpm_solver_pp")  # of the trajectories: the ODE, the reverse SDE
PICTURE, PICTURES = 300_000, 6  # bytes of a picture of another command that is shown, and how many
OPTIONS = {"tolerance": 1e-5, "option": (), "threshold": "none"}


def text(value) -> str:
    """Anything as HTML that shows it and does nothing else."""
    return html.escape(str(value))


def code(*words) -> str:
    """A command as it is typed in a shell."""
    return f"<code>{text(shlex.join(map(str, words)))}</code>"


def command(run: runs.Run, name: str, *words: str) -> str:
    return code("python", "-m", f"experiments.{name}", f"--workdir={run.workdir}", *words)


def said(values: Mapping) -> str:
    """A line of names and values, those that are empty left out."""
    shown = {name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else number(value) for name, value in values.items()}
    return f'<p class="about">{text("; ".join(f"{name} {value}" for name, value in shown.items() if value not in ("", "None")))}</p>'


def number(value) -> str:
    """To four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: list[str], rows: list[list]) -> str:
    """Columns in which there are numbers are flush right."""
    kind = lambda i: ' class="number"' if any(isinstance(row[i], int | float) for row in rows) else ""
    line = lambda tag, row: "".join(f"<{tag}{kind(i)}>{text('' if cell is None else number(cell))}</{tag}>" for i, cell in enumerate(row))
    body = "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{line("th", head)}</tr></thead><tbody>\n{body}</tbody></table></div>'


def image(png: bytes, caption: str, pixels: bool = False) -> str:
    """caption: as HTML or plain text of ours; of a file's words only through `text`."""
    source, alt = f"data:image/png;base64,{base64.b64encode(png).decode()}", html.escape(caption)
    return f'<figure><img{" class=pixels" * pixels} src="{source}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'


def drawn(plot: Callable, *args, caption: str, pixels: bool = False) -> str:
    """What a function of `experiments.plots` draws."""
    with tempfile.TemporaryDirectory() as folder:
        return image(plot(*args, Path(folder) / "picture.png").read_bytes(), caption, pixels)


def picture(file: Path, caption: str) -> str:
    """A picture that another command has written, if it is there and of at most `PICTURE` bytes."""
    if not file.is_file():
        return ""
    size = file.stat().st_size
    return image(file.read_bytes(), caption) if size <= PICTURE else f"<p>{text(file.name)} has {size} bytes, too many for this page.</p>"


def read(file: Path) -> dict | None:
    """The JSON object of a file, None if there is no file. Raises ValueError for another."""
    if not file.is_file():
        return None
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not what a command of ours writes: expected a JSON object; remove it")
    return found


def options(run: runs.Run, solver: str, steps: int) -> dict:
    """Of `sample.generate`, for a flow map its jumps in the place of `solver`."""
    if not run.network.jumps:
        return {**OPTIONS, "solver": solver, "steps": steps, "grid": flags.FLAGS.grid if steps > 1 else "few"}
    low, high = run.config.objective.consistency.omega
    told = {"guidance": float(np.clip(1.0, low, high))} if high else {}
    return {**OPTIONS, "solver": sampling.JUMPS, "steps": steps, "grid": run.network.sde.few_grid, **told}


def standardised(dataset: data.Dataset) -> str:
    """A sentence for pictures of coordinates that each have their own scale; none of others."""
    return f" Coordinates are standardised: {dataset.space}." if np.ndim(dataset.units.step) else ""


def samples_by_steps(run: runs.Run) -> str:
    """The same noise by 1, 2, 4, ... steps or jumps."""
    f, kind = flags.FLAGS, run.dataset.images
    if not (kind.is_image or kind.shape == (2,)):
        return f"<p>Examples {text(kind.shape)} are neither images nor points of the plane: there is no picture of them.</p>"
    n = SHOWN if kind.is_image else 1000
    panels = {steps: sampling.generate(run, n, f.batch, f.seed, **options(run, "dpm_solver_pp", steps))[0] for steps in STEPS}
    how = options(run, "dpm_solver_pp", 2)
    what = f"{how['solver']} on the grid {how['grid']}" + ("" if run.network.jumps else ", the last step of which denoises; one step is E[x_0 | x_T]")
    caption = f"The same {n} starts by {', '.join(map(str, STEPS))} {'jumps' if run.network.jumps else 'steps'}: {what}; seed {f.seed}."
    names = {f"{steps} {'jump' if run.network.jumps else 'step'}{'s' * (steps > 1)}": values for steps, values in panels.items()}
    caption += standardised(kind)
    if kind.is_image:
        return drawn(plots.columns, {"": {name: plots.to_uint8(v, kind.levels) for name, v in names.items()}}, caption=caption)
    test = data.shown(run.dataset)[:n]
    points = names | ({"test data": test} if len(test) else {})
    return drawn(plots.by_steps, {name: kind.plane(values) for name, values in points.items()}, caption=caption)


def trajectories(run: runs.Run) -> str:
    """Of the probability-flow ODE, and of the reverse SDE where there is a score, from the same starts."""
    f, kind = flags.FLAGS, run.dataset.images
    if run.network.jumps:
        return "<p>A flow map jumps: it has no trajectories. Its samples by jumps are above.</p>"
    if not (kind.is_image or kind.shape == (2,)):
        return "<p>Neither images nor points of the plane.</p>"
    devices = jax.device_count()
    index = np.arange(-(-(SHOWN if kind.is_image else 64) // devices) * devices)
    keys = parallel.shard(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(f.seed), index))
    den, found = run.denoiser(run.labels(len(index))), {}
    for solver in PATHS[: 1 if den.coupled else 2]:
        path = sampling.sampler(run.network.sde, run.dataset.shape, run.workdir, path=True, **options(run, solver, 40))(
            den, keys, sampling.starts(run)(keys, index)
        )[2]
        found[solver] = np.asarray(path)
        check_finite(np.swapaxes(found[solver], 0, 1), "trajectories", sampling.described(options(run, solver, 40)))
    about = f"40 steps on the grid {f.grid}, seed {f.seed}"
    if kind.shape == (2,):
        panels = {solver: kind.plane(run.dataset.from_x(path)) for solver, path in found.items()}
        caption = f"{len(index)} paths from the prior (grey) to the data (blue), {about}.{standardised(kind)}"
        return drawn(plots.trajectories, panels, caption=caption)
    pictures = []
    for solver, path in found.items():
        caption = f"{solver}, {about}: from the prior (left) to the data."
        pictures.append(drawn(plots.trajectory, sampling.frames(run, path, SHOWN), caption=caption, pixels=True))
    return "".join(pictures)


def loss(run: runs.Run) -> str:
    """Of log.jsonl."""
    file = plots.loss_curve(run.workdir) if (run.workdir / "log.jsonl").is_file() else None
    return picture(file, "The training loss of log.jsonl, by step.") if file else "<p>No loss has been logged here (log.jsonl).</p>"


def within(run: runs.Run, solver: str, nfe: int) -> int:
    """The most steps of a solver with at most `nfe` evaluations, the denoising one included; 0 if there are none."""
    cost = lambda steps: sampling.make_solver(solver)(run.network.sde, getattr(grids, flags.FLAGS.grid)(run.network.sde, steps - 1)).nfe + 1
    fits = bisect.bisect_right(range(2, nfe + 1), nfe, key=cost)  # more steps cost more
    return fits + 1 if fits else 0


def curve(run: runs.Run, keeps: list[Kept]) -> str:
    """The distance to the training data against evaluations, with its standard error over groups, and the floor of the test data. keeps: to which
    what is kept is added."""
    f = flags.FLAGS
    if not f.nfe:
        return "<p>Left out by --nfe=.</p>"
    budgets = sorted({int(word) for word in f.nfe})
    try:
        dataset = data.reference(run.dataset)
    except OSError as error:
        return f"<p>The data that samples are judged against are not here: {text(error)}.</p>"
    n = min(f.num, len(dataset.values["test"]))
    if n < 10 or dataset.dim > evaluate.LARGEST:
        return f"<p>{n} test examples of {dataset.dim} numbers: this distance is of 10 or more, of at most {evaluate.LARGEST} numbers.</p>"
    jumps = run.network.jumps
    planned = [(s, b if jumps else within(run, s, b)) for s in ((sampling.JUMPS,) if jumps else SOLVERS) for b in budgets]
    planned = [job for job in dict.fromkeys(planned) if job[1]]  # two budgets may have the same steps
    if not planned:
        return f"<p>No solver of this curve has at most {budgets[-1]} evaluations: --nfe=2 is the least.</p>"
    train = evaluate.flat(dataset.values["train"][: evaluate.TRAINING if dataset.num_classes else LIMIT])
    if dataset.num_classes:
        judge = evaluate.classifier(dataset)
        name, distance = f"FD-clf ({judge.hash})", metrics.frechet_to(judge.features, train)
    else:
        name, distance = f"sliced W2, {DIRECTIONS} directions", lambda values: metrics.sliced_wasserstein2(values, train, DIRECTIONS)
    floor = distance(evaluate.flat(dataset.values["test"][:n]))
    lines, rows = {solver: {} for solver, _ in planned}, []
    for solver, steps in planned:
        keeps.append(Kept(run.workdir / "report"))
        print(f"{solver}, {steps} steps", flush=True)
        values, nfe = sampling.generate(run, n * f.groups, f.batch, f.seed, kept=keeps[-1], **options(run, solver, steps))
        series = np.array([distance(evaluate.flat(group)) for group in np.split(values, f.groups)])
        lines[solver][int(nfe)] = series
        rows.append([solver, steps, int(nfe), float(series.mean()), metrics.standard_error(series), floor])
    grid = options(run, SOLVERS[0], 2)["grid"]
    of = f"the first {len(train)} training examples of {dataset.name}"
    about = {"groups": f.groups, "of": f"{n} samples", "grid": grid, "seed": f.seed, "reference": of}
    caption = f"{name} to the training data: mean and standard error of {f.groups} groups of {n} samples; dashed: {n} test examples."
    head = ["solver", "steps", "NFE", name, "± standard error", "test data (floor)"]
    return drawn(plots.quality, lines, floor, name, caption=caption) + table(head, rows) + said(about)


def likelihood(run: runs.Run) -> str:
    """Of eval/likelihood_<split>.json, and its histogram; and of those of other settings beside it."""
    found = []
    for split in ("test", "train"):
        for file in by_number((run.workdir / "eval").glob(f"likelihood_{split}*.json")):
            summary = read(file)
            picked = picture(file.with_suffix(".png"), f"Per-example scores of the {split} split.")
            rows = [[name, value] for name, value in summary.items() if isinstance(value, int | float) and not isinstance(value, bool)]
            rest = {name: value for name, value in summary.items() if isinstance(value, str | bool)}
            found.append(
                f"<h3>{text(file.stem.removeprefix('likelihood_'))}</h3>{picked}{table(['figure', summary.get('unit', '')], rows)}{said(rest)}"
            )
    return "".join(found) or f"<p>None has been computed. This command does: {command(run, 'likelihood', '--split=test')}</p>"


def by_number(files: Iterable[Path]) -> list[Path]:
    """Results of one name: NAME.json, NAME-2.json, ..., NAME-10.json."""
    return sorted(files, key=lambda file: (len(file.name), file.name))


def measured(run: runs.Run) -> str:
    """Of eval/metrics.json, and of those of other settings beside it."""
    found = [measured_in(run, file) for file in by_number((run.workdir / "eval").glob("metrics*.json"))]
    return "".join(found) or f"<p>None have been computed. This command does: {command(run, 'evaluate')}</p>"


def measured_in(run: runs.Run, file: Path) -> str:
    """Of a file that `experiments.evaluate` writes."""
    summary = read(file)
    figures = summary.pop("metrics", {})
    summary.pop(SETTINGS, None)
    columns = ["value", "stderr", "floor", "n", "groups", "reference_n"]
    rows = [[name, *(row.get(column) for column in columns)] for name, row in figures.items() if isinstance(row, dict)]
    beside = "Samples on the left, data on the right." if run.dataset.images.is_image else "Data and samples."
    head = ["figure", "samples", "± standard error", "test data (floor)", "n", "groups", "reference n"]
    return table(head, rows) + said(summary) + picture(file.with_name(file.stem.replace("metrics", "samples_and_data", 1) + ".png"), beside)


def drawn_by(file: Path) -> dict:
    """How samples were drawn, as the file beside them says."""
    return {name: value for name, value in read(file).items() if name != SETTINGS}


def own_samples(run: runs.Run) -> str:
    """Of samples/, with how they were drawn."""
    files = sorted((run.workdir / "samples").glob("*.json"))
    found = [f"<h3>{text(file.stem)}</h3>{picture(file.with_suffix('.png'), file.stem)}{said(drawn_by(file))}" for file in files[:PICTURES]]
    if files[PICTURES:]:
        found.append(f"<p>And {len(files) - PICTURES} more: {text(', '.join(file.stem for file in files[PICTURES:]))}.</p>")
    return "".join(found) or f"<p>None have been drawn. This command does: {command(run, 'sample', '--num=64')}</p>"


def config(run: runs.Run) -> str:
    """What is set."""
    rows = [[name, str(value)] for name, value in sorted(cli.flat(run.config.to_dict()).items()) if value not in (None, "", (), [])]
    return f"<details><summary>{len(rows)} fields that are set</summary>{table(['field', 'value'], rows)}</details>"


def explored(run: runs.Run) -> tuple[str, str]:
    """The explorer, and the script with its numbers; a sentence and nothing of a model that has none."""
    if run.dataset.shape != (2,):
        return "<p>The explorer is of models of the plane.</p>", ""
    try:
        run.denoiser(run.labels(1))
    except ValueError as error:  # of a model that is no velocity
        return f"<p>No explorer: {text(error)}.</p>", ""
    numbers = explorer.explore(run, flags.FLAGS.seed)
    shown = f"{explorer.PARTICLES} particles from the same starts along {explorer.TIMES} times from T to {numbers['times'][-1]}"
    ways = "by the probability-flow ODE (DPM-Solver++(2M)) and the reverse SDE (its SDE form)" if numbers["sde"] else "by the ODE"
    score = "The arrows are sigma(t) times the score." if numbers["score"] else "The model is coupled: it has no score and no reverse SDE."
    told = " The model is told class 0." if run.conditional else ""
    told += " The view grows and shrinks with the path." if len(set(numbers["extent"])) > 1 else ""
    note = (
        f"{shown}, {ways}. The density is the histogram of {explorer.CLOUD} particles of the ODE, smoothed by one of {explorer.CELLS} cells a side, "
        f"each time over its own maximum. {score} A dropped particle follows the ODE's velocity, known on {explorer.FIELD} x {explorer.FIELD} points "
        "at each time and interpolated between them, bilinearly in space and linearly in time; so does its past. Axes are "
        f"{run.dataset.space} of data u. Seed {flags.FLAGS.seed}.{told}"
    )
    packed = json.dumps(numbers, allow_nan=False).replace("<", "\\u003c")
    script = f'<script type="application/json" id="explorer-data">{packed}</script>\n<script>\n{(PAGE / "explorer.js").read_text()}</script>'
    return f'{(PAGE / "explorer.html").read_text()}<p class="about">{text(note)}</p>', script


def page(run: runs.Run, keeps: list[Kept]) -> str:
    """The HTML of a run."""
    part, script = explored(run)
    sections = {
        "Explorer": part,
        "Samples by steps": samples_by_steps(run),
        "Trajectories": trajectories(run),
        "Loss": loss(run),
        "Quality against evaluations": curve(run, keeps),
        "Likelihood": likelihood(run),
        "Metrics": measured(run),
        "Samples of this run": own_samples(run),
        "Config": config(run),
    }
    anchor = lambda name: name.lower().replace(" ", "-")
    contents = "\n".join(f'<a href="#{anchor(name)}">{name}</a>' for name in sections)
    body = "\n".join(f'<section id="{anchor(name)}"><h2>{name}</h2>\n{part}\n</section>' for name, part in sections.items())
    about = {**run.description(), "path": run.network.sde, "prediction": run.network.kind, "weights' SHA-256": run.fingerprint()[:16]}
    return Template((PAGE / "page.html").read_text()).substitute(
        title=text(f"Report of {run.workdir.name}"),
        style=(PAGE / "style.css").read_text(),
        provenance=said(about),
        contents=contents,
        body=body,
        script=script,
    )


def main():
    f = flags.FLAGS
    if f.groups < 2:
        raise ValueError(f"--groups={f.groups}: expected at least 2, for a standard error")
    if f.num < 10:
        raise ValueError(f"--num={f.num}: expected at least 10 samples a group")
    if not all(word.isdigit() and int(word) > 0 for word in f.nfe):
        raise ValueError(f"--nfe={','.join(f.nfe)}: expected numbers of evaluations, as 4,8,16")
    if f.out and (Path(f.out).is_dir() or not Path(f.out).name):
        raise ValueError(f"--out={f.out}: expected a file, not a folder; try {Path(f.out) / 'report.html'}")
    for name in ("num", "groups"):
        if f[name].present and not f.nfe:
            raise ValueError(f"--{name}={f[name].value}: of the curve, which --nfe= leaves out; expected --nfe=4,8 with it, or no --{name}")
    run = runs.from_flags(sources=True)
    if f["grid"].present and run.network.jumps:
        raise ValueError(f"--grid={f.grid}: --workdir={run.workdir} jumps on a grid of its own; leave it out")
    keeps: list[Kept] = []
    chosen = {name: f[name].value for name in ("grid", "nfe", "num", "groups", "seed")}
    settings = {"weights": run.fingerprint(), "workdir": run.workdir.name, **chosen}
    place = reserve(Path(f.out).with_suffix(""), settings, "--out") if f.out else None
    Path(f.out).parent.mkdir(parents=True, exist_ok=True)  # before the work
    found = page(run, keeps)
    place = place or claim(run.workdir / "report", settings)
    out = Path(f.out) if f.out else place.file(".html")
    write_text(out, found)
    place.write({"report": out.name})
    for kept in keeps:
        kept.remove()
    print(f"wrote {out}, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_string("out", "", "The page; report.html of the run by default.")
    flags.DEFINE_enum("grid", "log_snr", [grid for grid in sampling.GRIDS if grid != sampling.GITS], "Times of all samples but jumps.")
    flags.DEFINE_list("nfe", ["4", "6", "10", "20", "40"], "Evaluations at which quality is measured; empty leaves the curve out.")
    flags.DEFINE_integer("num", 1000, "Samples a group of the curve, at most as many as there are test examples.")
    flags.DEFINE_integer("groups", 4, "Groups of samples of the curve; the standard error is over them.")
    cli.run(main)
