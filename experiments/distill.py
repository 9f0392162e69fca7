"""Distil a trained model into one of few steps:
python -m experiments.distill --teacher_workdir=runs/digits --config=configs/distill.py:perflow_digits --workdir=runs/perflow

It is `experiments.train` with config.teacher.workdir set, and resumes likewise. The teacher, a run or an export, is copied to WORKDIR/teacher; its
averaged weights stay as they are. Progressive distillation is several runs, WORKDIR/steps_4 and so on, each taught by the one before.
"""

from absl import flags
from ml_collections import config_flags

from experiments import cli, progressive
from experiments.train import train


def main():
    f = flags.FLAGS
    f.config.teacher.workdir = f.teacher_workdir
    several = f.config.objective.loss == "progressive"
    stop = cli.StopSignal()
    for config, workdir in progressive.rounds(f.config, f.workdir) if several else [(f.config, f.workdir)]:
        train(config, workdir, stop, f.allow_drift)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/distill.py:perflow_digits", lock_config=True)
    flags.DEFINE_string("teacher_workdir", None, "A run made by experiments.train, or an export of one.", required=True)
    flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
    flags.DEFINE_bool("allow_drift", False, "Resume with a config that changes the result, which config_history.jsonl notes.")
    flags.mark_flag_as_required("config")
    cli.run(main, several=True)
