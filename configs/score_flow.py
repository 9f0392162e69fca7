"""Maximum-likelihood training of score-based models (ScoreFlow, Song et al. 2021, 2101.09258): likelihood weighting, with times drawn for it.

python -m experiments.train --config=configs/score_flow.py:cifar10 --workdir=runs/score_flow
:cifar10 and :imagenet32 (on a folder of ImageNet: --config.data.path=FOLDER) with DDPM++ on VP, and each _deep, _subvp, _subvp_deep. The best of the
paper, with variational dequantization (experiments.dequantization), 2.83 and 3.76 bits/dim; eight GPUs or a TPU v3-8, some days. Not trained here.
Likelihood weighting, g^2 |score error|^2/2, is (g/sigma)^2 |noise error|^2/2, and (g/sigma)^2 dt = -2 d(log-SNR): so the noise's error at times
uniform in log-SNR, from their smallest times on: 1e-5 of VP on CIFAR-10, 5e-5 on ImageNet, 1e-2 of sub-VP.
"""

import sde_lib
from configs import default, score_sde

SMALLEST_TIME = {"VP": {"cifar10": 1e-5, "imagenet32": 5e-5}, "SubVP": {"cifar10": 1e-2, "imagenet32": 1e-2}}  # theirs


def get_config(name: str = "cifar10"):
    data, *rest = name.split("_")
    if data not in ("cifar10", "imagenet32") or rest not in ([], ["deep"], ["subvp"], ["subvp", "deep"]):
        raise ValueError(f"configs/score_flow.py:{name}: expected cifar10 or imagenet32, or one of these with _deep, _subvp or _subvp_deep")
    config = score_sde.get_config("_".join(["subvp" if "subvp" in rest else "vp", *["deep"] * ("deep" in rest)]))
    sde = getattr(sde_lib, config.sde.name)()
    config.objective.weighting = "noise"
    config.objective.time.update(name="log_snr", low=float(sde.log_snr(sde.T)), high=float(sde.log_snr(SMALLEST_TIME[config.sde.name][data])))
    if data == "imagenet32":
        config.data = default.get_config().data
        config.data.update(name="folder", size=32)
        config.model.dropout = 0.0
    return config
