import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from experiments import cli
from experiments.tables import __main__ as tables
from experiments.tables import _training, cfm_2d, convergence, few_step, zoo
from experiments.tables.__main__ import NAMES, index, markdown
from sde_lib import Linear


def test_readme_has_the_generated_table_of_solvers(tmp_path):
    """As `python -m experiments.tables --table=zoo` prints it; a solver that was added may be missing."""
    readme = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    head, line, *rows = markdown(zoo.run(tmp_path, False, "")[0]).splitlines()
    start = readme.index(head)
    there = readme[start : readme.index("", start)]
    assert there == [head, line, *(row for row in rows if row in there)] and len(there) > 20


def test_a_quick_table_is_beside_the_measured_one(start, tmp_path):
    """It takes the place of no result, and is none in the list."""
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "table.json").write_text(json.dumps({"passed": False, "seconds": 90.0}))
    done = start("experiments.tables", "--table=zoo", "--quick", f"--out={tmp_path}")
    assert done.wait() == 0, done.said
    assert json.loads((tmp_path / "quick" / "zoo" / "table.json").read_text())["passed"] is None and "no gates" in done.said
    rows = {line.split("`")[1]: line.rsplit("|", 3)[1:3] for line in index(tmp_path).splitlines()[2:]}
    assert rows["zoo"] == [" 1.5 ", " FAILED "] and all(ended == ["  ", "  "] for name, ended in rows.items() if name != "zoo")


def test_what_a_table_says(tmp_path):
    """A standard error stands beside its value, a bar is no column, what is not finite is JSON still, a gate that fails is named, and so are seeds
    and sources; models are named by their folder, wherever that is."""
    rows = [{"model": "a", "W2": 0.1234, "± W2": np.float32(0.01), "floor": None}, {"model": "|b|", "W2": float("nan"), "± W2": None, "floor": 1}]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    rows, ended, passed = tables.record(cfm_2d, tmp_path, "", rows, {"near": np.bool_(True), "far": False}, 60.0, "abc")
    assert markdown(rows).splitlines() == ["| model | W2 | floor |", "| --- | --- | --- |", "| a | 0.1234 ± 0.01 |  |", r"| \|b\| | nan | 1 |"]
    assert passed is False
    finite = "all figures are finite; 1 of 5 are not finite at |b|: W2 nan"
    assert ended.splitlines() == ["passed: near", "FAILED: far", f"FAILED: {finite}", "60 s; gates FAILED"]
    said = json.loads((tmp_path / "table.json").read_text())
    assert said["gates"] == {"near": True, "far": False, finite: False} and not said["passed"] and said["rows"][1]["W2"] == "nan"
    assert said["seeds"]["short"] == [42, 43, 44] and "2307.03672" in said["sources"]["published"]
    assert said["of"] == {"code": "abc", f"{tmp_path.name}/run": "44136fa3"}
    assert tables.record(cfm_2d, tmp_path, "", [{"model": "a", "W2": 0.1, "± W2": np.nan}], {}, 60.0, "abc")[2] is None, "an error may be unknown"
    assert tables.record(cfm_2d, tmp_path, "", [{"model": "a", "W2": np.inf}], {}, 60.0, "abc", {"workdir": "runs/a"})[2] is False
    tables.check_place(tmp_path, {"workdir": "runs/a"})
    with pytest.raises(ValueError, match=r"table.json is of other settings \(workdir 'runs/a', not 'runs/b'\): name another --out"):
        tables.check_place(tmp_path, {"workdir": "runs/b"})


def test_every_table_says_its_seeds():
    modules = {name: importlib.import_module(f"experiments.tables.{name}") for name in NAMES if name != "zoo"}
    assert all(module.SEEDS for module in modules.values())
    assert {name for name, module in modules.items() if "workdir" in getattr(module, "READS", ())} == {
        name for name, module in modules.items() if "(workdir)" in inspect.getsource(module)
    }


def test_all_tables(tmp_path, monkeypatch, capsys):
    """Each but those that passed with this code and models; one that fails, or ends without a word, does not stop the others, and the list is in
    README.md."""
    (tmp_path / "README.md").write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    monkeypatch.setattr(tables, "NAMES", ["correctors", "guidance", "solvers", "zoo"])
    ran, crash = [], []

    def alone(name, out, workdir):
        ran.append(name)
        if name in crash:
            return 1
        (tmp_path / name).mkdir(exist_ok=True)
        gates, module = {} if name == "zoo" else {"it": name != "guidance"}, importlib.import_module(f"experiments.tables.{name}")
        return int(tables.record(module, out / name, workdir, [{"a": 1}], gates, 90.0, tables.code())[2] is False)

    monkeypatch.setattr(tables, "alone", alone)
    ended = lambda name: next(line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith(f"| `{name}`"))
    again = lambda: pytest.raises(SystemExit, match="failed: guidance")
    with again():
        tables.every(tmp_path, str(tmp_path / "run"))
    assert ran == ["correctors", "guidance", "solvers", "zoo"]
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- tables -->\n| `--table=` |") and text.endswith("<!-- end of tables -->\nafter\n") and "old" not in text
    assert "| 1.5 | FAILED |" in ended("guidance") and "| 1.5 | none |" in ended("zoo")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # another model, of which solvers is
    with again():
        tables.every(tmp_path, str(tmp_path / "run"))
    assert ran[4:] == ["guidance", "solvers"] and "zoo: passed with this code" in capsys.readouterr().out
    monkeypatch.setattr(tables, "code", lambda: "another")
    with again():
        tables.every(tmp_path, str(tmp_path / "run"))
    assert ran[6:] == ["correctors", "guidance", "solvers", "zoo"]
    crash.append("correctors")
    for file, text in (("correctors", "{"), ("solvers", "[1]"), ("zoo", '{"seconds": 90}')):
        (tmp_path / file / "table.json").write_text(text)
    with pytest.raises(SystemExit, match="failed: correctors, guidance"):
        tables.every(tmp_path, str(tmp_path / "run"))
    assert ran[10:] == ["correctors", "guidance", "solvers", "zoo"] and "|  | FAILED |" in ended("correctors")
    crash.append("solvers")
    (tmp_path / "run" / "config.json").write_text("{ }")
    with pytest.raises(SystemExit, match="failed: correctors, guidance, solvers"):
        tables.every(tmp_path, str(tmp_path / "run"))
    assert ended("solvers").endswith("| 1.5 | FAILED |"), "though the one before passed"


def signalled(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_until_the_table_has_saved(tmp_path, monkeypatch, number):
    """SIGTERM is passed on, once; SIGINT, which a terminal sends to both, is not. Signals are then what they were."""
    saves = "import signal, sys, time; from pathlib import Path; out = Path(sys.argv[1])\n"
    saves += "signal.signal(signal.SIGTERM, lambda *_: (out.write_text(out.read_text() + ' saved'), time.sleep(0.3), sys.exit(75)))\n"
    saves += "out.write_text('begun'); time.sleep(60 if sys.argv[2] == 'SIGTERM' else 1)"
    out, popen, before = tmp_path / "said", subprocess.Popen, signal.getsignal(number)
    monkeypatch.setattr(tables.subprocess, "Popen", lambda command: popen([sys.executable, "-c", saves, str(out), number.name]))

    def stop():
        while not out.exists() or not out.read_text():
            time.sleep(0.01)
        signalled(number)

    Thread(target=stop).start()
    with pytest.raises(cli.Stopped, match=f"stopped by {number.name} in zoo: the same command goes on there"):
        tables.alone("zoo", tmp_path, "")
    assert out.read_text() == ("begun saved" if number == signal.SIGTERM else "begun") and signal.getsignal(number) == before


def test_models_of_tables_are_saved_at_a_stop(tmp_path, monkeypatch):
    """The training is told of it, and signals are then what they were."""
    before = signal.getsignal(signal.SIGTERM)

    def train(config, folder, stop):
        assert not stop
        signalled()
        assert stop.name == "SIGTERM"  # too late for this training, which has ended

    monkeypatch.setattr(_training, "train", train)
    with pytest.raises(cli.Stopped, match="stopped by SIGTERM, .* is trained"):
        _training.trained(small_config(), tmp_path, False)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "words, said",
    [
        ("--all --quick", "expected one of them at most"),
        ("--all --table=zoo", "--table=zoo: --all is of all tables"),
        ("--list --table=nothing", "--table=nothing: --list is of all tables"),
        ("--table=zoo --paper", "zoo has no longer protocol; expected cfm_2d"),
        ("--table=zoo --out={0}/file", "file"),
    ],
)
def test_mistakes_end_in_one_line(start, tmp_path, words, said):
    (tmp_path / "file").write_text("")
    done = start("experiments.tables", *words.format(tmp_path).split())
    assert done.wait() == 1 and said in done.said and "Traceback" not in done.said


@pytest.mark.slow
def test_convergence_table(tmp_path):
    """Orders within 0.1 of the theory, and RMSE at 10 evaluations within 20 % of the released implementations' on the same problem.

    The starts are another draw of 256, and the RMSE is dominated by the few of them that are near the borders of modes.
    """
    rows, gates = convergence.run(tmp_path, False, "")
    assert all(gates.values()), rows
    for row in rows:
        if row["published"]:
            assert row["RMSE at 10 evaluations"] == pytest.approx(row["published"], rel=0.2), row
    assert (tmp_path / "convergence.png").exists() and json.dumps(rows)


def test_better_than_its_teacher_by_as_many_steps():
    """By three standard errors of the groups' differences, which share their noise; a model of four steps is held against its teacher's four."""
    model = lambda *steps, teacher="": few_step.Model(Linear(), dict.fromkeys(steps), teacher)
    models = {"teacher": model(1, 4), "one": model(1, 2, teacher="teacher"), "four": model(4, teacher="teacher")}
    wide, shift = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.3, 0.4, 0.5, 0.4])
    series = {("teacher", 1): wide, ("teacher", 4): wide - 0.9, ("one", 1): wide - shift, ("four", 4): wide - 0.9 - shift}
    held = lambda of: list(few_step.better("plane", models, series | of).values())
    assert held({}) == [True, True]
    assert held({("four", 4): wide - 0.8}) == [True, False]
    assert held({("one", 1): wide - np.array([0.6, -0.1, 0.6, -0.1])}) == [False, True]


@pytest.mark.slow
def test_few_steps(tmp_path):
    """The table's half on the plane runs, with a row for each model and number of steps, and figures in range."""
    rows, _ = few_step.on_the_plane(tmp_path, True)
    found = {(row["model"], row["steps"]) for row in rows}
    assert {(label, 1) for label in few_step.METHODS if label != "PCM"} | {("PCM", 4), ("PeRFlow", 4), ("MeanFlow", 2)} <= found
    assert all(row["W2"] > 0 and row["energy distance"] > -1 for row in rows[:-1]) and (tmp_path / "8gaussians.png").exists()


def flows(**of):
    """What `cfm_2d.measure` finds: on all tasks the published W2, an NPE of OT-CFM that is a quarter of I-CFM's; `of` in their places."""
    found = {}
    for name, published in cfm_2d.PUBLISHED.items():
        for task, figure in zip(cfm_2d.TASKS, published):
            if figure:
                found[f"{name}, {task}"] = {"W2": [figure[0]], "NPE": [0.1 if name == "OT-CFM" else 0.4], "floor": [0.1]}
    for key, (column, value) in of.items():
        found[key][column] = [value]
    return found


def test_gates_of_cfm_2d():
    """OT halves NPE on every task, and is no worse than I-CFM between the two data sets."""
    failed = lambda **of: [name for name, held in cfm_2d.table(flows(**of))[1].items() if not held]
    assert failed() == []
    for task in cfm_2d.TASKS:
        assert failed(**{f"OT-CFM, {task}": ("NPE", 0.21)}) == [f"{task}: OT-CFM has less than half of I-CFM's NPE"]
    assert failed(**{"OT-CFM, moons -> 8gaussians": ("W2", 1.6)}) == ["moons -> 8gaussians: OT-CFM has no more W2 than I-CFM"]
    assert failed(**{"OT-CFM, N -> moons": ("W2", 1.6)}) == []


def test_paper_of_cfm_2d(tmp_path, monkeypatch):
    """Seeds are kept, of their settings alone; a W2 of three published deviations on either side fails."""
    seeds, moved = [], {}
    monkeypatch.setattr(cfm_2d, "measure", lambda out, seed, **_: seeds.extend(seed) or flows(**moved))
    failed = lambda: [name for name, held in cfm_2d.paper(tmp_path)[1].items() if not held]
    assert failed() == [] and seeds == [42, 43, 44, 45, 46]
    (tmp_path / "seed_44.json").unlink()
    assert failed() == [] and seeds[5:] == [44]
    for far in (0.303 + 5 * 3.1 * 0.043, 0.303 - 5 * 3.1 * 0.043):  # of the mean of five
        (tmp_path / "seed_44.json").unlink()
        moved["OT-CFM, N -> 8gaussians"] = ("W2", far)
        assert failed() == ["N -> 8gaussians: OT-CFM is within 3 published deviations of the published W2"]
    kept = (tmp_path / "seed_44.json").read_bytes()
    monkeypatch.setattr(cfm_2d, "LOOK", 100)
    with pytest.raises(ValueError, match="seed_42.json is of .*'look': 200"):
        cfm_2d.paper(tmp_path)
    assert (tmp_path / "seed_44.json").read_bytes() == kept


@pytest.mark.slow
def test_training_returns_the_weights_of_the_least_held_out_loss(monkeypatch):
    """Those of the best of three looks, of each of two runs, as training that stops there has them: of held-out points that are like the others the
    last, of those with their ends exchanged, to which the flow leads ever less, the first."""
    monkeypatch.setattr(cfm_2d, "LOOK", 2)
    monkeypatch.setattr(cfm_2d, "CHUNK", 2)
    sets, keys, batch = [cfm_2d.points("N -> moons", seed, 1) for seed in (0, 1)], jax.random.split(jax.random.key(0)), 2500
    held = [cfm_2d.points("N -> moons", seed, 1) for seed in (10, 11)]
    held[1] |= {"x0": held[1]["x1"], "x1": held[1]["x0"]}
    make = lambda of, r, k: cfm_2d.pairs("independent", of[r]["x0"], of[r]["x1"], batch, r, k)
    train = lambda steps, held: cfm_2d.train(make, batch, steps, {"it": (cfm_2d.CONSTANT, False)}, sets, held, keys)["it"]
    looks, looked = (
        [train(steps, None) for steps in (2, 4, 6)],
        [np.stack(c).reshape(2, -1, 2) for c in zip(*(make(held, r, range(4)) for r in (0, 1)))],
    )
    none = jnp.full(2, jnp.inf), looks[0]
    key = lambda start: cfm_2d.folded(cfm_2d.folded(keys, 2 * start), 1)
    losses = np.stack([cfm_2d.least(none, params, cfm_2d.CONSTANT, False, *looked, key(2 * i))[0] for i, params in enumerate(looks)])
    best, found = losses.argmin(0), train(6, held)
    assert best.tolist() == [2, 0], losses
    for run in (0, 1):
        for got, *seen in zip(*map(jax.tree.leaves, (found, *looks))):
            np.testing.assert_array_equal(got[run], seen[best[run]][run])


def test_weights_of_the_least_loss_are_kept():
    """Of each run by itself: a run whose loss is not below its best keeps the old ones."""
    params = jax.tree.map(lambda a: jnp.stack([a, a]), cfm_2d.NET.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))["params"])
    x0, x1 = jax.random.normal(jax.random.key(1), (2, 2, 64, 2))
    old = jax.tree.map(jnp.zeros_like, params)
    found, kept = cfm_2d.least((jnp.array([jnp.inf, 0.0]), old), params, cfm_2d.CONSTANT, False, x0, x1, jax.random.split(jax.random.key(2)))
    assert np.isfinite(found[0]) and found[0] > 0 and found[1] == 0
    new = lambda tree, run: np.concatenate([np.ravel(a[run]) for a in jax.tree.leaves(tree)])
    assert np.array_equal(new(kept, 0), new(params, 0)) and np.array_equal(new(kept, 1), new(old, 1)) and new(params, 1).any()
