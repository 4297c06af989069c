from pathlib import Path
from typing import Any

import pytest

from training.config import DataConfig
from training.errors import DataError
from training.sources import dataset_folder_key, open_source, text_after, text_before


def text_data(path: Path | str, **changes: Any) -> DataConfig:
    fields: dict[str, Any] = {"source": "text", "tokenizer": "bytes", "shard_tokens": 100}
    return DataConfig(path=str(path), **fields | changes)


@pytest.mark.parametrize("where", ["texts", "texts/*.txt", "**/?.txt"])
def test_text_is_a_folder_or_a_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "texts").mkdir()
    for name in "cab":
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    assert list(open_source(text_data(tmp_path / where)).documents()) == ["a", "b", "c"]
    monkeypatch.chdir(tmp_path)
    assert list(open_source(text_data(where)).documents()) == ["a", "b", "c"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "[a].txt").write_text("this")
    (tmp_path / "a.txt").write_text("that")
    assert list(open_source(text_data(tmp_path / "[a].txt")).documents()) == ["this"]


def test_line_ends_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r")
    assert list(open_source(text_data(tmp_path)).documents()) == ["one\r\ntwo\r"]


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8: byte 0xef at offset 2"):
        open_source(text_data(tmp_path))


@pytest.mark.parametrize("where", ["gone.txt", "*.txt"])
def test_missing_text_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(DataError, match=r"no text at .*txt"):
        open_source(text_data(tmp_path / where))


@pytest.mark.parametrize("source", ["text", "tokens"])
def test_files_of_ones_own_need_a_path(source: str) -> None:
    with pytest.raises(DataError, match=f"the source {source} needs a path"):
        open_source(text_data("", source=source, tokenizer="gpt2"))


def test_an_unknown_source_is_told_which_there_are() -> None:
    with pytest.raises(
        DataError, match=r"no source 'books': python-stdlib, text, tokens"
    ) as caught:
        open_source(text_data("", source="books"))
    assert "--data PATH" in caught.value.hint


@pytest.mark.parametrize("source", ["fineweb", "hub:a/b", "hub-shards:a/b"])
def test_a_source_on_the_hub_must_be_at_a_commit(source: str) -> None:
    with pytest.raises(DataError, match=f"{source} is at revision 'main', which may change"):
        open_source(text_data("", source=source, tokenizer="gpt2"))


def test_equal_text_has_an_equal_key_wherever_it_lies(tmp_path: Path) -> None:
    here, there = tmp_path / "here.txt", tmp_path / "there.txt"
    here.write_text("equal")
    there.write_text("equal")
    key = dataset_folder_key(text_data(here))
    assert dataset_folder_key(text_data(there)) == key
    there.write_text(there.read_text() + "!")
    assert dataset_folder_key(text_data(there)) != key


def test_the_same_letters_in_other_documents_are_another_revision(tmp_path: Path) -> None:
    for folder, texts in {"one": ["ab", "c"], "two": ["a", "bc"]}.items():
        (tmp_path / folder).mkdir()
        for index, text in enumerate(texts):
            (tmp_path / folder / str(index)).write_text(text)
    one, two = (open_source(text_data(tmp_path / folder)) for folder in ("one", "two"))
    assert one.revision != two.revision


def test_a_pinned_revision_must_be_the_one_that_is_here(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    revision = open_source(text_data(path)).revision
    assert open_source(text_data(path, revision=revision)).revision == revision
    with pytest.raises(DataError, match=f"at revision {revision} here, not at 0123"):
        open_source(text_data(path, revision="0123"))


@pytest.mark.parametrize(
    ("cut", "before", "after"),
    [
        (0, [], ["aé", "b"]),
        (1, ["a"], ["é", "b"]),
        (2, ["aé"], ["b"]),
        (3, ["aé"], ["b"]),
        (4, ["aé", "b"], []),
    ],
)
def test_a_cut_lies_between_characters(cut: int, before: list[str], after: list[str]) -> None:
    assert list(text_before(["aé", "b"], cut)) == before
    assert list(text_after(["aé", "b"], cut)) == after
