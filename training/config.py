"""What a recipe says, as values: every section a frozen struct, validated on construction.

Torch-free, so that the laptop side reads the very types that the node trains by. Knows
nothing of files: `gptctl.recipe` decodes TOML into these, the node decodes them from
`run.json`.
"""

import re
from decimal import Decimal
from typing import Annotated, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(ge=0.0)]
Fraction = Annotated[float, Meta(ge=0.0, lt=1.0)]

VOCAB_MULTIPLE = 128
"""The embedding is padded to a multiple of this: 50257 → 50304 keeps tensor cores busy."""

TOKENIZER_VOCAB = {"bytes": 257, "gpt2": 50257}
"""Ids each tokenizer can produce, its end-of-text included."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the recipe. An unknown key is an error, never ignored."""


class ModelConfig(Section, frozen=True, kw_only=True):
    """GPT-2's shape. `vocab_size` is the tokenizer's; the embedding is padded beyond it."""

    n_layer: Count
    n_head: Count
    n_embd: Count
    block_size: Count
    vocab_size: Count

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameters(self) -> int:
        """Trained numbers, the padded embedding (tied to the head) counted once."""
        d = self.n_embd
        block = 12 * d * d + 13 * d  # attention 4d²+4d, MLP 8d²+5d, two layer norms 4d
        return (self.padded_vocab_size + self.block_size) * d + self.n_layer * block + 2 * d

    @property
    def flops_per_token(self) -> int:
        """Forward and backward, llm.c's formula: 6N + 6·L·C·T (its MFU uses this one)."""
        return 6 * self.parameters + 6 * self.n_layer * self.n_embd * self.block_size

    @property
    def flops_per_token_palm(self) -> int:
        """PaLM, appendix B: 6N + 12·L·H·Q·T, attention counted without the causal half."""
        return 6 * self.parameters + 12 * self.n_layer * self.n_embd * self.block_size


HUB_REPOS = {"fineweb": "HuggingFaceFW/fineweb", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
"""Data sets of the Hub that have a name of their own here."""

TOKEN_SUFFIXES = (".bin", ".npy")
"""Of files that hold token ids. Any other file is text."""


class DataConfig(Section, frozen=True, kw_only=True):
    """Where tokens come from. `path` belongs to the sources `text` and `tokens`.

    `config`, `split` and `column` belong to texts on the Hub: `fineweb`, `hub:owner/name`. Of
    `tokens` and `hub-shards:owner/name` the ids are ready made, by GPT-2's tokenizer.
    """

    source: str
    tokenizer: Literal["bytes", "gpt2"]
    shard_tokens: Annotated[int, Meta(ge=1, lt=2**31)]
    path: str = ""
    revision: str = ""
    config: str = ""
    split: str = "train"
    column: str = "text"
    val_fraction: Fraction = 0.0
    """Share of a finite text kept from its end for validation; 0: the first shard is."""
    order: Literal["sequential", "random"] = "sequential"
    """`sequential` reads on as the reference does; `random` draws windows, shard by shard."""

    def __post_init__(self) -> None:
        if not self.is_tokens:
            return
        if self.tokenizer != "gpt2":
            raise ValueError(
                f"data.tokenizer={self.tokenizer!r} does not fit the source {self.source!r}, whose "
                "tokens are ready made by 'gpt2'"
            )
        if self.val_fraction:
            raise ValueError(
                f"data.val_fraction={self.val_fraction} does not fit the source {self.source!r}: "
                "files with `val` in their name are for validation, or else the first shard is"
            )

    @property
    def hub_repo(self) -> str | None:
        """`owner/name` on the Hub; None where the data are not from there."""
        kind, colon, name = self.source.partition(":")
        is_hub = colon and kind in ("hub", "hub-shards")
        return name if is_hub else HUB_REPOS.get(self.source)

    @property
    def is_tokens(self) -> bool:
        """Whether the source holds token ids, and no text."""
        return self.source == "tokens" or self.source.startswith("hub-shards:")

    @property
    def takes_path(self) -> bool:
        """Whether the source is files of the user's own, at `path`."""
        return self.source in ("text", "tokens")

    @property
    def default_config(self) -> str:
        return "sample-10BT" if self.source in HUB_REPOS else ""

    @property
    def is_pinned(self) -> bool:
        """Whether `revision` is a commit of a repository, which never changes."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


class TrainConfig(Section, frozen=True, kw_only=True):
    """One optimizer step is exactly `batch_tokens` tokens, whatever the number of ranks."""

    steps: Count
    batch_tokens: Count
    micro_batch_size: Count
    max_lr: Annotated[float, Meta(gt=0.0)]
    warmup_steps: Index
    min_lr: Rate = 0.0
    schedule: Literal["cosine", "wsd"] = "cosine"
    cooldown_steps: Index = 0
    """`wsd` only: the last steps, over which the rate falls linearly to `min_lr`."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr: Annotated[float, Meta(gt=0.0)] = 0.02
    """`muon` only: peak rate of the hidden matrices; the rest is AdamW at `max_lr`."""
    weight_decay: Rate = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: Annotated[float, Meta(gt=0.0)] = 1e-8
    grad_clip: Rate = 1.0
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 1337
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type of the matrix products; `auto`: bfloat16 where the hardware multiplies it."""
    compile: bool | None = None
    """By torch.compile, block by block; None: on a GPU, where the minute that it takes pays."""
    shard_optimizer: bool = False
    """ZeRO-1: each GPU of a node updates a share of the parameters and keeps its state alone."""
    checkpoint_activations: bool = False
    """Blocks are computed again in the backward pass: less memory for a third more FLOPs."""
    skip_loss_z: Rate = 0.0
    """Skip an update whose loss lies so many deviations above the last ones'; 0: never."""
    skip_grad_z: Rate = 0.0
    """The same of the gradient's norm."""
    log_every: Count = 1
    """Steps from one exchange of what was measured to the next: the host waits for the GPU then."""

    def __post_init__(self) -> None:
        if self.min_lr > self.max_lr:
            raise ValueError(f"min_lr={self.min_lr} must not exceed max_lr={self.max_lr}")
        if self.warmup_steps + self.cooldown_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and cooldown_steps={self.cooldown_steps} "
                f"must fit in steps={self.steps}"
            )
        if self.cooldown_steps and self.schedule != "wsd":
            raise ValueError('cooldown_steps needs schedule = "wsd"')

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


class EvalConfig(Section, frozen=True, kw_only=True):
    """Validation loss over the first `tokens` of the validation shard, every `every` steps."""

    every: Count
    tokens: Count
    until_loss: Annotated[float, Meta(gt=0.0)] | None = None
    """Nats per token. The first evaluation that is no higher ends the run, which has succeeded;
    under `wsd` it starts the cool-down."""
    hellaswag: bool = False
    """Score HellaSwag, too: 10,042 questions of four answers each."""
    hellaswag_every: Count = 1000
    """Steps from one score to the next; the finished model always gets one."""


class CheckpointConfig(Section, frozen=True, kw_only=True):
    """A save every `every` steps and at the end; the newest `keep` stay, and the best."""

    every: Count
    keep: Count = 2


class SampleConfig(Section, frozen=True, kw_only=True):
    """Text written by the finished model, and by the unfinished one every `every` steps."""

    prompt: str = "Hello, I'm a language model,"
    count: Index = 2
    every: Index = 0
    """0: by the finished model only."""
    max_new_tokens: Count = 200
    temperature: Annotated[float, Meta(gt=0.0)] = 0.8
    top_k: Count = 50


class NodeConfig(Section, frozen=True, kw_only=True):
    """Where it runs: `gpus` in order of preference (`A100-80GB:8`), or `cpu_ranks` processes.

    `cloud` is where it runs unless the user names another: SkyPilot's name of it.
    """

    cloud: str = "local"
    gpus: tuple[str, ...] = ()
    cpu_ranks: Count = 1
    stall_after_s: Annotated[float, Meta(gt=0.0)] = 600.0
    """Training that gives no sign of life for this long is killed."""
    max_restarts: Index = 3


class BudgetConfig(Section, frozen=True, kw_only=True):
    """Walls, not warnings. Absent: no limit."""

    usd: Decimal | None = None
    max_hours: Annotated[float, Meta(gt=0.0)] | None = None

    def __post_init__(self) -> None:
        # msgspec bounds no Decimal.
        if self.usd is not None and self.usd <= 0:
            raise ValueError(f"usd={self.usd} must be more than 0")


class ReferenceConfig(Section, frozen=True, kw_only=True):
    """What the recipe promises, and who measured it: set beside what a run reached."""

    source: str
    gpus: str
    hours: Annotated[float, Meta(gt=0.0)]
    step_ms: Annotated[float, Meta(gt=0.0)]
    price_per_hour: Decimal
    price_as_of: str
    usd: Decimal
    val_loss: float | None = None
    hellaswag: float | None = None


class Recipe(Section, frozen=True, kw_only=True):
    """Everything a run is made from. Sections with defaults may be left out."""

    summary: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    sample: SampleConfig = SampleConfig()
    node: NodeConfig = NodeConfig()
    budget: BudgetConfig = BudgetConfig()
    reference: ReferenceConfig | None = None

    def __post_init__(self) -> None:
        if self.model.vocab_size < TOKENIZER_VOCAB[self.data.tokenizer]:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} is less than the "
                f"{TOKENIZER_VOCAB[self.data.tokenizer]} ids of tokenizer {self.data.tokenizer!r}"
            )
        if self.train.batch_tokens % self.model.block_size:
            raise ValueError(
                f"train.batch_tokens={self.train.batch_tokens} must be a multiple of "
                f"model.block_size={self.model.block_size}"
            )


def split_batch(
    *, batch_tokens: int, block_size: int, micro_batch_size: int, ranks: int
) -> tuple[int, int]:
    """(micro_batch_size, grad_accum_steps) that make a step of exactly `batch_tokens`.

    The micro-batch is the largest that divides the batch and does not exceed the one
    asked for, so that a recipe runs on any number of ranks that divides its sequences.
    Raises ValueError where the sequences cannot be shared out evenly.
    """
    sequences, rest = divmod(batch_tokens, block_size * ranks)
    if rest or not sequences:
        raise ValueError(
            f"a step of {batch_tokens:,} tokens is {batch_tokens // block_size:,} sequences of "
            f"{block_size:,}, which {ranks} ranks cannot share evenly"
        )
    micro = next(m for m in range(min(micro_batch_size, sequences), 0, -1) if sequences % m == 0)
    return micro, sequences // micro
