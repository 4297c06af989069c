"""Launch, watch, end, and everything that one does with a finished run."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from tests.checkpoints import read_tensors
from tests.runs.user import ENDLESS, User
from tests.s3_server import S3Server
from training.checkpoint import load_model, read_state
from training.layout import sha256_file
from training.model import GPT

pytestmark = pytest.mark.slow

VIEW_KEYS = {
    "run_id", "recipe", "cloud", "state", "reason", "step", "steps", "tokens", "val_loss",
    "best_val_loss", "tokens_per_sec", "spent_usd", "budget_usd", "store", "created_at",
    "updated_at", "phases",
}  # fmt: skip


def test_a_launch_on_two_ranks_ends_with_a_model_a_bill_and_a_sample(user: User) -> None:
    view = user.launch("--set", "node.cpu_ranks=2", "--price-per-hour", "3.60")
    run_id = view["run_id"]
    assert view.keys() >= VIEW_KEYS
    assert (view["state"], view["reason"]) == ("succeeded", "completed")
    assert (view["step"], view["steps"], view["tokens"]) == (30, 30, 30 * 128)
    assert view["val_loss"] < 4.5
    assert view["cloud"] == "local"
    assert {"preparing", "training", "finishing"} <= view["phases"].keys()
    assert user.status(run_id) | {"read_at": 0} == view | {"read_at": 0}

    # The bill is the time, at the price, to the cent's hundredth.
    cost = user.json("cost", "show", run_id, *user.to_store)
    assert cost.keys() >= {
        "run_id", "price_per_hour", "price_source", "price_as_of", "spent_usd", "by_phase"
    }  # fmt: skip
    by_phase = cost["by_phase"]
    assert {name: part["seconds"] for name, part in by_phase.items()} == view["phases"]
    total = sum(Decimal(part["usd"]) for part in by_phase.values())
    assert total == Decimal(cost["spent_usd"]) == Decimal(view["spent_usd"])
    seconds = sum(view["phases"].values())
    assert float(total) == pytest.approx(seconds * 3.6 / 3600, abs=0.0001 * len(by_phase))

    # Everything the run is lies in the store, and nothing runs any more.
    files = {p.relative_to(user.folder(run_id)).as_posix() for p in user.folder(run_id).rglob("*")}
    assert files >= {
        "run.json", "status.json", "events.jsonl", "metrics.jsonl", "logs/train.log",
        "logs/prepare.log", "logs/supervise.log", "samples/step-00000030.txt",
        "checkpoints/step-00000030/manifest.json",
    }  # fmt: skip
    assert user.processes() == []

    listed = user.json("status", *user.to_store)
    assert [entry["run_id"] for entry in listed] == [run_id]
    sample = user.run("sample", run_id, "--prompt", "the ", *user.to_store).stdout
    assert sample.startswith("the ")
    assert "step 30/30" in user.run("logs", run_id, *user.to_store).stdout
    told = user.run("logs", run_id, "--stage", "supervise", *user.to_store).stdout
    assert f"{run_id}: succeeded" in told


def test_pulled_checkpoints_are_what_the_manifest_says_and_what_transformers_computes(
    user: User, tmp_path: Path
) -> None:
    run_id = user.launch()["run_id"]
    pulled = user.json("pull-checkpoint", run_id, "--to", str(tmp_path / "native"), *user.to_store)
    assert (pulled["run_id"], pulled["step"]) == (run_id, 30)
    for entry in pulled["files"]:
        path = Path(pulled["path"]) / entry["name"]
        assert path.stat().st_size == entry["size_bytes"]
        assert sha256_file(path) == entry["sha256"]

    folder = tmp_path / "hf"
    user.run("pull-checkpoint", run_id, "--format", "hf", "--to", str(folder), *user.to_store)
    reference = GPT2LMHeadModel.from_pretrained(folder).eval()
    model = GPT(read_state(Path(pulled["path"])).recipe.model)
    load_model(Path(pulled["path"]), model)
    tokens = torch.arange(32).view(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            reference(tokens).logits, model.logits(tokens), rtol=1e-5, atol=1e-5
        )
    best = user.json(
        "pull-checkpoint", run_id, "--step", "best", "--to", str(tmp_path / "b"), *user.to_store
    )
    metrics = (user.folder(run_id) / "metrics.jsonl").read_text().splitlines()
    losses = {
        line["step"]: line["val_loss"] for line in map(json.loads, metrics) if "val_loss" in line
    }
    assert best["step"] == min(user.steps(run_id), key=losses.__getitem__)


def test_a_checkpoint_of_a_run_that_still_trains_can_be_pulled(user: User, tmp_path: Path) -> None:
    run_id = user.launch_detached(*ENDLESS)
    user.wait_for_step(run_id, 25)
    pulled = user.json("pull-checkpoint", run_id, "--to", str(tmp_path / "now"), *user.to_store)
    assert pulled["step"] >= 10
    assert read_state(Path(pulled["path"])).step == pulled["step"]
    assert user.status(run_id)["state"] == "training"


def test_stopping_saves_and_resuming_goes_on_to_the_same_end(user: User, tmp_path: Path) -> None:
    # So large that `stop` comes before their end, however busy the machine is.
    steps = ("--set", "train.steps=400", "--set", "train.batch_tokens=1024")
    undisturbed = user.launch(*steps)
    run_id = user.launch_detached(*steps)
    user.wait_for_step(run_id, 20)
    user.run("stop", run_id, *user.to_store)
    user.run("stop", run_id, *user.to_store)  # what is stopped can be stopped again
    stopped = user.wait_for_end(run_id)
    assert (stopped["state"], stopped["reason"]) == ("stopped", "user")
    assert user.steps(run_id)[-1] == stopped["step"] < 400

    resumed = user.json("launch", "--resume", run_id, "--yes", *user.to_store)
    assert (resumed["state"], resumed["run_id"]) == ("succeeded", run_id)
    assert resumed["best_val_loss"] == undisturbed["best_val_loss"]
    end, expected = (
        read_tensors(user.folder(r) / "checkpoints" / "step-00000400")
        for r in (run_id, undisturbed["run_id"])
    )
    assert end.keys() == expected.keys()
    assert [name for name in end if not torch.equal(end[name], expected[name])] == []
    assert sum(resumed["phases"].values()) > sum(stopped["phases"].values())
    assert user.run("launch", "--resume", run_id, "--yes", *user.to_store, exit_code=3)


def test_retention_keeps_the_newest_and_the_best_in_the_store(user: User) -> None:
    view = user.launch("--set", "train.steps=60", "--set", "checkpoint.keep=1")
    assert user.steps(view["run_id"])[-1] == 60
    assert len(user.steps(view["run_id"])) <= 2


def test_a_run_is_done_when_its_target_loss_is_reached(user: User) -> None:
    view = user.launch("--until-val-loss", "5.4")
    assert (view["state"], view["reason"]) == ("succeeded", "target")
    assert 0 < view["step"] < view["steps"]
    assert view["val_loss"] <= 5.4
    told = user.run("launch", "--resume", view["run_id"], "--yes", *user.to_store, exit_code=3)
    assert "has reached its loss" in told.stderr


def test_two_launches_at_once_are_two_runs(user: User) -> None:
    processes = [user.start(*user.launch_arguments, "--json") for _ in range(2)]
    views = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [view["state"] for view in views] == ["succeeded", "succeeded"]
    assert views[0]["run_id"] != views[1]["run_id"]
    assert views[0]["val_loss"] == views[1]["val_loss"]


def test_the_demo_recipe_runs_on_two_ranks_without_being_told_anything(user: User) -> None:
    short = ("--set", "train.steps=12", "--set", "train.warmup_steps=0")
    view = user.json(
        "launch", "demo", "--yes", *user.to_store, *short,
        "--set", "train.cooldown_steps=6", "--set", "eval.tokens=4096",
    )  # fmt: skip
    assert (view["state"], view["step"], view["shards"]) == ("succeeded", 12, 2)


def test_a_gpt2_recipe_made_small_trains_on_gpt2s_own_tokens(
    user: User, gpt2_vocabulary: Path
) -> None:
    small = {
        "node.gpus": "[]", "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 8,
        "model.block_size": 32, "data.shard_tokens": 4000, "train.steps": 8,
        "train.warmup_steps": 2, "train.batch_tokens": 256, "eval.tokens": 256,
    }  # fmt: skip
    options = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    user.env["TIKTOKEN_CACHE_DIR"] = str(gpt2_vocabulary)
    view = user.json(
        *("launch", "gpt2-124m", "--cloud", "local", "--data", str(user.text), "--yes"),
        *user.to_store,
        *options,
    )
    assert (view["state"], view["step"]) == ("succeeded", 8)
    assert view["val_loss"] < 11  # ln 50257 = 10.82 at first
    told = user.run("sample", view["run_id"], "--prompt", "the cat", *user.to_store).stdout
    assert told.startswith("the cat")


def test_a_run_in_a_bucket_is_a_run_in_a_folder(user: User, s3_server: S3Server) -> None:
    user.env.update(s3_server.env)
    user.store = s3_server.url("runs-main", "team")
    view = user.launch()
    assert view["state"] == "succeeded"
    assert view["store"] == user.store
    assert user.run("sample", view["run_id"], *user.to_store).stdout.startswith("the")
    assert "AWS" not in json.dumps(view)
