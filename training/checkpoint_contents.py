"""The tensors of a checkpoint: their names, their shapes, and which rank and file they are in."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from training.errors import CheckpointError
from training.model import GPT
from training.optimizer import Optimizers, parameter_of

MODEL, OPTIMIZER = "model/", "optimizer/"
"""Before the name of a parameter, and of a piece of its optimizer's state."""
FILE_BYTES = 128 * 2**20
"""About the size of a file. While one is put together, no other thread of the rank runs."""

Shapes = Mapping[str, torch.Size]
Contents = Mapping[str, tuple[torch.Size, torch.dtype]]


def owner_of(key: str, optimizers: Optimizers) -> int:
    """The local rank that saves the tensor."""
    name = key.removeprefix(MODEL)
    if key.startswith(OPTIMIZER):
        name = parameter_of(key.removeprefix(OPTIMIZER))
    return optimizers.owners[name]


def file_of_each(model: GPT, optimizers: Optimizers) -> dict[str, int]:
    """Tensor → which of its rank's files it is in, counted from 1; of all ranks."""
    shapes = {
        **{MODEL + name: shape for name, shape in parameter_shapes(model).items()},
        **{OPTIMIZER + key: shape for key, shape in optimizers.state_shapes().items()},
    }
    written = Counter[int]()
    files = {}
    for key, shape in shapes.items():
        owner = owner_of(key, optimizers)
        files[key] = 1 + written[owner] // FILE_BYTES
        written[owner] += 4 * shape.numel()
    return files


def parameter_shapes(model: GPT) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


def read_contents(folder: Path) -> Contents:
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        key: (found.size, found.properties.dtype)
        for key, found in metadata.items()
        if isinstance(found, TensorStorageMetadata)
    }


def shapes_of(contents: Contents, prefix: str) -> dict[str, torch.Size]:
    return {
        key.removeprefix(prefix): shape
        for key, (shape, _) in contents.items()
        if key.startswith(prefix)
    }


def check(checkpoint: str, kind: str, stored: Shapes, wanted: Shapes) -> None:
    """Raises CheckpointError, which names what differs."""
    differing = [
        *(f"no {key}" for key in wanted if key not in stored),
        *(f"{key} too many" for key in stored if key not in wanted),
        *(
            f"{key} is {_by(stored[key])}, not {_by(shape)}"
            for key, shape in wanted.items()
            if key in stored and stored[key] != shape
        ),
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{checkpoint} holds another {kind} than the recipe describes: "
            f"{', '.join(differing[:3])}{more}",
            hint="resume with the recipe that the checkpoint's state.json names",
        )


def _by(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "a number"
