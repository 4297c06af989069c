"""The published questions over a real connection, which may fail."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken

from tests.hellaswag_questions import Server, as_jsonl, make_questions, serve
from training import hellaswag_source
from training.errors import DataError
from training.hellaswag import read_examples
from training.hellaswag_source import VALIDATION, fetch, parse_questions, prepare_hellaswag
from training.tokenizer import ByteTokenizer, open_tokenizer

QUESTIONS = make_questions(12)
BYTES = ByteTokenizer()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(hellaswag_source, "RETRIES_AFTER_S", (0.01, 0.01))
    with serve(as_jsonl(QUESTIONS)) as running:
        yield running


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_questions_become_the_ids_of_tiktoken_with_a_space_before_each_ending(
    server: Server, tmp_path: Path
) -> None:
    path = prepare_hellaswag(
        tmp_path, open_tokenizer("gpt2"), published=server.published(examples=12)
    )
    encode = tiktoken.get_encoding("gpt2").encode_ordinary
    for example, question in zip(read_examples(path, vocab_size=50257), QUESTIONS, strict=True):
        assert example.label == question["label"]
        assert example.context.tolist() == encode(question["ctx"])
        assert [ending.tolist() for ending in example.endings] == [
            encode(" " + ending) for ending in question["endings"]
        ]


def test_they_are_fetched_and_rendered_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        prepare_hellaswag(tmp_path, BYTES, published=server.published(examples=12))
    assert server.requests == 1


@pytest.mark.parametrize("damage", ["cut", "of another version"])
def test_a_file_that_is_not_whole_is_made_anew(server: Server, tmp_path: Path, damage: str) -> None:
    published = server.published(examples=12)
    path = prepare_hellaswag(tmp_path, BYTES, published=published)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] if damage == "cut" else whole[:4] + b"\7" + whole[5:])
    prepare_hellaswag(tmp_path, BYTES, published=published)
    assert path.read_bytes() == whole


def test_a_busy_server_and_a_connection_cut_half_way_are_tried_again(server: Server) -> None:
    server.faults = ["503", "cut"]
    assert fetch(server.published(examples=12)) == server.body
    assert server.requests == 3


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_server_that_keeps_failing_ends_with_what_to_do(server: Server, fault: str) -> None:
    server.faults = [fault] * 3
    with pytest.raises(DataError, match="cannot be fetched from http://127") as caught:
        fetch(server.published(examples=12))
    assert "without a HellaSwag score" in caught.value.hint


def test_no_network_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with serve(b"") as gone:
        published = gone.published(examples=12)
    with pytest.raises(DataError, match="refused"):
        prepare_hellaswag(tmp_path, BYTES, published=published)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_the_published_file_is_refused_by_its_hash(
    server: Server, tmp_path: Path
) -> None:
    published = server.published(examples=12)
    server.body = b"<html>Please sign in</html>"
    with pytest.raises(DataError, match="not HellaSwag as it was published: its sha256"):
        prepare_hellaswag(tmp_path, BYTES, published=published)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": 4}, "line 3: .*label"),
        ({"label": None}, "line 3: .*label"),
        ({"endings": ["one", "two", "three"]}, "line 3: .*endings"),
        ({"ctx": ""}, "line 3: .*ctx"),
    ],
)
def test_a_question_that_is_not_whole_is_named(change: dict[str, object], says: str) -> None:
    lines = [json.dumps(question).encode() for question in QUESTIONS]
    lines[2] = json.dumps(QUESTIONS[2] | change).encode()
    with pytest.raises(DataError, match=says):
        parse_questions(b"\n".join(lines), VALIDATION)


def test_bytes_that_are_no_json_are_named_by_their_line() -> None:
    with pytest.raises(DataError, match="line 2"):
        parse_questions(as_jsonl(QUESTIONS[:1]) + b'{"ctx": "\xff"}\n', VALIDATION)


def test_fewer_questions_than_were_published_are_refused() -> None:
    with pytest.raises(DataError, match="it has 12 examples, not 10,042"):
        parse_questions(as_jsonl(QUESTIONS), VALIDATION)
