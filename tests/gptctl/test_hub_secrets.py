"""What a rented machine is told of the Hub: a person's token goes there, and nowhere else."""

from decimal import Decimal

import pytest
import yaml
from msgspec.structs import replace

from gptctl.backends import Job
from gptctl.backends.cloud import CloudBackend, _compose
from gptctl.recipe import read_recipe
from tests.gptctl.estimates import NODE
from tests.gptctl.run_folder import make_record
from tests.hub_server import running_hub

TOKEN = "hf_notForAnyoneToSee"
STORE = "s3://bucket/runs"


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another secret")
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def job_of(*overrides, text=None):
    _, recipe = read_recipe("gpt2-124m", overrides)
    record = replace(make_record(offer=NODE, store=STORE), recipe=recipe)
    return Job(record=record, store=STORE, offers=(NODE,), budget_usd=Decimal(40), text=text)


def test_token_and_endpoint_reach_the_node_as_secrets(hub):
    task = _compose(job_of())

    assert task["secrets"]["HF_TOKEN"] == TOKEN
    assert task["secrets"]["HF_ENDPOINT"] == hub.url
    assert TOKEN not in yaml.safe_dump({**task, "secrets": {}})


def test_token_that_was_logged_in_with_goes_too(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hub" / "hf").mkdir(parents=True, exist_ok=True)
    (tmp_path / "hub" / "hf" / "token").write_text(TOKEN)

    assert _compose(job_of())["secrets"]["HF_TOKEN"] == TOKEN


def test_task_that_is_shown_is_without_them(hub, tmp_path):
    shown = CloudBackend(("lambda",), state=tmp_path, home=tmp_path).describe(job_of())

    assert TOKEN not in shown
    assert hub.url not in shown
    assert yaml.safe_load(shown)["secrets"]["HF_TOKEN"] == "<redacted>"


def test_run_that_asks_nothing_of_the_hub_is_not_given_them(tmp_path):
    text = ("data.source=text", "data.path=text/book.txt", "eval.hellaswag=false")
    secrets = _compose(job_of(*text, text=tmp_path))["secrets"]

    assert not [name for name in secrets if name.startswith("HF_")]


def test_the_public_hub_needs_no_naming(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delenv("HF_TOKEN")

    assert not [name for name in _compose(job_of())["secrets"] if name.startswith("HF_")]
