"""Encode a data set once, to train in its latents: python -m experiments.autoencode --workdir=runs/autoencoder --out=runs/latents

Encodes the autoencoder's own data, or those of --config, and writes a folder for --config.data.name=latents --config.data.path=FOLDER: x.npy and
x_test.npy, mean and standard deviation of each image's latents, [n, h, w, 2 c] float32, so that training draws them anew each time; y.npy and
y_test.npy, labels; latents.json, with the place and SHA-256 of the autoencoder, by which samples are decoded, and the scale, by which latents are
divided. Also reconstructions.png, test images beside their reconstructions. Written batch by batch to FOLDER.tmp, where the same command goes on if
it is interrupted, and renamed once it is complete.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from ml_collections import ConfigDict, config_flags

from experiments import cli, data, parallel, plots, runs, sources, untrusted
from experiments import weights as files
from experiments.autoencoder import Autoencoder
from experiments.kept import DONE, started, write_text


def encode(run: runs.Run, config: ConfigDict, out: str | Path, batch: int, flip: bool = False, scale: float = 0.0, limit: int = 0) -> dict:
    """Write the latents of the data set of `config` to the folder `out`; returns what latents.json says.

    flip: mirrored training images too, as examples of their own. scale: what latents are divided by (1/0.18215 is Stable Diffusion's); 0: the
    standard deviation of those of the training images. limit: of the examples of a split, 0 for all. Raises ValueError for data that are no images,
    FileExistsError if `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"--out={out} exists: name another folder, or remove it")
    if not 0 <= scale < np.inf or limit < 0:
        raise ValueError(f"--scale={scale} --limit={limit}: expected above 0, or 0 to measure the one and encode all")
    dataset = data.load(config)
    if not dataset.levels:
        raise ValueError(f"--config has the data {dataset.name}, which are no images of discrete levels")
    fn = jax.jit(lambda params, values: run.network.encode(params, dataset.middles(values)))
    one_batch = lambda mirror: lambda keys, values: fn(run.params, values[:, :, ::-1] if mirror else values)
    shape = jax.eval_shape(fn, run.params, dataset.values["train"][:1]).shape[1:]
    temporary = out.with_name(out.name + ".tmp")
    done = started(temporary, [run.fingerprint(), config.to_json(), flip, limit])
    for split, end in (("train", ""), ("test", "_test")):
        values = dataset.values[split]  # which need not fit in memory
        n = min(limit or len(values), len(values))
        copies = 2 if flip and split == "train" else 1
        file, row = temporary / f"x{end}.npy", done.setdefault(split, 0)
        x = np.lib.format.open_memmap(file, "r+" if row else "w+", np.float32, (copies * n, *shape))
        for mirror in (False, True)[row // n : copies]:
            for part in runs.in_batches(one_batch(mirror), n, batch, jax.random.key(0), values, start=row % n):
                x[row : row + len(part)] = part
                row += len(part)
                x.flush()
                done[split] = row
                write_text(temporary / DONE, json.dumps(done))
                print(f"\r{split}: {row}/{len(x)}", end="", flush=True)
        print()
        np.save(temporary / f"y{end}.npy", np.tile(dataset.labels[split][:n], copies).astype(np.int32))
    spread = deviation(untrusted.npy(temporary / "x.npy"))
    about = {
        "autoencoder": str(run.workdir.resolve()),
        "weights": run.weights,
        "step": run.step,
        "sha256": files.digest(run.params),
        "shape": [*shape[:-1], shape[-1] // 2],
        "scale": scale or spread,
        "images": {"name": dataset.name, "config": json.loads(config.to_json()), **dataset.facts},
    }
    if not (np.isfinite(spread) and about["scale"] > 0):
        shutil.rmtree(temporary)
        raise ValueError(f"the latents are not finite, or all the same: is {run.workdir} trained?")
    (temporary / sources.LATENTS).write_text(json.dumps(about, indent=1))
    (temporary / DONE).unlink()
    temporary.rename(out)
    return about


def deviation(x: Float[np.ndarray, "n h w 2*c"], block: int = 1024) -> float:
    """The standard deviation over the posteriors of latents, in blocks, as they need not fit in memory."""
    count, first, second = 0, 0.0, 0.0
    for start in range(0, len(x), block):
        mean, std = np.split(x[start : start + block].astype(np.float64), 2, -1)
        count, first, second = count + mean.size, first + mean.sum(), second + (mean**2 + std**2).sum()
    return float(np.sqrt(second / count - (first / count) ** 2))


def reconstruct(latents: data.Latents, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """The first test images, as many as `truth` [n, H, W, C] has, as their mean latents decode to, and their peak signal-to-noise ratio to it in
    decibels, of the mean squared error over all."""
    mean = np.split(latents.values["test"][: len(truth)], 2, -1)[0]
    values = latents.from_x(mean / latents.scale)
    error = np.mean((values.astype(np.float64) - truth) ** 2)
    return values, float(10 * np.log10((latents.images.levels - 1) ** 2 / error))


def main():
    f = flags.FLAGS
    parallel.check_batch(f.batch, "--batch")
    if f.workdir is None or f.lora:
        raise ValueError(f"--workdir={f.workdir} --lora={f.lora}: expected the workdir of an autoencoder, and no adapters")
    run = runs.load_run(f.workdir, f.checkpoint, f.weights)
    if not isinstance(run.network, Autoencoder):
        raise ValueError(f"--workdir={f.workdir} is no autoencoder: expected a run of configs/autoencoder.py, or of experiments.from_diffusers")
    config = f.config.data if f.config else run.config.data
    about = encode(run, config, f.out, f.batch, f.flip, f.scale, f.limit)
    latents = data.load(ConfigDict({"name": "latents", "path": f.out}))
    truth = data.load(config).values["test"][: min(1000, len(latents.values["test"]))]
    values, psnr = reconstruct(replace(latents, decoder=runs.decoder(latents)), truth)
    levels, few = latents.images.levels, min(64, len(truth))
    figure = plots.side_by_side(*(plots.to_uint8(v[:few], levels) for v in (values, truth)), Path(f.out) / "reconstructions.png")
    print(f"latents {latents.shape} of {len(latents.values['train'])} training and {len(latents.values['test'])} test images, divided by ", end="")
    print(f"{about['scale']:.4f}; reconstruction of {len(truth)} test images: PSNR {psnr:.2f} dB")
    print(f"wrote {f.out}, {figure}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment whose data are encoded; the autoencoder's own by default.")
    runs.define_flags()
    flags.DEFINE_string("out", None, "Folder of the latents.", required=True)
    flags.DEFINE_bool("flip", False, "Encode mirrored training images too.")
    flags.DEFINE_float("scale", 0.0, "What latents are divided by; 0 measures their standard deviation. Published models of ImageNet: 5.4899.")
    flags.DEFINE_integer("limit", 0, "At most so many examples a split; 0 for all.")
    cli.run(main)
