"""Launches on clouds as they are typed: plans and mistakes, offline, with catalogues at hand."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from gptctl.backends import sky
from gptctl.cli import main
from tests.gptctl.catalogues import install

LAUNCH = ("launch", "gpt2-124m", "--data", "book.txt", "--dry-run")
SECRET = "not-for-anyone-to-see"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A person with catalogues, credentials of a store, and a text; no settings."""
    for name in ("GPTCTL_STORE", "GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("HOME", "."), ("XDG_DATA_HOME", "data"), ("XDG_CONFIG_HOME", "config")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("text")
    install(tmp_path, "lambda", "runpod", "vast")
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs one command line: (exit code, stdout, stderr)."""

    def run(*argv, store="s3://bucket/runs"):
        code = main([*argv, *(("--store", store) if store else ())])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        assert SECRET not in out + err
        return code, out, err

    return run


def test_plan_shows_machine_place_price_and_what_else_there_is(call):
    code, out, err = call(*LAUNCH, "--budget", "41")

    assert (code, out) == (0, "")
    for words in (
        "8x A100-80GB, gpu_8x_a100_80gb_sxm4; 8 ranks on cuda",
        "any region of lambda",
        "8x H100 $31.92, 8x A100 $15.92",
        "$22.32 an hour (SkyPilot's catalogue, ",
        "$41.00, which buys 1 h 50 min",
        "s3://bucket/runs",
    ):
        assert words in err


def test_plan_of_several_spot_nodes_shows_the_price_of_all(call):
    _, _, err = call(
        *LAUNCH, "--cloud", "runpod", "--spot", "--nodes", "2", "--region", "ca", "--budget", "40"
    )

    for words in (
        "2 nodes of 8x A100-80GB, 8x_A100-80GB_SECURE, spot; 16 ranks on cuda",
        "region CA of runpod",
        "$13.12 an hour for 2 nodes at $6.56",
    ):
        assert words in err
    assert "else" not in err


def test_plan_without_a_limit_gets_one_and_says_so(call):
    _, _, err = call(*LAUNCH)

    assert "it stops after 2.9 hours ($92.57 at most)" in err


def test_plan_of_fineweb_shows_what_its_preparation_takes_and_what_there_is(call):
    code, _, err = call("launch", "gpt2-124m", "--dry-run", "--budget", "60")

    told = " ".join(err.split())
    assert code == 0
    for words in (
        "data fineweb, sample-10BT, at 9bb295ddab0e",
        "100 shards at most; 1,698,564 tokens/s take 0.1 of 232 free cores by gigatoken, 4.8 MB/s",
        "26.0 GB for data and 6.0 GB for checkpoints",
    ):
        assert words in told
    assert "race" not in told


def test_plan_is_one_json_document(call):
    code, out, _ = call(*LAUNCH, "--json", "--cloud", "lambda,runpod")

    plan = json.loads(out)
    assert code == 0
    assert {offer["cloud"] for offer in plan["offers"]} == {"lambda", "runpod"}
    assert plan["text"] == str(Path("book.txt").absolute())
    assert plan["recipe"]["data"]["path"] == "text/book.txt"


def test_dry_run_leaves_nothing_behind(call, home):
    before = set(home.rglob("*"))
    call(*LAUNCH)

    assert set(home.rglob("*")) == before


def test_emitted_task_is_skypilots_own_without_secrets(call, home):
    code, out, err = call(*LAUNCH, "--budget", "41", "--name", "mine", "--emit", "task.yaml")

    assert (code, out) == (0, "")
    assert "Wrote task.yaml" in err
    text = (home / "task.yaml").read_text()
    task = yaml.safe_load(text)
    assert task["name"] == "mine"
    assert task["secrets"]["AWS_SECRET_ACCESS_KEY"] == "<redacted>"
    assert SECRET not in text
    assert "AKIAEXAMPLE" not in text
    assert task["file_mounts"]["~/gptctl-node/text/book.txt"] == str(home / "book.txt")


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--cloud", "lamda"], 2, "no cloud 'lamda'; nearest: 'lambda'", "kubernetes"),
        (["--cloud", "lambda,local"], 2, "stand alone", "such as lambda,runpod"),
        (["--gpus", "H1000:8"], 2, "no GPU 'H1000'; nearest: 'H100'", "A10, A100, "),
        (["--gpus", "H100:16"], 2, "no machine of lambda has 16 H100", "they come in 8"),
        (["--gpus", ","], 2, "',' names no GPUs", "such as A100-80GB:8"),
        (["--gpus", "H100:x"], 2, "'H100:x' names no GPUs", "such as A100-80GB:8"),
        (["--region", "us-eest-1"], 2, "no region 'us-eest-1'; nearest: 'us-", "us-east-1"),
        (["--spot"], 3, "lambda has no spot machines", "leave out `--spot`"),
        (["--cloud", "vast", "--gpus", "H100:8", "--spot"], 3, "vast has no spot", "--spot"),
        (["--cloud", "runpod", "--region", "CA", "--gpus", "H100:8"], 3, "has no H100:8", "US"),
        (["--nodes", "3"], 3, "24 ranks cannot share evenly", "ranks"),
        (["--nodes", "0"], 2, "--nodes", "--help"),
        (["--name", "My Run"], 2, "cannot be the name of a run", "--name gpt2"),
        (["--cloud", "local", "--region", "us-east-1"], 2, "about rented machines", "lambda"),
        (
            ["--cloud", "local", "--set", "node.gpus=[]", "--emit", "x"],
            2,
            "SkyPilot task",
            "lambda",
        ),
    ],
)
def test_mistake_is_one_clear_error(call, home, words, code, message, hint):
    found, out, err = call(*LAUNCH, *words)

    assert (found, out) == (code, "")
    said, _, hinted = err.partition("\n  hint: ")
    assert message in said
    assert hint in hinted
    assert not (home / "x").exists()


def test_cloud_run_without_a_store_says_what_it_needs(call):
    code, _, err = call(*LAUNCH, store=None)

    assert code == 7
    assert "which a rented one cannot reach" in err
    assert "`--store s3://bucket/prefix`, or set GPTCTL_STORE" in err


def test_launch_without_skypilot_says_how_to_install_it(call, monkeypatch):
    monkeypatch.setattr(sky, "find_spec", lambda name: None)
    code, _, err = call(*LAUNCH)

    assert code == 8
    assert "SkyPilot, which is not installed" in err
    assert "pip install 'gptctl[cloud]'" in err


def test_launch_with_another_skypilot_names_both(call, monkeypatch):
    monkeypatch.setattr(sky, "version", lambda name: "0.11.0")
    code, _, err = call(*LAUNCH)

    assert code == 8
    assert "SkyPilot 0.11.0 is installed, and gptctl works with 0.14.1" in err
    assert "pip install 'gptctl[cloud]'" in err


def test_run_on_this_machine_needs_no_skypilot(call, monkeypatch):
    monkeypatch.setattr(sky, "find_spec", lambda name: None)

    assert call("launch", "demo", "--dry-run", store=None)[0] == 0


class NoNetwork:
    """SkyPilot, on a machine without catalogues and without a way to fetch them."""

    class catalog:  # noqa: N801 - SkyPilot's name
        @staticmethod
        def list_accelerators(**_):
            raise ConnectionError("Name or service not known")


def test_no_catalogue_and_no_network_says_what_to_do(call, monkeypatch):
    monkeypatch.setattr(sky.SkyPilot, "_sky", lambda self: NoNetwork)
    code, _, err = call(*LAUNCH, "--cloud", "nebius")

    assert code == 8
    assert "no catalogue of nebius on this machine, and could not fetch it: Name or" in err
    assert "sky show-gpus --infra nebius" in err


def test_scripts_of_the_emitted_task_are_bash(call, home):
    call(*LAUNCH, "--emit", "task.yaml")
    task = yaml.safe_load((home / "task.yaml").read_text())

    for script in (task["run"], task["config"]["hooks"][0]["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
