"""EDM2 (Karras et al. 2024, 2312.02696, config G): EDM with a network whose layers preserve magnitudes, and learned weights of times.

python -m experiments.train --config=configs/edm2.py:imagenet64_s --config.data.path=FOLDER --workdir=runs/edm2_s
:imagenet64_s, _m, _l, _xl on a folder of ImageNet (280 M parameters, FID 1.58 in the paper; 498 M, 1.43; 777 M, 1.33; 1119 M, 1.33; by 32 steps of
Heun; the smaller _xs has none there), and :latents_xxs to _xxl on latents of ImageNet 512 (XS 125 M, 3.53; S 2.56; M 2.25; L 2.06; XL 1.96; XXL
1523 M, 1.91, without guidance), which experiments.autoencode has written: --config.data.path=LATENTS. 32 A100, days to weeks. Not trained here.
There averages of several lengths are kept, and others made of them after training; here there is one, of a length (--config.optim.ema_std) that is
about the best for FID. Latents have unit standard deviation here, twice theirs, and noise of twice the strength.
:digits is a small one, of six minutes on two CPU cores.
"""

import numpy as np

from configs import default

# channels, learning rate, dropout; millions of images of 64 x 64, and of latents (2^20 each); ema_std of either
SIZES = {
    "xxs": (64, 0.0170, 0.0, 0, 2048, 0.0, 0.130),
    "xs": (128, 0.0120, 0.0, 1024, 2048, 0.075, 0.135),
    "s": (192, 0.0100, 0.0, 1024, 2048, 0.075, 0.130),
    "m": (256, 0.0090, 0.1, 2048, 2048, 0.060, 0.100),
    "l": (320, 0.0080, 0.1, 1024, 1792, 0.040, 0.085),
    "xl": (384, 0.0070, 0.1, 640, 1280, 0.040, 0.085),
    "xxl": (448, 0.0065, 0.1, 0, 896, 0.0, 0.070),
}
NAMES = ("digits", *(f"imagenet64_{s}" for s, of in SIZES.items() if of[3]), *(f"latents_{s}" for s in SIZES))


def get_config(name: str = "imagenet64_s"):
    if name not in NAMES:
        raise ValueError(f"configs/edm2.py:{name}: expected {', '.join(NAMES)}")
    data, _, size = name.partition("_")
    config = default.get_config()
    config.sde.name = "EDM"
    config.model.name = "EDM2"
    config.objective.update(kind="edm", clock="edm", adaptive=True)
    config.optim.update(beta2=0.99, schedule="inverse_sqrt", clip=1e9)  # none
    if name == "digits":
        config.model.update(channels=24, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=16)
        config.objective.time.update(name="log_normal", mean=-0.5, std=1.2)
        config.optim.update(learning_rate=1e-2, warmup=100, decay=500, ema_std=0.1)
        config.training.update(batch=128, steps=2000, log_every=200, checkpoint_every=500)
        return config
    images = data == "imagenet64"
    channels, rate, dropout, *of = SIZES[size]
    config.data.update({"name": "folder", "size": 64} if images else {"name": "latents"})
    config.model.update(channels=channels, multipliers=(1, 2, 3, 4), blocks=3, attention=(16, 8), dropout=dropout, num_classes=1000)
    config.model.update(remat=True, dtype="bfloat16")
    mean, std = (-0.8, 1.6) if images else (-0.4 + float(np.log(2)), 1.0)
    config.objective.sigma_data = 0.5 if images else 1.0
    if not images:
        config.sde.update(sigma_min=0.004, sigma_max=160.0)
    config.objective.time.update(name="log_normal", mean=mean, std=std)
    config.optim.update(learning_rate=rate, warmup=4883, decay=35_000 if images else 70_000, ema_std=of[2 if images else 3])  # 10 million images
    config.training.update(batch=2048, steps=of[0 if images else 1] * 2**20 // 2048, log_every=100, checkpoint_every=4096)
    return config
