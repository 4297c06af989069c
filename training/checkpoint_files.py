"""How the ranks of a node write a checkpoint's files through torch's checkpointing."""

import errno
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import WriteResult

from training.errors import NoSpaceError


class CommittingWriter(HuggingFaceStorageWriter):
    """Each rank writes files of its own. What fails on one, or in `commit`, fails on all."""

    def __init__(
        self, folder: Path, *, file_of: dict[str, int], commit: Callable[[], None]
    ) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=file_of, save_distributed=True)
        self._commit = commit

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on rank 0, after all have written and synced."""
        self._commit()


class KeptStager(AsyncStager):
    """Copies to the host's memory, on CUDA to pinned memory, and keeps it from save to save.

    So memory is pinned, or touched for the first time, only once. torch's own closes itself
    after a save in some releases (2.11), and could then copy no more.
    """

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def stage(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of exactly these tensors, whole when it returns."""
        for key, tensor in state_dict.items():
            if key not in self._buffers:
                self._buffers[key] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )
            self._buffers[key].copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in state_dict.values()):
            torch.cuda.synchronize()
        return {key: self._buffers[key] for key in state_dict}

    def synchronize_staging(self) -> None:
        """Nothing: `stage` has waited."""

    def close(self) -> None:
        self._buffers.clear()


def collectives_of(group: ProcessGroup | None) -> dict[str, Any]:
    """Arguments of torch's save and load, which warn where a rank is the only one."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch")
    return {"process_group": group, "no_dist": group is None}


def explain(error: BaseException, final: Path, checkpoints: Path) -> BaseException:
    """The error of a rank in place of torch's list of them, and a full disk by its name."""
    if isinstance(error, CheckpointException):
        error, _ = next(iter(error.failures.values()))
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = ""
    with suppress(OSError):
        # Of the folder's own parent: the folder itself may be what failed.
        free = f" ({shutil.disk_usage(checkpoints.parent).free:,} bytes free)"
    return NoSpaceError(
        f"no space left on the disk to save {final.name}{free}; the checkpoint before it is intact",
        hint="free some space, then `gptctl launch --resume` continues from that checkpoint",
    )
