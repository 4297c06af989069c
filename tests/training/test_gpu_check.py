"""The check as the supervisor starts it, on CPU ranks; and what it makes of faults of one rank."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_recipe, make_record, make_run
from training.all_reduce import bus_bandwidth, promised_gb_per_s
from training.cluster import Cluster
from training.errors import NoSpaceError
from training.events import parse_lines
from training.layout import RunPaths
from training.node_error import write_node_error

pytestmark = pytest.mark.slow


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return make_run(tmp_path, make_record(make_recipe(), ranks=2))


def check(paths: RunPaths, *program: str, ranks: int) -> tuple[int, str, str]:
    """Exit code, output, errors of `program`, by default the check itself."""
    cluster = Cluster(ranks_per_node=ranks)
    arguments = cluster.torchrun(0, "training.gpu_check", str(paths.folder))
    if program:
        arguments = [*arguments[: arguments.index("-m")], *program]
    ran = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def errors(paths: RunPaths) -> list[dict[str, Any]]:
    return list(parse_lines(paths.events.read_bytes())) if paths.events.exists() else []


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_last_line_of_rank_0_holds_what_was_measured(paths: RunPaths, ranks: int) -> None:
    code, told, why = check(paths, ranks=ranks)
    assert code == 0, why
    found = json.loads(told.splitlines()[-1])
    assert [(device["node"], device["gpu"]) for device in found["devices"]] == [
        (0, gpu) for gpu in range(ranks)
    ]
    assert all(device["tflops"] > 0 and device["faults"] == [] for device in found["devices"])
    assert ("all_reduce_gb_per_s" in found) == (ranks > 1)
    assert found["seconds"] < 5
    assert errors(paths) == []


FAULTY = """
import os, signal, sys, time
import torch
import training.gpu_check as program
program.LIMIT_S = 3.0
program.LAST_WAIT_S = 3.0
is_sick = os.environ["RANK"] == "1"
{fault}
sys.exit(program.main([{folder!r}]))
"""
FAULTS = {
    "hangs": (
        "program.check_device = lambda *_: time.sleep(1000) if is_sick else None",
        ["node 0 (", "number 1: no answer within 3 s", "1 of 2 devices"],
    ),
    "dies": (
        "program.check_device = lambda *_: is_sick and os.kill(os.getpid(), signal.SIGKILL)",
        ["not every rank came through the check of its GPU"],
    ),
    "errs": (
        "torch.equal = lambda *_: not is_sick",
        ["number 1: the same matrix product came out differently the second time"],
    ),
    "adds up wrong": (
        "add = torch.distributed.all_reduce\n"
        "def wrong(values, *a, **k):\n    add(values, *a, **k)\n    values += is_sick\n"
        "torch.distributed.all_reduce = wrong",
        ["cannot exchange gradients", "number 1: all_reduce over 2 ranks gave a wrong sum"],
    ),
    "is slow": (
        "program.promised_gb_per_s = lambda names, *, nodes: (1e6, 'a test')",
        ["GB/s, where 2 CPU should reach 1000000 GB/s (a test)"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_rank_ends_the_check_and_names_it(
    paths: RunPaths, tmp_path: Path, fault: str
) -> None:
    code_, messages = FAULTS[fault]
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(fault=code_, folder=str(paths.folder)))
    code, told, why = check(paths, str(script), ranks=2)
    assert code == 1, (told, why)
    (event,) = errors(paths)
    assert (event["event"], event["stage"], event["kind"]) == ("error", "check", "TrainingError")
    for message in messages:
        assert message in event["message"], event
    assert event["hint"]
    assert event["message"] in why


def test_what_a_node_has_found_wrong_with_itself_ends_the_check(paths: RunPaths) -> None:
    write_node_error(paths, NoSpaceError("node 0: 1 GB free", hint="free some"))
    code, _, _ = check(paths, ranks=2)
    assert code == 1
    (event,) = errors(paths)
    assert (event["kind"], event["message"]) == ("NoSpaceError", "node 0: 1 GB free")
    assert event["hint"] == "free some"


def test_bus_bandwidth_is_what_nccl_tests_calls_so() -> None:
    # Of its documentation: all_reduce over n ranks, busbw = S/t × 2(n-1)/n.
    assert bus_bandwidth(8_000_000_000, 0.08, 8) == pytest.approx(175e9)
    assert bus_bandwidth(1_000_000, 1.0, 2) == pytest.approx(1e6)


@pytest.mark.parametrize(
    ("name", "gpus", "nodes", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 8, 1, 230.0),
        ("NVIDIA A100-SXM4-40GB", 2, 1, None),
        ("NVIDIA A100 80GB PCIe", 4, 1, 10.0),
        ("NVIDIA A100-PCIE-40GB", 2, 1, 10.0),
        ("NVIDIA H100 80GB HBM3", 8, 1, 450.0),
        ("NVIDIA H100 PCIe", 8, 1, 10.0),
        ("NVIDIA H100 NVL", 8, 1, 10.0),
        ("NVIDIA H200", 8, 1, 450.0),
        ("NVIDIA H100 80GB HBM3", 8, 2, None),
        ("NVIDIA A10", 2, 1, None),
        ("CPU", 2, 1, None),
    ],
)
def test_what_a_machine_should_reach(
    name: str, gpus: int, nodes: int, expected: float | None
) -> None:
    promise = promised_gb_per_s([name] * gpus, nodes=nodes)
    assert (promise[0] if promise else None) == expected
