"""DiT on latents of ImageNet 256 x 256 (Peebles & Xie 2023, 2212.09748): noise prediction on the linear-beta chain.

python -m experiments.train --config=configs/dit.py:xl --config.data.path=LATENTS --workdir=runs/dit_xl
:xl (675 M parameters; FID 2.27 with guidance 1.5, 9.62 without, after 7 million steps), :l, :b, :s, at patch 2, on latents that
experiments.autoencode has written; on TPUs, weeks. Not trained here. Their chain of 1000 steps, beta from 1e-4 to 0.02, is VP from 0.1 to 20 in
continuous time; their networks also predict variances, and see their input as it is. Mirrored images: encode with --flip.
"""

from configs import sit


def get_config(name: str = "xl"):
    if name not in ("xl", "l", "b", "s"):
        raise ValueError(f"configs/dit.py:{name}: expected xl, l, b, s")
    config = sit.get_config(name)
    config.sde.name = "VP"
    config.model.embedding_scale = 1000.0  # of t from 0 to 1: the number of the step
    config.objective.kind = "noise"
    return config
