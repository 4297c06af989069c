"""What making a run's shards takes, and whether a machine keeps ahead of its training. Pure.

The rates are measured where that is said, by bench/tokenizing.py on 2 cores of a small server
(bench/results/tokenizing.json, 2026-11-21); a core of a rented machine may be slower or faster.
"""

from math import ceil

from msgspec import Struct

from training.config import HUB_REPOS, DataConfig, Recipe
from training.layout import tokens_wanted

TEXT_BYTES_PER_TOKEN = 4.5
"""Of web text: FineWeb's sample-10BT is 10.26 B tokens, and 46 GB in the cache of `datasets`."""
PARQUET_BYTES_PER_TOKEN = 2.8
"""As it is fetched: the same sample is about 28 GB of Parquet files."""
SHARD_BYTES_PER_TOKEN = 2
GIGATOKEN_TOKENS_PER_S = 74e6 / TEXT_BYTES_PER_TOKEN
"""A core. Measured from Parquet files to verified shards: 147 MB of text a second on 2 cores."""
TIKTOKEN_TOKENS_PER_S = 8.6e6 / TEXT_BYTES_PER_TOKEN
"""A core, without gigatoken. Measured of the reference design: 17.2 MB/s on 2 cores."""
TEXT_TOKENS_PER_S = 4e6
"""Of a text of one's own, in the one process that reads it: 4.2 million measured, by tiktoken."""
BYTES_TOKENS_PER_S = 100e6
"""Of the tokenizer `bytes`, in one process: assumed."""
COPIED_TOKENS_PER_S = 200e6
"""Of files that are tokens already, read, checked, hashed and written by one process: assumed."""
MAX_CORES = 16
"""`training.encode` starts no more workers: a test holds the two together."""
PARQUET_FILE_BYTES = 2e9
"""The largest of FineWeb's samples, about. What other data sets have is taken to be no larger."""
FILES_AT_ONCE = 3
"""On the disk: the one that is read and two that are fetched. `training.hub_fetch`."""
SAMPLE_TOKENS = {"sample-10BT": 10_360_000_000, "sample-100BT": 10**11, "sample-350BT": 350 * 10**9}
"""Of FineWeb and FineWeb-Edu, about: no run needs room for more."""
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: fp32 weight and Adam's two moments."""
LINK_BYTES_PER_S = 100e6
"""From the Hub to a machine: assumed, as no cloud says."""
TIKTOKEN = "tiktoken"
"""Makes the shards of a data set of the Hub where gigatoken is not installed."""


class Rates(Struct, frozen=True, kw_only=True):
    """Of a source: what a token of it takes, and how many are made in a second.

    `file_bytes`: of a file that is fetched, at most; 0 where none is.
    """

    maker: str
    tokens_per_core_s: float
    most_cores: int = 1
    text_bytes: float = 0.0
    fetched_bytes: float = 0.0
    file_bytes: float = 0.0

    def tokens_per_s(self, cores: float) -> float:
        return self.tokens_per_core_s * min(cores, self.most_cores)


class Preparation(Struct, frozen=True, kw_only=True):
    """What the data of a run takes; what depends on its speed is None where that is not known.

    `shards` at most, as a data set may be smaller than the run is long. `cores` and the bytes a
    second are what keeps up with training, `cores_free` what there is for it, where it is known.
    `made_per_sec`: the most tokens that the machine can make, None where nobody knows.
    """

    maker: str
    shards: int
    shard_bytes: int
    fetched_bytes: int
    """Files beside the shards while these are made, at most."""
    tokens_per_sec: float | None
    cores: float | None
    cores_free: float | None
    text_bytes_per_s: float | None
    fetched_bytes_per_s: float | None
    made_per_sec: float | None

    @property
    def disk_bytes(self) -> int:
        return self.shard_bytes + self.fetched_bytes

    @property
    def is_fetched(self) -> bool:
        return self.fetched_bytes > 0

    @property
    def waiting(self) -> float:
        """How much longer training takes for want of data, as a share of its time without."""
        if not self.tokens_per_sec or not self.made_per_sec:
            return 0.0
        return max(0.0, self.tokens_per_sec / self.made_per_sec - 1)


def reads_hub(recipe: Recipe) -> bool:
    """Whether its nodes ask the Hub for anything."""
    return recipe.data.hub_repo is not None or recipe.eval.hellaswag


def text_bytes_per_token(data: DataConfig) -> float:
    return 1.0 if data.tokenizer == "bytes" else TEXT_BYTES_PER_TOKEN


def rates_of(data: DataConfig, *, has_gigatoken: bool = True) -> Rates:
    if data.source.startswith("hub-shards:"):
        return Rates(
            maker="copying",
            tokens_per_core_s=COPIED_TOKENS_PER_S,
            fetched_bytes=SHARD_BYTES_PER_TOKEN,
            file_bytes=data.shard_tokens * SHARD_BYTES_PER_TOKEN,
        )
    if data.source == "tokens":
        return Rates(maker="copying", tokens_per_core_s=COPIED_TOKENS_PER_S)
    is_bytes = data.tokenizer == "bytes"
    text_bytes = text_bytes_per_token(data)
    if not data.hub_repo:
        made = BYTES_TOKENS_PER_S if is_bytes else TEXT_TOKENS_PER_S
        maker = "one process" if is_bytes else "tiktoken in one process"
        return Rates(maker=maker, tokens_per_core_s=made, text_bytes=text_bytes)
    maker, made = TIKTOKEN, TIKTOKEN_TOKENS_PER_S
    if is_bytes:
        maker, made = "numpy", BYTES_TOKENS_PER_S
    elif has_gigatoken:
        maker, made = "gigatoken", GIGATOKEN_TOKENS_PER_S
    return Rates(
        maker=maker,
        tokens_per_core_s=made,
        most_cores=MAX_CORES,
        text_bytes=text_bytes,
        fetched_bytes=text_bytes * PARQUET_BYTES_PER_TOKEN / TEXT_BYTES_PER_TOKEN,
        file_bytes=PARQUET_FILE_BYTES,
    )


def plan_preparation(
    recipe: Recipe,
    *,
    tokens_per_sec: float | None = None,
    cores_free: float | None = None,
    has_gigatoken: bool = True,
    whole: bool = False,
) -> Preparation:
    """On one node; `tokens_per_sec` of all nodes together, each of which has all the data."""
    rates = rates_of(recipe.data, has_gigatoken=has_gigatoken)
    shards, tokens = count_shards(recipe, whole=whole)
    made = None
    if cores_free is not None or rates.most_cores == 1:
        made = rates.tokens_per_s(cores_free or 1)

    def at_speed(per_token: float) -> float | None:
        return None if tokens_per_sec is None else tokens_per_sec * per_token

    return Preparation(
        maker=rates.maker,
        shards=shards,
        shard_bytes=tokens * SHARD_BYTES_PER_TOKEN,
        fetched_bytes=round(rates.file_bytes) * FILES_AT_ONCE,
        tokens_per_sec=tokens_per_sec,
        cores=at_speed(1 / rates.tokens_per_core_s),
        cores_free=cores_free,
        text_bytes_per_s=at_speed(rates.text_bytes),
        fetched_bytes_per_s=at_speed(rates.fetched_bytes),
        made_per_sec=made,
    )


def checkpoint_bytes(recipe: Recipe) -> int:
    """Room for the checkpoints that are kept, the best, and the one being written."""
    one = recipe.model.parameters * BYTES_PER_PARAMETER
    return one * (recipe.checkpoint.keep + 2)


def disk_bytes(recipe: Recipe, *, trains: bool = True, whole: bool = False) -> int:
    """Of a node at most: checkpoints, and what is made of a data set that is fetched."""
    data = plan_preparation(recipe, whole=whole)
    checkpoints = checkpoint_bytes(recipe) if trains else 0
    return checkpoints + (data.disk_bytes if data.is_fetched else 0)


def count_shards(recipe: Recipe, *, whole: bool = False) -> tuple[int, int]:
    """(shards, their tokens) that a run needs at most: validation, and all that it trains on.

    `whole`: of all of the source, where `source_tokens` knows how much that is.
    """
    data = recipe.data
    wanted = tokens_wanted(recipe)
    if (most := source_tokens(data)) is not None:
        wanted = most if whole else min(wanted, most)
    shards = 1 + ceil(wanted / data.shard_tokens)
    return shards, shards * data.shard_tokens


def source_tokens(data: DataConfig) -> int | None:
    """About all that there are; None where nobody knows before they have been read."""
    if data.source not in HUB_REPOS:
        return None
    return SAMPLE_TOKENS.get(data.config or data.default_config)
