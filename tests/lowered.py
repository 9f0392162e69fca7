"""On as many devices as there are: the bytes of a training step's arguments, on a device, of the whole state and of a state that is split."""

import json

import jax
import numpy as np
from small import small_config

from configs import dit
from experiments import data, network, parallel, state


def on_device(tree) -> int:
    """Bytes of a tree of shapes on one device, in the sharding of `parallel.divided`."""
    sizes = jax.tree.map(lambda a, sharding: int(np.prod(sharding.shard_shape(a.shape))) * a.dtype.itemsize, tree, parallel.divided(tree))
    return sum(jax.tree.leaves(sizes))


config = small_config()
config.model.update({"width": 256, "depth": 2})
dataset = data.load(config.data)
net = network.from_config(config, dataset.num_classes)
current = state.init(config, net, dataset.shape, parallel.divided)
step = jax.jit(state.make_step(config, net, dataset, axis=None))
batch = next(data.batches(dataset, 16, 0))
compiled = step.lower(current, parallel.shard(batch)).compile()
small = {"argument": compiled.memory_analysis().argument_size_in_bytes, "shapes": on_device(current) + on_device(batch)}
small |= {"whole": sum(a.nbytes for a in jax.tree.leaves(current)), "text": [n for n in ("all-gather", "all-reduce") if n in compiled.as_text()]}

config = dit.get_config("xl")
net = network.from_config(config, 1000)
full = jax.eval_shape(lambda: state.init(config, net, (32, 32, 4)))
xl = {"shapes": on_device(full), "whole": sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(full))}
print(json.dumps({"devices": jax.device_count(), "small": small, "xl": xl}))
