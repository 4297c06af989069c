"""Are these shards what they were written as? `python -m training.verify_data PATH`

Torch-free. PATH is a folder with a `dataset.json`, or token files as `token_files` takes them.
Events on stdout: `file` (name, tokens, fault: empty for a good one), `extra` (name: a file that
`dataset.json` does not name, so that nothing reads it), `verified` (complete, tokenizer), `error`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.config import TOKEN_SUFFIXES, TOKENIZER_VOCAB
from training.errors import DataError
from training.layout import Dataset, read_dataset
from training.shards import open_shard, verify_shard
from training.token_files import find_token_files, open_tokens, require_ids
from training.told_parent import run_program, say

Verdict = tuple[str, int, str]
"""(name, tokens, fault)"""


def verify_dataset_files(folder: Path, dataset: Dataset) -> Iterator[Verdict]:
    """Of each shard: is it there, what was recorded, and of ids that its tokenizer has?"""
    vocab_size = TOKENIZER_VOCAB.get(dataset.tokenizer, 2**16)
    for shard in dataset.shards:
        try:
            verify_shard(folder, shard)
            tokens = open_shard(folder / shard.name)
            require_ids(folder / shard.name, tokens, vocab_size=vocab_size)
        except DataError as error:
            yield shard.name, shard.tokens, error.message
        else:
            yield shard.name, shard.tokens, ""


def extra_files(folder: Path, dataset: Dataset) -> list[str]:
    """Token files in `folder` that no shard of `dataset` is."""
    named = {shard.name for shard in dataset.shards}
    there = (path.name for path in folder.iterdir() if path.suffix in TOKEN_SUFFIXES)
    return sorted(name for name in there if name not in named and not name.startswith("."))


def verify_token_files(where: Path) -> Iterator[Verdict]:
    """Of each file that a user brought: is it of a known format, whole, of GPT-2's ids?"""
    for path in find_token_files(where):
        count = 0
        try:
            tokens = open_tokens(path)
            count = len(tokens)
            require_ids(path, tokens, vocab_size=TOKENIZER_VOCAB["gpt2"])
        except DataError as error:
            yield path.name, count, error.message
        else:
            yield path.name, count, ""


def verify(where: Path) -> None:
    """Tell of all that is at `where`. Raises TrainingError where nothing can be told."""
    dataset = read_dataset(where) if where.is_dir() else None
    verdicts = verify_dataset_files(where, dataset) if dataset else verify_token_files(where)
    for name, tokens, fault in verdicts:
        say("file", name=name, tokens=tokens, fault=fault)
    for name in extra_files(where, dataset) if dataset else ():
        say("extra", name=name)
    say(
        "verified",
        complete=dataset.complete if dataset else None,
        tokenizer=dataset.tokenizer if dataset else "gpt2",
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.verify_data", description="Check token shards."
    )
    parser.add_argument("path", type=Path)
    options = parser.parse_args(argv)
    return run_program(lambda: verify(options.path))


if __name__ == "__main__":
    sys.exit(main())
