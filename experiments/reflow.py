r"""Pairs of a trained model, to straighten its flow: python -m experiments.reflow --workdir=runs/digits --out=runs/pairs --num=100000

Draws x_T from the prior, carries it to x_0 along the probability flow (Liu et al. 2023, 2209.03003, algorithm 1: --solver=adaptive, or any other
deterministic one of experiments.sample, with its guidance and labels), and writes a folder for --config.data.name=pairs --config.data.path=FOLDER, on
which experiments.train refits any model: the 2-rectified flow, and of its own pairs the 3-rectified one. A pair is joined by the path of the model
that is trained on it, x_t = alpha x_0 + sigma x_T/sigma(T), whatever path it was drawn along: x_T/sigma(T) is standard normal on all.

x.npy and source.npy, x_0 and x_T/sigma(T) (of an interpolant with a constant, x_T in units of its deviation there), [n, ...] float32; y.npy, labels;
and --held_out more, with _test in their names; pairs.json, with the SHA-256 of the weights, the path, solver and guidance. Pair i depends
on --seed and i alone. Written batch by batch to FOLDER.tmp, where the same command goes on if it is interrupted, and renamed once it is complete.

--rounds=K trains on them, too, K times: OUT/pairs_1 of the run, OUT/rectified_2 on these, by the run's own config (but its coupling and interpolant)
and from its weights, OUT/pairs_2 of that, and so on. The same command goes on where it was.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, data, network, ranges, runs, sources
from experiments import guidance as guiding
from experiments import sample as sampling
from experiments.kept import DONE, check_finite, started, write_text
from experiments.train import train
from experiments.untrusted import read_json
from samplers import grids, solvers
from sde_lib.noise import normal


def check_flow(run: runs.Run, options: dict) -> None:
    """Raises ValueError for a solver that does not follow the probability flow, and for a model of embeddings, which pairs have no room for."""
    solver, sde = options["solver"], run.network.sde
    table = solver in solvers.SOLVERS and sampling.make_solver(solver, options.get("option", ()))(sde, grids.log_snr(sde, 200))
    other = solver in (sampling.REVERSE_SDE, sampling.BRIDGE, sampling.NONE)
    if other or options.get("corrector", sampling.NONE) != sampling.NONE or (table and table.stochastic):
        raise ValueError(
            f"--solver={solver} draws noise on its way: pairs are of the probability flow; expected adaptive, heun or another ODE solver"
        )
    runs.check_noise(run)
    if run.dataset.embeddings:
        raise ValueError(f"--workdir={run.workdir} is conditioned on embeddings: expected a model of classes, or without labels")


def identity(guide: guiding.Guide, num: int, held_out: int, seed: int = 0, label: int = -1, **options) -> dict:
    """What pairs of a guided run are a function of, as pairs.json says it."""
    said = {"sha256": guide.run.fingerprint(), "num": num, "held_out": held_out, "seed": seed, "label": label, **options}
    return json.loads(json.dumps(said | {"others": guide.fingerprints()}))


def write(
    run: runs.Run,
    out: str | Path,
    num: int,
    held_out: int,
    batch: int,
    seed: int = 0,
    label: int = -1,
    stop: bool | cli.StopSignal = False,
    **options,
) -> dict:
    """Write `num` pairs, and `held_out` more, to the folder `out`; returns what pairs.json says. stop: asked after each batch, which is kept.
    options: of `sampling.generate`.

    Raises FileExistsError if `out` exists, ValueError for numbers below 1, a solver that is no flow, and what `sampling.sampler` raises.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"--out={out} exists: name another folder, or remove it")
    if num < 1 or held_out < 1:
        raise ValueError(f"--num={num} --held_out={held_out}: expected at least 1")
    check_flow(run, options)
    guide, rest = sampling.guided(run, **options)
    sde, shape = run.network.sde, run.dataset.shape
    draw = sampling.sampler(sde, shape, run.workdir, guidance=options.get("guidance", 1.0), **rest)

    def one_batch(keys, labels):
        x_1 = normal(keys, (len(keys), *shape))
        x_T = run.network.prior_std * x_1
        x, nfe, _ = draw(guide.denoiser(labels), keys, x_T)
        return {"x": x, "source": x_1}, nfe

    temporary = out.with_name(out.name + ".tmp")
    of = identity(guide, num, held_out, seed, label, **options)
    done = started(temporary, of)
    for part, (end, n) in enumerate((("", num), ("_test", held_out))):
        row = done.setdefault(f"rows{end}", 0)
        open_file = lambda name, end=end, n=n, row=row: np.lib.format.open_memmap(
            temporary / f"{name}{end}.npy", "r+" if row else "w+", np.float32, (n, *shape)
        )
        files, labels = {name: open_file(name) for name in ("x", "source")}, guide.labels(n, label)
        for rows, nfe in runs.in_batches(one_batch, n, batch, jax.random.fold_in(jax.random.key(seed), part), labels, start=row):
            check_finite(rows["x"], "pairs", sampling.described(options), row)
            for name, values in rows.items():
                files[name][row : row + len(values)] = values
                files[name].flush()
            row += len(nfe)
            done |= {f"rows{end}": row, "evaluations": done.get("evaluations", 0) + int(nfe.sum())}
            write_text(temporary / DONE, json.dumps(done))
            print(f"\r{'held out' if part else 'pairs'}: {row}/{n}", end="", flush=True)
            if stop:
                raise cli.Stopped(f"stopped at {row} of {n}, which are kept: the same command goes on")
        print()
        np.save(temporary / f"y{end}.npy", np.zeros(n, np.int32) if labels is None else np.asarray(labels, np.int32))
    pairs, ours = isinstance(run.dataset, data.Pairs), {"name": run.dataset.name, "config": run.config.data.to_dict(), **run.dataset.facts}
    about = {
        "workdir": str(run.workdir.resolve()),
        "weights": run.weights,
        "step": run.step,
        "sde": str(sde),
        "shape": list(shape),
        "nfe": done["evaluations"] / (num + held_out),
        "labelled": labels is not None,
        **of,
        "of": run.dataset.about["of"] if pairs else ours,
    }
    (temporary / sources.PAIRS).write_text(json.dumps(about, indent=1))
    (temporary / DONE).unlink()
    temporary.rename(out)
    return about


def retraining(run: runs.Run, pairs: Path, train_steps: int) -> ConfigDict:
    """The config of the training on a run's pairs: its own, from its weights, on the path between their ends alone. Raises ValueError if there is
    none, as of another loss than regression."""
    config = run.config.copy_and_resolve_references()
    if config.lora.rank:
        raise ValueError(f"--workdir={run.workdir} is an adapter, config.lora.rank = {config.lora.rank}: expected a run of all weights for --rounds")
    config.data.update(name="pairs", path=str(pairs), flip=False, augment=0.0)
    config.coupling.update(name="independent", group=0, by_class=None, regularization=0.0, constant=0.0, bridge=0.0)
    config.training.init, config.training.steps = str(run.workdir), train_steps or config.training.steps
    ranges.check(config)
    network.from_config(config, run.dataset.num_classes)
    return config


def rounds(run: runs.Run, out: str | Path, count: int, train_steps: int = 0, stop=False, **options) -> runs.Run:
    """Reflow `count` times in the folder `out`, and return the last run. train_steps: of each training, 0 for the run's own. stop: see `train.train`.
    options: of `write`, of whose guidance the first pairs are, and so what is trained on them for good. Raises what `retraining`, `write` and
    `train` raise, and ValueError for pairs that are there and are others."""
    for k in range(1, count + 1):
        pairs, folder = Path(out) / f"pairs_{k}", Path(out) / f"rectified_{k + 1}"
        config = retraining(run, pairs, train_steps)  # refuses before there are hours of pairs
        pairs.parent.mkdir(parents=True, exist_ok=True)
        if pairs.exists():
            drawn = {name: value for name, value in options.items() if name not in ("num", "held_out", "batch", "seed", "label")}
            of = identity(sampling.guided(run, **drawn)[0], **{name: value for name, value in options.items() if name != "batch"})
            said = read_json(pairs / sources.PAIRS)
            if other := [name for name in of if said.get(name) != of[name]]:
                raise ValueError(f"{pairs} is there and has another {', '.join(other)}: name another --out, or remove it")
            print(f"{pairs} is there already")
        else:
            write(run, pairs, stop=stop, **options)
        train(config, folder, stop)
        run, options = runs.load_run(folder), {name: value for name, value in options.items() if name not in ("guidance", *guiding.NAMES)}
    return run


def main():
    f = flags.FLAGS
    run = runs.from_flags()
    options = {"num": f.num, "held_out": f.held_out, "batch": f.batch, "seed": f.seed, "label": f.label, **sampling.from_flags(run)}
    if f.train_steps and not f.rounds:
        raise ValueError(f"--train_steps={f.train_steps}: of the training of --rounds; expected --rounds=1 or more with it")
    if f.rounds:
        print(f"wrote {rounds(run, f.out, f.rounds, f.train_steps, cli.StopSignal(), **options).workdir}")
        return
    about = write(run, f.out, **options)
    print(f"{f.num} pairs and {f.held_out} held out, {about['nfe']:.1f} evaluations each ({f.solver}): wrote {f.out}")


if __name__ == "__main__":
    runs.define_flags()
    sampling.define_flags(steps=100, solver=sampling.ADAPTIVE)
    flags.DEFINE_string("out", None, "Folder of the pairs.", required=True)
    flags.DEFINE_integer("num", 100_000, "Pairs to train on.")
    flags.DEFINE_integer("held_out", 1000, "Pairs besides, to judge a model that was trained on the others.")
    flags.DEFINE_integer("rounds", 0, "How often to train on the pairs, too; 0: pairs alone.", lower_bound=0)
    flags.DEFINE_integer("train_steps", 0, "Of each training of --rounds; 0: as many as of the run.", lower_bound=0)
    flags.DEFINE_integer("label", -1, "Class of all pairs; -1 takes all in turn.")
    cli.run(main)
