from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.parquet_files import write_parquet
from training.errors import DataError
from training.rows import BATCH_BYTES, read_rows

TEXTS = [f"Text number {i}, ähnlich." for i in range(250)]


def read(path: Path, **options: Any) -> list[str]:
    return [text for rows in read_rows(path, "text", **options) for text in rows.texts.to_pylist()]


@pytest.mark.parametrize("first", [0, 1, 99, 100, 101, 249, 250])
def test_reading_begins_at_any_row(tmp_path: Path, first: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    assert read(path, first=first) == TEXTS[first:]


def test_each_batch_knows_its_file_and_its_first_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS * 2000, group=40_000)
    row = 123_456
    for rows in read_rows(path, "text", file=7, first=row):
        assert (rows.file, rows.first) == (7, row)
        assert rows.texts[0].as_py() == TEXTS[row % 250]
        row += len(rows.texts)
    assert row == 500_000


def test_a_batch_holds_about_a_mebibyte_of_long_texts(tmp_path: Path) -> None:
    texts = [f"{i:08d}" * 25_000 for i in range(30)]  # 200,000 bytes each
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=30, use_dictionary=False)
    batches = list(read_rows(path, "text"))
    assert len(batches) == 6
    assert max(len("".join(rows.texts.to_pylist())) for rows in batches) <= BATCH_BYTES


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_nulls_are_empty_texts_in_every_kind_of_text(tmp_path: Path, kind: Any) -> None:
    texts = ["a", None, "", "ß", None]
    path = write_parquet(tmp_path / "a.parquet", texts, group=2, kind=kind)
    assert read(path) == ["a", "", "", "ß", ""]


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    assert read(write_parquet(tmp_path / "a.parquet", [])) == []


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    with pytest.raises(DataError, match=r"a\.parquet has no column 'content'") as caught:
        list(read_rows(path, "content"))
    assert "it has id, text" in caught.value.hint


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    with pytest.raises(DataError, match=r"'id' of a\.parquet holds int64, not text"):
        list(read_rows(path, "id"))


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99])
def test_a_cut_file_is_refused_by_name(tmp_path: Path, kept: float) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        read(path)


def test_a_file_damaged_in_its_middle_is_refused_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TEXTS)
    data = bytearray(path.read_bytes())
    data[200 : len(data) // 2] = bytes(len(data) // 2 - 200)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        read(path)


def test_text_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    texts = pa.array([b"a"] * 5 + [b"b\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet.* not UTF-8 \(index 0 is row 2\).*index 3"):
        read(tmp_path / "a.parquet", first=2)
