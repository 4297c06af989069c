import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import DataError, NoSpaceError
from training.hellaswag import Example, read_examples, write_examples

EXAMPLES = [
    Example(
        context=np.array(context, dtype=np.uint16),
        endings=tuple(np.array(ending, dtype=np.uint16) for ending in endings),
        label=label,
    )
    for context, endings, label in (
        ([10, 11, 12], ([1], [2, 3], [4], [5, 6, 7]), 3),
        ([50256], ([8], [9], [8], [9]), 0),
    )
]
# What llm.c's write_evalfile writes of the same two.
FIRST = [65535, 42, 0, 3, 4, 3, 10, 11, 12, 1, 1, 2, 2, 3, 1, 4, 3, 5, 6, 7]
FIRST[1] = 2 * len(FIRST)
SECOND = [65535, 30, 1, 0, 4, 1, 50256, 1, 8, 1, 9, 1, 8, 1, 9]
BY_HAND = struct.pack("<256i", 20240522, 1, 2, 2 * len(FIRST), *[0] * 252) + struct.pack(
    f"<{len(FIRST) + len(SECOND)}H", *FIRST, *SECOND
)
HEADER = 1024


def refusal(path: Path, data: bytes, *, vocab_size: int = 50257) -> str:
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_examples(path, vocab_size=vocab_size)
    assert str(path) in caught.value.message
    assert "prepare the data again" in caught.value.hint
    return caught.value.message


def with_id(at: int, value: int) -> bytes:
    """BY_HAND with another number at that place behind the header."""
    start = HEADER + 2 * at
    return BY_HAND[:start] + struct.pack("<H", value) + BY_HAND[start + 2 :]


def test_the_file_is_the_format_of_llmc_byte_for_byte(tmp_path: Path) -> None:
    entry = write_examples(tmp_path / "x.bin", EXAMPLES)
    assert (tmp_path / "x.bin").read_bytes() == BY_HAND
    assert entry.size_bytes == len(BY_HAND)
    assert entry.sha256 == hashlib.sha256(BY_HAND).hexdigest()


def test_examples_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(BY_HAND)
    found = read_examples(tmp_path / "x.bin", vocab_size=50257)
    assert [e.label for e in found] == [3, 0]
    for ours, theirs in zip(found, EXAMPLES, strict=True):
        assert ours.context.dtype == np.uint16
        assert ours.context.tolist() == theirs.context.tolist()
        assert [e.tolist() for e in ours.endings] == [e.tolist() for e in theirs.endings]


@given(st.integers(0, len(BY_HAND) - 1))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, at: int) -> None:
    refusal(tmp_path_factory.mktemp("cut") / "x.bin", BY_HAND[:at])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<i", 20240520) + BY_HAND[4:], "it begins with 20240520"),
        (BY_HAND[:4] + struct.pack("<i", 2) + BY_HAND[8:], "it begins with 20240522, 2"),
        (BY_HAND[:8] + struct.pack("<i", 0) + BY_HAND[12:], "no examples"),
        (BY_HAND[:8] + struct.pack("<i", 1) + BY_HAND[12:], "goes on after its 1 examples"),
        (BY_HAND[:8] + struct.pack("<i", 3) + BY_HAND[12:], "ends after 2 of 3"),
        (BY_HAND + b"\0\0", "goes on after its 2 examples"),
        (with_id(0, 7), "example 0"),  # where it should begin
        (with_id(1, 41), "example 0"),  # its bytes
        (with_id(2, 1), "example 0"),  # its index
        (with_id(3, 4), "example 0"),  # its label
        (with_id(4, 3), "example 0"),  # endings
        (with_id(5, 2), "example 0"),  # ids of its context
        (with_id(5, 200), "example 0"),
        (with_id(len(FIRST) - 4, 9), "example 0"),  # ids of its last ending
        (with_id(7, 50257), "example 0"),  # an id
        (with_id(len(FIRST) + 7, 0), "example 1"),  # ids of its first ending
    ],
)
def test_what_is_no_file_of_examples_is_refused_with_the_place(
    tmp_path: Path, data: bytes, says: str
) -> None:
    assert says in refusal(tmp_path / "x.bin", data)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    assert "none of 257 ids" in refusal(tmp_path / "x.bin", BY_HAND, vocab_size=257)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_examples(tmp_path / "x.bin", vocab_size=257)


def test_an_example_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    long = Example(context=np.zeros(40_000, np.uint16), endings=EXAMPLES[0].endings, label=0)
    with pytest.raises(DataError, match=r"80,0\d\d bytes"):
        write_examples(tmp_path / "x.bin", [long])
    with pytest.raises(DataError, match="0 examples"):
        write_examples(tmp_path / "x.bin", [])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_to_be_full_and_leaves_no_half_file(small_disk: Path) -> None:
    with pytest.raises(NoSpaceError):
        write_examples(small_disk / "x.bin", EXAMPLES * 20_000)
    assert list(small_disk.iterdir()) == []
