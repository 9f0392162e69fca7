"""Distil a trained model into one of few steps:
python -m experiments.distill --teacher_workdir=runs/digits --config=configs/distill.py:perflow_digits --workdir=runs/perflow

It is `experiments.train` with config.teacher.workdir set, and resumes likewise. The teacher, a run or an export, is copied to WORKDIR/teacher; its
averaged weights stay as they are.
"""

from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.train import train


def main():
    f = flags.FLAGS
    f.config.teacher.workdir = f.teacher_workdir
    train(f.config, f.workdir, cli.StopSignal(), f.allow_drift)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/distill.py:perflow_digits", lock_config=True)
    flags.DEFINE_string("teacher_workdir", None, "A run made by experiments.train, or an export of one.", required=True)
    flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
    flags.DEFINE_bool("allow_drift", False, "Resume with a config that changes the result, which config_history.jsonl notes.")
    flags.mark_flag_as_required("config")
    cli.run(main, several=True)
