"""Broken, missing and foreign checkpoints: none loads silently wrong."""

import os
import shutil
import subprocess

import flax.struct
import jax
import numpy as np
import pytest
from small import like, restore, same, small_config

from experiments import checkpoints as module
from experiments import runs
from experiments.checkpoints import Checkpoints
from experiments.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of steps 3 and 6, and their states."""
    workdir = tmp_path_factory.mktemp("run")
    train(small_config(), workdir)
    return workdir, {step: restore(workdir / "checkpoints", step) for step in (3, 6)}


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run"


def test_flipped_bits(run, copy, times, count, capsys):
    """A bit flipped anywhere in the newest checkpoint (seed 0): the one before is loaded and the file named; asked for by its step, it is refused."""
    rng, n, held = np.random.default_rng(0), times(30, 1000), 0
    folder = copy / "checkpoints" / "6"
    files = [folder / module.MANIFEST, *sorted(f for f in (folder / module.STATE).rglob("*") if f.is_file() and f.stat().st_size)]
    sizes = np.array([f.stat().st_size for f in files], float)
    for i in range(n):
        # every file in turn, and by their size
        file = files[i % len(files)] if i % 2 else files[rng.choice(len(files), p=sizes / sizes.sum())]
        content = bytearray(original := file.read_bytes())
        bit = rng.integers(8 * len(content))
        content[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(content)
        found = restore(copy / "checkpoints")
        said = capsys.readouterr().out
        held += same(found, run[1][3]) and (f"{file} is" in said or (file.name == module.MANIFEST and "6/state/" in said))  # or of a name in it
        file.write_bytes(original)
    count("bit flips: none loaded wrong, file named, fallen back", held, n)


def test_truncated_and_deleted_files(run, copy, count, capsys):
    held = total = 0
    folder = copy / "checkpoints" / "6"
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        read = module.STATE in file.relative_to(folder).parts or file.name == module.MANIFEST
        for change in ("truncate", "empty", "delete"):
            original = file.read_bytes()
            if change == "delete":
                file.unlink()
            else:
                file.write_bytes(original[: len(original) // 2 if change == "truncate" else 0])
            capsys.readouterr()
            found = restore(copy / "checkpoints")
            said = capsys.readouterr().out
            unchanged = not original and change != "delete"
            expected = 6 if unchanged or not read else 3
            held, total = held + (same(found, run[1][expected]) and (expected == 6 or str(file) in said)), total + 1
            with pytest.raises(ValueError, match=file.name) if expected == 3 else open(os.devnull):
                restore(copy / "checkpoints", 6)
            file.write_bytes(original)
    count("checkpoint files truncated, emptied, deleted: file named, fallen back", held, total)


def test_one_writes(copy):
    """A second training of a run is refused while the first goes on, and a reader finds what is newest whenever it looks."""
    with Checkpoints(copy / "checkpoints", keep=1):
        with pytest.raises(ValueError, match="is being trained by another process"):
            train(small_config(steps=9), copy)
        assert int(restore(copy / "checkpoints").step) == 6
    for keep, every in ((-1, 0), (0, -7)):
        with pytest.raises(ValueError, match="keep(_every)? = -.: expected at least 0"):
            train(small_config(steps=9, keep=keep, keep_every=every), copy)
    assert int(restore(copy / "checkpoints", 3).step) == 3
    assert int(train(small_config(steps=4), copy).step) == 6  # nothing to train


def test_reading_beside_training(copy):
    """What is read may be removed meanwhile: then what is newest is read."""
    checkpoints = Checkpoints(copy / "checkpoints", keep=None)
    read, calls = checkpoints._read, []

    def vanishing(step, shapes):
        if not calls:
            calls.append(step)
            shutil.rmtree(copy / "checkpoints" / str(step))
        return read(step, shapes)

    checkpoints._read = vanishing
    assert int(checkpoints.restore(like(small_config())).step) == 3 and calls == [6]


def test_training_goes_on_from_the_last_that_is_whole(run, copy, capsys):
    """The damaged one is moved aside, its step is trained and saved again, bit-identically."""
    damaged = next(f for f in (copy / "checkpoints" / "6" / "state").rglob("*") if f.is_file() and f.stat().st_size)
    damaged.write_bytes(b"nothing")
    train(small_config(steps=8), copy)
    said = capsys.readouterr().out
    assert f"{damaged} is corrupt" in said and "falling back to the checkpoint of step 3" in said and "resumed from step 3" in said
    assert same(restore(copy / "checkpoints", 6), run[1][6])
    assert (copy / "damaged_checkpoints" / "6" / "manifest.json").exists()


def test_no_checkpoint_is_whole(copy):
    """Then nothing is loaded, and training does not begin anew: neither if all are damaged nor if the folder is gone."""
    for step in (3, 6):
        (copy / "checkpoints" / str(step) / "manifest.json").write_text("{")
    for attempt in (lambda: restore(copy / "checkpoints"), lambda: train(small_config(), copy), lambda: runs.load_run(copy)):
        with pytest.raises(ValueError, match=r"6/manifest.json is corrupt; .*3/manifest.json is corrupt; no other checkpoint is whole"):
            attempt()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(FileNotFoundError, match="says that there was one of step 6: put it back"):
        train(small_config(), copy)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        runs.load_run(copy)


def test_foreign_states(run, copy, count):
    """Wrong path, depth, type, and a state without EMA: refused, naming the array."""
    folder, config = copy / "checkpoints", small_config()
    held = 0
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*nowhere"):
        restore(copy / "nowhere")
    held += 1
    config.model.depth = 2
    with pytest.raises(ValueError, match=r"does not fit this config: params/\S+ is float32 \S+, expected float32"):
        restore(folder, config=config)
    held += 1
    whole = like(small_config())
    halves = whole.replace(ema=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.float16), whole.ema))
    with Checkpoints(folder, keep=None) as checkpoints, pytest.raises(ValueError, match=r": ema/\S+ is float32 \S+, expected float16"):
        checkpoints.restore(halves)
    held += 1

    @flax.struct.dataclass
    class NoEma:
        step: np.ndarray
        params: dict

    with Checkpoints(copy / "without", keep=0) as checkpoints:
        checkpoints.save(NoEma(np.int32(1), run[1][6].params))
    with Checkpoints(copy / "without", keep=None) as checkpoints, pytest.raises(ValueError, match=r": (key|ema/\S+) is not there, expected"):
        checkpoints.restore(whole)
    held += 1
    count("wrong path, depth, type, missing EMA: refused, array named", held, 4)


def test_disk_full(run, tmp_path, monkeypatch, count, capsys):
    """No room for a second checkpoint: nothing of it is written, needed and free are said, the first loads, and with room training goes on."""
    of = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: of._replace(free=1000) if list(path.glob("3")) else of)
    with pytest.raises(
        OSError, match=r"failed \(a checkpoint of step 6 needs .* MiB\): 0.0 MiB are free there.*the newest checkpoint is that of step 3"
    ):
        train(small_config(), tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["3"]
    monkeypatch.undo()
    assert same(train(small_config(), tmp_path), run[1][6])
    count("disk full: said with needed and free, previous step loads", 1, 1)


@pytest.mark.slow
def test_disk_fills_up(tmp_path, times, count):
    """The same on file systems (tmpfs, which needs root) with room for 1 to 3 checkpoints, where writing itself fails at any of its points."""
    config, sizes = small_config(steps=12), np.linspace(1.0, 3.0, times(3, 20))
    config.model.width = 128
    needed = sum(np.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(like(config)))
    held = failed = 0
    for i, size in enumerate(sizes):
        place = tmp_path / str(i)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(size * needed) + 200_000}", "none", place], check=True)
        try:
            train(config, place / "run")
        except OSError as error:
            words = str(error)
            found = restore(place / "run" / "checkpoints", config=config) if "newest checkpoint" in words else None
            held += "MiB are free there" in words and (found is None or int(found.step) in (3, 6, 9))
            failed += 1
        else:
            held += int(restore(place / "run" / "checkpoints", config=config).step) == 12
        finally:
            subprocess.run(["umount", "-l", place], check=True)
    assert failed
    count("disk fills up: said with needed and free, previous step loads", held, len(sizes), f"{failed} of them failed to save")
