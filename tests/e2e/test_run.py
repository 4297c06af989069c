"""A run on a rented machine, from its launch to what is left when the machine is gone."""

from decimal import Decimal

import pytest

from tests.e2e.cloud_user import CloudUser

LAMBDA = ("--cloud", "lambda", "--budget", "0.05")
PHASES = {"booting", "checking_hardware", "installing", "preparing", "training", "finishing"}


def test_a_run_fails_over_finishes_goes_down_and_leaves_everything_in_the_store(
    user: CloudUser,
) -> None:
    centre = user.datacentre
    centre.inject_no_capacity(region="us-east-1", name="first")
    centre.inject("instances", status=429)
    launched = user.run(*user.launch_arguments, *LAMBDA, "--name", "first", "--json")
    assert centre.wait_until_empty(5) == []  # given back at once, not by autodown
    for line in ("Launching on Lambda us-east-1", "Launched first on", "$0.20 an hour"):
        assert line in launched.stderr

    view = user.status("first")
    assert (view["state"], view["step"], view["is_billing"]) == ("succeeded", 30, False)
    (vm,) = [vm for vm in centre.history() if vm.name.startswith("first")]
    taken = view["offer"]
    assert vm.region != "us-east-1"
    assert (taken["region"], taken["instance_type"]) == (vm.region, vm.instance_type)
    assert Decimal(taken["price_per_hour"]) * 100 == vm.cents_per_hour

    cost = user.json("cost", "show", "first", *user.to_store)
    assert {*cost["by_phase"]} > PHASES
    # What is billed between the last word and the machine's end is told ahead, and rather high.
    late = Decimal("0.20") * 100 / 3600
    billed = centre.billed_usd("first")
    assert billed <= Decimal(cost["spent_usd"]) + Decimal("0.0005")
    assert Decimal(cost["spent_usd"]) - billed < late

    beside = user.run("cost", "show", "first", "--skypilot", *user.to_store).stdout
    assert "SkyPilot" in beside
    (entry,) = user.json("cost", "history", *user.to_store)["runs"]
    assert (entry["run_id"], entry["cloud"]) == ("first", "lambda")
    assert Decimal(entry["usd"]) == Decimal(cost["spent_usd"])
    assert "lambda" in user.run("cost", "refresh", "--cloud", "lambda").stderr

    logs = user.run("logs", "first", *user.to_store).stdout
    places = [
        logs.index(w) for w in ("us-east-1", "booting", "installing", "step 1/30", "step 30/30")
    ]
    assert places == sorted(places)
    pulled = user.json("pull-checkpoint", "first", "--to", str(user.home / "p"), *user.to_store)
    assert pulled["step"] == 30
    assert user.run("sample", "first", *user.to_store).stdout.strip()
    told = user.run("ssh", "first", *user.to_store, exit_code=8).stderr
    assert "no machine" in told
    again = user.run(*user.launch_arguments, *LAMBDA, "--name", "first", exit_code=2).stderr
    assert "already" in again


def test_a_data_set_is_prepared_into_the_store_by_a_machine_that_goes_down(
    user: CloudUser,
) -> None:
    centre = user.datacentre
    prepare = ("data", "prepare", str(user.recipe), "--data", str(user.text), "--name", "shards")
    rent = ("--cloud", "lambda", "--budget", "0.10", "--yes")
    done = user.json(*prepare, *rent, *user.to_store)
    assert centre.wait_until_empty(5) == []  # given back at once, not by autodown
    assert (done["job"], done["state"], done["is_billing"]) == ("prepare", "succeeded", False)

    (row,) = user.json("data", "list", *user.to_store)
    assert (row["source"], row["shards"], row["tokens"]) == ("text", 2, 40_000)
    assert f"{row['key']} is in the store: 40,000 tokens in 2 shards" in done["message"]
    shown = user.run("status", "shards", *user.to_store).stdout
    assert "preparing data: 2 shards" in shown
    assert "step" not in shown

    cost = user.json("cost", "show", "shards", *user.to_store)
    assert {*cost["by_phase"]} >= {"booting", "installing", "preparing", "going_down"}
    assert "training" not in cost["by_phase"]
    assert centre.billed_usd("shards") <= Decimal(cost["spent_usd"]) + Decimal("0.0005")
    assert Decimal(cost["spent_usd"]) < Decimal("0.10")
    log = user.run("logs", "shards", *user.to_store).stdout
    assert "torch" not in log  # which nothing there needs, and would take long to install
    assert "are ready" in log
    told = user.run("sample", "shards", *user.to_store, exit_code=6).stderr
    assert "prepared data and trained nothing" in told


@pytest.mark.parametrize(
    ("option", "exit_code", "words"),
    [
        (("--cloud", "lamda"), 2, "lambda"),
        (("--cloud", "lambda", "--gpus", "A100-80BG:8"), 2, "A100-80GB"),
        (("--cloud", "lambda", "--gpus", "A100-80GB:64"), 2, "--nodes"),
        (("--cloud", "lambda", "--region", "us-est-1"), 2, "us-east-1"),
        (("--cloud", "lambda", "--spot"), 3, "spot"),
        (("--cloud", "runpod"), 8, "catalogue"),
        (("--cloud", "lambda", "--store", "/somewhere"), 7, "s3://"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_rented(
    user: CloudUser, option: tuple[str, ...], exit_code: int, words: str
) -> None:
    asked = len(user.datacentre.requests())
    arguments = user.launch_arguments
    if "--store" in option:
        arguments = arguments[: arguments.index("--store")]
    told = user.run(*arguments, *option, exit_code=exit_code).stderr
    assert words in told
    new = user.datacentre.requests()[asked:]
    assert not [request for request in new if request["path"].endswith("/launch")]


def test_wrong_keys_rent_nothing(user: CloudUser) -> None:
    centre = user.datacentre
    user.env["AWS_SECRET_ACCESS_KEY"] = "wrong-secret-wrong-secret"
    told = user.run(*user.launch_arguments, *LAMBDA, exit_code=7).stderr
    assert "AWS_SECRET_ACCESS_KEY" in told
    assert "wrong-secret" not in told

    home = centre.add_home("wrong-key", api_key="wrong-key-wrong-key")
    stranger = CloudUser(centre, "wrong-key", home=home)
    told = stranger.run(*stranger.launch_arguments, *LAMBDA, exit_code=3).stderr
    assert "lambda" in told
    assert "sky check lambda" in told
    assert "wrong-key-wrong" not in told
    examined = stranger.run("doctor", *stranger.to_store, exit_code=8)
    assert "FAIL" in examined.stdout
    centre.kill_api_server(home)
    assert centre.wait_until_empty(0) == []
    assert stranger.status_all() == []
