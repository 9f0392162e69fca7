"""Reproduce a table: python -m experiments.tables --table=NAME [--out=runs/tables]

Each table is a module of this folder with a docstring and a function run(out, quick, workdir) -> (rows, gates), gates being {what must hold: whether
it does}, and may have SEEDS, SOURCES (of its published figures), READS (whose models it uses beside its own: "workdir", or another table's name)
and a longer protocol, paper(out), for --paper. Writes OUT/NAME/table.md, table.json and figures; exits with 1 if a gate fails.

table.json: what (the docstring), rows (values, standard errors in columns "± NAME", published figures), gates, passed, seeds, sources, seconds, and
of: the beginnings of the SHA-256 of the project's code, and of config.json of each run that the table trained or read.
--quick goes to OUT/quick in the place of OUT. --list lists the tables and how each ended in OUT; --all runs all of them, one after another in
processes of their own (`make tables`), and puts that list into README.md, between its marks; those that passed with this code and --workdir are not
run again.
"""

import hashlib
import importlib
import json
import math
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli, tables
from experiments.kept import sha256, write_text
from experiments.untrusted import read_json

ROOT = Path(__file__).parents[2]
README, MARKS = ROOT / "README.md", ("<!-- tables -->", "<!-- end of tables -->")
NAMES = sorted(m.name for m in pkgutil.iter_modules(tables.__path__) if not m.name.startswith("_"))


def markdown(rows: list[dict]) -> str:
    """A Markdown table; numbers with four significant digits, a standard error beside its value."""
    text = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v)
    beside = lambda row, name: f" ± {row[f'± {name}']:.2g}" if row.get(f"± {name}") is not None else ""
    names = [name for name in rows[0] if not (name.startswith("± ") and name[2:] in rows[0])]
    lines = [names, ["---"] * len(names), *([text(row[name]) + beside(row, name) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def code() -> str:
    """The beginning of the SHA-256 of all that a figure may depend on in this project."""
    files = [file for folder in ("sde_lib", "models", "samplers", "experiments", "configs") for file in sorted((ROOT / folder).rglob("*.py"))]
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:8]


def hashes(module, out: Path, workdir: str) -> dict[str, str]:
    """The beginning of the SHA-256 of config.json of each run in `out`, and of those that the table reads."""
    read = [Path(workdir) if name == "workdir" else out.parent / name for name in getattr(module, "READS", ())]
    return {str(file.parent): sha256(file)[:8] for folder in (out, *read) for file in sorted(folder.rglob("config.json"))}


def index(out: Path) -> str:
    """A Markdown table of all tables: what each is, and how long it took and how its gates ended in `out`, if it was run there."""
    rows = []
    for name in NAMES:
        file = out / name / "table.json"
        of = read_json(file) if file.exists() else {}
        rows.append({
            "`--table=`": f"`{name}`", "what": importlib.import_module(f"experiments.tables.{name}").__doc__.splitlines()[0].rstrip("."),
            "minutes": f"{of['seconds'] / 60:.1f}" if "seconds" in of else None,
            "gates": ("passed" if of["passed"] else "FAILED") if "passed" in of else None,
        })  # fmt: skip
    return markdown(rows)


def with_index(readme: str, found: str) -> str:
    """The text of README.md with the list between its marks. Raises ValueError if it has none."""
    before, begin, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"README.md: expected the marks {MARKS[0]} and {MARKS[1]}, between which the list of tables is put")
    return f"{before}{begin}\n{found}{end}{after}"


def current(name: str, out: Path, workdir: str) -> bool:
    """Whether the table passed, with this code and of these models."""
    file = out / name / "table.json"
    if not file.exists():
        return False
    said, module = read_json(file), importlib.import_module(f"experiments.tables.{name}")
    return said["passed"] and said.get("of") == {"code": code(), **hashes(module, file.parent, workdir)}


def every(out: Path, workdir: str) -> None:
    """All tables, each in a process of its own; then the list in README.md. Exits with 1 if a gate failed."""
    failed = []
    for name in NAMES:
        if current(name, out, workdir):
            print(f"{name}: passed with this code, in {out / name}")
        elif subprocess.run([sys.executable, "-m", "experiments.tables", f"--table={name}", f"--out={out}", f"--workdir={workdir}"]).returncode:
            failed.append(name)
    write_text(README, with_index(README.read_text(), index(out)))
    print(f"{len(NAMES) - len(failed)} of {len(NAMES)} tables passed; wrote {README}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def plain(value):
    """What JSON can say of a cell: NumPy's numbers as Python's, and what is not finite by name."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def record(module, out: Path, workdir: str, rows: list[dict], gates: dict, seconds: float) -> tuple[list[dict], str, bool]:
    """Write table.md and table.json; the rows as they are in it, what is said of the gates, and whether all hold."""
    rows = [{name: plain(value) for name, value in row.items()} for row in rows]
    gates = {name: bool(held) for name, held in gates.items()}
    passed = all(gates.values())
    ended = "".join(f"{'passed' if held else 'FAILED'}: {name}\n" for name, held in gates.items())
    ended += f"{seconds:.0f} s; gates {'passed' if passed else 'FAILED'}\n"
    write_text(out / "table.md", f"{module.__doc__}\n{markdown(rows)}\n{ended}")
    said = {"table": out.name, "what": module.__doc__, "rows": rows, "gates": gates, "passed": passed, "seconds": seconds}
    said |= {"seeds": getattr(module, "SEEDS", {}), "sources": getattr(module, "SOURCES", {})}
    said["of"] = {"code": code(), **hashes(module, out, workdir)}
    write_text(out / "table.json", json.dumps(said, indent=1, allow_nan=False))
    return rows, ended, passed


def main():
    f = flags.FLAGS
    if f.all + f.list + f.quick + f.paper > 1:
        raise ValueError(f"--all={f.all} --list={f.list} --quick={f.quick} --paper={f.paper}: expected one of them at most")
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
    out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    rows, gates = module.paper(out) if f.paper else module.run(out, f.quick, f.workdir)
    rows, ended, passed = record(module, out, f.workdir, rows, gates, time.perf_counter() - clock)
    print(markdown(rows) + ended + f"wrote {out / 'table.md'} and {out / 'table.json'}")
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("table", "", "Which: --list lists them.")
    flags.DEFINE_bool("list", False, "List the tables, and how each ended in --out.")
    flags.DEFINE_bool("all", False, "Run all of them: hours.")
    flags.DEFINE_string("out", "runs/tables", "Where the results go.")
    flags.DEFINE_string("workdir", "runs/digits", "The trained model of a table that needs one; `make demo` makes it.")
    flags.DEFINE_bool("quick", False, "A smaller problem without gates, to see that it runs, in OUT/quick.")
    flags.DEFINE_bool("paper", False, "The full protocol of a table that has a shorter one, in OUT/paper.")
    cli.run(main)
