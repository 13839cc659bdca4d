"""Make random generators from explicit numbers, independent of anything drawn before."""

import zlib
from dataclasses import dataclass

import numpy as np

from ofav2.errors import UserError


def code(text: str) -> int:
    """Turn a name into a number that is the same in every process and on every machine, as `hash` is not."""
    return zlib.crc32(text.encode())


def generator(purpose: str, *keys: int) -> np.random.Generator:
    """Make the generator of one purpose and some numbers, such as a seed, a phase's code and a step.

    The purpose keeps streams apart that happen to share their numbers.

    Raises:
        UserError: A number, in practice a seed, is negative.
    """
    for key in keys:
        if key < 0:
            raise UserError(f"seed ({key}): seeds are whole numbers from 0 up; choose another one")
    return np.random.default_rng([code(purpose), *keys])


@dataclass(frozen=True)
class Stream:
    """The random numbers of one training: a generator for every purpose and step."""

    seed: int
    """Seed of the run."""
    name: str
    """Name of the training, such as a phase's; streams of other names are independent."""

    def at(self, purpose: str, step: int, *keys: int) -> np.random.Generator:
        """Return the generator of a purpose at a step (from 0).

        Args:
            purpose: What is drawn; generators of other purposes are independent.
            step: The step.
            keys: What else tells one draw from another, such as a group of images.

        Raises:
            UserError: If the seed is negative.
        """
        return generator(purpose, self.seed, code(self.name), step, *keys)
