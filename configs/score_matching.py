"""Score matching without the noise's help on a 2-D set: the 3x256 MLP on the VP path, two minutes on two CPU cores.

python -m experiments.train --config=configs/score_matching.py:sliced --workdir=runs/sliced
:sliced (Song et al. 2019, 1905.07088) takes the divergence of the score along one random direction, :implicit (Hyvarinen 2005) exactly. The loss is
that of denoising score matching less a constant, hence negative. On 8gaussians; --config.data.name=moons for others.
"""

from configs import toy


def get_config(name: str = "sliced"):
    if name not in ("sliced", "implicit"):
        raise ValueError(f"configs/score_matching.py:{name}: expected sliced or implicit")
    config = toy.get_config("8gaussians")
    config.sde.name = "VP"
    config.objective.update(loss=name, kind="noise", clock="log_snr")
    return config
