"""Flow matching on a 2-D set with the 3x256 MLP: two minutes on two cores.

python -m experiments.train --config=configs/toy.py:8gaussians --workdir=runs/8gaussians
(also :moons, :checkerboard, :s_curve; --config.data.variant=ffjord or torchcfm, see experiments/toy.py). --config.coupling.name=ot joins noise and
data by optimal transport, --config.coupling.source.name=moons begins at that set in the place of noise (experiments/couplings.py).
"""

from configs import default


def get_config(name: str = "8gaussians"):
    config = default.get_config()
    config.data.name = name
    config.model.update(name="MLP", width=256, depth=3)
    config.training.batch = 512
    config.training.steps = 10_000
    config.training.log_every = 500
    config.training.checkpoint_every = 5000
    config.optim.schedule = "cosine"
    return config
