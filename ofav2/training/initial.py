"""Start a supernet from the weights of another run: pretrained ones, or those of a related task."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ofav2.config.schema import SupernetConfig
from ofav2.data import ImageData
from ofav2.errors import UserError
from ofav2.evaluation.opened_run import load_run, require_supernet
from ofav2.runs.records import InitialWeights
from ofav2.tasks.base import Task
from supernets import Supernet
from supernets.multi_exit import Network

logger = logging.getLogger(__name__)

_HEADS = "exits."
_LAST_LAYER = ".classifier."


def freeze_body(net: Network) -> None:
    """Let training change the heads alone."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(_HEADS))


def adopt_initial(net: Network, config: SupernetConfig, data: ImageData, task: Task) -> InitialWeights | None:
    """Take a network's weights from the run that its recipe names.

    All but the heads must be there and of the same shape. A head takes what fits; its last layer is only taken where
    task and classes are the same.

    Args:
        net: The network with fresh weights; it is changed in place.
        config: The recipe's supernet part.
        data: The data set.
        task: What is learnt.

    Returns:
        Where the weights come from; None if the recipe names no run.

    Raises:
        RunError: If the folder is no run, or has no finished phase.
        UserError: If the run's supernet is another one, or its images have other channels.
    """
    if config.init is None:
        return None
    if not isinstance(net, Supernet):
        raise UserError(f"supernet.init ({config.init}): the recipe trains no supernet; leave it out")
    loaded = load_run(Path(config.init).expanduser())
    if loaded.record.data.bands != data.bands:
        raise UserError(
            f"supernet.init ({config.init}): its images have the bands {', '.join(loaded.record.data.bands)}, and these"
            f" have {', '.join(data.bands)}; give the same in the same order by data.bands"
        )
    known, fresh_weights = require_supernet(loaded.net, "leave supernet.init out").state_dict(), net.state_dict()
    _refuse_another_body(config.init, known, fresh_weights)
    same_outputs = (loaded.record.task, loaded.record.data.classes) == (task.name, tuple(data.classes))
    taken = {
        name: tensor
        for name, tensor in known.items()
        if name in fresh_weights
        and tensor.shape == fresh_weights[name].shape
        and (same_outputs or _LAST_LAYER not in name)
    }
    net.load_state_dict({**fresh_weights, **taken})
    fresh = tuple(name for name, _ in net.named_parameters() if name not in taken)
    logger.info(
        f"weights of {config.init}, phase {loaded.phase}: {len(taken)} of {len(fresh_weights)} tensors taken,"
        f" {len(fresh) or 'no'} weights of heads start anew{'; only heads are trained' if config.frozen else ''}"
    )
    return InitialWeights(loaded.record.name, loaded.phase, loaded.sha256, fresh)


def _refuse_another_body(run: str, known: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(name for name in {*known, *wanted} if not name.startswith(_HEADS)):
        theirs, ours = (tuple(found[name].shape) if name in found else None for found in (known, wanted))
        if theirs != ours:
            raise UserError(
                f"supernet.init ({run}): weight {name} has shape {theirs} there and {ours} here; give both recipes the"
                " same supernet, and images of the same bands"
            )
