"""The plain-file contract between laptop and node: every path and every record, here only.

    runs/<run-id>/
        run.json            RunRecord: written once, before anything is asked for
        status.json         Status: the heartbeat
        events.jsonl        what happened, one line each
        metrics.jsonl       what training measured, one line a logged step
        logs/<stage>.log    output of each of STAGES; the laptop writes that of `provision`
        checkpoints/step-00005000/
            shard-….safetensors, state.json, manifest.json
        samples/step-00005000.txt
        claims/after-<time> which launch goes on after the status of that time: the laptop's
    datasets/<dataset-key>/
        dataset.json        Dataset: grows by one shard at a time
        <name>_val_000000.bin, <name>_train_000001.bin, …

The same tree stands under the store's prefix and under the node's working folder; the node
writes the latter and copies it to the former. A checkpoint exists when its manifest does, a
shard when `dataset.json` names it. No secret is ever written to any of these.
"""

import hashlib
import os
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from training.config import DataConfig, Recipe
from training.errors import TrainingError

RUNS = "runs"
DATASETS = "datasets"
RUN_JSON = "run.json"
STATUS_JSON = "status.json"
SUMMARY_JSON = "summary.json"
EVENTS = "events.jsonl"
METRICS = "metrics.jsonl"
LOGS = "logs"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
CLAIMS = "claims"
MANIFEST = "manifest.json"
DATASET_JSON = "dataset.json"
STAGES = ("provision", "setup", "supervise", "check", "prepare", "train", "stacks", "sample")
"""`stacks` is no program: where the ranks stood when training hung (`stacks.py`)."""

State = Literal[
    "pending", "provisioning", "preparing", "training", "finishing",
    "succeeded", "stopped", "failed", "preempted",
]  # fmt: skip
LIVING: frozenset[State] = frozenset({"preparing", "training", "finishing"})
TERMINAL: frozenset[State] = frozenset({"succeeded", "stopped", "failed"})

RunJob = Literal["train", "prepare"]
"""`prepare`: a run that brings a data set into the store, and trains nothing."""

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


class Record(Struct, frozen=True, kw_only=True):
    """A record on disk. Readers pass over fields that a newer version added."""


class Offer(Record, frozen=True, kw_only=True):
    """A machine at a price: what a run is billed by. `price_as_of` is a date, ISO."""

    cloud: str
    region: str
    instance_type: str
    gpu: str
    gpu_count: int
    spot: bool
    price_per_hour: Decimal
    price_source: str
    price_as_of: str
    vcpus: float | None = None
    """None where nobody knows."""


class RunRecord(Record, frozen=True, kw_only=True):
    """`run.json`: what was asked for. Never changed once written."""

    run_id: str
    job: RunJob = "train"
    whole: bool = False
    """To `prepare` all of the source, not only what the recipe trains on."""
    recipe_name: str
    recipe: Recipe
    offer: Offer
    nodes: int
    ranks: int
    device: Literal["cpu", "cuda"]
    micro_batch_size: int
    grad_accum_steps: int
    budget_usd: Decimal | None
    max_hours: float | None
    region: str | None = None
    recover: bool = False
    """Go on with it on another machine when its own dies."""
    estimate_usd: Decimal | None = None
    estimate_hours: float | None = None
    """What it would likely cost, as its plan said; None where nothing told."""
    store: str
    created_at: datetime
    versions: dict[str, str]


GOING_DOWN = "going_down"
"""The phase of a bill from the supervisor's last word to the end of its machines."""
ROUNDING_USD = Decimal("0.0001")


class BillLine(Record, frozen=True, kw_only=True):
    """Seconds that one life of the run spent in one phase, and at what price.

    The nodes of a life come and go together, so each has the same share of it.
    """

    life: int
    phase: str
    seconds: float
    price_per_hour: Decimal
    """Of all nodes together."""
    nodes: int = 1

    @property
    def usd(self) -> Decimal:
        """To a hundredth of a cent, rounded up: a bill is never less than the time it names."""
        exact = Decimal(repr(self.seconds)) * self.price_per_hour / 3600
        return exact.quantize(ROUNDING_USD, rounding="ROUND_CEILING")


class Lead(Record, frozen=True, kw_only=True):
    """How far preparation is ahead of training, by the speeds of both so far."""

    ready_tokens: int
    wanted_tokens: int
    """By the run, in whole shards."""
    is_done: bool
    """All that the run needs is ready: `wanted_tokens`, or a smaller data set as a whole."""
    shards: int
    """Ready ones that training has not begun."""
    tokens: int
    """Ready ones that training has not read."""
    seconds: float | None
    """Of training, in these tokens."""
    tokens_per_sec: float | None
    """Of preparation."""
    waits_s: float = 0.0
    """What training would wait for data in all, from now on."""
    is_losing: bool = False
    """That is no little part of the time that it has left."""
    is_waiting: bool = False
    """Training waits for data now."""


class SlowRank(Record, frozen=True, kw_only=True):
    """A rank that holds the others up: its forward pass beside the median of theirs."""

    rank: int
    node: int
    seconds: float
    median_s: float


class Status(Record, frozen=True, kw_only=True):
    """`status.json`: how the run is, as of `updated_at`. Losses in nats per token."""

    run_id: str
    state: State
    phase: str
    life: int
    step: int
    steps: int
    tokens: int
    updated_at: datetime
    bill: tuple[BillLine, ...] = ()
    budget_usd: Decimal | None = None
    max_hours: float | None = None
    price_per_hour: Decimal = Decimal(0)
    offer: Offer | None = None
    """The machine that this life got, where it was one of several that it might have got."""
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    hellaswag_acc: float | None = None
    hellaswag_acc_norm: float | None = None
    hellaswag_missing: str | None = None
    """Why there is no score now, of a run that should have one."""
    tokens_per_sec: float | None = None
    mfu: float | None = None
    shards: int = 0
    lead: Lead | None = None
    """None where nothing is prepared: before it begins, and when the run is over."""
    slow_rank: SlowRank | None = None
    """The one named last since training was last started, unless it has recovered."""

    @property
    def spent_usd(self) -> Decimal:
        return sum((line.usd for line in self.bill), Decimal(0))

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL


class FileEntry(Record, frozen=True, kw_only=True):
    name: str
    size_bytes: int
    sha256: str


class Manifest(Record, frozen=True, kw_only=True):
    """What commits a checkpoint: the files it is made of, written after all of them."""

    step: int
    tokens: int
    files: tuple[FileEntry, ...]


class Position(Record, frozen=True, kw_only=True):
    """A place in a source of files: after `tokens` tokens of row `row` of file number `file`."""

    file: int = 0
    row: int = 0
    tokens: int = 0


class Shard(Record, frozen=True, kw_only=True):
    name: str
    split: Literal["val", "train"]
    tokens: int
    size_bytes: int
    sha256: str
    next: Position | None = None
    """Where the shard after it begins, in a source that can be read from there on."""


class Dataset(Record, frozen=True, kw_only=True):
    """`dataset.json`: the shards that exist so far, in reading order."""

    source: str
    revision: str
    tokenizer: str
    shard_tokens: int
    val_fraction: float
    complete: bool = False
    shards: tuple[Shard, ...] = ()

    def split(self, split: Literal["val", "train"]) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    @property
    def train_tokens(self) -> int:
        """What training may read so far: a last shard that is short counts when all are there."""
        shards = self.split("train")
        return sum(s.tokens for s in shards if self.complete or s.tokens == self.shard_tokens)

    def has(self, train_tokens: int | None) -> bool:
        """Whether so many can be read, going round again where there are no more; None: all."""
        return self.complete or (train_tokens is not None and self.train_tokens >= train_tokens)


class RunPaths:
    """Every path of one run, under `root` (a working folder, or `PurePath()` for store keys)."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.folder = root / RUNS / run_id
        self.record = self.folder / RUN_JSON
        self.status = self.folder / STATUS_JSON
        self.summary = self.folder / SUMMARY_JSON
        self.events = self.folder / EVENTS
        self.metrics = self.folder / METRICS
        self.logs = self.folder / LOGS
        self.checkpoints = self.folder / CHECKPOINTS
        self.samples = self.folder / SAMPLES
        # Of the node alone, never uploaded:
        self.heartbeat = self.folder / ".heartbeat"
        self.lock = self.folder / ".lock"

    def log(self, stage: str) -> Path:
        return self.logs / f"{stage}.log"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint_name(step)


def run_key(run_id: str, *parts: str) -> str:
    """Store key of a file of the run: `run_key(id, "logs", "train.log")`."""
    return "/".join((RUNS, run_id, *parts))


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step in a checkpoint folder's name; None for a name that is not one."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def committed_checkpoints(folder: Path) -> list[int]:
    """Steps under `checkpoints/` that have a manifest, oldest first."""
    if not folder.is_dir():
        return []
    steps = [checkpoint_step(p.name) for p in folder.iterdir() if (p / MANIFEST).is_file()]
    return sorted(step for step in steps if step is not None)


def checkpoints_to_drop(steps: list[int], *, keep: int, best: int | None) -> list[int]:
    """Committed steps that retention lets go of: all but the newest `keep` and the best."""
    kept = {*sorted(steps)[-keep:], best}
    return [step for step in sorted(steps) if step not in kept]


def tokens_wanted(recipe: Recipe) -> int:
    """Training tokens that a run of it needs, with a block that follows the last it reads."""
    return recipe.train.tokens + recipe.model.block_size


def dataset_key(data: DataConfig, revision: str) -> str:
    """Name of the folder that holds these shards: equal inputs, equal shards, equal key."""
    fields = (data.source, revision, data.tokenizer, data.shard_tokens, data.val_fraction, 1)
    digest = hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:16]
    return f"{data.source.replace('/', '-').replace(':', '-')}-{data.tokenizer}-{digest}"


R = TypeVar("R", bound=Record)


def encode(record: Record) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(data: bytes, kind: type[R], *, name: str) -> R:
    """The record in `data`. Raises TrainingError, naming `name`, where it is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{name} cannot be read: {error}",
            hint="it was written by another version of gptctl, or damaged",
        ) from error


def read_dataset(folder: Path) -> Dataset | None:
    """The shards that exist so far; None before there is any. Raises TrainingError."""
    path = folder / DATASET_JSON
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode(data, Dataset, name=str(path))


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` in one step: a reader, or a crash, finds the old bytes or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
