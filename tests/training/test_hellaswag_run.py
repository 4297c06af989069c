"""Scores of a model that is being trained: the training program as the supervisor starts it."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.hellaswag_questions import make_questions
from tests.tiny import make_recipe
from tests.training.test_train import events, metrics, start, train, wait_for_step
from training.config import Recipe
from training.events import append_event
from training.hellaswag import examples_path, write_examples
from training.hellaswag_source import Question, render
from training.layout import RunPaths, committed_checkpoints
from training.tokenizer import ByteTokenizer

pytestmark = pytest.mark.slow


def recipe_with(**training: Any) -> Recipe:
    return make_recipe(train=training, eval={"hellaswag": True, "hellaswag_every": 2})


def make_examples(root: Path, count: int = 11) -> None:
    questions = [
        Question(ctx=q["ctx"], endings=tuple(q["endings"]), label=q["label"])
        for q in make_questions(count)
    ]
    path = examples_path(root, "bytes")
    path.parent.mkdir(parents=True)
    write_examples(path, [render(question, ByteTokenizer()) for question in questions])


def scores(paths: RunPaths) -> dict[int, Any]:
    return {line["step"]: line for line in metrics(paths) if "hellaswag_acc_norm" in line}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_score_is_measured_every_so_many_steps_and_at_the_end_and_once(
    tmp_path: Path, ranks: int
) -> None:
    make_examples(tmp_path)
    recipe = recipe_with(steps=5)
    paths = train(tmp_path, recipe, ranks=ranks)
    found = scores(paths)
    assert list(found) == [2, 4, 5]
    assert all((line["examples"], line["cut"]) == (11, 11) for line in found.values())
    assert all(0 <= 11 * line["hellaswag_acc"] <= 11 for line in found.values())
    assert [e["step"] for e in events(paths, "hellaswag_scored")] == [2, 4, 5]
    train(tmp_path, recipe, ranks=ranks)  # goes on where it is over
    assert [e["step"] for e in events(paths, "hellaswag_scored")] == [2, 4, 5]


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_examples_it_trains_to_the_end_and_says_why_there_is_no_score(
    tmp_path: Path, ranks: int
) -> None:
    recipe = recipe_with(steps=3)
    events_file = tmp_path / "runs" / "tiny-0001" / "events.jsonl"
    events_file.parent.mkdir(parents=True)
    append_event(events_file, "hellaswag_failed", why="an earlier life had no network")
    append_event(events_file, "life_started")
    append_event(events_file, "hellaswag_failed", why="the Hub is away")
    paths = train(tmp_path, recipe, ranks=ranks)
    assert scores(paths) == {}
    skipped = [(e["step"], e["why"]) for e in events(paths, "hellaswag_skipped")]
    assert skipped == [(2, "the Hub is away"), (3, "the Hub is away")]
    assert committed_checkpoints(paths.checkpoints)[-1] == 3


def test_the_finished_model_waits_for_examples_that_are_on_their_way(tmp_path: Path) -> None:
    process, paths = start(tmp_path, recipe_with(steps=3))
    wait_for_step(paths, 3, process)
    assert process.poll() is None
    make_examples(tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    (skipped,) = events(paths, "hellaswag_skipped")
    assert (skipped["step"], skipped["why"]) == (2, "its examples are not there yet")
    assert list(scores(paths)) == [3]


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Those that torchrun started."""
    return psutil.Process(process.pid).children()


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_in_the_middle_of_scoring_ends_it_at_once_and_saves(
    tmp_path: Path, ranks: int
) -> None:
    make_examples(tmp_path, 20_000)
    process, paths = start(tmp_path, recipe_with(steps=1000), ranks=ranks)
    wait_for_step(paths, 2, process)
    time.sleep(2)
    told_at = time.monotonic()
    for rank in [process] if ranks == 1 else ranks_of(process):
        rank.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert time.monotonic() - told_at < 10
    (skipped,) = events(paths, "hellaswag_skipped")
    assert skipped["why"] == "the run was told to end"
    assert committed_checkpoints(paths.checkpoints)[-1] == 2
