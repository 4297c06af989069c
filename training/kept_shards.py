"""Shards of an earlier preparation: the good ones count again, up to the first that is not."""

from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from training.errors import DataError, TrainingError
from training.layout import DATASET_JSON, Dataset, decode
from training.shards import verify_shard, write_dataset

CLAIMS = ".claims.json"
"""The `dataset.json` of an earlier preparation, while its shards are being verified."""


def keep_good_shards(folder: Path, fresh: Dataset) -> Dataset:
    """What is in `folder` up to its first damaged shard, which from then on does not exist.

    What an earlier preparation named counts again only as it is verified, shard by shard, so
    that training never reads a damaged one. Until all are, the list it left is kept aside.
    """
    claims = folder / CLAIMS
    with suppress(FileNotFoundError):
        if not claims.exists():
            (folder / DATASET_JSON).rename(claims)
    with suppress(FileNotFoundError, TrainingError):
        claimed = decode(claims.read_bytes(), Dataset, name=str(claims))
        if replace(claimed, complete=False, shards=()) == fresh:
            fresh = _verify_claims(folder, claimed)
    claims.unlink(missing_ok=True)
    return fresh


def _verify_claims(folder: Path, claimed: Dataset) -> Dataset:
    good = replace(claimed, complete=False, shards=())
    for shard in claimed.shards:
        try:
            verify_shard(folder, shard)
        except DataError:
            return good
        good = replace(good, shards=(*good.shards, shard))
        write_dataset(folder, good)
    if claimed.complete:
        good = claimed
        write_dataset(folder, good)
    return good
