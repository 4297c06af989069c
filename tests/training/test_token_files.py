"""Files of llm.c, nanoGPT and build-nanogpt, made as their own scripts make them."""

import struct
from pathlib import Path

import numpy as np
import pytest

from training import token_files
from training.errors import DataError
from training.shards import write_shard
from training.token_files import TokenFiles, open_token_files, open_tokens

GPT2_VOCAB = 50257
IDS = [50256, 15496, 11, 995, 0, 50256, 2, 3]


def write_llmc(path: Path, ids: list[int]) -> None:
    """As llm.c's `write_datafile` does."""
    header = np.zeros(256, dtype=np.int32)
    header[0], header[1], header[2] = 20240520, 1, len(ids)
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.write(np.array(ids, dtype=np.uint16).tobytes())


def write_nanogpt(path: Path, ids: list[int]) -> None:
    np.array(ids, dtype=np.uint16).tofile(path)


def write_build_nanogpt(path: Path, ids: list[int]) -> None:
    np.save(path, np.array(ids, dtype=np.uint16))


WRITERS = {
    "llm.c": (write_llmc, "fineweb_val_000000.bin", "fineweb_train_000001.bin"),
    "nanoGPT": (write_nanogpt, "val.bin", "train.bin"),
    "build-nanogpt": (write_build_nanogpt, "edufineweb_val_000000.npy", "edufineweb_train_1.npy"),
}


def write_both(folder: Path, writer: str) -> Path:
    write, val, train = WRITERS[writer]
    folder.mkdir()
    write(folder / val, IDS[:3])
    write(folder / train, IDS)
    return folder


def open_at(where: Path | str) -> TokenFiles:
    return open_token_files(str(where), vocab_size=GPT2_VOCAB)


def read(files: TokenFiles, split: str) -> list[int]:
    wanted = range(files.val_files) if split == "val" else range(files.val_files, len(files.paths))
    return [int(token) for number, ids in files.open(0) if number in wanted for token in ids]


@pytest.mark.parametrize("writer", WRITERS)
def test_files_of_each_project_are_read_as_the_ids_that_it_wrote(
    tmp_path: Path, writer: str
) -> None:
    files = open_at(write_both(tmp_path / "data", writer))
    assert read(files, "val") == IDS[:3]
    assert read(files, "train") == IDS
    assert (files.files[0], files.val_files) == (WRITERS[writer][1], 1)


def test_equal_tokens_have_one_revision_in_every_format_and_others_another(tmp_path: Path) -> None:
    revisions = {open_at(write_both(tmp_path / name[:4], name)).revision for name in WRITERS}
    assert len(revisions) == 1
    write_nanogpt(tmp_path / "nano" / "train.bin", [*IDS[:-1], 4])
    assert open_at(tmp_path / "nano").revision not in revisions


def test_tokens_moved_from_one_file_to_the_next_split_are_other_data(tmp_path: Path) -> None:
    folder = write_both(tmp_path / "data", "nanoGPT")
    before = open_at(folder).revision
    write_nanogpt(folder / "val.bin", IDS[:2])
    write_nanogpt(folder / "train.bin", [IDS[2], *IDS])
    assert open_at(folder).revision != before


def test_a_shard_of_ours_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "x_train_000001.bin", np.array(IDS, dtype=np.uint16), split="train")
    assert read(open_at(tmp_path), "train") == IDS


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        write_llmc(tmp_path / f"x_train_{index:06d}.bin", [index])
    assert read(open_at(tmp_path), "train") == [0, 1, 2]
    assert read(open_at(tmp_path / "*_00000[12].bin"), "train") == [1, 2]
    assert read(open_at(tmp_path / "x_train_000001.bin"), "train") == [1]


def test_a_name_that_only_contains_val_is_not_for_validation(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "valley.bin", IDS)
    write_nanogpt(tmp_path / "interval.bin", IDS)
    assert open_at(tmp_path).val_files == 0


def test_ids_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "train.bin", IDS)
    assert all(isinstance(ids, np.memmap) for _, ids in open_at(tmp_path).open(0))


def test_files_are_read_from_any_of_them_on(tmp_path: Path) -> None:
    for index in range(3):
        write_llmc(tmp_path / f"x_train_{index:06d}.bin", [index])
    assert [(n, ids.tolist()) for n, ids in open_at(tmp_path).open(1)] == [(1, [1]), (2, [2])]


@pytest.mark.parametrize("writer", WRITERS)
def test_an_id_beyond_the_vocabulary_is_refused_with_its_place(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "PIECE_TOKENS", 3)
    write, _, name = WRITERS[writer]
    write(tmp_path / name, [1, 2, 3, 4, 50257, 6])
    with pytest.raises(DataError, match=rf"{name} cannot be used: token 4 is 50257.* 50,257$"):
        open_at(tmp_path)


def test_what_is_only_for_validation_cannot_be_trained_on(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "val.bin", IDS)
    with pytest.raises(DataError, match=r"for validation only: val\.bin"):
        open_at(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("train.bin", b"", "it is empty"),
        ("train.bin", b"abc", "has been cut"),
        ("train.bin", np.arange(100, dtype=np.int32).tobytes(), "ids of 32 bits"),
        ("train.bin", struct.pack("<256i", 20240801, 7, 1, *[0] * 253), "Llama 3"),
        ("train.bin", struct.pack("<256i", 20240520, 1, 5, *[0] * 253), "promises 5 tokens"),
        ("train.bin", struct.pack("<3i", 20240520, 1, 5), "less than its header"),
        ("train.npy", b"", "cannot be used"),
        ("train.npy", b"no numpy file at all", "cannot be used"),
        ("a.txt", b"text", "no token files"),
    ],
)
def test_what_is_no_token_file_is_refused(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what):
        open_at(tmp_path)


@pytest.mark.parametrize(
    "array", [np.arange(9), np.zeros((3, 3), dtype=np.uint16), np.array([{}], dtype=object)]
)
def test_an_npy_of_something_else_is_refused(
    tmp_path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    np.save(tmp_path / "train.npy", array)
    with pytest.raises(DataError, match=r"train\.npy cannot be used"):
        open_at(tmp_path)


def test_a_cut_npy_is_refused(tmp_path: Path) -> None:
    write_build_nanogpt(tmp_path / "train.npy", IDS)
    (tmp_path / "train.npy").write_bytes((tmp_path / "train.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match=r"train\.npy cannot be used"):
        open_at(tmp_path)


def test_ids_of_a_vocabulary_of_characters_are_not_taken_for_gpt2s(tmp_path: Path) -> None:
    write_nanogpt(tmp_path / "train.bin", [1, 2, 3])
    (tmp_path / "meta.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="a vocabulary of its own"):
        open_at(tmp_path)


def test_a_file_that_was_cut_after_it_was_opened_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_llmc(tmp_path / "a.bin", IDS)
    files = open_at(tmp_path)
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match="promises"):
        read(files, "train")


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token files at"):
        open_at(tmp_path / "absent")
    with pytest.raises(DataError, match="No such file"):
        open_tokens(tmp_path / "absent.bin")
