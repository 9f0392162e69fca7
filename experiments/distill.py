"""Distil a trained model into one of few steps:
python -m experiments.distill --teacher_workdir=runs/digits --config=configs/distill.py:perflow_digits --workdir=runs/perflow

It is `experiments.train` with config.teacher.workdir set, and resumes likewise. The teacher, a run or an export, is copied to WORKDIR/teacher; its
averaged weights stay as they are. Progressive distillation is several runs, WORKDIR/steps_8, steps_4, ..., each taught by the one before; those that
are complete are left alone when the command is repeated.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cli, progressive
from experiments.train import train


def distill(config: ConfigDict, teacher: str | Path, workdir: str | Path, stop=False, allow_drift: bool = False) -> None:
    """Train `config` in `workdir`, taught by the run `teacher`; of loss "progressive", all its rounds. Raises what `train` raises."""
    if config.objective.loss != "progressive":
        config.teacher.workdir = str(teacher)
        train(config, workdir, stop, allow_drift)
        return
    for count in progressive.rounds(config.objective):
        of = progressive.round_of(config, count, teacher)
        teacher = Path(workdir) / f"steps_{count}"
        print(f"{count} steps, taught by {of.teacher.workdir}", flush=True)
        train(of, teacher, stop, allow_drift)


def main():
    f = flags.FLAGS
    distill(f.config, f.teacher_workdir, f.workdir, cli.StopSignal(), f.allow_drift)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/distill.py:perflow_digits", lock_config=True)
    flags.DEFINE_string("teacher_workdir", None, "A run made by experiments.train, or an export of one.", required=True)
    flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
    flags.DEFINE_bool("allow_drift", False, "Resume with a config that changes the result, which config_history.jsonl notes.")
    flags.mark_flag_as_required("config")
    cli.run(main, several=True)
