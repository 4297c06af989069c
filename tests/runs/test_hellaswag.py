"""Runs that score HellaSwag, with a Hub on this machine, and `gptctl eval`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hellaswag_questions import make_questions, publish, write_questions
from tests.hub_server import HubServer, running_hub
from tests.runs.user import User, leave_nothing_running
from training.events import parse_lines
from training.hellaswag_published import VALIDATION
from training.hellaswag_source import prepare_hellaswag
from training.tokenizer import ByteTokenizer

pytestmark = pytest.mark.slow

SCORED = ("--set", "eval.hellaswag=true", "--set", "eval.hellaswag_every=4")
LARGE_BATCHES = (
    *("--set", "train.micro_batch_size=512", "--set", "train.batch_tokens=8192"),
    *("--set", "train.steps=6", "--set", "train.dtype=float32"),
)
"""Ten thousand questions in a few passes."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


@pytest.fixture
def user(hub: HubServer, tmp_path: Path) -> Iterator[User]:
    (tmp_path / "user").mkdir()
    somebody = User(tmp_path / "user", HF_ENDPOINT=hub.url)
    yield somebody
    leave_nothing_running(somebody)


def put_questions(user: User, hub: HubServer, folder: Path) -> None:
    """As an earlier run on that machine left them. The published ones are not ours to copy."""
    count = VALIDATION.examples
    file = write_questions(folder / "questions.parquet", make_questions(count))
    published = publish(hub, file, examples=count)
    prepare_hellaswag(user.node / "datasets", ByteTokenizer(), published=published)


def scores(user: User, run_id: str) -> dict[int, Any]:
    lines = parse_lines((user.folder(run_id) / "metrics.jsonl").read_bytes())
    return {line["step"]: line for line in lines if "hellaswag_acc_norm" in line}


def test_a_run_is_scored_and_its_checkpoint_scores_the_same_here(
    user: User, hub: HubServer, tmp_path: Path
) -> None:
    put_questions(user, hub, tmp_path)
    view = user.launch(*SCORED, *LARGE_BATCHES)
    assert view["state"] == "succeeded"
    found = scores(user, view["run_id"])
    assert list(found) == [4, 6]
    assert found[6]["examples"] == VALIDATION.examples
    for name in ("hellaswag_acc", "hellaswag_acc_norm"):
        assert 0.15 < found[6][name] < 0.35
        assert view[name] == found[6][name]
    assert view["hellaswag_missing"] is None
    assert view["phases"]["evaluation"] >= sum(line["seconds"] for line in found.values()) - 0.01
    shown = user.run("status", view["run_id"], *user.to_store).stdout
    assert f"HellaSwag  acc_norm {found[6]['hellaswag_acc_norm']:.4f}" in shown

    here = user.json("eval", "hellaswag", view["run_id"], *user.to_store)
    assert (here["step"], here["count"]) == (6, VALIDATION.examples)
    assert here["acc_norm"] == pytest.approx(found[6]["hellaswag_acc_norm"], abs=3e-4)
    told = user.run("eval", "hellaswag", view["run_id"], "--limit", "50", *user.to_store)
    assert told.stdout.startswith("HellaSwag: acc_norm 0.")
    assert "50 examples, 50 of them cut" in told.stdout
    assert "compares with none" in told.stderr


def test_questions_that_cannot_be_had_cost_the_run_nothing_but_the_score(
    user: User, hub: HubServer
) -> None:
    plan = user.run(*user.launch_arguments, *SCORED, "--dry-run").stderr
    assert "scored every 4 steps and at the end" in plan
    assert "questions cannot be had from here (the Hub has no data set" in " ".join(plan.split())
    view = user.launch(*SCORED)
    assert (view["state"], view["step"], view["hellaswag_acc_norm"]) == ("succeeded", 30, None)
    assert view["hellaswag_missing"].startswith("the Hub has no data set 'Rowan/hellaswag'")
    run_id = view["run_id"]
    assert user.events(run_id, "hellaswag_failed")
    assert user.events(run_id, "hellaswag_skipped")
    assert "no score: the Hub has no data set" in user.run("status", run_id, *user.to_store).stdout

    failed = user.run("eval", "hellaswag", run_id, *user.to_store, exit_code=4)
    assert "error: the Hub has no data set 'Rowan/hellaswag'" in failed.stderr
    unknown = user.run("eval", "hellaswag", run_id, "--step", "7", *user.to_store, exit_code=6)
    assert "no checkpoint at step 7" in unknown.stderr


def test_questions_that_are_not_the_published_ones_are_refused(
    user: User, hub: HubServer, tmp_path: Path
) -> None:
    file = write_questions(tmp_path / "questions.parquet", make_questions(VALIDATION.examples))
    hub.commit(VALIDATION.repo, {VALIDATION.path: file}, revision=VALIDATION.commit)
    view = user.launch(*SCORED)
    assert view["state"] == "succeeded"
    assert "is not HellaSwag as it was published: its sha256" in view["hellaswag_missing"]
    log = (user.folder(view["run_id"]) / "logs" / "prepare.log").read_text()
    assert "there will be no HellaSwag score" in log
    assert json.loads((user.folder(view["run_id"]) / "status.json").read_bytes())["reason"] == (
        "completed"
    )
