"""Score-based models through SDEs on CIFAR-10 (Song et al. 2021, 2011.13456): NCSN++ on VE, DDPM++ on VP and sub-VP, in continuous time.

python -m experiments.train --config=configs/score_sde.py:vp --workdir=runs/score_sde_vp
:ve, :vp, :subvp, with 4 residual blocks a level (62 to 63 M parameters), and :ve_deep, :vp_deep, :subvp_deep with 8 (107 to 108 M). In the paper: FID
2.38, 2.55, 2.61 and deep 2.20, 2.41, 2.41 by predictor-corrector sampling; bits/dim of VP and sub-VP 3.16, 3.02 and deep 3.13, 2.99. :ve_discrete and
:vp_discrete are trained on the 1000 steps of NCSN and DDPM (FID 2.45, 2.78). Eight GPUs or a TPU v3-8, some days. Not trained here. Unlike theirs,
networks see their input scaled to unit variance, data are dequantized, and VE's loss is a mean and not half a sum over pixels, on which a clip of
1 hardly acts. VE's noise is theirs, 0.01 to 50 on [0, 1], on our [-1, 1].
:ve_digits, :vp_digits, :subvp_digits are their scaled twins for --table=samplers: a residual MLP on the 8x8 digits, two minutes on two CPU cores.
"""

from configs import default
from sde_lib.discrete import geometric_sigmas

SDES = {"ve": "VE", "vp": "VP", "subvp": "SubVP"}
CHAINS = {"ve": "NCSN", "vp": "DDPM"}


def digits(sde: str):
    config = default.get_config()
    config.sde.name = SDES[sde]
    if sde == "ve":
        config.sde.update(sigma_min=0.02, sigma_max=20.0)
    config.model.update(name="ResidualMLP", width=256, depth=4)
    config.objective.update(kind="noise", clock="log_snr")
    config.optim.schedule = "cosine"
    config.training.update(batch=128, steps=6000, log_every=1000)
    return config


def get_config(name: str = "vp"):
    sde, _, rest = name.partition("_")
    if sde not in SDES or rest not in ("", "deep", "digits", *(["discrete"] if sde in CHAINS else [])):
        raise ValueError(f"configs/score_sde.py:{name}: expected {', '.join(SDES)}, one of these with _deep or _digits, ve_discrete or vp_discrete")
    if rest == "digits":
        return digits(sde)
    deep, discrete = rest == "deep", rest == "discrete"
    config = default.get_config()
    config.data.update(name="cifar10", flip=True)
    config.sde.name = CHAINS[sde] if discrete else SDES[sde]
    config.objective.time.name = "steps" if discrete else "uniform"
    config.model.update(name="UNet", channels=128, multipliers=(1, 2, 2, 2), blocks=8 if deep else 4, attention=(16,), dropout=0.1)
    config.model.update(modulate="shift", resample="block_projected", rescale=True, decoder_attention="last", head_channels=0, epsilon=1e-6)
    config.objective.kind = "noise"
    if sde == "ve":
        config.model.update(embedding="fourier", embedding_scale=16.0, kernel=(1.0, 3.0, 3.0, 1.0), grow_input="residual")
        config.sde.update(**({"sigmas": geometric_sigmas(0.02, 100.0)} if discrete else {"sigma_min": 0.02, "sigma_max": 100.0}))
        config.objective.update(clock="log_sigma", sigma_data=0.5)
    else:
        config.model.update(embedding="positional", embedding_scale=1000.0)
    config.optim.update(learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.999 if sde == "ve" else 0.9999)
    config.training.update(batch=128, steps=950_000 if deep else 1_300_000, log_every=1000, checkpoint_every=10_000)
    return config
