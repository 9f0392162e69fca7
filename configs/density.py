"""Sharp 2-D densities: a residual MLP with Fourier features on the trigonometric path, 0.2 M parameters, two minutes on two CPU cores.

python -m experiments.train --config=configs/density.py:checkerboard --workdir=runs/checkerboard
(also :8gaussians, :moons, :s_curve; see configs/toy.py). For --table=densities: within 0.1 nats of the checkerboard's entropy.
"""

from configs import default, toy


def get_config(name: str = "checkerboard"):
    config = toy.get_config(name)
    config.sde.name = "Trig"
    config.model = default.get_config().model
    config.model.update(name="ResidualMLP", width=128, depth=3, frequencies=(1.0, 2.0, 4.0))
    config.objective.clock = "log_snr"
    return config
