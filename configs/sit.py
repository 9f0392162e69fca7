"""Transformers on latents of ImageNet 256 x 256: SiT (Ma et al. 2024, 2401.08740), the DiT of Peebles & Xie 2023 (2212.09748) with flow matching.

python -m experiments.train --config=configs/sit.py:xl --config.data.path=LATENTS --workdir=runs/sit_xl
:xl (675 M parameters; FID 2.06 with guidance, 8.3 without, after 7 million steps), :l, :b, :s, at patch 2, on latents that
experiments.autoencode has written (of their autoencoder: experiments.from_diffusers); eight A100, weeks. Not trained here. Unlike theirs, networks
see their input scaled to unit variance.
:fashion is a small one on labelled images: Fashion-MNIST at patch 4, 1.3 M parameters; an hour on two CPU cores.
"""

from configs import default

SIZES = {"xl": (1152, 28, 16), "l": (1024, 24, 16), "b": (768, 12, 12), "s": (384, 12, 6), "fashion": (128, 4, 4)}


def get_config(name: str = "xl"):
    if name not in SIZES:
        raise ValueError(f"configs/sit.py:{name}: expected {', '.join(SIZES)}")
    config = default.get_config()
    width, depth, heads = SIZES[name]
    config.sde.name = "Linear"
    config.model.update(name="DiT", width=width, depth=depth, num_heads=heads, patch=2, num_classes=1000)
    config.objective.update(kind="velocity", clock="time", label_dropout=0.1)
    if name == "fashion":
        config.data.name = "fashion_mnist"
        config.model.update(patch=4, num_classes=10, embedding_scale=100.0)
        config.optim.update(learning_rate=2e-3, schedule="cosine", warmup=200, beta2=0.99, ema=0.999)
        config.training.update(batch=64, steps=10_000, log_every=100, checkpoint_every=500)
        return config
    config.data.name = "latents"
    config.model.update(remat=True, dtype="bfloat16", embedding_scale=1.0)
    config.optim.update(learning_rate=1e-4, warmup=0, ema=0.9999, clip=1e9)  # no clip
    config.training.update(batch=256, steps=7_000_000, log_every=100, checkpoint_every=10_000)
    return config
