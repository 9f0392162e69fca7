r"""Noise-conditional classifiers as `experiments.train` trains them (`objective.loss` "classifier"), for classifier guidance:

    L = E_{t, (x_0, y), eps}  -log p(y | x_t, t),          x_t = alpha x_0 + sigma eps,

at the times of `objective.time` on the run's path (Song et al. 2021, 2011.13456, section 5 and appendix I; Dhariwal & Nichol 2021, 2105.05233,
section 4). `experiments.sample --classifier=WORKDIR` guides a model on the same path with it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Classifier:
    """In the place of a `Network`, and of one whose module gives logits [B, classes]. Hashable, hence static under jit."""

    network: Any

    none = None  # it is told no label
    schedule = None

    @property
    def sde(self):
        return self.network.sde

    @property
    def classes(self) -> int:
        return self.network.module.num_classes

    def init(self, key, shape: tuple[int, ...]):
        """Parameters for images of `shape`."""
        return self.network.init(key, shape)

    def __call__(self, params, x: Float[Array, "b ..."], t: Float[Array, " b"], label: Int[Array, " b"], **training) -> Float[Array, " b"]:
        """log p(label | x_t) in nats, of each example. training: as of `Network`."""
        return jnp.take_along_axis(jax.nn.log_softmax(self.network(params, x, t, **training)), label[:, None], -1)[:, 0]
