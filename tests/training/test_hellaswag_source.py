"""The published questions, brought from a Hub by the real client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from tests.hellaswag_questions import make_questions, publish, write_questions
from tests.hub_server import Fault, HubServer, running_hub
from training.errors import DataError
from training.hellaswag import examples_path, read_examples
from training.hellaswag_published import VALIDATION, Published
from training.hellaswag_source import fetch, prepare_hellaswag, read_questions
from training.hub_asking import Patience
from training.tokenizer import ByteTokenizer, open_tokenizer

QUESTIONS = make_questions(12)
BYTES = ByteTokenizer()
HASTE = Patience(unreachable_s=0.05, refused_s=0.2, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


@pytest.fixture
def published(hub: HubServer, tmp_path: Path) -> Published:
    return publish(hub, write_questions(tmp_path / "questions.parquet", QUESTIONS), examples=12)


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_questions_become_the_ids_of_tiktoken_with_a_space_before_each_ending(
    published: Published, tmp_path: Path
) -> None:
    path = prepare_hellaswag(tmp_path, open_tokenizer("gpt2"), published=published)
    encode = tiktoken.get_encoding("gpt2").encode_ordinary
    for example, question in zip(read_examples(path, vocab_size=50257), QUESTIONS, strict=True):
        assert example.label == question["label"]
        assert example.context.tolist() == encode(question["ctx"])
        assert [ending.tolist() for ending in example.endings] == [
            encode(" " + ending) for ending in question["endings"]
        ]


def test_they_are_fetched_and_rendered_once_and_the_fetched_file_is_removed(
    hub: HubServer, published: Published, tmp_path: Path
) -> None:
    path = prepare_hellaswag(tmp_path, BYTES, published=published)
    asked = len(hub.requests)
    assert prepare_hellaswag(tmp_path, BYTES, published=published) == path
    assert path == examples_path(tmp_path, "bytes")
    assert len(hub.requests) == asked
    assert sorted(file.name for file in path.parent.iterdir()) == [".lock", path.name]


@pytest.mark.parametrize("damage", ["cut", "of another version"])
def test_a_file_that_is_not_whole_is_made_anew(
    published: Published, tmp_path: Path, damage: str
) -> None:
    path = prepare_hellaswag(tmp_path, BYTES, published=published)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] if damage == "cut" else whole[:4] + b"\7" + whole[5:])
    prepare_hellaswag(tmp_path, BYTES, published=published)
    assert path.read_bytes() == whole


def test_a_busy_hub_and_a_connection_cut_half_way_are_tried_again(
    hub: HubServer, published: Published, tmp_path: Path
) -> None:
    hub.inject(Fault(path="*/resolve/*", status=503), Fault(path="/lfs/*", cut_after_bytes=500))
    questions = fetch(published, tmp_path, patience=HASTE)
    assert [question.ctx for question in questions] == [q["ctx"] for q in QUESTIONS]


def test_a_hub_that_is_out_of_reach_leaves_no_file_and_says_what_to_do(
    hub: HubServer, published: Published, tmp_path: Path
) -> None:
    hub.inject(Fault(status=503, times=1000))
    with pytest.raises(DataError, match="owner/questions could not be had") as caught:
        prepare_hellaswag(tmp_path, BYTES, published=published, patience=HASTE)
    assert "again later" in caught.value.hint
    assert not examples_path(tmp_path, "bytes").exists()


def test_what_is_not_the_published_file_is_refused_by_its_hash_before_it_is_fetched(
    hub: HubServer, published: Published, tmp_path: Path
) -> None:
    other = write_questions(tmp_path / "other.parquet", make_questions(13)[1:])
    changed = publish(hub, other, examples=12)
    mirrored = Published(
        repo=published.repo,
        commit=changed.commit,
        path=published.path,
        sha256=published.sha256,
        examples=12,
    )
    with pytest.raises(DataError, match="not HellaSwag as it was published: its sha256"):
        prepare_hellaswag(tmp_path, BYTES, published=mirrored)
    assert not hub.requests_for("/lfs/*")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "4"}, "row 3: .*label"),
        ({"label": None}, "row 3: .*label"),
        ({"endings": ["one", "two", "three"]}, "row 3: .*endings"),
        ({"ctx": ""}, "row 3: .*ctx"),
    ],
)
def test_a_question_that_is_not_whole_is_named(
    published: Published, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    questions = [dict(question) for question in QUESTIONS]
    questions[2] |= change
    path = write_questions(tmp_path / "changed.parquet", questions)
    with pytest.raises(DataError, match=says):
        read_questions(path, published)


def test_a_file_that_is_no_parquet_is_refused(published: Published, tmp_path: Path) -> None:
    path = tmp_path / "page.parquet"
    path.write_bytes(b"<html>Please sign in</html>")
    with pytest.raises(DataError, match="it cannot be read"):
        read_questions(path, published)


def test_fewer_questions_than_were_published_are_refused(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "few.parquet", QUESTIONS)
    with pytest.raises(DataError, match="it has 12 examples, not 10,042"):
        read_questions(path, VALIDATION)
