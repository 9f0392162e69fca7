"""Results are not lost: other settings take another name, or are refused; what is not finite, or would be ignored, ends in a line."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import config_of, save_random

from experiments import evaluate, export, fit, inception, inverse, kept, latent, reflow, report, runs, sample, statistics
from experiments.benchmarks import timing
from experiments.kept import claim, name_of, noted, reserve, savez

SETTINGS = {"weights": "abc", "seed": 0, "interval": ("0", "1")}


def written(place):
    savez(place.file(".npz"), x=np.arange(3))
    place.write({"n": 3})
    return place


def test_other_settings_take_the_next_name(tmp_path, capsys):
    """Each settings a file of its own, whichever of them is written again, and whatever is there already."""
    stem = tmp_path / "samples" / "heun_18_guidance1.5"
    places = [written(claim(stem, SETTINGS | {"seed": seed})) for seed in (0, 1, 2)]
    assert [place.stem.name[len(stem.name) :] for place in places] == ["", "-2", "-3"] == [place.suffix for place in places]
    assert "guidance1.5 is a result of other settings (seed 0, not 1), and stays" in capsys.readouterr().out
    for seed, place in zip((2, 0, 1), (places[2], places[0], places[1])):
        assert claim(stem, SETTINGS | {"seed": seed}) == place
    assert noted(stem) == SETTINGS | {"interval": ["0", "1"]} and json.loads(places[0].file(".json").read_text())["n"] == 3
    assert noted(tmp_path / "nothing") is None
    np.savez(tmp_path / "old.npz", x=1)  # of an older version, or of another program
    assert claim(tmp_path / "old", SETTINGS).stem.name == "old-2" and "settings that it does not say" in capsys.readouterr().out
    assert claim(tmp_path / "old", SETTINGS).stem.name == "old-2", "claimed, though nothing has been written yet"
    for damaged in ("{", "[]", '{"settings": 3}'):
        (tmp_path / "damaged.json").write_text(damaged)
        assert claim(tmp_path / "damaged", SETTINGS).suffix == "-2"


def test_a_name_that_others_rely_on_is_refused(tmp_path):
    place = written(reserve(tmp_path / "stats", SETTINGS, "--out"))
    assert reserve(tmp_path / "stats", SETTINGS) == place
    with pytest.raises(ValueError, match=r"stats is a result of other settings \(seed 0, not 1\): name another --out, or remove it"):
        reserve(tmp_path / "stats", SETTINGS | {"seed": 1}, "--out")
    with pytest.raises(ValueError, match="remove it to replace it"):
        reserve(tmp_path / "stats", {})
    assert not [*tmp_path.glob("*-2*")]


def test_names_say_what_is_not_the_default():
    options = {"option": ["order=3", "variant=bh1"], "grid": "karras", "lora": ["runs/a/lora.safetensors:0.8"], "guidance": 1.5}
    assert name_of(["unipc_8"], options) == "unipc_8_optionorder3-variantbh1_gridkarras_loralora.safetensors0.8_guidance1.5"
    assert len(name_of(["unipc_8"], {"option": ["x" * 300]})) == 200 and "/" not in name_of(["a"], {"option": ["x=1/2"]})


def test_benchmarks_of_other_settings(tmp_path):
    for quick in (False, True, False):
        timing.report([{"ratio": 1.0 + quick}], str(tmp_path), "sampling", quick=quick)
    rows = [json.loads((tmp_path / name).read_text())["rows"][0]["ratio"] for name in ("sampling.json", "sampling-2.json")]
    assert rows == [1.0, 2.0] and len([*tmp_path.iterdir()]) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "run"
    save_random(config_of(), folder)
    return runs.load_run(folder)


def broken(run):
    """The run with weights that give NaN."""
    return replace(run, params=jax.tree.map(lambda leaf: np.nan * leaf, run.params))


def test_commands_lose_nothing(run, monkeypatch, capsys):
    """What both wrote unipc_8.npz; fewer samples, too, leave the many, and the same command writes over its own."""
    monkeypatch.setattr(sample, "pictures", lambda *_, **__: [])

    def command(num, **given):
        flags_of(monkeypatch, workdir=run.workdir, solver="unipc", steps=4, num=num, label=-1, **given)
        sample.main()
        return capsys.readouterr().out

    first = command(8, option=["order=2"])
    command(8, option=["order=3"], grid="karras")
    files = [run.workdir / "samples" / f"unipc_4_{name}.npz" for name in ("optionorder2", "optionorder3_gridkarras", "optionorder2-2")]
    before = files[0].read_bytes()
    said = command(4, option=["order=2"])
    assert "unipc_4_optionorder2 is a result of other settings (num 8, not 4), and stays" in said and f"wrote {files[2]}" in said
    assert files[0].read_bytes() == before and [len(np.load(file)["arr_0"]) for file in files] == [8, 8, 4]
    assert f"wrote {files[0]}" in first and f"wrote {files[0]}" in command(8, option=["order=2"]) and files[0].read_bytes() == before
    assert len([*(run.workdir / "samples").iterdir()]) == 6


def test_fits_and_exports_of_others_stay(run, tmp_path):
    file = fit.write(run, "gits", 3, examples=4)
    assert reserve(file.with_suffix(""), {"weights": run.fingerprint(), "seed": 0, "examples": 4}).file(".npz") == file, "the same may go on"
    with pytest.raises(ValueError, match=r"gits_3 is a result of other settings \(examples 4, not 8\): remove it to replace it"):
        fit.write(run, "gits", 3, examples=8)
    export.write(run.workdir, tmp_path / "out")
    export.write(run.workdir, tmp_path / "out")
    other = tmp_path / "other"
    save_random(config_of(dropout=0.1), other)
    with pytest.raises(FileExistsError, match="is an export of another run, run: name another folder"):
        export.write(other, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["workdir"] == "run"


def test_what_is_not_finite_is_one_line(run, tmp_path, monkeypatch):
    """And nothing is written of it."""
    options = {"solver": "ddim", "steps": 3, "grid": "log_snr", "tolerance": 0.1}
    how = "--solver=ddim --steps=3 --grid=log_snr"
    with pytest.raises(ValueError, match=f"^4 of 4 samples are not finite at {how}; the first is number 0$"):
        sample.generate(broken(run), 4, 4, 0, **options)
    with pytest.raises(ValueError, match=f"^4 of 4 pairs are not finite at {how}"):
        reflow.write(broken(run), tmp_path / "pairs", 4, 2, 4, **options)
    problem = {"method": "pigdm", "solver": "ddim", "steps": 3, "grid": "log_snr", "noise": 0.1, "zeta": 0.3, "iterations": 1, "snr": 0.16}
    monkeypatch.setattr(inverse, "sampler", lambda *_, **__: (lambda den, y, keys: np.full((len(keys), 8, 8, 1), np.nan), 3))
    with pytest.raises(ValueError, match="^4 of 4 samples are not finite at --method=pigdm --solver=ddim --steps=3"):
        inverse.solve(broken(run), "inpainting", 2, 2, 4, 0, **problem)
    with pytest.raises(ValueError, match="^2 of 6 results are not finite at --tolerance=0.1; the first is number 1$"):
        x = np.ones((6, 2))
        x[[1, 4], 0] = np.inf
        latent.solved({"x": x, "success": np.ones(6, bool)}, 0.1)
    values = np.ones((6, 4), np.float32)
    values[2, 1] = np.nan
    np.savez(tmp_path / "samples.npz", arr_0=values)
    with pytest.raises(ValueError, match=r"^1 of 6 samples are not finite at --samples=.*samples.npz; the first is number 2$"):
        evaluate.from_file(str(tmp_path / "samples.npz"), None)
    monkeypatch.setattr(inception.Features, "__call__", lambda self, images, start=0: iter([(np.full((4, 8), np.nan), np.ones((4, 5)))]))
    extract = inception.Features({}, "0" * 64)
    reference = statistics.Statistics(np.zeros(8), np.eye(8), 4, np.zeros((0, 8)), {})
    for judge in (lambda images: statistics.compute(extract, images), lambda images: evaluate.in_inception(extract, images, reference)):
        with pytest.raises(ValueError, match="^4 of 4 images' features are not finite at Inception 00000000"):
            judge(np.zeros((4, 8, 8, 3), np.uint8))
    flags_of(monkeypatch, seed=0, batch=8, grid="log_snr")
    monkeypatch.setattr(sample, "sampler", lambda *_, **__: lambda den, keys, x_T: [np.full((3, *x_T.shape), np.nan)] * 3)
    with pytest.raises(ValueError, match="^6 of 6 trajectories are not finite at --solver=dpm_solver_pp --steps=40"):
        report.trajectories(run)
    kept.check_finite(np.ones((3, 2)), "samples", "there")


SAMPLING = {
    "solver": "dpm_solver_pp", "steps": 20, "grid": "log_snr", "tolerance": 1e-5, "option": [], "threshold": "none", "corrector": "none", "snr": 0.16,
    "corrector_steps": 1, "diffusion": "none", "strength": 1.0, "guidance": 1.0, "guidance_kind": "cfg", "guidance_interval": [],
    "guidance_rescale": 0.0, "autoguidance": "", "classifier": "", "classifier_scale": 1.0, "score": "",
}  # fmt: skip
EVALUATING = {"groups": 4, "limit": 2000, "reference": "", "inception_weights": "", "samples": "", "resize": "tf1", "config": None, "batch": 256}
EVALUATING |= {"workdir": None, "seed": 0, "weights": "ema", "checkpoint": None, "lora": [], "label": -1, "num": 64}
REPORT = {"out": "", "grid": "log_snr", "nfe": ["4"], "num": 1000, "groups": 4, "workdir": None}


def flags_of(monkeypatch, **given):
    """Flags as absl has them, of which `given` are given."""
    values = SAMPLING | EVALUATING | given
    each = {name: SimpleNamespace(value=values[name], default=(SAMPLING | EVALUATING).get(name), present=int(name in given)) for name in values}

    class Flags(SimpleNamespace):
        __getitem__ = staticmethod(each.__getitem__)

    monkeypatch.setattr(sample.flags, "FLAGS", Flags(**values))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"grid": "few", "steps": 1, "solver": "heun"}, r"--solver=heun: --solver=heun with --grid=few --steps=1 is E\[x_0 \| x_T\]; expected ddim"),
        ({"grid": "few", "steps": 1, "option": ["order=2"]}, r"--option=order2: one step of --grid=few is E\[x_0 \| x_T\] alone"),
        ({"grid": "few", "steps": 1, "option": ["no_such=2"]}, "--option=no_such2: one step"),
        ({"grid": "few", "steps": 1, "corrector": "langevin"}, "--corrector=langevin: one step"),
        ({"solver": "adaptive", "steps": 5}, "--steps=5: --solver=adaptive takes as many steps as --tolerance asks for"),
        ({"solver": "heun", "tolerance": 1e-3}, "--tolerance=0.001: --solver=heun has none; expected --solver=adaptive with it"),
        ({"solver": "adaptive", "grid": "karras"}, "--grid=karras: --solver=adaptive has no grid"),
        ({"snr": 0.2}, "--snr=0.2: of a corrector"),
        ({"strength": 0.5}, "--strength=0.5: of a diffusion"),
    ],
)
def test_what_would_be_ignored_is_refused(run, monkeypatch, given, words):
    flags_of(monkeypatch, **given)
    with pytest.raises(ValueError, match=words):
        sample.sampler(run.network.sde, run.dataset.shape, run.workdir, **sample.from_flags(run))


def test_one_step_without_what_it_would_ignore(run, monkeypatch):
    for solver in ({}, {"solver": "ddim"}, {"solver": "euler"}):
        flags_of(monkeypatch, grid="few", steps=1, **solver)
        sample.sampler(run.network.sde, run.dataset.shape, run.workdir, **sample.from_flags(run))


@pytest.mark.parametrize(
    "main, given, words",
    [
        (evaluate.main, {"resize": "torch"}, "--resize: is of --inception_weights"),
        (evaluate.main, {"config": "digits"}, "--config: is of --samples"),
        (evaluate.main, {"samples": "a.npz", "batch": 8}, "--batch is of samples that are drawn"),
        (report.main, REPORT | {"nfe": []}, "--num=1000: of the curve, which --nfe= leaves out"),
    ],
)
def test_commands_refuse_flags_without_a_use(monkeypatch, main, given, words):
    flags_of(monkeypatch, **given)
    with pytest.raises(ValueError, match=words):
        main()


def test_a_run_says_what_it_is(run):
    text = repr(run)
    assert "ResidualMLP on" in text and "ema weights of step 1, " in text and "data digits (8, 8, 1)" in text and len(text) < 300
