"""Read data sets that fit in memory: scikit-learn's handwritten digits, CIFAR-10 and CIFAR-100."""

from functools import cache

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from ofav2.config.schema import DataConfig
from ofav2.data.images import ArrayImages
from ofav2.data.readers.folders import root_of
from ofav2.data.splits import Listed, Split
from ofav2.errors import UserError
from ofav2.messages import first_line


def read_digits(config: DataConfig) -> Listed:
    """Read the 1,797 handwritten digits that come with scikit-learn, 8x8 grey in 0..16, as colour in 0..255."""
    return Listed(tuple(str(digit) for digit in range(10)), _digits())


@cache
def _digits() -> Split:
    """Read and scale them once per process, as several runs of them are often opened together."""
    from sklearn.datasets import load_digits  # slow to import, and only the digits need it

    bunch = load_digits()
    grey = np.round(bunch.images * 255 / 16).astype(np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=-1).transpose(0, 3, 1, 2)
    return Split("train", bunch.target.astype(np.int64), ArrayImages(colour))


def read_cifar10(config: DataConfig) -> Listed:
    """Read CIFAR-10 from the folder that torchvision uses, see `_read_cifar`."""
    return _read_cifar(CIFAR10, config)


def read_cifar100(config: DataConfig) -> Listed:
    """Read CIFAR-100 from the folder that torchvision uses, see `_read_cifar`."""
    return _read_cifar(CIFAR100, config)


def _read_cifar(dataset: type[CIFAR10], config: DataConfig) -> Listed:
    """Read one of the CIFAR sets; torchvision opens its pickled files only after their checksums held."""
    root = root_of(config)
    try:
        first = dataset(str(root), train=True, download=config.download)
        second = dataset(str(root), train=False, download=False)
    except (RuntimeError, OSError) as error:
        step = "check the network and the folder's rights" if config.download else "set data.download=true once"
        raise UserError(
            f"data.root ({root}): {config.name} needs an undamaged folder {dataset.base_folder} there "
            f"({first_line(error)}); {step}"
        ) from error
    train, test = (
        Split(name, np.asarray(part.targets, dtype=np.int64), ArrayImages(part.data.transpose(0, 3, 1, 2)))
        for name, part in (("train", first), ("test", second))
    )
    return Listed(tuple(first.classes), train, test=test)
