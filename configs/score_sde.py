"""Score-based models through SDEs on CIFAR-10 (Song et al. 2021, 2011.13456): NCSN++ on VE, DDPM++ on VP and sub-VP, in continuous time.

python -m experiments.train --config=configs/score_sde.py:vp --workdir=runs/score_sde_vp
:ve, :vp, :subvp, with 4 residual blocks a level (62 to 63 M parameters), and :ve_deep, :vp_deep, :subvp_deep with 8 (107 to 108 M). In the paper: FID
2.38, 2.55, 2.61 and deep 2.20, 2.41, 2.41 by predictor-corrector sampling; bits/dim of VP and sub-VP 3.16, 3.02 and deep 3.13, 2.99. Eight GPUs or a
TPU v3-8, some days. Not trained here. Unlike theirs, networks see their input scaled to unit variance, data are dequantized, and the loss of VE
is a mean and not half a sum over pixels, on which a clip of 1 hardly acts. VE's noise is theirs, 0.01 to 50 on [0, 1], on our [-1, 1].
"""

from configs import default

SDES = {"ve": "VE", "vp": "VP", "subvp": "SubVP"}


def get_config(name: str = "vp"):
    sde, _, deep = name.partition("_")
    if sde not in SDES or deep not in ("", "deep"):
        raise ValueError(f"configs/score_sde.py:{name}: expected {', '.join(SDES)}, or one of these with _deep")
    config = default.get_config()
    config.data.update(name="cifar10", flip=True)
    config.sde.name = SDES[sde]
    config.model.update(name="UNet", channels=128, multipliers=(1, 2, 2, 2), blocks=8 if deep else 4, attention=(16,), dropout=0.1)
    config.model.update(modulate="shift", resample="block_projected", rescale=True, decoder_attention="last", head_channels=0, epsilon=1e-6)
    config.objective.kind = "noise"
    if sde == "ve":
        config.model.update(embedding="fourier", embedding_scale=16.0, kernel=(1.0, 3.0, 3.0, 1.0), grow_input="residual")
        config.sde.update(sigma_min=0.02, sigma_max=100.0)
        config.objective.update(clock="log_sigma", sigma_data=0.5)
    else:
        config.model.update(embedding="positional", embedding_scale=1000.0)
    config.optim.update(learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.999 if sde == "ve" else 0.9999)
    config.training.update(batch=128, steps=950_000 if deep else 1_300_000, log_every=1000, checkpoint_every=10_000)
    return config
