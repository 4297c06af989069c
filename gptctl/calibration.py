"""How much of a GPU's peak a training run reaches (MFU), by GPU and size of the model.

Fitted to runs that were measured: the logarithm of MFU rises in a line with that of the
parameters, as steeply on every GPU, from a level of each GPU's own. A GPU that nobody measured
gets the level that its peak would have on the line through the others'. All MFU here is by
llm.c's count of FLOPs (`ModelConfig.flops_per_token`).
"""

from collections.abc import Sequence
from math import exp, log
from statistics import fmean

from msgspec import Struct

from gptctl.shipped import read_table
from training.config import ModelConfig
from training.flops import peak_of

SIZE_REACH = 4
"""How many times smaller or larger than any that was measured a model may be. Far smaller ones
spend their time on what is no multiplication, far larger ones do not fit onto a GPU."""
ACROSS_NODES = 0.9
"""Assumed, as nobody measured it: what is left of MFU where gradients cross a network."""
UNMEASURED_ERROR = 3
"""How many times the error is taken of a GPU that was not measured."""


class Measured(Struct, frozen=True, kw_only=True):
    """What a run reached, all nodes together. `gpu`: our name of it (`gpu_names`).

    `gpu_count`: of each machine; 0: it trained on its CPU.
    `mfu`: by llm.c's formula; None where no peak is known. `machine`: which CPU, where it is one.
    `is_ours`: by a run of this installation.
    """

    recipe: str
    gpu: str
    gpu_count: int
    nodes: int = 1
    parameters: int
    flops_per_token: float
    tokens_per_sec: float
    mfu: float | None
    source: str
    machine: str = ""
    is_ours: bool = False


def read_calibration() -> list[Measured]:
    """What others measured, each with its source."""
    return [_measured(row) for row in read_table("calibration.csv")]


def mfu_of(gpu: str, *, gpus: int, flops_per_token: float, tokens_per_sec: float) -> float | None:
    """Of so many GPUs together; None where no peak is known, as of a CPU."""
    peak = peak_of(gpu)
    return tokens_per_sec * flops_per_token / (peak * gpus) if peak and gpus else None


def predict_mfu(
    model: ModelConfig, *, gpu: str, gpu_count: int, nodes: int, known: Sequence[Measured]
) -> tuple[float, str] | None:
    """(MFU, where the figure is from); None where nothing measured tells of such a GPU or model.

    What others measured gives the line; where runs of this installation were near it, on this
    GPU and with a model of about this size, it is moved to where they were. `gpu_count` changes
    nothing: within a machine each rank adds its own speed (one A100 takes about 8 times eight).
    """
    lines = _fit(known)
    if not gpu_count or lines is None or not lines.reaches(gpu, model.parameters):
        return None
    mfu = lines.mfu(gpu, model.parameters, nodes)
    ours = [
        m
        for m in known
        if m.is_ours
        and m.mfu
        and m.gpu == gpu
        and (m.nodes > 1) == (nodes > 1)
        and 1 / SIZE_REACH <= m.parameters / model.parameters <= SIZE_REACH
        and lines.reaches(m.gpu, m.parameters)
    ]
    if ours:
        off = fmean(log(m.mfu / lines.mfu(m.gpu, m.parameters, m.nodes)) for m in ours if m.mfu)
        return mfu * exp(off), f"by {len(ours)} run{'s' * (len(ours) > 1)} here on {gpu}"
    measured = sorted({m.gpu for m in lines.runs})
    source = f"fitted to {len(lines.runs)} runs of others on {' and '.join(measured)}"
    if gpu not in measured:
        source += f", as far as the peak of {gpu} tells"
    if nodes > 1:
        source += f"; {ACROSS_NODES} of it assumed between nodes"
    return mfu, source


def error_of(gpu: str, known: Sequence[Measured]) -> float:
    """How far off a prediction may be, as a share: the worst of those held out, or more."""
    theirs = [m for m in known if not m.is_ours]
    worst = max((abs(off - 1) for _, off in hold_out(theirs)), default=0.2)
    return worst if any(m.gpu == gpu for m in theirs) else worst * UNMEASURED_ERROR


def hold_out(known: Sequence[Measured]) -> list[tuple[Measured, float]]:
    """Each run, and the time predicted for it from all others as a share of its own."""
    found = []
    for index, run in enumerate(known):
        lines = _fit([*known[:index], *known[index + 1 :]])
        if lines is not None and run.mfu and lines.reaches(run.gpu, run.parameters):
            found.append((run, run.mfu / lines.mfu(run.gpu, run.parameters, run.nodes)))
    return found


class _Lines(Struct, frozen=True, kw_only=True):
    """ln(MFU) = level of the GPU's peak + `slope` × ln(parameters)."""

    slope: float
    levels: dict[float, float]
    runs: tuple[Measured, ...]

    def reaches(self, gpu: str, parameters: int) -> bool:
        sizes = [run.parameters for run in self.runs]
        is_near = min(sizes) / SIZE_REACH <= parameters <= max(sizes) * SIZE_REACH
        return peak_of(gpu) is not None and is_near

    def mfu(self, gpu: str, parameters: int, nodes: int) -> float:
        """Of a GPU and a size that it reaches."""
        peak = peak_of(gpu)
        assert peak is not None
        mfu = exp(self._level(peak) + self.slope * log(parameters))
        return mfu * ACROSS_NODES if nodes > 1 else mfu

    def _level(self, peak: float) -> float:
        if peak in self.levels:
            return self.levels[peak]
        points = [(log(known), level) for known, level in self.levels.items()]
        middle = fmean(x for x, _ in points)
        return fmean(y for _, y in points) + _slope([points]) * (log(peak) - middle)


def _fit(known: Sequence[Measured]) -> _Lines | None:
    """To what others measured; None: to nothing."""
    groups: dict[float, list[tuple[float, float]]] = {}
    runs = []
    for run in known:
        if run.mfu and (peak := peak_of(run.gpu)) and not run.is_ours:
            groups.setdefault(peak, []).append((log(run.parameters), log(run.mfu)))
            runs.append(run)
    if not runs:
        return None
    slope = _slope(list(groups.values()))
    levels = {peak: fmean(y - slope * x for x, y in points) for peak, points in groups.items()}
    return _Lines(slope=slope, levels=levels, runs=tuple(runs))


def _slope(groups: Sequence[Sequence[tuple[float, float]]]) -> float:
    """By least squares, one for all groups, each with a level of its own; 0 where none is seen."""
    rise = run = 0.0
    for points in groups:
        middle_x, middle_y = fmean(x for x, _ in points), fmean(y for _, y in points)
        rise += sum((x - middle_x) * (y - middle_y) for x, y in points)
        run += sum((x - middle_x) ** 2 for x, _ in points)
    return rise / run if run else 0.0


def _measured(row: dict[str, str]) -> Measured:
    gpu, gpus = row["gpu"], int(row["gpu_count"])
    flops_per_token = float(row["flops_per_token"])
    tokens_per_sec = int(row["batch_tokens"]) / float(row["step_ms"]) * 1e3
    return Measured(
        recipe=row["recipe"],
        gpu=gpu,
        gpu_count=gpus,
        parameters=int(row["parameters"]),
        flops_per_token=flops_per_token,
        tokens_per_sec=tokens_per_sec,
        mfu=mfu_of(gpu, gpus=gpus, flops_per_token=flops_per_token, tokens_per_sec=tokens_per_sec),
        source=row["source"],
    )
