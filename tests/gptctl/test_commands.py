"""The commands on runs made by hand, as a script would call them: streams and exit codes."""

import json
from pathlib import Path

import pytest

from gptctl.cli import main
from gptctl.runs import create_run
from tests.gptctl.run_folder import NOW, RunFolder, make_record

VIEW_KEYS = {
    "run_id", "recipe", "cloud", "state", "reason", "step", "steps", "tokens", "val_loss",
    "best_val_loss", "tokens_per_sec", "spent_usd", "budget_usd", "store", "created_at",
    "updated_at", "phases",
}  # fmt: skip
COST_KEYS = {"run_id", "price_per_hour", "price_source", "price_as_of", "spent_usd", "by_phase"}
RUN = "small-3f9a"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A person with an empty home, no settings, and a folder to be in."""
    for name in ("GPTCTL_STORE", "GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "GPTCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(home):
    return home / "data" / "gptctl" / "store"


@pytest.fixture
def ended(store):
    run = RunFolder(store, state="succeeded", reason="completed", step=100)
    run.write_log("train", "step 1\nstep 2\n")
    run.write_checkpoint(80)
    run.write_checkpoint(100)
    return run


@pytest.fixture
def call(capsys):
    """Runs one command line: (exit code, stdout, stderr)."""

    def run(*argv):
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        return code, out, err

    return run


@pytest.fixture
def call_json(call):
    def run(*argv):
        code, out, _ = call(*argv, "--json")
        assert code == 0
        return json.loads(out)

    return run


def test_status_of_a_run_has_what_the_contract_names(ended, call_json):
    view = call_json("status", RUN)

    assert view.keys() >= VIEW_KEYS
    assert (view["run_id"], view["state"], view["reason"]) == (RUN, "succeeded", "completed")
    assert (view["spent_usd"], view["budget_usd"]) == ("0.0635", "1.00")
    assert view["phases"] == {"preparing": 3.5, "training": 60.0}
    assert view["store"] == str(ended.folder)


def test_status_of_all_is_a_list_newest_first(ended, call_json):
    later = make_record("later-0001", created_at=NOW.replace(hour=13))
    create_run(ended.store, later)

    assert [view["run_id"] for view in call_json("status")] == ["later-0001", RUN]


def test_no_runs_are_an_empty_list_and_no_error(call_json, call):
    assert call_json("status") == []
    assert "gptctl launch demo" in call("status")[2]


def test_cost_has_what_the_contract_names_and_adds_up(ended, call_json):
    cost = call_json("cost", "show", RUN)

    assert cost.keys() >= COST_KEYS
    assert cost["by_phase"]["training"] == {"seconds": 60.0, "usd": "0.0600"}
    assert cost["spent_usd"] == "0.0635"


def test_pulled_checkpoint_has_what_the_contract_names(ended, call_json, home):
    pulled = call_json("pull-checkpoint", RUN, "--to", "model")

    assert {key: pulled[key] for key in ("run_id", "step", "path")} == {
        "run_id": RUN,
        "step": 100,
        "path": str(home / "model"),
    }
    assert all(entry.keys() == {"name", "size_bytes", "sha256"} for entry in pulled["files"])


@pytest.mark.parametrize(
    "command",
    [
        ["status", "smal-3f9a"],
        ["status", "smal-3f9a", "--json"],
        ["logs", "smal-3f9a"],
        ["stop", "smal-3f9a"],
        ["cost", "show", "smal-3f9a", "--json"],
        ["sample", "smal-3f9a"],
        ["pull-checkpoint", "smal-3f9a", "--to", "x", "--json"],
        ["launch", "--resume", "smal-3f9a", "--yes", "--json"],
    ],
)
def test_unknown_run_is_not_found_and_the_nearest_is_named(ended, call, command):
    code, out, err = call(*command)

    assert (code, out) == (6, "")
    assert "no run 'smal-3f9a'" in err
    assert f"did you mean {RUN}?" in err


def test_run_may_be_named_by_its_beginning_if_no_other_begins_so(ended, call_json, call):
    assert call_json("status", "sm")["run_id"] == RUN

    RunFolder(ended.folder, "small-3fff")
    code, _, err = call("status", "small-3f")
    assert code == 2
    assert "small-3f9a, small-3fff" in err


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["logs", RUN, "--stage", "sample"], 6, "it has: train"),
        (
            ["logs", RUN, "--stage", "trian", "--follow"],
            2,
            "check, prepare, train, stacks, sample",
        ),
        (["pull-checkpoint", RUN, "--to", "x", "--step", "17"], 6, "it has step 80, 100"),
        (["pull-checkpoint", RUN, "--to", "x", "--step", "banana"], 2, "`latest` or `best`"),
        (["pull-checkpoint", RUN, "--to", "data"], 2, "not an empty folder"),
        (["pull-checkpoint", RUN, "--to", "link"], 2, "not an empty folder"),
        (["pull-checkpoint", RUN, "--to", "file/x"], 8, "cannot be used"),
        (["pull-checkpoint", RUN, "--to", "file/x", "--format", "hf"], 8, "cannot be used"),
        (["pull-checkpoint", RUN, "--to", "x" * 300], 8, "File name too long"),
        (["sample", RUN, "--step", "17"], 6, "it has step 80, 100"),
        (["sample", RUN, "--temperature", "nan"], 2, "--temperature"),
        (["sample", RUN, "--seed", "9" * 30], 2, "--seed"),
        (["launch", "--resume", RUN], 3, "has finished all its steps, at step 100"),
        (["launch", "--resume", RUN, "--set", "train.steps=9"], 2, "as it was recorded"),
        (["status", "--store", "s3:bucket/runs"], 7, "s3://bucket/prefix"),
        (["status", "--store", "s3:/bucket/runs"], 7, "s3://bucket/prefix"),
        (["status", "--store", "file/x"], 7, "a file is where a folder should be"),
        (["launch"], 2, "launch what?"),
        (["launch", "x" * 300 + ".toml"], 2, "File name too long"),
        (["launch", "shakespeare", "--data", "", "--dry-run"], 3, "--data PATH"),
        (["launch", "shakespeare", "--data", "~nobody/x", "--dry-run"], 3, "no text at"),
        (["launch", "shakespeare", "--data", "file/**x", "--dry-run"], 3, "no text at"),
        (["launch", "shakespeare", "--data", "x" * 300, "--dry-run"], 3, "File name too long"),
        (["launch", "shakespeare", "--data", "file"], 2, "--yes"),
        (["launch", "demo", "--budget", "0"], 2, "--budget"),
        (["launch", "demo", "--cloud", "mars", "--yes"], 2, "several of: aws"),
    ],
)
def test_mistake_is_one_clear_error_with_its_exit_code(ended, call, home, command, code, said):
    (home / "file").write_text("text")
    (home / "link").symlink_to("nowhere")

    found, out, err = call(*command)

    assert (found, out) == (code, "")
    assert said in err
    assert "\n  hint: " in err
    assert {path.name for path in home.iterdir()} == {"data", "file", "link"}


def test_log_is_printed_as_it_is_and_following_an_ended_run_ends(ended, call):
    assert call("logs", RUN) == (0, "step 1\nstep 2\n", "")
    assert call("logs", RUN, "--follow") == (0, "step 1\nstep 2\n", "")


@pytest.mark.parametrize("state", ["succeeded", "stopped", "failed"])
def test_stopping_what_has_ended_is_no_error(ended, call, state):
    ended.write_status(state=state, reason="user")

    code, out, err = call("stop", RUN)

    assert (code, out) == (0, "")
    assert f"{RUN} is {state}" in err
    assert (f"gptctl launch --resume {RUN}" in err) == (state != "succeeded")


def test_run_of_another_machine_is_not_said_to_have_been_told_to_stop(store, call):
    RunFolder(store, state="training")  # this machine never had anything of it

    code, _, err = call("stop", RUN)

    assert code == 8
    assert "nothing of it runs on this machine" in err
    assert "told to stop" not in err


def test_suggested_commands_look_in_the_store_that_was_named(home, call):
    RunFolder(home / "my runs", state="stopped", reason="user")

    for command in (["status"], ["stop", RUN]):
        assert "--store 'my runs'`" in call(*command, "--store", "my runs")[2]


def test_one_damaged_run_hides_no_other(ended, call):
    (ended.folder / "runs" / "torn").mkdir()
    (ended.folder / "runs" / "torn" / "run.json").write_text("{")

    code, out, err = call("status", "--json")

    assert code == 0
    assert [view["run_id"] for view in json.loads(out)] == [RUN]
    assert "warning: torn is left out" in err


@pytest.mark.parametrize("words", [["--data", "book.txt"], ["--set", "data.path=book.txt"]])
def test_text_is_recorded_as_the_node_will_find_it(home, call_json, words):
    (home / "book.txt").write_text("text")

    plan = call_json("launch", "shakespeare", *words, "--dry-run")

    assert plan["recipe"]["data"]["path"] == str(home / "book.txt")


@pytest.mark.parametrize(
    ("words", "size", "kept"),
    [
        ([], 3_999, 0.1),
        ([], 4_000, 0.0),  # the first shard is half of it
        (["--set", "data.val_fraction=0.3"], 3_999, 0.3),
        (["--set", "data.tokenizer=gpt2", "--set", "model.vocab_size=50257"], 17_990, 0.1),
        (["--set", "data.tokenizer=gpt2", "--set", "model.vocab_size=50257"], 18_000, 0.0),
    ],
)
def test_a_tenth_of_a_short_text_is_for_validation(home, call_json, words, size, kept):
    (home / "book.txt").write_text("x" * size)
    words = [*words, "--set", "data.shard_tokens=2000"]

    plan = call_json("launch", "demo", "--data", "book.txt", *words, "--dry-run")

    assert plan["recipe"]["data"]["val_fraction"] == kept


def test_the_plan_says_what_of_a_text_is_for_validation(home, call):
    (home / "book.txt").write_text("x" * 10_000)

    code, _, err = call("launch", "demo", "--data", "book.txt", "--dry-run")

    assert code == 0
    assert "its last 10% for validation" in " ".join(err.split())


def test_home_is_filled_in_where_the_shell_did_not(ended, call_json, home):
    (home / "book.txt").write_text("text")

    plan = call_json("launch", "shakespeare", "--data", "~/book.txt", "--dry-run")

    assert plan["recipe"]["data"]["path"] == str(home / "book.txt")
    assert call_json("pull-checkpoint", RUN, "--to", "~/model")["path"] == str(home / "model")


def test_user_without_a_home_is_told_to_name_one(call, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)

    code, _, err = call("status")

    assert code == 2
    assert "HOME=" in err


def test_dry_run_is_one_document_and_leaves_nothing(call_json, home):
    plan = call_json("launch", "demo", "--price-per-hour", "1.10", "--budget", "5", "--dry-run")

    assert (plan["recipe_name"], plan["budget_usd"]) == ("demo", "5")
    assert [offer["price_per_hour"] for offer in plan["offers"]] == ["1.10"]
    assert list(home.iterdir()) == []
