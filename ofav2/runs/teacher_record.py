"""What makes a fine-tuned network of timm a teacher: the record beside its weights, of how images were prepared."""

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ofav2 import files
from ofav2.errors import RunError
from ofav2.runs.records import check_channels
from ofav2.typed_json import Deviation, Form, Positive, Sha256, read_record, write_record

FORMAT = "ofav2-teacher/2"
RECORD = "teacher.json"
_STEP = "fine-tune the network again, or give the weights' file with teacher.mean and teacher.std"


@dataclass(frozen=True)
class TeacherNetwork:
    """A fine-tuned network of timm's."""

    timm: str
    """Its name in timm."""
    file: Annotated[str, Form(r"[A-Za-z0-9_]+\.safetensors", "the name of a .safetensors file")]
    """The file of its weights, in the same folder."""
    sha256: Sha256
    """Checksum of that file."""
    classes: tuple[str, ...]
    """Names of its classes, in the order of the logits."""
    resolution: Positive
    """Side in pixels of the images that it was trained on."""
    bands: tuple[str, ...]
    """Names of its images' channels, in their order."""
    white: Deviation
    """The stored value that counts as 1: 255 of pictures."""
    mean: tuple[float, ...]
    """Channel means that its images were normalised with, in units of `white`."""
    std: tuple[Deviation, ...]
    """Channel standard deviations, likewise."""
    data_fingerprint: str
    """Digest of the images, labels and splits that it was trained on: on training and validation images."""

    def __post_init__(self) -> None:
        """Refuse a normalisation that is none."""
        check_channels(len(self.bands), self.mean, self.std)


def write_teacher(folder: Path, teacher: TeacherNetwork) -> None:
    """Write a teacher's record.

    Raises:
        RunError: The file can't be written.
    """
    write_record(folder / RECORD, teacher, FORMAT)


def read_teacher(folder: Path) -> TeacherNetwork:
    """Read a teacher's record, and check that the weights beside it are its own.

    Raises:
        RunError: A file is missing, damaged or foreign.
    """
    if not os.path.isfile(folder / RECORD):
        raise RunError(
            f"teacher.checkpoint ({folder}): the folder has no {RECORD}; name one that `ofav2 finetune timm:NAME` made"
        )
    found = read_record(folder / RECORD, TeacherNetwork, FORMAT, _STEP)
    if not os.path.isfile(folder / found.file) or files.sha256(folder / found.file) != found.sha256:
        raise RunError(f"{folder / found.file} is not the file that {RECORD} names: {_STEP}")
    return found
