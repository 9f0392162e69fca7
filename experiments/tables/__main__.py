"""Reproduce a table: python -m experiments.tables --table=NAME [--out=runs/tables]

Each table is a module of this folder with a docstring and a function run(out, quick, workdir) -> (rows, gates), gates being {what must hold: whether
it does}, and may have SEEDS, SOURCES (of its published figures), READS (whose models it uses beside its own: "workdir", or another table's name)
and a longer protocol, paper(out), for --paper. Writes OUT/NAME/table.md, table.json and figures; exits with 1 if a gate fails.

table.json: what (the docstring), rows (values, standard errors in columns "± NAME", published figures), gates, passed, seeds, sources, seconds, and
of: the beginnings of the SHA-256 of the project's code, and of config.json of each run that the table trained or read.
--quick goes to OUT/quick in the place of OUT, and has no gates (but primer). --list lists the tables and how each ended in OUT; --all runs all of
them, one after another in processes of their own (`make tables`), and puts that list into README.md, between its marks; those that passed with this
code and --workdir are not run again. A stop saves what is being trained, and the same command goes on there.
"""

import hashlib
import importlib
import json
import math
import pkgutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli, tables
from experiments.kept import SETTINGS, different, noted, sha256, write_text
from experiments.untrusted import read_json

ROOT = Path(__file__).parents[2]
README, MARKS = ROOT / "README.md", ("<!-- tables -->", "<!-- end of tables -->")
NOT_FINITE = ("nan", "inf", "-inf")  # as `plain` says them
NAMES = sorted(m.name for m in pkgutil.iter_modules(tables.__path__) if not m.name.startswith("_"))


def markdown(rows: list[dict]) -> str:
    """A Markdown table; numbers with four significant digits, a standard error beside its value."""
    text = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v).replace("|", "\\|")
    beside = lambda row, name: f" ± {row[f'± {name}']:.2g}" if isinstance(row.get(f"± {name}"), int | float) else ""
    names = [name for name in rows[0] if not (name.startswith("± ") and name[2:] in rows[0])]
    lines = [[text(name) for name in names], ["---"] * len(names), *([text(row[name]) + beside(row, name) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def code() -> str:
    """The beginning of the SHA-256 of all that a figure may depend on in this project."""
    files = [file for folder in ("sde_lib", "models", "samplers", "experiments", "configs") for file in sorted((ROOT / folder).rglob("*.py"))]
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:8]


def hashes(module, out: Path, workdir: str) -> dict[str, str]:
    """The beginning of the SHA-256 of config.json of each run in `out` and of those that the table reads, by their folder there."""
    read = {name: Path(workdir) if name == "workdir" else out.parent / name for name in getattr(module, "READS", ())}
    found = {name: (folder, sorted(folder.rglob("config.json"))) for name, folder in {out.name: out, **read}.items()}
    return {str(Path(name) / file.parent.relative_to(folder)): sha256(file)[:8] for name, (folder, files) in found.items() for file in files}


def ended(name: str, out: Path) -> dict:
    """What table.json of a table says; nothing if it is not there, or damaged."""
    try:
        said = read_json(out / name / "table.json")
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def index(out: Path, failed: Sequence[str] = ()) -> str:
    """A Markdown table of all tables: what each is, and how long it took and how its gates ended in `out`, if it was run there. failed: those that
    ended with an error since, whatever is there."""
    rows = []
    for name in NAMES:
        said, doc = ended(name, out), importlib.import_module(f"experiments.tables.{name}").__doc__
        passed = False if name in failed else said.get("passed")
        rows.append({
            "`--table=`": f"`{name}`", "what": doc.splitlines()[0].rstrip("."),
            "minutes": f"{said['seconds'] / 60:.1f}" if "seconds" in said else None,
            "gates": {None: "none", True: "passed", False: "FAILED"}[passed] if said or name in failed else None,
        })  # fmt: skip
    return markdown(rows)


def with_index(readme: str, found: str) -> str:
    """The text of README.md with the list between its marks. Raises ValueError if it has none."""
    before, begin, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"README.md: expected the marks {MARKS[0]} and {MARKS[1]}, between which the list of tables is put")
    return f"{before}{begin}\n{found}{end}{after}"


def reads_workdir(name: str) -> bool:
    """Whether the table is of the model in --workdir, or of a table that is."""
    read = getattr(importlib.import_module(f"experiments.tables.{name}"), "READS", ())
    return "workdir" in read or any(map(reads_workdir, read))


def check_place(out: Path, settings: dict) -> None:
    """Raise ValueError if a table in `out` is of other settings. One of an older version, which does not say, is the same command's."""
    if theirs := noted(out / "table"):
        if theirs != settings:
            raise ValueError(f"{out / 'table.json'} is of other settings ({different(settings, theirs)}): name another --out, or remove it")


def current(name: str, out: Path, workdir: str) -> bool:
    """Whether the table ended with this code and of these models, and no gate failed."""
    said, module = ended(name, out), importlib.import_module(f"experiments.tables.{name}")
    return said.get("passed", False) in (True, None) and said.get("of") == {"code": code(), **hashes(module, out / name, workdir)}


def alone(name: str, out: Path, workdir: str) -> int:
    """The exit code of a table in a process of its own. Raises cli.Stopped when stopped, once that process has saved."""
    command = [sys.executable, "-m", "experiments.tables", f"--table={name}", f"--out={out}"]
    command += [f"--workdir={workdir}"] if reads_workdir(name) else []
    with cli.StopSignal() as stop:
        told = bool(stop)  # asked before it begins, or the first signal would leave it alone
        with subprocess.Popen(command) as process:
            try:
                while process.poll() is None:
                    time.sleep(0.05)
                    if stop.name == "SIGTERM" and not told:  # SIGINT of a terminal comes to both
                        process.terminate()
                        told = True
            except cli.Stopped:  # by a second signal, which does not wait
                process.kill()
                raise
    if stop.name or process.returncode == cli.RESUMABLE:
        raise cli.Stopped(f"stopped by {stop.name or 'a signal'} in {name}: the same command goes on there")
    return process.returncode


def every(out: Path, workdir: str) -> None:
    """All tables; then the list in README.md. Exits with 1 if a gate failed, or a table ended with an error."""
    failed = []
    for name in NAMES:
        if current(name, out, workdir):
            print(f"{name}: passed with this code, in {out / name}")
        elif alone(name, out, workdir):
            failed.append(name)
    write_text(README, with_index(README.read_text(), index(out, failed)))
    print(f"{len(NAMES) - len(failed)} of {len(NAMES)} tables passed; wrote {README}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def plain(value):
    """What JSON can say of a cell: NumPy's numbers as Python's, and what is not finite by name."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def record(
    module, out: Path, workdir: str, rows: list[dict], gates: dict, seconds: float, by: str, settings: dict | None = None
) -> tuple[list[dict], str, bool | None]:
    """Write table.md and table.json; the rows as they are in it, what is said of the gates, and whether all hold, None where there are none. by: the
    hash of the code. settings: of the command, beside OUT. Figures that are not finite are a gate that fails."""
    rows = [{name: plain(value) for name, value in row.items()} for row in rows]
    gates = {name: bool(held) for name, held in gates.items()}
    values = [(row, name) for row in rows for name in row if isinstance(row[name], int | float | str) and not name.startswith("± ")]
    wrong = [f"{next(iter(row.values()))}: {name} {row[name]}" for row, name in values if row[name] in NOT_FINITE]
    if wrong:
        gates[f"all figures are finite; {len(wrong)} of {len(values)} are not finite at {'; '.join(wrong[:3])}{', ...' * (len(wrong) > 3)}"] = False
    passed = all(gates.values()) if gates else None
    of_gates = "".join(f"{'passed' if held else 'FAILED'}: {name}\n" for name, held in gates.items())
    of_gates += f"{seconds:.0f} s; {'gates passed' if passed else 'gates FAILED' if gates else 'no gates'}\n"
    write_text(out / "table.md", f"{module.__doc__}\n{markdown(rows)}\n{of_gates}")
    said = {"table": out.name, "what": module.__doc__, "rows": rows, "gates": gates, "passed": passed, "seconds": seconds}
    said |= {"seeds": getattr(module, "SEEDS", {}), "sources": getattr(module, "SOURCES", {})}
    said[SETTINGS] = settings or {}
    said["of"] = {"code": by, **hashes(module, out, workdir)}
    write_text(out / "table.json", json.dumps(said, indent=1, allow_nan=False))
    return rows, of_gates, passed


def main():
    f = flags.FLAGS
    if f.all + f.list + f.quick + f.paper > 1:
        raise ValueError(f"--all={f.all} --list={f.list} --quick={f.quick} --paper={f.paper}: expected one of them at most")
    if f.table and (f.all or f.list):
        raise ValueError(f"--table={f.table}: --{'all' if f.all else 'list'} is of all tables; expected one of the two")
    if f.list:
        print(index(Path(f.out)), end="")
        return
    if f.all:
        every(Path(f.out), f.workdir)
        return
    if f.table not in NAMES:
        raise ValueError(f"--table={f.table}: expected one of {', '.join(NAMES)}")
    module = importlib.import_module(f"experiments.tables.{f.table}")
    out = Path(f.out) / ("quick" if f.quick else "paper" if f.paper else "") / f.table
    if f.paper and not hasattr(module, "paper"):
        raise ValueError(f"--paper: {f.table} has no longer protocol; expected cfm_2d")
    if f["workdir"].present and not reads_workdir(f.table):
        raise ValueError(f"--workdir={f.workdir}: --table={f.table} trains its own models, or needs none; leave it out")
    settings = {"workdir": str(f.workdir)} if reads_workdir(f.table) else {}
    check_place(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    clock, by = time.perf_counter(), code()  # now, lest it is changed in the meantime
    rows, gates = module.paper(out) if f.paper else module.run(out, f.quick, f.workdir)
    rows, of_gates, passed = record(module, out, f.workdir, rows, gates, time.perf_counter() - clock, by, settings)
    print(markdown(rows) + of_gates + f"wrote {out / 'table.md'} and {out / 'table.json'}")
    if passed is False:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("table", "", "Which: --list lists them.")
    flags.DEFINE_bool("list", False, "List the tables, and how each ended in --out.")
    flags.DEFINE_bool("all", False, "Run all of them: hours.")
    flags.DEFINE_string("out", "runs/tables", "Where the results go.")
    flags.DEFINE_string("workdir", "runs/digits", "The trained model of a table that needs one; `make demo` makes it.")
    flags.DEFINE_bool("quick", False, "A smaller problem without gates (but primer), to see that it runs, in OUT/quick.")
    flags.DEFINE_bool("paper", False, "The full protocol of a table that has a shorter one, in OUT/paper.")
    cli.run(main)
