"""Weights for others: python -m experiments.export --workdir=runs/digits --out=exports/digits

Writes ema.safetensors and raw.safetensors, arrays by names such as Conv_0/kernel; config.json, as of the run; export.json, with the step, the number
of parameters, what the data were and the SHA-256 of both files. The folder is a --workdir of every command but training;
without the data, of sampling. Of a run that trained an adapter these are the merged weights, and lora.safetensors is the averaged adapter alone
(`experiments.adapters`). Nothing in it is a pickle.
"""

import json
import shutil
from pathlib import Path

import jax
from absl import flags

from experiments import adapters, cli, runs
from experiments import weights as files
from experiments.kept import write_text
from experiments.untrusted import read_json

WEIGHTS = ("ema", "raw")
# of an export that was interrupted
OURS = {"config.json", "export.tmp", f"{files.SAID}.tmp", adapters.FILE, *(f"{weights}.safetensors" for weights in WEIGHTS)}


def check_same_run(workdir: str | Path, out: Path) -> None:
    """Raise FileExistsError if `out` holds an export of another run, whose folder has another name, or whose config is another."""
    theirs, said = out / "config.json", out / files.SAID
    if not (theirs.exists() and said.exists()):
        return
    name = read_json(said).get("workdir")
    if name != Path(workdir).name or theirs.read_bytes() != (Path(workdir) / "config.json").read_bytes():
        raise FileExistsError(f"--out={out} is an export of another run, {name}: name another folder, or remove it")


def write(workdir: str | Path, out: str | Path, step: int | None = None, which: tuple[str, ...] = WEIGHTS) -> dict:
    """Export a run's checkpoint of `step` (default: the newest), `which` of its weights, to the folder `out`; returns what export.json says.

    Raises what `runs.load_run` raises, and FileExistsError if `out` holds something else than an older export.
    """
    out = Path(out)
    if out.exists() and not (out / files.SAID).exists() and {file.name for file in out.iterdir()} - OURS:
        raise FileExistsError(f"--out={out} exists and is no export: name another folder")
    check_same_run(workdir, out)
    loaded = {}
    for weights in which:  # of one step, although the run may go on
        loaded[weights] = runs.load_run(workdir, step, weights)
        step = loaded[weights].step
    temporary = out / "export.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of an interrupted command
    temporary.mkdir(parents=True)
    shutil.copyfile(Path(workdir) / "config.json", temporary / "config.json")
    said = loaded["ema"].description() | {
        "parameters": sum(a.size for a in jax.tree.leaves(loaded["ema"].params)),
        "dataset": loaded["ema"].dataset.facts,
        "sha256": {weights: files.save(run.params, files.file(temporary, weights)) for weights, run in loaded.items()},
    }
    del said["weights"]
    adapter = loaded["ema"].adapter
    if adapter is not None:
        base = read_json(Path(workdir) / runs.BASE / files.SAID)["sha256"]["ema"]
        said["sha256"]["lora"] = adapters.save(adapter, loaded["ema"].config.lora, base, temporary / adapters.FILE, loaded["ema"].network)
    (out / files.SAID).unlink(missing_ok=True)  # without it no export is read: not of some old and some new files
    for file in temporary.iterdir():
        file.rename(out / file.name)
    temporary.rmdir()
    write_text(out / files.SAID, json.dumps(said, indent=1))
    return said


def main():
    f = flags.FLAGS
    said = write(f.workdir, f.out, f.checkpoint)
    print(f"step {said['step']}, {said['parameters']:,} parameters: wrote {', '.join(str(files.file(f.out, weights)) for weights in said['sha256'])}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "A run made by experiments.train.", required=True)
    flags.DEFINE_string("out", None, "Folder of the export.", required=True)
    flags.DEFINE_integer("checkpoint", None, "Step of the checkpoint; the newest by default.")
    cli.run(main)
