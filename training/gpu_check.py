"""Are all GPUs, and what joins them, fit for the run? `python -m training.gpu_check RUN_FOLDER`

Under torchrun on every node, before anything is prepared or trained. The ranks talk by gloo, so
that one whose GPU fails or hangs can still be named. Rank 0 tells people line by line what was
measured, and programs by its last line, one JSON object; a fault becomes an `error` event.
"""

import argparse
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist

from training.all_reduce import (
    CPU_SIZES,
    CUDA_SIZES,
    LEAST_SHARE,
    measure_all_reduce,
    promised_gb_per_s,
)
from training.device_check import DeviceReport, check_device
from training.distributed import Ranks, join_ranks
from training.errors import TrainingError
from training.events import append_event
from training.layout import RunPaths, RunRecord, decode
from training.node_error import read_node_error
from training.processes import StopFlag, end_with_parent

LIMIT_S = 60.0
"""For the devices, and again for what joins them; healthy ones need a few seconds."""
LAST_WAIT_S = 10.0
ANOTHER = "launch again: a cloud usually gives another machine; tell it of this one"

T = TypeVar("T")


class Check:
    """One rank's part in it."""

    def __init__(self, ranks: Ranks, device: torch.device, paths: RunPaths) -> None:
        self.ranks = ranks
        self.device = device
        self.paths = paths

    def run(self) -> dict[str, Any]:
        """What was measured. Raises TrainingError, the same on every rank."""
        started = perf_counter()
        self.raise_node_errors()
        reports = self.check_devices()
        bandwidth = self.check_links(reports) if self.ranks.world_size > 1 else {}
        devices = [msgspec.to_builtins(report) for report in reports]
        return {"devices": devices, **bandwidth, "seconds": round(perf_counter() - started, 2)}

    def raise_node_errors(self) -> None:
        mine = read_node_error(self.paths) if self.ranks.local_rank == 0 else None
        for error in self.gather(mine):
            if error is not None:
                raise error

    def check_devices(self) -> list[DeviceReport]:
        report = DeviceReport(
            node=self.ranks.node_rank, gpu=self.ranks.local_rank, host=socket.gethostname()
        )
        _, fault = self.within_limit(lambda: check_device(self.device, report))
        if fault:
            report.faults.append(fault)
        reports = self.gather(report)
        for each in reports:
            self.say(_describe(each))
        unfit = [each for each in reports if each.faults]
        if unfit:
            raise TrainingError(
                f"{len(unfit)} of {len(reports)} devices cannot be trained on: "
                + "; ".join(f"{each.place}: {', '.join(each.faults)}" for each in unfit),
                hint=ANOTHER,
            )
        return reports

    def check_links(self, reports: list[DeviceReport]) -> dict[str, Any]:
        """Between all of them. A figure too low is told with the one that was expected."""
        nodes = len({report.node for report in reports})
        measured, fault = self.within_limit(self.measure_links)
        faults = [
            f"{report.place}: {each}"
            for report, each in zip(reports, self.gather(fault), strict=True)
            if each
        ]
        if faults or measured is None:
            raise TrainingError(
                f"the {len(reports)} ranks cannot exchange gradients: " + "; ".join(faults),
                hint=f"logs/check.log shows nccl's own words; {ANOTHER}",
            )
        bytes_per_s, size_bytes = measured
        gb_per_s = bytes_per_s / 1e9
        told = (
            f"all_reduce over {len(reports)} ranks on {nodes} node(s): bus bandwidth "
            f"{gb_per_s:.3g} GB/s at {size_bytes / 2**20:.0f} MiB"
        )
        promise = promised_gb_per_s([report.name for report in reports], nodes=nodes)
        if promise:
            told += f", about {promise[0]:.0f} expected ({promise[1]})"
        self.say(told)
        if promise and gb_per_s < LEAST_SHARE * promise[0]:
            raise TrainingError(
                f"the GPUs exchange gradients at {gb_per_s:.3g} GB/s, where {len(reports)} "
                f"{reports[0].name} should reach {promise[0]:.0f} GB/s ({promise[1]})",
                hint=f"`nvidia-smi topo -m` and `nvidia-smi nvlink -s` show the links; {ANOTHER}",
            )
        return {
            "all_reduce_gb_per_s": gb_per_s,
            "all_reduce_bytes": size_bytes,
            "expected_gb_per_s": promise[0] if promise else None,
        }

    def measure_links(self) -> tuple[float, int]:
        """In a group of their own: where it hangs, the ranks can still talk."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.set_device(self.device)  # of this thread
        group = dist.new_group(backend="nccl" if on_cuda else "gloo")
        sizes = CUDA_SIZES if on_cuda else CPU_SIZES
        return measure_all_reduce(self.ranks, self.device, group, sizes)

    def within_limit(self, work: Callable[[], T]) -> tuple[T | None, str | None]:
        """(what `work` returns, None), or (None, what is wrong), also where it never returns.

        In a thread: a call into a driver that hangs cannot be interrupted, only left behind.
        """
        outcome: list[T] = []
        fault: list[str] = []

        def run() -> None:
            try:
                outcome.append(work())
            except TrainingError as error:
                fault.append(error.message)
            except Exception as error:  # told by rank 0, for all ranks
                fault.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(LIMIT_S)
        if thread.is_alive():
            return None, f"no answer within {LIMIT_S:.0f} s"
        return (outcome[0], None) if outcome else (None, fault[0])

    def gather(self, mine: T) -> list[T]:
        """Raises TrainingError, naming the ranks that are gone or stopped."""
        if self.ranks.world_size > 1:
            limit = timedelta(seconds=2 * LIMIT_S)  # a slow start of one, and its work
            try:
                dist.monitored_barrier(timeout=limit, wait_all_ranks=True)
            except RuntimeError as error:
                why = str(error).strip().splitlines()[0]
                raise TrainingError(
                    f"not every rank came through the check of its GPU: {why}",
                    hint=f"logs/check.log shows its last words; {ANOTHER}",
                ) from error
        return self.ranks.gather(mine)

    def say(self, line: str) -> None:
        if self.ranks.is_first:
            print(line, flush=True)


def _describe(report: DeviceReport) -> str:
    told = report.place
    if report.tflops is not None:
        told += f": {report.tflops:.3g} TFLOP/s"
    if report.peak_tflops is not None:
        told += f" of {report.peak_tflops:.0f}"
    if report.cudnn is not None:
        told += f", cuDNN {report.cudnn}"
    if report.flash_attention is not None:
        told += ", flash attention" if report.flash_attention else ", no flash attention"
    return told + (f"; UNFIT: {', '.join(report.faults)}" if report.faults else "")


def _tell(paths: RunPaths, error: TrainingError) -> None:
    print(error.report, file=sys.stderr, flush=True)
    with suppress(OSError):
        append_event(
            paths.events,
            "error",
            stage="check",
            kind=type(error).__name__,
            message=error.message,
            hint=error.hint,
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training.gpu_check", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    folder = parser.parse_args(argv).run
    end_with_parent()
    paths = RunPaths(folder.parent.parent, folder.name)
    record = decode(paths.record.read_bytes(), RunRecord, name="run.json")
    with join_ranks("cpu") as ranks:
        on_cuda = record.device == "cuda"
        device = torch.device("cuda", ranks.local_rank) if on_cuda else ranks.device
        check = Check(ranks, device, paths)
        if ranks.is_first:
            StopFlag()  # torchrun's SIGTERM, where another rank dies, must not keep it from telling
        code = 0
        try:
            found = check.run()
            check.say(msgspec.json.encode(found).decode())
        except TrainingError as error:
            code = 1
            if ranks.is_first:
                _tell(paths, error)
        if ranks.world_size > 1:
            # Rank 0 has told it before torchrun ends all ranks because the first has failed.
            with suppress(RuntimeError):
                dist.monitored_barrier(timeout=timedelta(seconds=LAST_WAIT_S))
        if code:
            sys.stdout.flush()
            os._exit(code)  # neither a thread that hangs nor nccl's farewell may keep us
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
