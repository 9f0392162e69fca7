"""Solve linear inverse problems: python -m experiments.inverse --workdir=runs/digits --problem=inpainting --method=moment --num=8

Measures the first --num test images, y = A x + noise, and draws --samples of each image's posterior under the model (`samplers.inverse`). Writes
inverse/<problem>_<method>_<solver>_<steps>.npz (with seed, noise and other options in its name where they are given; truth and samples uint8,
measurement and mean float32, in x), how well they fit as .json (PSNR to the truth of the samples and of their mean, in dB; RMS of y - A x; standard
errors over images), and a picture: truth, measurement, samples, their mean. Each batch is kept at once, so that the same command goes on where it was
interrupted. Sample j of image i depends on --seed, i and j alone. Images are within [-1, 1]: so is --noise to be understood.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

import samplers
from experiments import cli, parallel, plots, runs
from experiments.kept import Kept, check_finite, claim, name_of, quiet, savez, sha256
from experiments.metrics import rms
from experiments.sample import make_solver
from samplers import LinearOperator, grids, operators, solvers
from samplers.predictor_corrector import evaluations
from sde_lib import SDE, Denoiser
from sde_lib.noise import normal

METHODS = ("replacement", "dps", "pigdm", "moment")
OF_METHOD = {"zeta": "dps", "iterations": "moment", "snr": "replacement"}  # flags of one method alone
GRIDS = ("uniform", "quadratic", "cosine", "karras", "log_snr", "vp_uniform")


def half(shape: tuple[int, ...]) -> LinearOperator:
    """The upper half of an image is known."""
    return operators.inpainting(np.broadcast_to((np.arange(shape[0]) < shape[0] // 2)[:, None, None], shape))


def scattered(shape: tuple[int, ...]) -> LinearOperator:
    """Three in ten pixels are known, at random places, the same of all images."""
    return operators.inpainting(np.broadcast_to(np.random.default_rng(0).random(shape[:2])[:, :, None] < 0.3, shape))


PROBLEMS = {
    "inpainting": half,
    "random": scattered,
    "super_resolution": lambda shape: operators.super_resolution(shape, 2 if shape[0] < 16 else 4),
    "blur": lambda shape: operators.blur(shape, shape[0] / 14),
    "colorization": operators.colorization,
}


def make_operator(problem: str, run: runs.Run) -> LinearOperator:
    """Of the images of a run. Raises ValueError if x are no images, or without colour for colorization."""
    if not run.dataset.is_image or run.dataset.images is not run.dataset:
        raise ValueError(f"--workdir={run.workdir}: x of {run.dataset.name} are no images; expected a model of pixels")
    return PROBLEMS[problem](run.dataset.shape)


def guided(
    method: str, den: Denoiser, operator: LinearOperator, y, times, noise: float, zeta: float, iterations: int = 5, sigma_data: float = 1.0
) -> Denoiser:
    """The posterior's by a name in METHODS that is no replacement; sigma_data: of pigdm."""
    if method == "dps":
        return samplers.dps(den, operator, y, times, zeta)
    if method == "pigdm":
        return samplers.pigdm(den, operator, y, noise, sigma_data)
    return samplers.moment_matching(den, operator, y, noise, iterations)


def denoised(den: Denoiser, x_T, times, solver, keys):
    """x_0 [B, ...] by a solver on all of `times`, and then the data prediction at the last."""
    return jax.jit(Denoiser.data)(den, samplers.sample(den, x_T, times, solver, keys), times[-1])


def sampler(
    sde: SDE, operator: LinearOperator, method: str, solver: str, steps: int, grid: str, noise: float, zeta: float, iterations: int, snr: float
) -> tuple[Callable, int]:
    """The function of (den, y [B, ...], keys [B]) that draws x_0 [B, ...] given y, one of each, by a name in METHODS, and its evaluations.

    The last of `steps` steps denoises. Options as flags. Raises ValueError for options that the method cannot take."""
    if steps < 2:
        raise ValueError(f"--steps={steps}: expected at least 2 (the last one denoises)")
    times, solver = getattr(grids, grid)(sde, steps - 1), make_solver(solver)
    if method == "replacement":
        corrector = samplers.langevin(snr) if snr else None
        replaced = lambda den, x_T, y, keys: samplers.replacement(den, operator, y, x_T, times, solver, corrector, keys)
        nfe = evaluations(times, solver, corrector) + 1
    else:
        nfe = solver(sde, times).nfe + 1

    def draw(den, y, keys):
        prior_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x_T = parallel.shard(sde.prior_sample(prior_keys, (len(keys), *operator.shape)))
        if method == "replacement":
            return replaced(den, x_T, y, noise_keys)
        return denoised(guided(method, den, operator, y, times, noise, zeta, iterations), x_T, times, solver, noise_keys)

    return draw, nfe


def psnr(square: Float[np.ndarray, " n"]) -> tuple[float, float | None]:
    """Of images in [-1, 1] with these mean squared errors, in dB, and its standard error (None of one)."""
    error, of_error = rms(np.maximum(square, 1e-30))
    return float(20 * np.log10(2 / error)), None if of_error is None else 20 / np.log(10) * of_error / error


def solve(run: runs.Run, problem: str, num: int, count: int, batch: int, seed: int, kept: Kept | None = None, progress=quiet, **options) -> dict:
    """truth [num, ...], measurement [num, ...], samples [num, count, ...], all in x, their evaluations, and figures with their standard errors over
    images ("_stderr"; None of one image); options as of `sampler`.

    Raises ValueError for a number of images that there is not."""
    values = run.dataset.values["test"]
    if not 0 < num <= len(values) or count < 1:
        raise ValueError(f"--num={num}, --samples={count}: expected 1 to {len(values)} test images, and at least one sample of each")
    if run.conditional and not run.config.objective.label_dropout > 0:
        raise ValueError("this model was trained with objective.label_dropout = 0, it knows no image without its label: expected another --workdir")
    if not 0 <= options["noise"] < np.inf:
        raise ValueError(f"--noise={options['noise']}: expected the standard deviation of the measurement's noise, 0 or more")
    operator = make_operator(problem, run)
    draw, nfe = sampler(run.network.sde, operator, **options)
    key = jax.random.key(seed)
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))
    truth = np.asarray(run.dataset.middles(np.asarray(values[:num])))
    y = operator.forward(jnp.asarray(truth))
    y = np.asarray(y + options["noise"] * normal(jax.vmap(lambda k: jax.random.fold_in(k, 0))(image_keys), y.shape))
    den = run.denoiser()

    def one_batch(_, y, image, sample):
        fold = lambda image, sample: jax.random.fold_in(jax.random.fold_in(key, image), 1 + sample)
        return draw(den, y, jax.vmap(fold)(image, sample))

    def parts(start):
        image, sample = np.divmod(np.arange(num * count), count)
        for x in runs.in_batches(one_batch, num * count, batch, key, y[image], image, sample, start=start):
            check_finite(x, "samples", f"--method={options['method']} --solver={options['solver']} --steps={options['steps']}", start)
            start += len(x)
            yield {"x": x}

    kept = Kept(None) if kept is None else kept
    kept.open({"weights": run.fingerprint(), "seed": seed, "problem": problem, "samples": count, **options})
    x = kept.complete(parts, num * count, "samples", progress)["x"]
    mean = x.reshape(num, count, *x.shape[1:]).mean(1)
    residual = y[np.arange(num * count) // count] - np.asarray(operator.forward(jnp.asarray(x)))
    errors = {"psnr": np.clip(x, -1, 1) - truth.repeat(count, 0), "psnr_mean": np.clip(mean, -1, 1) - truth, "residual": residual}
    figures = {}
    for name, error in errors.items():
        square = np.mean(error.reshape(num, -1) ** 2, 1)  # of each image
        figures[name], figures[f"{name}_stderr"] = (rms if name == "residual" else psnr)(square)
    shown = y if y.shape[1:] == operator.shape else np.asarray(operator.pseudo_inverse(jnp.asarray(y)))
    samples = x.reshape(num, count, *x.shape[1:])
    return {"truth": truth, "measurement": y, "shown": shown, "samples": samples, "mean": mean, "nfe": nfe, "figures": figures}


def picture_rows(run: runs.Run, found: dict, images: int, count: int) -> dict[str, np.ndarray]:
    """What is said of the first `images` images: the title of a column -> uint8 [images, h, w, c]."""
    columns = {"truth": found["truth"], "measured": found["shown"]}
    columns |= {f"sample {j + 1}": found["samples"][:, j] for j in range(min(count, found["samples"].shape[1]))} | {"mean": found["mean"]}
    return {name: plots.to_uint8(run.dataset.from_x(x[:images]), run.dataset.levels) for name, x in columns.items()}


def main():
    f = flags.FLAGS
    run = runs.from_flags()
    options = {name: f[name].value for name in ("method", "solver", "steps", "grid", "noise", "zeta", "iterations", "snr")}
    for name, method in OF_METHOD.items():
        if f[name].present and f.method != method:
            raise ValueError(f"--{name}={f[name].value}: of --method={method}; expected that method, or no --{name}")
    named = ("noise", "zeta", "iterations", "snr", "grid", "seed", "weights", "checkpoint", "lora")
    other = {name: f[name].value for name in named if f[name].present}
    stem = run.workdir / "inverse" / name_of([f.problem, f.method, f.solver, str(f.steps)], other)
    kept, clock = Kept(stem), time.perf_counter()
    found = solve(run, f.problem, f.num, f.samples, f.batch, f.seed, kept=kept, progress=print, **options)
    seconds = time.perf_counter() - clock
    levels = run.dataset.from_x(found["truth"]), run.dataset.from_x(found["samples"])
    images = [run.dataset.written(values) for values in levels]
    place = claim(stem, {**kept.settings, "num": f.num})
    file = place.file(".npz")
    savez(file, truth=images[0], samples=images[1], measurement=found["measurement"], mean=found["mean"])
    said = {**run.description(), "problem": f.problem, "images": f.num, "samples": f.samples, "seed": f.seed, "nfe": found["nfe"], **options}
    place.write({**said, **found["figures"], "sha256": sha256(file)})
    of = lambda name: f"{found['figures'][name]:.4g}" + (f" ± {found['figures'][f'{name}_stderr']:.2g}" if f.num > 1 else "")
    print(f"{f.num} images, {f.samples} samples of each, {found['nfe']} evaluations, {seconds:.1f} s with compilation ({f.problem}, {f.method})")
    print(f"PSNR {of('psnr')} dB of samples, {of('psnr_mean')} dB of their mean; RMS of y - A x {of('residual')}, of the noise {f.noise}")
    figure = plots.columns({f.problem: picture_rows(run, found, 8, 4)}, place.file(".png"))
    print(f"wrote {file}\nwrote {figure}")
    kept.remove()


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_enum("problem", "inpainting", [*PROBLEMS], "What is measured.")
    flags.DEFINE_enum("method", "moment", METHODS, "How the posterior is sampled.")
    flags.DEFINE_enum("solver", "ancestral", [*solvers.SOLVERS], "A table; the predictor of --method=replacement.")
    flags.DEFINE_integer("steps", 100, "Steps, the last of which denoises.")
    flags.DEFINE_enum("grid", "log_snr", GRIDS, "Times.")
    flags.DEFINE_integer("num", 8, "Test images.")
    flags.DEFINE_integer("samples", 8, "Samples of each.")
    flags.DEFINE_float("noise", 0.05, "Standard deviation of the measurement's noise; replacement takes y as exact.")
    flags.DEFINE_float("zeta", 0.3, "Step of --method=dps.")
    flags.DEFINE_integer("iterations", 5, "Of GMRES, --method=moment.")
    flags.DEFINE_float("snr", 0.16, "Of the Langevin corrector of --method=replacement; 0 for no corrector.")
    cli.run(main)
