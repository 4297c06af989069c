"""The commands about money, as a script would call them."""

import json
import os
import subprocess
import sys
from decimal import Decimal

import pytest

from gptctl.cli import main
from tests.gptctl.run_folder import RunFolder

OFFER_KEYS = {
    "cloud", "instance_type", "region", "gpu", "gpu_count", "nodes", "spot", "price_per_hour",
    "price_source", "price_as_of", "mfu", "mfu_source", "tokens_per_sec", "hours", "usd",
    "usd_low", "usd_high", "phases", "fits_budget", "preparation",
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("GPTCTL_STORE", "GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "GPTCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATA", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    def run(*argv, exit_code=0):
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        assert code == exit_code, err
        return out, err

    return run


def test_an_estimate_has_what_the_contract_names(call):
    out, _ = call("cost", "estimate", "gpt2-124m", "--budget", "25", "--json")
    answer = json.loads(out)
    assert answer.keys() == {"recipe", "tokens", "steps", "flops_per_token", "offers"}
    for offer in answer["offers"]:
        assert offer.keys() == OFFER_KEYS
        assert "training" in offer["phases"]
        phases = sum(Decimal(phase["usd"]) for phase in offer["phases"].values())
        assert phases == Decimal(offer["usd"])
        assert offer["fits_budget"] == (Decimal(offer["usd"]) <= 25)


def test_an_estimate_needs_no_network_no_torch_and_no_skypilot():
    code = (
        "import sys; from gptctl.cli import main; "
        "assert main(['cost', 'estimate', 'gpt2-350m', '--json']) == 0; "
        "heavy = {'torch', 'sky', 'boto3', 'numpy', 'yaml'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_all_recipes_are_estimated_at_their_default_hardware(call):
    answers = json.loads(call("cost", "estimate", "--json")[0])
    assert {answer["recipe"] for answer in answers} >= {"gpt2-124m", "gpt2-1558m", "demo"}
    assert all(len(answer["offers"]) == 1 for answer in answers)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("gpt2-124m", "--cloud", "lamda"), "lambda"),
        (("gpt2-124m", "--gpus", "A100-80:8"), "A100-80GB"),
        (("gpt2-124m", "--price-per-hour", "-3"), "--price-per-hour"),
        (("gpt2-124m", "--budget", "0"), "--budget"),
        (("gpt2-124m", "--budget", "much"), "--budget"),
        (("gpt2-124m", "--budget", "1e30"), "--budget"),
        (("gpt2-124m", "--sort", "beauty"), "--sort"),
        (("gpt2-124m", "--until-val-loss", "-1"), "--until-val-loss"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(call, words, told):
    _, err = call("cost", "estimate", *words, exit_code=2)
    assert told in err


def test_an_unknown_recipe_is_answered_with_the_nearest_name(call):
    _, err = call("cost", "estimate", "gpt2-124n", exit_code=6)
    assert "gpt2-124m" in err


def test_a_table_says_where_the_money_goes_and_how_old_the_prices_are(call):
    out, err = call("cost", "estimate", "gpt2-124m", "--cloud", "lambda")
    for word in ("A100-80GB", "training", "teardown", "fitted to"):
        assert word in out
    assert "gptctl cost refresh" in err


def test_a_damaged_cache_of_prices_says_what_mends_it(call, home):
    cache = home / "cache" / "gptctl" / "prices.csv"
    cache.parent.mkdir(parents=True)
    cache.write_text("# gptctl prices, format 1, 40 rows, read at 2026-11-21\ncut")
    _, err = call("cost", "estimate", "gpt2-124m", exit_code=2)
    assert "gptctl cost refresh" in err


def test_history_lists_runs_and_adds_them_up(call, home):
    RunFolder(home / "data" / "gptctl" / "store", state="succeeded", reason="completed", step=100)
    answer = json.loads(call("cost", "history", "--json")[0])
    assert [run["usd"] for run in answer["runs"]] == ["0.0635"]
    assert answer["totals"]["usd"] == "0.0635"
    table, _ = call("cost", "history", "--since", "2020-01-01")
    assert "small-3f9a" in table
    assert "by month" in table
    csv, _ = call("cost", "history", "--csv")
    assert csv.splitlines()[1].startswith("small-3f9a,")
    _, err = call("cost", "history", "--since", "yesterday", exit_code=2)
    assert "--since" in err


def test_what_a_run_cost_is_told_by_what_it_was_good_for(call, home):
    RunFolder(home / "data" / "gptctl" / "store", state="succeeded", reason="completed", step=100)
    out, _ = call("cost", "show", "small-3f9a")
    assert "training 94 %, data 6 %" in out


def test_the_months_budget_is_kept_in_the_settings_and_binds_a_launch(call, home):
    config = home / "config" / "gptctl" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# mine\n")
    call("cost", "budget", "--month", "200")
    assert config.read_text() == "# mine\nmonth_budget_usd = 200\n"
    (home / "text.txt").write_text("to be or not to be " * 500)
    _, err = call(
        *("launch", "shakespeare", "--data", "text.txt", "--cloud", "local", "--yes"),
        *("--price-per-hour", "1", "--budget", "201"),
        exit_code=3,
    )
    assert "of the $200" in err
    assert json.loads(call("status", "--json")[0]) == []
    call("cost", "budget", "--month", "none")
    assert config.read_text() == "# mine\n"


def test_nothing_leaks_where_nothing_is_rented(call):
    assert json.loads(call("stop", "--all-leaked", "--json")[0]) == {"leaks": [], "ended": []}
    call("stop", "some-run", "--all-leaked", exit_code=2)
    _, err = call("stop", "--all-leaked")
    assert "Nothing" in err
    call("stop", exit_code=2)
