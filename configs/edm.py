"""EDM (Karras et al. 2022, 2206.00364): preconditioned denoising with noise of log-normal strength.

python -m experiments.train --config=configs/edm.py:cifar10 --workdir=runs/edm_cifar10
:cifar10 (class-conditional; FID 1.79 in the paper) and :cifar10_uncond (1.97) with DDPM++, :cifar10_ncsnpp (1.79) and
:cifar10_uncond_ncsnpp (1.98) with NCSN++, 56 M parameters each, by 18 steps of Heun; eight V100, two days. :imagenet64 (1.36 with stochastic
sampling; ADM, 296 M parameters; 32 A100, two weeks) on a folder of ImageNet: --config.data.path=FOLDER. Not trained here. On CIFAR-10
with their augmentation, of which the network is told; without the warm-up of the average; data are dequantized. :8gaussians is
half a minute on two CPU cores; its data have twice the standard deviation, and noise of twice the strength.
"""

from configs import default, toy

NAMES = ("cifar10", "cifar10_uncond", "cifar10_ncsnpp", "cifar10_uncond_ncsnpp", "imagenet64", "8gaussians")


def get_config(name: str = "cifar10"):
    if name not in NAMES:
        raise ValueError(f"configs/edm.py:{name}: expected {', '.join(NAMES)}")
    if name == "8gaussians":
        config = toy.get_config()
        config.sde.name = "EDM"
        config.model.width = 128
        config.objective.update(kind="edm", clock="edm")
        config.objective.time.update(name="log_normal", mean=-0.5, std=1.2)
        config.training.steps = 5000
        return config
    config = default.get_config()
    config.sde.name = "EDM"
    config.optim.clip = 1e9  # none
    config.objective.update(kind="edm", sigma_data=0.5, clock="edm")
    config.objective.time.update(name="log_normal", mean=-1.2, std=1.2)
    config.model.update(name="UNet", embedding="positional", embedding_scale=1.0, num_classes=0 if "uncond" in name else 10)
    if name == "imagenet64":
        config.data.update(name="folder", size=64)
        config.model.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), dropout=0.1, num_classes=1000)
        config.model.update(embedding="dit", resample="block", remat=True, dtype="bfloat16")
        config.optim.update(learning_rate=1e-4, warmup=2441, ema=0.99994)  # half-life of 50 million images
        config.training.update(batch=4096, steps=610_000, log_every=100, checkpoint_every=5000)
        return config
    config.data.update(name="cifar10", augment=0.12)
    config.model.update(channels=128, multipliers=(2, 2, 2), blocks=4, attention=(16,), dropout=0.13, epsilon=1e-6)
    config.model.update(modulate="shift", resample="block_projected", rescale=True, decoder_attention="last", head_channels=0, augment_dim=9)
    if "ncsnpp" in name:
        config.model.update(embedding="fourier", embedding_scale=16.0, kernel=(1.0, 3.0, 3.0, 1.0), grow_input="residual")
    config.optim.update(learning_rate=1e-3, warmup=19_531, ema=0.99929)  # 10 million images; a half-life of half a million
    config.training.update(batch=512, steps=390_625, log_every=100, checkpoint_every=5000)
    return config
