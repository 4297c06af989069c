"""How many tokens there will be, as a preparation guesses it while it goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from training.config import DataConfig
from training.layout import Position, Shard
from training.prepare_here import estimate_files, estimate_text, no_more_than
from training.sources import TextFiles, open_source
from training.tokenizer import open_tokenizer


@dataclass
class FourFiles:
    revision: str = "1"
    files: tuple[str, ...] = ("a", "b", "c", "d")
    column: str = "text"

    def open(self, first: int) -> Iterator[tuple[int, Path]]:
        raise AssertionError("nothing is read for an estimate")


def make_shard(following: Position | None) -> Shard:
    return Shard(name="x", split="train", tokens=100, size_bytes=1, sha256="", next=following)


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_a_text_is_estimated_by_its_beginning(
    tmp_path: Path, gpt2_vocabulary: Path, tokenizer: str
) -> None:
    (tmp_path / "texts").mkdir()
    text = "".join(f"{n} is followed by {n + 1}.\n" for n in range(80_000))
    (tmp_path / "texts" / "a.txt").write_text(text)
    (tmp_path / "texts" / "b.txt").write_text("é" * 100)
    data = DataConfig(
        source="text", path=str(tmp_path / "texts"), tokenizer=tokenizer, shard_tokens=100
    )
    source = open_source(data)
    assert isinstance(source, TextFiles)
    actual = sum(
        1 + len(open_tokenizer(tokenizer).encode(document)) for document in source.documents()
    )
    assert source.size_bytes > 2**20
    assert estimate_text(source, data) == pytest.approx(actual, rel=0.02)


def test_files_are_estimated_by_those_that_have_been_read() -> None:
    assert estimate_files(FourFiles(), make_shard(Position(file=2, row=5)), 300) == 600


def test_before_a_file_has_been_read_nobody_knows() -> None:
    assert estimate_files(FourFiles(), make_shard(Position(file=0, row=5)), 300) is None
    assert estimate_files(FourFiles(), make_shard(None), 300) is None


@pytest.mark.parametrize(
    ("wanted", "total", "val_fraction", "told"),
    [
        (None, 1000, 0.0, 1000),
        (150, 1000, 0.0, 300),
        (150, None, 0.0, 300),
        (150, 200, 0.0, 200),
        (150, 1000, 0.25, 450),
    ],
)
def test_no_more_is_expected_than_is_wanted(
    wanted: int | None, total: int | None, val_fraction: float, told: int
) -> None:
    data = DataConfig(source="x", tokenizer="bytes", shard_tokens=100, val_fraction=val_fraction)
    assert no_more_than(wanted, total, data) == told
