"""What makes a node unfit, left in its run folder for its ranks, who tell rank 0. Torch-free.

Only the head node writes the run's record; so a fault on another node goes through the group
that all ranks are in, and ends the run there as one of the head's own would.
"""

from contextlib import suppress

import msgspec
from msgspec import Struct

from training import errors
from training.errors import TrainingError
from training.layout import RunPaths, write_atomic

NODE_ERROR = ".node_error.json"


class _Fault(Struct):
    kind: str
    message: str
    hint: str


def write_node_error(paths: RunPaths, error: TrainingError) -> None:
    fault = _Fault(kind=type(error).__name__, message=error.message, hint=error.hint)
    with suppress(OSError):  # a full disk: then training finds that itself
        write_atomic(paths.folder / NODE_ERROR, msgspec.json.encode(fault))


def clear_node_error(paths: RunPaths) -> None:
    (paths.folder / NODE_ERROR).unlink(missing_ok=True)


def read_node_error(paths: RunPaths) -> TrainingError | None:
    """As the error that it was; None where nothing is wrong with this node."""
    try:
        data = (paths.folder / NODE_ERROR).read_bytes()
    except FileNotFoundError:
        return None
    fault = msgspec.json.decode(data, type=_Fault)
    return make_error(fault.kind, fault.message, fault.hint)


def make_error(kind: str, message: str, hint: str) -> TrainingError:
    """`kind`: the name of one of `errors`; any other makes a TrainingError."""
    error: TrainingError = getattr(errors, kind, TrainingError)(message, hint=hint)
    return error
