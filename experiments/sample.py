"""Draw samples: python -m experiments.sample --workdir=runs/digits --solver=dpm_solver_pp --steps=15 --num=64

Writes samples/<solver>_<steps>.npz (with each option in its name that is not at its default; arr_0: uint8 NHWC of an image model, float32 of
another; arr_1: the labels of a conditional one), how they were drawn as .json, a picture of the first hundred and one of trajectories. Samples that
other settings left under this name stay, and these go to <name>-2.npz. Each batch is kept at once, so that the same command goes on where it was
interrupted.
Sample i depends on --seed and i alone: neither on --num, nor on --batch, nor on the devices.
"""

import ast
import functools
import inspect
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

import samplers
from experiments import cli, data, fit, parallel, plots, runs
from experiments import guidance as guiding
from experiments.kept import Kept, check_finite, claim, name_of, savez, sha256, short
from samplers import amed, grids, jumps, sample, sample_adaptive, sample_sde, solvers
from samplers.bridge import sample_bridge
from samplers.predictor_corrector import evaluations
from samplers.solvers import v3
from samplers.solvers.exponential import multistep, singlestep
from sde_lib import SDE, Denoiser, FlowMap
from sde_lib.interpolants import NEAR
from sde_lib.noise import normal

ADAPTIVE, REVERSE_SDE, JUMPS, BRIDGE, NONE = "adaptive", "reverse_sde", "jumps", "bridge", "none"
V3, GITS = "dpm_solver_v3", "gits"
SOLVERS = [*solvers.SOLVERS, ADAPTIVE, REVERSE_SDE, JUMPS, BRIDGE, NONE, V3, *fit.BASES]
OF_STRENGTH = ("euler_maruyama", "sa_solver", "sde_dpm_solver", "sde_dpm_solver_pp", REVERSE_SDE)  # whose eta is that of the reverse SDE
CORRECTORS = {"langevin": samplers.langevin, "annealed_langevin": samplers.annealed_langevin}
FITTED = {V3, GITS, *fit.BASES}
ONE_STEP = ("ddim", "euler")  # whose one step of --grid=few is E[x_0 | x_T]
NAMED = (  # flags in the name of a file
    "corrector", "snr", "corrector_steps", "diffusion", "strength", *guiding.NAMES, "seed", "weights", "checkpoint", "label",
    "option", "grid", "tolerance", "threshold", "lora",
)  # fmt: skip
GRIDS = ["uniform", "few", "quadratic", "cosine", "karras", "log_snr", "vp_uniform", GITS]


def define_flags(steps: int, solver: str = "dpm_solver_pp") -> None:
    """The flags of how samples are drawn, with defaults for --steps and --solver."""
    told = "A table; diffrax: adaptive (ODE), reverse_sde; fitted (experiments.fit); jumps of a flow map; bridge (--score); none: a corrector."
    flags.DEFINE_enum("solver", solver, SOLVERS, told)
    flags.DEFINE_enum("corrector", NONE, [NONE, *CORRECTORS], "After each step, of which the solver is the predictor (Song et al. 2021).")
    flags.DEFINE_float("snr", 0.16, "Of the corrector: r, noise to score.")
    flags.DEFINE_integer("corrector_steps", 1, "Of the corrector, at each time.")
    flags.DEFINE_multi_string("option", [], "An option of the solver, e.g. --solver=unipc --option=order=2 --option=variant=bh1.")
    diffusions = [NONE, *samplers.strengths.ETAS]
    flags.DEFINE_enum(
        "diffusion", NONE, diffusions, "D(t) of the noise, of a --solver that has eta, of reverse_sde and of bridge (samplers/strengths.py)."
    )
    flags.DEFINE_float("strength", 1.0, "Of --diffusion, or of a bridge's own noise, D = coupling.bridge^2/2: how often it counts; 0 is the ODE.")
    flags.DEFINE_integer("steps", steps, "Steps, the last of which denoises; or jumps.")
    times = "Times of a fixed-step solver (of bridge and jumps: uniform, on EDM's path of jumps karras); gits is fitted by experiments.fit."
    flags.DEFINE_enum("grid", "log_snr", GRIDS, times)
    flags.DEFINE_float("tolerance", 1e-5, "rtol and atol of --solver=adaptive.")
    guiding.define_flags()
    flags.DEFINE_enum("threshold", "none", ["none", "static", "dynamic"], "Keep the data prediction in [-1, 1]: clipped, or by its 0.995 quantile.")


def from_flags(run: runs.Run) -> dict:
    """The options of `generate` that the flags choose, of this run."""
    f = flags.FLAGS
    if f["grid"].present and f.solver in (ADAPTIVE, *fit.BASES):
        raise ValueError(f"--grid={f.grid}: --solver={f.solver} has {'no grid' if f.solver == ADAPTIVE else 'the grid that it was fitted on'}")
    one_step = f.grid == "few" and f.steps == 1 and f.solver not in (*ONE_STEP, JUMPS)
    ignored = {  # by what each would be ignored
        "steps": "takes as many steps as --tolerance asks for" if f.solver == ADAPTIVE else "",
        "tolerance": "" if f.solver == ADAPTIVE else f"has none; expected --solver={ADAPTIVE} with it",
        "solver": f"with --grid=few --steps=1 is E[x_0 | x_T]; expected {' or '.join(ONE_STEP)}, or more --steps" if one_step else "",
    }
    for name, why in ignored.items():
        if f[name].present and why:
            raise ValueError(f"--{name}={f[name].value}: --solver={f.solver} {why}")
    for name in ("snr", "corrector_steps"):
        if f[name].present and f.corrector == NONE:
            raise ValueError(f"--{name}={f[name].value}: of a corrector; expected --corrector=langevin or annealed_langevin with it")
    if f["strength"].present and f.diffusion == NONE and f.solver != BRIDGE:
        raise ValueError(f"--strength={f.strength}: of a diffusion; expected --diffusion={' or '.join(samplers.strengths.ETAS)} with it")
    grid = f.grid
    if f.solver in (JUMPS, BRIDGE) and not f["grid"].present:
        grid = run.network.sde.few_grid if f.solver == JUMPS else "uniform"
    return {
        "solver": f.solver, "steps": f.steps, "grid": grid, "tolerance": f.tolerance, "option": tuple(f.option), "threshold": f.threshold,
        "corrector": f.corrector, "snr": f.snr, "corrector_steps": f.corrector_steps, "diffusion": f.diffusion,
        "strength": f.strength, **guiding.from_flags(),
    }  # fmt: skip


def parsed(option: tuple[str, ...]) -> dict:
    """Values by name, of options written name=value. Raises ValueError for others."""
    options = {}
    for text in option:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option={text}: expected NAME=VALUE")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value  # a word
    return options


def make_solver(name: str, option: tuple[str, ...] = (), statistics: v3.Statistics | None = None, **options):
    """A solver of `samplers.solvers`, or v3 with its statistics, from options, and others written name=value.

    Raises ValueError for unknown options and, as each solver does, for impossible values. What depends on the path and the
    grid shows when the table of that grid is built.
    """
    options |= parsed(option)
    factory = functools.partial(v3.dpm_solver_v3, statistics) if statistics else solvers.SOLVERS[name]
    try:
        return factory(**options)
    except TypeError as error:
        known = [p for p in inspect.signature(factory).parameters if p not in ("options", "statistics")]
        if "method" in known:
            known += [
                p for p in {**inspect.signature(singlestep).parameters, **inspect.signature(multistep).parameters} if p not in ("prediction", *known)
            ]
        raise ValueError(f"--option: {error}; {name} has {', '.join(known) or 'none'}") from None


def sampler(
    sde: SDE,
    shape: tuple[int, ...],
    workdir: str | Path,
    solver: str,
    steps: int,
    grid: str,
    tolerance: float,
    option: tuple[str, ...] = (),
    threshold: str = "none",
    guidance: float = 1.0,
    corrector: str = NONE,
    snr: float = 0.16,
    corrector_steps: int = 1,
    diffusion: str = NONE,
    strength: float = 1.0,
    path: bool = False,
) -> Callable:
    """The function of (den, keys [B], x_T) that draws samples x_0 [B, *shape] by a named solver, and gives their evaluations [B] and the path
    [P, B, ...] or None (where there is none). x_T: [B, *shape], see `starts`. Tables are built and fits are read once, here.

    The last of `steps` steps denoises: x_0 = E[x_0 | x] at the grid's end. workdir: where fitted solvers and grids are (`experiments.fit`), raising
    FileNotFoundError if they are not; guidance: of `den`, for which they were fitted. corrector: of `CORRECTORS`, with `solver` as its predictor, or
    "none", which `solver` may be too. diffusion, strength: of `samplers.strengths`, for `OF_STRENGTH` and "bridge"; "none" is the solver's own.
    "jumps" is of a FlowMap in the place of den, along the grid with its end at 0, as many as `steps`, and denoises nothing; "bridge" of a
    `guiding.Guide.bridge`, on equal steps, of which those of strength 0 leave its noise unevaluated.
    """
    fitted = functools.partial(fit.fitted, workdir, steps=steps, guidance=guidance)
    if option and solver not in (*solvers.SOLVERS, V3, JUMPS):
        raise ValueError(f"--option={option[0]}: --solver={solver} has no options")
    one_step = grid == "few" and steps == 1 and solver in solvers.SOLVERS
    if solver not in (ADAPTIVE, JUMPS) and steps < 2 and not one_step:
        raise ValueError(f"--steps={steps}: expected at least 2 (the last one denoises), or 1 with --grid=few")
    if one_step and (option or corrector != NONE or diffusion != NONE):
        said = {"option": option, "corrector": corrector, "diffusion": diffusion}
        name, value = next((name, value) for name, value in said.items() if value not in ((), NONE))
        raise ValueError(f"--{name}={short(value)}: one step of --grid=few is E[x_0 | x_T] alone; leave it out, or take more --steps")
    if solver not in (*solvers.SOLVERS, V3, NONE) and corrector != NONE:
        raise ValueError(f"--corrector={corrector}: --solver={solver} has no steps to correct; expected reverse_diffusion or another table, or none")
    if solver == JUMPS and (threshold != "none" or grid == GITS or not parsed(option).keys() <= {"gamma"}):
        raise ValueError(f"--solver=jumps with --grid={grid} --threshold={threshold} {option}: expected another grid, and --option=gamma=VALUE alone")
    if solver == BRIDGE and (threshold != "none" or grid != "uniform"):
        raise ValueError(
            f"--solver=bridge with --grid={grid} --threshold={threshold}: expected uniform and none, as its steps are equal and predict no data"
        )
    if solver == corrector == NONE:
        raise ValueError("--solver=none: a corrector alone; expected --corrector=langevin or annealed_langevin")
    if solver == BRIDGE and (diffusion not in (NONE, *samplers.strengths.FORMS) or not 0 <= strength < np.inf):
        raise ValueError(
            f"--solver=bridge with --diffusion={diffusion} --strength={strength}: expected none (its own) or {', '.join(samplers.strengths.FORMS)}, "
            "and a strength of 0 (the ODE) or more"
        )
    if diffusion != NONE and solver not in (*OF_STRENGTH, BRIDGE):
        raise ValueError(f"--diffusion={diffusion}: --solver={solver} has no such noise; expected one of {', '.join((*OF_STRENGTH, BRIDGE))}")
    if diffusion != NONE and any(text.startswith("eta=") for text in option):
        raise ValueError(f"--diffusion={diffusion}: --option has eta already; expected one of the two")
    noise = {} if diffusion == NONE or solver == BRIDGE else {"eta": samplers.strengths.eta(sde, diffusion, strength)}
    denoise = lambda den, x: jax.jit(Denoiser.data)(den, x, times[-1])
    if solver == ADAPTIVE:

        def integrate(den, x_T, keys):
            solution = sample_adaptive(den, x_T, tolerance, tolerance)
            return check(solution).x, solution.nfe, None

    elif one_step:

        def integrate(den, x_T, keys):
            x_0 = jax.jit(Denoiser.data)(den, x_T, sde.T)
            return x_0, np.ones(len(x_T), int), np.stack([x_T, x_0]) if path else None

    elif solver == JUMPS:
        times = np.append(grids.few(sde, steps - 1) if grid == "few" else getattr(grids, grid)(sde, steps)[:-1], 0.0)

        def integrate(flow_map, x_T, keys):
            options = {"gamma": 1.0 if flow_map.final else 0.0} | parsed(option)
            return jumps(flow_map, x_T, times, **options, key=keys), np.full(len(x_T), steps), None

    elif solver == BRIDGE:
        times, nfe = sde.T * np.linspace(1 - NEAR, NEAR, steps), (2 if strength else 1) * (steps - 1) + 1
        own = lambda interpolant, t: np.full_like(t, strength * interpolant.bridge**2 / 2)

        def integrate(bridge, x_T, keys):
            of_t = (
                functools.partial(own, bridge[0]) if diffusion == NONE else functools.partial(samplers.strengths.diffusion, diffusion, sde, strength)
            )
            x = sample_bridge(*bridge, x_T, times, of_t, keys, path)
            last = x[-1] if path else x
            x_0 = last - times[-1] * jax.jit(lambda velocity, x: velocity(x, jnp.full(len(x), times[-1])))(bridge[1], last)
            return x_0, np.full(len(x_T), nfe), np.concatenate([x, x_0[None]]) if path else None

    elif solver in fit.BASES:
        params, times, middles = fit.load_predictor(fitted(solver), shape)
        nfe = amed.evaluations(sde, times) + 1

        def integrate(den, x_T, keys):
            x = amed.amed(den, x_T, times, fit.predictor(params), fit.BASES[solver], middles)
            return denoise(den, x), np.full(len(x), nfe), None

    else:
        times = fit.load_times(fitted(GITS)) if grid == GITS else getattr(grids, grid)(sde, steps - 1)
        if solver == REVERSE_SDE:

            def integrate(den, x_T, keys):
                solution = sample_sde(den, x_T, times, keys, **noise)
                return denoise(den, check(solution).x), solution.nfe + 1, None

        else:
            statistics = fit.statistics(fitted(V3)) if solver == V3 else None
            table = None if solver == NONE else make_solver(solver, option, statistics, **noise)(sde, times)
            of_table = None if table is None else lambda sde, times: table
            if corrector == NONE:
                nfe, carry = table.nfe, sample
            else:
                correct = CORRECTORS[corrector](snr, corrector_steps)
                nfe, carry = evaluations(times, of_table, correct), functools.partial(samplers.predictor_corrector, corrector=correct)

            def integrate(den, x_T, keys):
                x = carry(den, x_T, times, of_table, key=keys, path=path)
                x_0 = denoise(den, x[-1] if path else x)
                return x_0, np.full(len(x_T), nfe + 1), np.concatenate([x, x_0[None]]) if path else None

    def draw(den: Denoiser | FlowMap | tuple, keys, x_T):
        if threshold != "none":
            den = samplers.threshold(den, quantile=None if threshold == "static" else 0.995)
        return integrate(den, parallel.shard(x_T), jax.vmap(jax.random.split, out_axes=1)(keys)[1])

    return draw


def guided(run: runs.Run, guidance: float = 1.0, **options) -> tuple[guiding.Guide, dict]:
    """How a run is guided (`guiding.guide`), and the options that are not of guidance. Raises ValueError for a solver that is fitted to another,
    for a bridge without --score or --score without one, and for other guidance of a bridge than --guidance."""
    named = {name: value for name, value in options.items() if name in guiding.NAMES}
    rest = {name: value for name, value in options.items() if name not in named}
    if (rest["solver"] == BRIDGE) != bool(score := named.get("score", "")):
        raise ValueError(f"--solver={rest['solver']} --score={score}: expected --solver=bridge and --score=WORKDIR together")
    if score and (more := named.keys() - {"score"}):
        raise ValueError(f"--{', --'.join(sorted(more))}: a bridge is guided by --guidance alone, to its labels; leave the others out")
    coupling, own = run.config.coupling, rest.get("diffusion", NONE) == NONE and rest.get("strength", 1.0) > 0
    if score and own and coupling.constant and not coupling.bridge:
        raise ValueError("--solver=bridge of a run with coupling.bridge = 0, which has no noise of its own: expected --diffusion=constant or another")
    if named and (fitted := {rest["solver"], rest["grid"]} & FITTED):
        raise ValueError(f"--{next(iter(named))}: {' and '.join(fitted)} are fitted to the model with --guidance alone; expected another")
    if rest["solver"] == JUMPS:
        if named or (guidance != 1 and not getattr(run.network.module, "told_omega", False)):
            raise ValueError("--solver=jumps with guidance: a flow map is guided in training (config.objective.meanflow.omega); leave the flags out")
        return guiding.Guide(run, guidance), rest
    fixed = rest["solver"] != ADAPTIVE and not {rest["solver"], rest["grid"]} & FITTED
    times = getattr(grids, rest["grid"])(run.network.sde, rest["steps"] - 1) if fixed and rest["steps"] > 1 else None
    return guiding.guide(run, guidance, **named, times=times), rest


def modelled(guide: guiding.Guide, solver: str) -> Callable:
    """labels -> what `sampler` draws from: a guided denoiser, a flow map, or a bridge."""
    if solver == JUMPS:
        return functools.partial(guide.run.flow_map, omega=guide.omega)
    return guide.bridge if solver == BRIDGE else guide.denoiser


def starts(run: runs.Run) -> Callable:
    """(keys [B], index [B]) -> x_T of the samples of these indices: of the prior, or of the data set that the run begins at, its test examples in
    turn; and beside either the noise that its interpolant has at T."""
    network, source = run.network, run.source

    def start(keys, index):
        if source is None:
            return network.prior_sample(jax.vmap(jax.random.split, out_axes=1)(keys)[0], (len(keys), *run.dataset.shape))
        each = lambda i: jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        values = source.values["test"]
        x_T = source.to_x(each(2), values[np.asarray(index) % len(values)])
        gamma = network.gamma(network.sde.T)
        return x_T + gamma * normal(each(3), x_T.shape, x_T.dtype) if gamma else x_T

    return start


def check(solution):
    """The solution, or ValueError if an example of it failed."""
    failed = int(np.sum(~np.asarray(solution.success)))
    if failed:
        raise ValueError(f"{failed} of {len(solution.success)} examples needed too many steps: loosen --tolerance, or use a fixed-step --solver")
    return solution


def generate(
    run: runs.Run,
    n: int,
    batch: int,
    seed: int,
    label: int = -1,
    guidance: float = 1.0,
    kept: Kept | None = None,
    progress=lambda *_, **__: None,
    **options,
) -> tuple[np.ndarray, float]:
    """n samples as raw values [n, ...] and their mean number of evaluations; options: of `sampler`, and the other flags of guidance.

    label: see `Guide.labels`. kept: where samples are kept while they are drawn. Raises ValueError if the model has no such label.
    """
    guide, rest = guided(run, guidance, **options)
    labels = guide.labels(n, label)
    if options.get("threshold", "none") != "none" and not run.dataset.levels:
        raise ValueError(f"--threshold={options['threshold']}: x of {run.dataset.name} is not within [-1, 1]; expected none")
    model, start_of = modelled(guide, rest["solver"]), starts(run)
    draw = sampler(run.network.sde, run.dataset.shape, run.workdir, guidance=guidance, **rest)
    one_batch = lambda keys, labels, index: draw(model(labels), keys, start_of(keys, index))[:2]

    def parts(start):
        for x, nfe in runs.in_batches(one_batch, n, batch, jax.random.key(seed), labels, np.arange(n), start=start):
            check_finite(x, "samples", described(options), start)
            start += len(x)
            yield {"values": run.dataset.from_x(x), "nfe": np.asarray(nfe)}

    kept = Kept(None) if kept is None else kept
    fitted = {options["solver"], options["grid"]} & FITTED
    fits = {name: fit.fitted(run.workdir, name, options["steps"], guidance).stat().st_mtime_ns for name in fitted}
    settings = {"weights": run.fingerprint(), "seed": seed, "label": label, "guidance": guidance, "fits": fits, **options}
    others = guide.fingerprints()
    kept.open(settings | ({"others": others} if others else {}))
    found = kept.complete(parts, n, "samples", progress)
    return found["values"], float(found["nfe"].mean())


def described(options: dict) -> str:
    """The flags of options, as they are typed: those that a line about samples needs."""
    named = ("solver", "steps", "grid", "tolerance", "option", "guidance", "corrector", "diffusion")
    shown = {name: options[name] for name in named if options.get(name) not in (None, (), [], NONE)}
    unused = ("steps", "grid") if options["solver"] == ADAPTIVE else ("tolerance",)
    return " ".join(f"--{name}={short(value)}" for name, value in shown.items() if name not in unused)


def about(run: runs.Run, n: int, nfe: float, seed: int, options: dict) -> dict:
    """What every figure of n samples is reported with."""
    return {**run.description(), "samples": n, "nfe": nfe, "seed": seed, **options}


def frames(run: runs.Run, path: Float[np.ndarray, "s n ..."], count: int) -> np.ndarray:
    """Of a path from the prior to the data, the first `count` images at 12 of its times, uint8."""
    path = path[np.unique(np.linspace(0, len(path) - 1, 12).round().astype(int)), :count]
    if run.dataset.images is run.dataset:  # pixels, not latents: noise of any scale within the range shown
        path = path / np.maximum(1.0, np.abs(path).max((1, 2, 3, 4), keepdims=True))
    return plots.to_uint8(run.dataset.from_x(path), run.dataset.images.levels)


def pictures(guide: guiding.Guide, values: np.ndarray, name: str, seed: int, label: int = -1, **options) -> list:
    """The picture of samples and, for a table solver, of trajectories; returns the files. options: of `sampler`."""
    run = guide.run
    folder, kind = run.workdir / "samples", run.dataset.images
    files = []
    is_image, is_plane = kind.is_image, kind.shape == (2,)
    if is_image:
        files.append(plots.grid(plots.to_uint8(values[:100], kind.levels), folder / f"{name}.png"))
    elif is_plane:
        shown = data.shown(run.dataset)[: len(values)]
        files.append(plots.scatter(kind.plane(values), kind.plane(shown), folder / f"{name}.png"))
    if options["solver"] in (*solvers.SOLVERS, V3, BRIDGE, NONE) and (is_image or is_plane):
        index = np.arange(8 * jax.device_count() if is_image else 256)
        rows = parallel.shard(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index))  # of the first samples
        draw = sampler(run.network.sde, run.dataset.shape, run.workdir, guidance=guide.omega, path=True, **options)
        path = draw(modelled(guide, options["solver"])(guide.labels(len(rows), label)), rows, starts(run)(rows, index))[2]
        check_finite(np.swapaxes(np.asarray(path), 0, 1), "trajectories", described(options))
        if is_image:
            files.append(plots.trajectory(frames(run, path, 8), folder / f"{name}_trajectory.png"))
        else:
            files.append(plots.trajectories({name: kind.plane(run.dataset.from_x(path))}, folder / f"{name}_trajectory.png"))
    return files


def main():
    f = flags.FLAGS
    if f.num < 1:
        raise ValueError(f"--num={f.num}: expected at least 1")
    run = runs.from_flags(sources=True)
    options = from_flags(run)
    other = {name: f[name].value for name in NAMED if f[name].value != f[name].default}
    stem = run.workdir / "samples" / name_of([f.solver if f.solver == ADAPTIVE else f"{f.solver}_{f.steps}"], other)
    kept, clock = Kept(stem), time.perf_counter()
    values, nfe = generate(run, f.num, f.batch, f.seed, f.label, kept=kept, progress=print, **options)
    seconds = time.perf_counter() - clock
    guide, rest = guided(run, **options)
    labels = guide.labels(f.num, f.label)
    place = claim(stem, {**kept.settings, "num": f.num})
    file = place.file(".npz")
    arrays = {"arr_0": run.dataset.images.written(values)}
    if isinstance(labels, np.ndarray):
        arrays["arr_1"] = run.dataset.labels_written(labels)
    savez(file, **arrays)
    place.write({**about(run, f.num, nfe, f.seed, options), "label": f.label, "sha256": sha256(file)})
    print(f"{f.num} samples, {nfe:.1f} evaluations each, {seconds:.1f} s with compilation ({f.solver}, {run.weights} weights of step {run.step})")
    for written in [file, *pictures(guide, values, place.stem.name, f.seed, f.label, **rest)]:
        print(f"wrote {written}")
    kept.remove()


if __name__ == "__main__":
    runs.define_flags()
    define_flags(steps=20)
    flags.DEFINE_integer("num", 64, "Samples.")
    flags.DEFINE_integer("label", -1, "Class of a conditional model, or test example whose embeddings it is told; -1 takes all in turn.")
    cli.run(main)
