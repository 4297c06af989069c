"""Checkpoints as tests look at them: by their tensors, whatever files these are in."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """`model/<parameter>` and `optimizer/<parameter>/<quantity>`, of all ranks that saved."""
    files = [load_file(path) for path in tensor_files(folder)]
    tensors = {name: tensor for file in files for name, tensor in file.items()}
    assert len(tensors) == sum(map(len, files)), "two ranks saved the same tensor"
    return tensors


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
