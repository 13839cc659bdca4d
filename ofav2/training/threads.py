"""Choose the number of threads that a run trains with, and keep it in its recipe."""

import copy
from dataclasses import replace

from torch import Tensor

from ofav2.runtime.threads import choose_threads, sample_images, training_pass
from ofav2.training.setup import Setup, place_to_train


def settle_threads(setup: Setup) -> Setup:
    """Return a setup whose recipe has a number of threads; where it had 0, the fastest one for a training step.

    A step trains copies of the largest and the smallest network, all exits, at the recipe's batch size.
    """
    config, runtime = setup.config, setup.runtime
    if config.run.threads:
        return setup
    net = copy.deepcopy(setup.net).train()
    place_to_train(net, runtime)
    subnets = net.space.largest(), net.space.smallest()

    def forward(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits for subnet in subnets for logits in net(images, subnet, exits="all"))

    batch = config.data.batch_size // runtime.processes.count
    images = runtime.send(sample_images(batch, setup.data.channels, max(config.data.resolutions)))
    step = training_pass(net, forward, images, runtime.autocast)
    chosen = choose_threads(step, "a training step", runtime.device, runtime.processes)
    return replace(setup, config=replace(config, run=replace(config.run, threads=chosen)))
