"""Checkpoints of several ranks: real processes over gloo, on one node and on two."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoints import read_tensors, tensor_files
from tests.training.checkpoint_lives import live_alone
from training.layout import checkpoint_name, committed_checkpoints

pytestmark = pytest.mark.slow
MUON = {"optimizer": "muon"}
SHARDED = MUON | {"shard_optimizer": True}


Life = tuple[int, dict[str, Any]]
"""The step it trains to, and keys of the recipe's `train`."""


def run_ranks(
    folder: Path, results: Path, *lives: Life, ranks: int, nodes: int = 1
) -> tuple[list[dict[str, Tensor]], str]:
    """What each rank holds in the end, and what all said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results.mkdir()
    told = {"folder": str(folder), "lives": lives, "to": str(results)}
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "training.ranks", "--nproc-per-node", str(ranks)),
                *("--nnodes", str(nodes), "--node-rank", str(node)),
                *("--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("-m", "tests.training.checkpoint_lives", json.dumps(told)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
    ]
    said = "".join(process.communicate(timeout=120)[0] for process in started)
    assert [process.returncode for process in started] == [0] * nodes, said
    return [load_file(path) for path in sorted(results.iterdir())], said


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def parameters_of(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in held.items() if name.startswith("model/")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Of six steps on one rank, in one life but for the weights that the second begins with."""
    folder = tmp_path_factory.mktemp("alone")
    live_alone(folder, last=3, train=MUON)
    return live_alone(folder, last=6, train=MUON)


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(folder, folder / "results", (3, SHARDED), ranks=2)
    return folder


@pytest.mark.parametrize(("ranks", "train"), [(1, MUON), (2, SHARDED), (4, SHARDED)])
def test_any_number_of_ranks_goes_on_from_what_two_saved_bit_for_bit(
    tmp_path: Path,
    saved_by_two: Path,
    uninterrupted: dict[str, Tensor],
    ranks: int,
    train: dict[str, Any],
) -> None:
    shutil.copytree(saved_by_two, tmp_path, dirs_exist_ok=True)
    held, _ = run_ranks(tmp_path, tmp_path / "held", (6, train), ranks=ranks)
    assert len(held) == ranks
    for of_rank in held:
        assert_same(parameters_of(of_rank), parameters_of(uninterrupted))
    if train is SHARDED:  # each piece of optimizer state is with one rank alone
        pieces = [set(of_rank) - set(parameters_of(of_rank)) for of_rank in held]
        assert sum(map(len, pieces)) == len(set().union(*pieces))
    else:
        assert_same(held[0], uninterrupted)
    assert_same({k: v for of_rank in held for k, v in of_rank.items()}, uninterrupted)
    checkpoint = tmp_path / "node-0" / checkpoint_name(6)
    assert len(tensor_files(checkpoint)) == ranks
    assert_same(read_tensors(checkpoint), uninterrupted)


def test_two_nodes_save_on_the_first_and_load_on_both(
    tmp_path: Path, uninterrupted: dict[str, Tensor]
) -> None:
    lives = (3, MUON), (6, SHARDED)
    held, _ = run_ranks(tmp_path, tmp_path / "held", *lives, ranks=2, nodes=2)
    assert not (tmp_path / "node-1").exists()
    assert len(held) == 4
    for of_rank in held:
        assert_same(parameters_of(of_rank), parameters_of(uninterrupted))
    for node in (held[:2], held[2:]):
        assert_same({k: v for of_rank in node for k, v in of_rank.items()}, uninterrupted)
    assert_same(read_tensors(tmp_path / "node-0" / checkpoint_name(6)), uninterrupted)


def test_a_disk_that_one_rank_finds_full_fails_the_save_on_all(
    small_disk: Path, tmp_path: Path
) -> None:
    checkpoints = small_disk / "node-0"
    live_alone(checkpoints, last=3, train={})
    free = shutil.disk_usage(small_disk).free
    # Room for the share of one, not for both.
    (small_disk / "ballast").write_bytes(bytes(free - 90_000))
    _, said = run_ranks(small_disk, tmp_path / "held", (6, {}), ranks=2)
    for rank in range(2):
        assert f"rank {rank}: NoSpaceError: no space left on the disk to save step-00000006" in said
    assert committed_checkpoints(checkpoints) == [3]
    assert [path.name for path in checkpoints.iterdir()] == [checkpoint_name(3)]


def test_a_checkpoint_of_another_model_ends_all_ranks_with_the_same_words(
    tmp_path: Path, saved_by_two: Path
) -> None:
    shutil.copytree(saved_by_two, tmp_path, dirs_exist_ok=True)
    _, said = run_ranks(tmp_path, tmp_path / "held", (6, {"optimizer": "adamw"}), ranks=2)
    for rank in range(2):
        assert f"rank {rank}: CheckpointError: step-00000003 holds another optimizer" in said
