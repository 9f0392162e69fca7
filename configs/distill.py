"""Models of few steps, of a trained teacher or of its pairs: PeRFlow (Yan et al. 2024, 2405.07510) and InstaFlow (Liu et al. 2024, 2309.06380).

python -m experiments.distill --teacher_workdir=runs/dit_xl --config=configs/distill.py:perflow --workdir=runs/perflow
:perflow, in four windows with eight DDIM steps of the teacher in each, of configs/dit.py on latents of ImageNet 256, --config.data.path=LATENTS, in
the epsilon form, as theirs is of Stable Diffusion. :perflow_digits of a run of configs/digits.py, :perflow_8gaussians of configs/toy.py:8gaussians.
python -m experiments.train --config=configs/distill.py:instaflow --config.data.path=PAIRS --config.training.init=runs/two --workdir=runs/instaflow
:instaflow, one step on the linear path by regression on pairs that experiments.reflow has drawn of a 2-rectified flow (configs/sit.py, trained on
pairs of a model of any path), without LPIPS, which their last stage has. :instaflow_digits of digits. Not trained here, but for the small ones in
--table=rectification. The optimization is that of the teacher's config, as the papers' data are others.
"""

from configs import digits, dit, sit, toy

BASES = {"perflow": dit, "perflow_digits": digits, "perflow_8gaussians": toy, "instaflow": sit, "instaflow_digits": digits}


def get_config(name: str = "perflow"):
    if name not in BASES:
        raise ValueError(f"configs/distill.py:{name}: expected {', '.join(BASES)}")
    config = BASES[name].get_config()
    if "perflow" in name:
        config.objective.loss = "perflow"
        config.objective.perflow.update(windows=4, steps=8)
        config.model.second_time = True
        config.training.init = "teacher"
    else:
        config.data.name = "pairs"
        config.objective.time.update(name="grid", count=1)
    if name in ("perflow", "instaflow"):
        config.training.steps = 100_000
    elif name != "perflow_8gaussians":
        config.optim.update(learning_rate=2e-3)
        config.training.steps = 1500
    else:
        config.training.steps = 5000
    return config
