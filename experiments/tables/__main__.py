"""Reproduce a table: python -m experiments.tables --table=NAME [--out=runs/tables]

Each table is a module of this folder with a docstring and a function run(out, quick, workdir) -> (rows, passed). Writes OUT/NAME/table.md,
table.json and figures; exits with 1 if a gate of the table fails. A module may have a longer protocol, paper(out), for --paper.

table.json: what (the docstring: sources of published figures, groups and seeds), rows (values, standard errors, published figures), passed, seconds,
and configs, of each run that it trained or read the beginning of the SHA-256 of its config.json.
--quick goes to OUT/quick in the place of OUT. --list lists the tables and how each ended in OUT; --all runs all of them, one after another in
processes of their own (`make tables`), and puts that list into README.md, between its marks.
"""

import importlib
import json
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli, tables
from experiments.kept import sha256, write_text

README, MARKS = Path(__file__).parents[2] / "README.md", ("<!-- tables -->", "<!-- end of tables -->")
NAMES = sorted(m.name for m in pkgutil.iter_modules(tables.__path__) if not m.name.startswith("_"))


def markdown(rows: list[dict]) -> str:
    """A Markdown table; numbers with four significant digits."""
    text = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def index(out: Path) -> str:
    """A Markdown table of all tables: what each is, and how long it took and how its gates ended in `out`, if it was run there."""
    rows = []
    for name in NAMES:
        file, of = out / name / "table.json", {}
        if file.exists():
            of = json.loads(file.read_text())
        ended = ("passed" if of["passed"] else "FAILED") if of else None
        rows.append({
            "`--table=`": f"`{name}`", "what": importlib.import_module(f"experiments.tables.{name}").__doc__.splitlines()[0].rstrip("."),
            "minutes": f"{of['seconds'] / 60:.1f}" if ended else None, "gates": ended,
        })  # fmt: skip
    return markdown(rows)


def with_index(readme: str, found: str) -> str:
    """The text of README.md with the list between its marks. Raises ValueError if it has none."""
    before, begin, rest = readme.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"README.md: expected the marks {MARKS[0]} and {MARKS[1]}, between which the list of tables is put")
    return f"{before}{begin}\n{found}{end}{after}"


def every(out: Path, workdir: str) -> None:
    """All tables, each in a process of its own; then the list in README.md. Exits with 1 if a gate failed."""
    failed = [
        name
        for name in NAMES
        if subprocess.run([sys.executable, "-m", "experiments.tables", f"--table={name}", f"--out={out}", f"--workdir={workdir}"]).returncode
    ]
    write_text(README, with_index(README.read_text(), index(out)))
    print(f"{len(NAMES) - len(failed)} of {len(NAMES)} tables passed; wrote {README}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def main():
    f = flags.FLAGS
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
    rows, passed = module.paper(out) if f.paper else module.run(out, f.quick, f.workdir)
    seconds = time.perf_counter() - clock
    table = markdown(rows)
    (out / "table.md").write_text(f"{module.__doc__}\n{table}\nmeasured in {seconds:.0f} s; gates {'passed' if passed else 'FAILED'}\n")
    used = {str(file.parent): sha256(file)[:8] for folder in (out, Path(f.workdir)) for file in sorted(folder.rglob("config.json"))}
    said = {"table": f.table, "what": module.__doc__, "rows": rows, "passed": passed, "seconds": seconds, "configs": used}
    write_text(out / "table.json", json.dumps(said, indent=1))
    print(table + f"{seconds:.0f} s; gates {'passed' if passed else 'FAILED'}\nwrote {out / 'table.md'} and {out / 'table.json'}")
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
