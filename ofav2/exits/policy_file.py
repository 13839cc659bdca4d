"""What `ofav2 calibrate` writes beside an extracted network: one typed record in `early_exits.json`."""

from dataclasses import dataclass
from pathlib import Path

from ofav2.deploy.artifact import describe_subnet, load_subnet
from ofav2.errors import RunError
from ofav2.exits.early import EarlyExits, ExitPolicy, early_exits
from ofav2.nas.machine import Machine
from ofav2.typed_json import Positive, Sha256, Share, read_record, write_record
from supernets.output_costs import ExitMacs

EARLY_RECORD = "early_exits.json"
EARLY_FORMAT = "ofav2-early-exits/3"


@dataclass(frozen=True)
class Outcome:
    """What an exit policy does to a split."""

    images: int
    """Images of the split."""
    top1: float
    """Share (0..1) whose class is right."""
    mean_macs: float
    """Mean multiply-adds per image."""
    shares: tuple[float, ...]
    """Share (0..1) of images that takes each exit."""


@dataclass(frozen=True)
class Timed:
    """A way to run the network, on validation."""

    name: str
    """`threshold 0.93`, `no early exit`, `exit 3 alone` (a network of that exit), or `all exits` at once."""
    threshold: float | None
    """The threshold, where there is one."""
    mean_macs: float
    """Mean multiply-adds per image."""
    top1: float
    """Share (0..1) of all validation images whose class is right."""
    shares: tuple[float, ...] | None
    """Share (0..1) of all validation images that takes each exit."""
    nanoseconds: tuple[int, ...]
    """Measured time per image at each of the batches."""


@dataclass(frozen=True)
class TimesRecord:
    """Measured times, and how they were measured."""

    machine: Machine
    """Where."""
    batches: tuple[Positive, ...]
    """Images per call."""
    images: Positive
    """Images whose classification was timed; the first ones again, where they don't fill a batch."""
    rounds: Positive
    """How often each call was timed; its median counts."""
    rows: tuple[Timed, ...]
    """Ways to run the network."""


@dataclass(frozen=True)
class CurveRecord:
    """Some of the thresholds that differ on validation, ascending."""

    thresholds: tuple[float, ...]
    """The thresholds."""
    mean_macs: tuple[float, ...]
    """Mean multiply-adds per image of each."""
    top1: tuple[Share, ...]
    """Share (0..1) of images whose class is right."""
    shares: tuple[tuple[Share, ...], ...]
    """Share (0..1) of images that takes each exit."""


@dataclass(frozen=True)
class EarlyExitsRecord:
    """What `early_exits.json` holds."""

    subnet_sha256: Sha256
    """Checksum of the weights that were calibrated."""
    data_fingerprint: str
    """Digest of the images."""
    policy: ExitPolicy
    """When images exit."""
    target: str
    """The target that the policy keeps."""
    exits: tuple[int, ...]
    """The exits, by number."""
    macs: tuple[ExitMacs, ...]
    """What each exit costs."""
    val: Outcome
    """The policy on validation, which chose it."""
    test: Outcome
    """The policy on test."""
    last_exit_test_top1: float
    """Top-1 (0..1) of the last exit alone, on the same test images."""
    measured: TimesRecord
    """Measured times."""
    curve: CurveRecord
    """Thresholds on validation."""


def write_early_record(folder: Path, record: EarlyExitsRecord) -> None:
    """Write what a calibration found beside the network.

    Raises:
        RunError: The file can't be written.
    """
    write_record(folder / EARLY_RECORD, record, EARLY_FORMAT)


def load_early_exits(directory: str | Path) -> EarlyExits:
    """Read an extracted sub-network with several exits as one that images can exit early.

    Args:
        directory: The folder of `ofav2 extract --exits all`, of chosen exits, or of `ofav2 prune`, whose ensemble's
            weights the network then has.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        RunError: If a file is missing, damaged or foreign, or the network has one exit.
    """
    exits = several_exits(directory)
    return early_exits(load_subnet(directory), exits, describe_subnet(directory).ensemble)


def several_exits(directory: str | Path) -> tuple[int, ...]:
    """Return the exits of an extracted sub-network, by number.

    Raises:
        RunError: If `subnet.json` is missing, damaged or foreign, or the network has one exit.
    """
    exits = describe_subnet(directory).exit_indices
    if len(exits) < 2:
        raise RunError(
            f"folder ({directory}) holds a network with one exit, so no earlier one: extract it with --exits all"
        )
    return exits


def load_exit_policy(directory: str | Path) -> ExitPolicy:
    """Read when images exit an extracted sub-network, as `ofav2 calibrate` calibrated it.

    Args:
        directory: The folder of the network.

    Returns:
        The policy, for `EarlyExits.decide`.

    Raises:
        RunError: If a file is missing, damaged or foreign, or the policy is of other weights.
    """
    path, network = Path(directory), describe_subnet(directory)
    kept, step = path / EARLY_RECORD, f"make it anew with `ofav2 calibrate {path}`"
    if not kept.is_file():
        raise RunError(f"folder ({path}) has no {EARLY_RECORD}: make it with `ofav2 calibrate {path}`")
    record = read_record(kept, EarlyExitsRecord, EARLY_FORMAT, step)
    if record.subnet_sha256 != network.sha256:
        raise RunError(f"{kept} is of other weights than the network's: {step}")
    return record.policy
