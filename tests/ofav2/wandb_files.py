"""Read what W&B wrote offline."""

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def wandb_records(folder: Path) -> list[Any]:
    """All records of the finished W&B run in a folder."""
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    # W&B's service may close the file some milliseconds after `finish` returns; the exit record is the last one.
    deadline = time.monotonic() + 30
    while not of_type(records := parse_wandb(path), "exit"):
        assert time.monotonic() < deadline, "W&B never wrote the end of the run"
        time.sleep(0.01)
    return records


def parse_wandb(path: Path) -> list[Any]:
    """Complete records of a .wandb file: blocks of 32 KiB of LevelDB log chunks behind a header of 7 bytes."""
    # The module makes its classes when it is imported, so type checkers do not see them.
    messages: Any = wandb_internal_pb2
    data, position, payload, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            break
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(messages.Record.FromString(payload))
            payload = b""
    return records


def of_type(records: list[Any], kind: str) -> list[Any]:
    """The records of one kind."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def history(records: list[Any]) -> list[dict[str, Any]]:
    """What was logged, a row per step."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in of_type(records, "history")
    ]
