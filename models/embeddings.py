"""What a network knows besides x: its time, its label, and periodic features of x itself."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def sinusoidal(t: Float[Array, " b"], dim: int, scale: float, last: bool = True) -> Float[Array, "b dim"]:
    """The positional embedding of the transformer at position scale * t, [B, dim] (Vaswani et al. 2017, 1706.03762; DDPM, 2006.11239): frequencies
    from 1 to 1/10000, itself with them if `last` (DiT has it not)."""
    frequencies = np.exp(-np.log(10000.0) * np.arange(dim // 2) / max(dim // 2 - last, 1))
    angles = scale * t[:, None] * jnp.asarray(frequencies, t.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def random_features(t: Float[Array, " b"], dim: int) -> Float[Array, "b dim"]:
    """cos(2 pi (f t + p)) for fixed frequencies f ~ N(0, 1) and phases p ~ U(0, 1), [B, dim] (EDM2, 2312.02696, eq. 75, there times sqrt(2))."""
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * (t[:, None] * jnp.asarray(rng.standard_normal(dim), t.dtype) + jnp.asarray(rng.random(dim), t.dtype))
    return jnp.cos(angles)


EMBEDDINGS = ("smooth", "positional", "dit", "fourier")


class Conditioning(nn.Module):
    """The vector [B, dim] that modulates a network: an MLP of the embedded time t [B] (about 0 to 1), plus an embedding of the label.

    num_classes: 0 for unconditional models; otherwise labels [B] are 0..num_classes - 1, and num_classes itself means "no label".
    embedding: "smooth", `sinusoidal` at scale * t of dim numbers; "positional" and "dit", of `features` numbers, the latter without the last
    frequency; "fourier", sin and cos of t times `features` fixed Gaussian frequencies of standard deviation scale (2011.13456, appendix H).
    augment_dim: numbers that say how x was augmented, added to the embedded time by a matrix (EDM, 2206.00364, appendix F.2); 0 for none.
    told_omega: of a model that is told its guidance: 256 sines and cosines of 1000 omega are added by a matrix, 0 at first (LCM, 2310.04378).
    second_time: of a flow map from t to s: t - s is embedded likewise, by an MLP of its own, and added (MeanFlow, 2505.13447, table 1c); its last
    layer is 0 at first, so that a network begun from the weights of one of one time is that one.
    """

    dim: int
    num_classes: int = 0
    embedding: str = "smooth"
    features: int = 0
    scale: float = 100.0
    augment_dim: int = 0
    second_time: bool = False
    told_omega: bool = False

    @nn.compact
    def __call__(
        self,
        t: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        pooled: Float[Array, "b p"] | None = None,
        augmented: Float[Array, "b a"] | None = None,
        s: Float[Array, " b"] | None = None,
        omega: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b dim"]:
        """pooled: of an encoder of what else is known, if there is one. augmented: what was done to x, [B, augment_dim]; None: nothing, zeros.
        s: the second time; None: t. omega: the guidance; None: of a model without, 1."""
        if self.embedding not in EMBEDDINGS:
            raise ValueError(f"embedding '{self.embedding}': expected {' or '.join(EMBEDDINGS)}")

        # a scale of 100, not DDPM's 1000: with higher frequencies the network is rough in time, and adaptive solvers take several times the steps
        def embed(t):
            if self.embedding == "fourier":
                angles = 2 * np.pi * self.scale * t[:, None] * jnp.asarray(np.random.default_rng(0).standard_normal(self.features), t.dtype)
                return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
            return sinusoidal(t, self.dim if self.embedding == "smooth" else self.features, self.scale, last=self.embedding != "dit")

        h = embed(t)
        if self.augment_dim:
            augmented = jnp.zeros((len(t), self.augment_dim), h.dtype) if augmented is None else augmented
            h = h + nn.Dense(h.shape[-1], use_bias=False, name="augmented")(augmented)
        if self.told_omega:
            omega = jnp.ones_like(t) if omega is None else omega
            h = h + nn.Dense(h.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="omega")(sinusoidal(omega, 256, 1000.0))
        h = nn.Dense(self.dim)(h)
        h = nn.Dense(self.dim)(nn.silu(h))
        if self.second_time:
            gap = nn.Dense(self.dim, name="gap_in")(embed(jnp.zeros_like(t) if s is None else t - s))
            h = h + nn.Dense(self.dim, kernel_init=nn.initializers.zeros, name="gap_out")(nn.silu(gap))
        if self.num_classes:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            h = h + nn.Embed(self.num_classes + 1, self.dim)(label)
        if pooled is not None:
            h = h + nn.Dense(self.dim)(nn.silu(nn.Dense(self.dim)(pooled)))
        return nn.silu(h)


def fourier_features(x: Float[Array, "*b c"], frequencies: tuple[float, ...]) -> Float[Array, "*b d"]:
    """x joined by sin and cos of pi * frequency * x for each frequency, along the last axis (VDM, 2107.00630, appendix C).

    They show the network where in its quantization bin a value lies, without which sharp bin edges are not learnt.
    """
    angles = [np.pi * frequency * x for frequency in frequencies]
    return jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles)], -1)
