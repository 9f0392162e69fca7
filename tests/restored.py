"""On as many devices as there are: SHA-256 of what goes on from a checkpoint of `small.small_config`: its arrays, the next batches, their noise.

Run as python -m restored FOLDER SHARDING.
"""

import json
import sys

import jax
import numpy as np
from small import small_config

from experiments import data, network, parallel, state
from experiments.checkpoints import Checkpoints
from sde_lib.noise import normal

folder, sharding = sys.argv[1:]
config = small_config()
dataset = data.load(config.data)
net = network.from_config(config, dataset.num_classes)
like = state.init(config, net, dataset.shape, parallel.divided if sharding == "fsdp" else None)
with Checkpoints(folder, keep=None) as checkpoints:
    restored = checkpoints.restore(like)
parts = [a for a in jax.tree.leaves(restored) if hasattr(a, "sharding") and not a.sharding.is_fully_replicated]
step = int(restored.step)
batches = [batch for _, batch in zip(range(10), data.batches(dataset, config.training.batch, config.seed, step))]
digest = lambda tree: data.fingerprint(*map(np.atleast_1d, jax.tree.leaves(jax.device_get(tree))))


@jax.jit
def noise(position):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(restored.key, position)
    return normal(keys, (len(position), *dataset.shape))


digests = {"arrays": digest(restored), "batches": digest(batches), "noise": digest([noise(parallel.shard(b["position"])) for b in batches])}
print(json.dumps({"devices": jax.device_count(), "divided": len(parts), "step": step, **digests}))
