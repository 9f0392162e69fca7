"""The autoencoder of latent diffusion (Rombach et al. 2022, 2112.10752), by reconstruction and KL alone: the published one has LPIPS and an
adversarial term as well, which are not here (for theirs: experiments.from_diffusers).

python -m experiments.train --config=configs/autoencoder.py:fashion --workdir=runs/autoencoder
:fashion, Fashion-MNIST 28x28x1 to 7x7x4, 0.66 M parameters, six minutes on two CPU cores: reconstructions of 23.6 dB (PSNR, 1000 test images).
:f8, their kl-f8 (84 M parameters, 256x256x3 to 32x32x4; their rate of 4.5e-6 times the batch, 12 images on each of 8 GPUs) on a folder of images:
--config.data.path=FOLDER. Not trained here.
"""

from configs import default


def get_config(name: str = "fashion"):
    config = default.get_config()
    config.objective.update(loss="autoencoder", reconstruction="l1", kl=1e-6)
    if name == "fashion":
        config.data.name = "fashion_mnist"
        config.model.update(name="KLAutoencoder", channels=32, multipliers=(1, 2), blocks=1, latent_channels=4, image_channels=1, patch=2)
        config.optim.update(learning_rate=3e-3, schedule="cosine", warmup=100, beta2=0.99, ema=0.99)
        config.training.update(batch=64, steps=1000, log_every=50, checkpoint_every=250)
    elif name == "f8":
        config.data.update(name="folder", size=256, flip=True)
        config.model.update(name="KLAutoencoder", channels=128, multipliers=(1, 2, 4, 4), blocks=2, latent_channels=4, image_channels=3)
        config.optim.update(learning_rate=4.3e-4, warmup=0, beta1=0.5, beta2=0.9, ema=0.9999, clip=1e9)  # no clip
        config.training.update(batch=96, steps=246_803, log_every=100, checkpoint_every=5000)
    else:
        raise ValueError(f"configs/autoencoder.py:{name}: expected fashion or f8")
    return config
