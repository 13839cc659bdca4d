"""Data sets that fit in memory: scikit-learn's handwritten digits, CIFAR-10 and CIFAR-100."""

import numpy as np
import numpy.typing as npt
from torchvision.datasets import CIFAR10, CIFAR100

from ofav2.config import DataConfig
from ofav2.data.folders import root_of
from ofav2.data.images import ArrayImages
from ofav2.data.splits import Parts, Split, hold_out
from ofav2.errors import UserError


def read_digits(config: DataConfig) -> Parts:
    """Read the 1,797 handwritten digits that come with scikit-learn, 8x8 grey in 0..16, as colour in 0..255."""
    from sklearn.datasets import load_digits  # slow to import, and only the digits need it

    bunch = load_digits()
    grey = np.round(bunch.images * 255 / 16).astype(np.uint8)
    colour = np.repeat(grey[:, None], 3, axis=1)
    everything = Split("train", bunch.target.astype(np.int64), ArrayImages(colour))
    classes = tuple(str(digit) for digit in range(10))
    seed = config.split_seed
    train, test = hold_out(everything, fraction=config.test_fraction, held="test", classes=classes, seed=seed)
    train, val = hold_out(train, fraction=config.val_fraction, held="val", classes=classes, seed=seed)
    return Parts(classes, train, val, test)


def read_cifar10(config: DataConfig) -> Parts:
    """Read CIFAR-10 from the folder that torchvision uses, see `_read_cifar`."""
    return _read_cifar(CIFAR10, config)


def read_cifar100(config: DataConfig) -> Parts:
    """Read CIFAR-100 from the folder that torchvision uses, see `_read_cifar`."""
    return _read_cifar(CIFAR100, config)


def _read_cifar(dataset: type[CIFAR10], config: DataConfig) -> Parts:
    """Read one of the CIFAR sets; torchvision opens its pickled files only after their checksums held."""
    root = root_of(config)
    try:
        first = dataset(str(root), train=True, download=config.download)
        second = dataset(str(root), train=False, download=False)
    except (RuntimeError, OSError) as error:
        step = "check the network and the folder's rights" if config.download else "set data.download=true once"
        raise UserError(
            f"data.root ({root}): {config.name} needs an undamaged folder {dataset.base_folder} there "
            f"({_first_line(error)}); {step}"
        ) from error
    classes = tuple(first.classes)
    everything = Split("train", np.asarray(first.targets, dtype=np.int64), ArrayImages(_channels_first(first.data)))
    test = Split("test", np.asarray(second.targets, dtype=np.int64), ArrayImages(_channels_first(second.data)))
    train, val = hold_out(everything, fraction=config.val_fraction, held="val", classes=classes, seed=config.split_seed)
    return Parts(classes, train, val, test)


def _channels_first(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
