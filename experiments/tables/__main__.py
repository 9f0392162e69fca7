"""Reproduce a table: python -m experiments.tables --table=NAME [--out=runs/tables]

Each table is a module of this folder with a docstring and a function run(out, quick, workdir) -> (rows, passed). Writes OUT/NAME/table.md,
table.json and figures; exits with 1 if a gate of the table fails. A module may have a longer protocol, paper(out), for --paper.
"""

import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli, tables

NAMES = sorted(m.name for m in pkgutil.iter_modules(tables.__path__) if not m.name.startswith("_"))


def markdown(rows: list[dict]) -> str:
    """A Markdown table; numbers with four significant digits."""
    text = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main():
    f = flags.FLAGS
    if f.list:
        for name in NAMES:
            print(f"{name}: {importlib.import_module(f'experiments.tables.{name}').__doc__.splitlines()[0]}")
        return
    if f.table not in NAMES:
        raise ValueError(f"--table={f.table}: expected one of {', '.join(NAMES)}")
    module = importlib.import_module(f"experiments.tables.{f.table}")
    out = Path(f.out) / f.table
    out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    if f.paper and not hasattr(module, "paper"):
        raise ValueError(f"--paper: {f.table} has no longer protocol; expected cfm_2d")
    rows, passed = module.paper(out) if f.paper else module.run(out, f.quick, f.workdir)
    seconds = time.perf_counter() - clock
    table = markdown(rows)
    (out / "table.md").write_text(f"{module.__doc__}\n{table}\nmeasured in {seconds:.0f} s; gates {'passed' if passed else 'FAILED'}\n")
    (out / "table.json").write_text(json.dumps({"table": f.table, "rows": rows, "passed": passed, "quick": f.quick, "seconds": seconds}, indent=1))
    print(table + f"{seconds:.0f} s; gates {'passed' if passed else 'FAILED'}\nwrote {out / 'table.md'} and {out / 'table.json'}")
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("table", "", "Which: --list lists them.")
    flags.DEFINE_bool("list", False, "List the tables.")
    flags.DEFINE_string("out", "runs/tables", "Where the results go.")
    flags.DEFINE_string("workdir", "runs/digits", "The trained model of a table that needs one; `make demo` makes it.")
    flags.DEFINE_bool("quick", False, "A smaller problem without gates, to see that it runs.")
    flags.DEFINE_bool("paper", False, "The full protocol of a table that has a shorter one.")
    cli.run(main)
