"""What runs of this installation measured: one line a run, so that the next estimate knows better.

Each line is one `write` to a file opened for appending, so several processes may add to it.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from gptctl.calibration import Measured, mfu_of
from gptctl.gpu_names import gpu_of
from training.layout import Offer, RunRecord, Status

LEAST_STEPS = 50
LEAST_TRAINING_S = 10.0
"""Of less, the first steps, which are slow, would be too large a part."""


def read_experience(path: Path) -> list[Measured]:
    """Newest last; of the same recipe on the same machines only the newest. [] where there is none.

    A line that was torn, or is of another version, is passed over: it can only be learned anew.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    found: dict[tuple[object, ...], Measured] = {}
    for measured in _decode(lines):
        found.pop(_key(measured), None)
        found[_key(measured)] = replace(measured, is_ours=True)
    return list(found.values())


def add_experience(path: Path, measured: Measured) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The newline before it ends a line that a killed writer left torn.
    line = b"\n" + msgspec.json.encode(measured) + b"\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def measured_by(record: RunRecord, status: Status) -> Measured | None:
    """What the run says of its recipe's speed there; None where it is too short to say.

    A run of one life counts all its time in training; of several, whose machines may differ, the
    speed that the last one came to.
    """
    seconds: dict[int, float] = {}
    for line in status.bill:
        if line.phase == "training":
            seconds[line.life] = seconds.get(line.life, 0.0) + line.seconds
    if status.step < LEAST_STEPS or sum(seconds.values()) < LEAST_TRAINING_S:
        return None
    speed = status.tokens_per_sec
    if len(seconds) == 1:
        speed = status.tokens / sum(seconds.values())
    if not speed:
        return None
    offer, model = status.offer or record.offer, record.recipe.model
    gpu = gpu_of(offer) or offer.gpu
    gpus = offer.gpu_count * record.nodes
    return Measured(
        recipe=record.recipe_name,
        gpu=gpu,
        gpu_count=offer.gpu_count,
        nodes=record.nodes,
        parameters=model.parameters,
        flops_per_token=float(model.flops_per_token),
        tokens_per_sec=speed,
        mfu=mfu_of(gpu, gpus=gpus, flops_per_token=model.flops_per_token, tokens_per_sec=speed),
        source=f"run {record.run_id}, {status.updated_at.date().isoformat()}",
        machine=name_machine(offer),
        is_ours=True,
    )


def name_machine(offer: Offer) -> str:
    """Which CPU, as far as an offer tells; of a machine with GPUs it does not matter."""
    return "" if offer.gpu_count else f"{offer.cloud}, {offer.instance_type}"


def _decode(lines: Iterable[bytes]) -> Iterable[Measured]:
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=Measured)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue


def _key(measured: Measured) -> tuple[object, ...]:
    m = measured
    return m.recipe, m.gpu, m.gpu_count, m.nodes, m.parameters, m.machine
