"""What all commands share: flags, configs by name, and errors that end in one line."""

import difflib
import importlib.util
import inspect
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import hosts
from experiments.untrusted import read_json

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the full traceback of an error instead of one line.")


RESUMABLE = 75  # the exit code of a command that was asked to stop and has saved: EX_TEMPFAIL, "try again"


class Stopped(BaseException):
    """The run was asked to stop (SIGINT or SIGTERM), and has saved what it had. No `except Exception` takes it for a mistake."""


def leave(number, frame):
    """What SIGINT and SIGTERM do to a command, wherever it is: all but training write whole files only, and keep each batch once it is there
    (`experiments.kept`). Training has more to save, and polls a `StopSignal`."""
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(f"stopped by {signal.Signals(number).name}: the same command goes on from what it has kept")


def unraisable(found) -> None:
    """Where an exception cannot be raised, as in a callback of the garbage collector, a stop ends the command all the same."""
    if isinstance(found.exc_value, Stopped):
        print(found.exc_value, file=sys.stderr, flush=True)
        os._exit(RESUMABLE)
    sys.__unraisablehook__(found)


def run(main: Callable[[], None], several: bool = False) -> None:
    """Parse the flags and run `main`. A user's mistake (ValueError, OSError) prints one line and exits with 1; a stop with `RESUMABLE`.

    several: whether `main` can be run by several processes together (`experiments.hosts`).
    The entry point of every command: ``if __name__ == "__main__": run(main)``.
    """

    def guarded(argv):
        if len(argv) > 1:
            fail(f"unexpected argument '{argv[1]}': flags are written --name=value")
        logging.set_verbosity(logging.ERROR)  # orbax tells of every step of every save
        sys.unraisablehook = unraisable
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, leave)
        try:
            check_import()
            if hosts.join() > 1 and not several:
                raise ValueError("this command is of one process: start it once, with --hosts=off where a cluster has started several")
            main()
        except Stopped as stop:
            print(stop, file=sys.stderr)
            sys.exit(RESUMABLE)
        except KeyboardInterrupt:
            fail("interrupted")
        except Exception as error:
            hosts.await_verdict(error)
            if "RESOURCE_EXHAUSTED" in str(error) and not TRACEBACK.value:
                fail(
                    f"out of memory ({str(error).splitlines()[0][:200]}): try a smaller batch, --config.training.accumulate=4, "
                    "--config.model.remat=True or, on several devices, --config.training.sharding=fsdp"
                )
            if TRACEBACK.value or not isinstance(error, ValueError | OSError | FloatingPointError):
                raise
            fail(str(error))

    app.run(guarded, flags_parser=parse)


def parse(argv):
    """absl's parser, with a missing config file or an unknown config key ending in one line that names the nearest known one."""
    files = [match for match in (re.match(r"--?config=([^:]+):?(.*)", flag) for flag in argv) if match]
    for file in files:
        if not Path(file[1]).is_file():
            fail(f"{file[0]}: no such file")
        try:
            runpy.run_path(file[1])["get_config"](*filter(None, [file[2]]))
        except ValueError as error:
            fail(f"{file[0]}: {error}")
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        known = {}
        for file in files:
            known = flat(runpy.run_path(file[1])["get_config"](*filter(None, [file[2]])))
        for flag in argv:
            key = re.match(r"--?config\.([^=]+)", flag)
            if key and key[1] not in known:
                close = difflib.get_close_matches(key[1], known, 1)
                fail(f"{flag}: the config has no such key" + (f"; did you mean --config.{close[0]}?" if close else ""))
        fail(f"{type(error).__name__}: {error}")


def flat(tree: Mapping, prefix: str = "") -> dict:
    """Nested dictionaries as one, with dotted keys."""
    result = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping | ConfigDict) else {prefix + key: value}
    return result


def fail(message: str) -> None:
    """Print one line and exit with 1."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    hosts.leave(1)
    sys.exit(1)


def check_import() -> None:
    """Refuse to run with another project's top-level package (a `models/` in the current folder) in the place of ours."""
    ours = Path(__file__).resolve().parent.parent
    for name in ("configs", "models"):
        theirs = Path(next(iter(importlib.util.find_spec(name).submodule_search_locations))).resolve()
        if theirs.parent != ours:
            raise ValueError(f"the folder {theirs} hides this project's package `{name}`: run from another folder")


def build(classes: Mapping[str, type], options: Mapping, what: str):
    """The one of `classes` that options["name"] names, called with the other options but those that are None.

    Raises ValueError naming the valid names, or the valid options, for unknown ones.
    """
    options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in dict(options).items() if v is not None}
    name = options.pop("name")
    if name not in classes:
        raise ValueError(f"config.{what}.name = '{name}': expected one of {', '.join(sorted(classes))}")
    cls = classes[name]
    valid = [p for p in inspect.signature(cls).parameters if p not in ("parent", "name")]
    for option in options:
        if option not in valid:
            close = difflib.get_close_matches(option, valid, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(valid) or 'none'}"
            raise ValueError(f"config.{what}: {name} has no option '{option}': {hint}")
    return cls(**options)


class StopSignal:
    """Whether SIGINT or SIGTERM has come since the first time that it was asked; one more than a second later ends the command at once, as the first
    does before.

    Where what can be saved is a part of a command, that is the body of `with StopSignal() as stop`, after which signals are again what they were.

    Of several processes JAX hears the signals (`hosts.stopping`).
    """

    def __init__(self):
        self.name, self.since, self.before = "", 0.0, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if not self.name:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self.since > 1:  # sooner it is the same stop, which a group's members and their parents have passed on
            leave(number, frame)

    def __bool__(self) -> bool:
        if not self.before and not jax.distributed.is_initialized():
            self.before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return bool(self.name)


def filled(values: Mapping, defaults: Mapping) -> dict:
    """Nested `values`, and `defaults` where they have none."""
    both = lambda a, b: filled(a, b) if isinstance(a, Mapping) and isinstance(b, Mapping) else a
    return {**defaults, **{key: both(value, defaults.get(key)) for key, value in values.items()}}


def load_config(workdir: str) -> ConfigDict:
    """The config that a run was trained with, and the defaults of keys that are newer than it. Raises FileNotFoundError if `workdir` holds none."""
    file = Path(workdir) / "config.json"
    if not file.exists():
        lost = "put back a copy of it, or name another --workdir" if (Path(workdir) / "checkpoints").exists() else ""
        raise FileNotFoundError(f"no {file}: {lost or 'expected a --workdir made by `python -m experiments.train`'}")
    from configs import default  # not before `check_import`

    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no config: expected a JSON object")
    from experiments.data import with_old_reading

    objective = values.get("objective", {})
    if "adaptive" in objective.get("scm", {}):  # where it was, and of that loss alone
        objective["adaptive"] = objective["scm"].pop("adaptive") and objective.get("loss") == "scm"
    if "name" in values.get("data", {}):
        values["data"] = with_old_reading(values["data"], values.get("model", {}).get("num_classes") or 0)
    if "coupling" in values:  # what None means now is newer than a run without the option
        values["coupling"].setdefault("by_class", False)
    return ConfigDict(filled(values, default.get_config().to_dict()))
