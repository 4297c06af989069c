"""`gptctl data prepare --cloud` as it is typed: plans and mistakes, offline, and how runs look."""

import io
import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from gptctl.backends import LOCAL
from gptctl.backends.node_requirements import NODE_PACKAGES, node_requirements
from gptctl.checkpoints import pull
from gptctl.cli import main
from gptctl.cli.live import live_view, progress_line
from gptctl.cli.render import run_details, runs_table, summary
from gptctl.data_jobs import estimate_job, price_job
from gptctl.errors import NotFoundError, PlanRefusedError
from gptctl.launch import Patience, launch, plan_resume
from gptctl.order import without_training
from gptctl.plan import Limits, make_plan
from gptctl.report import Curves, cost_of
from gptctl.runs import read_record, view_run
from tests.gptctl.catalogues import install
from tests.gptctl.estimates import recipe_of
from tests.gptctl.run_folder import (
    NOW,
    OFFER,
    FakeBackend,
    RunFolder,
    make_bill,
    make_record,
    make_status,
)
from training.layout import Lead, RunRecord, decode, encode

PREPARE = ("data", "prepare", "gpt2-124m", "--cloud", "lambda")
CPU = replace(
    OFFER, cloud="lambda", instance_type="cpu_4x", vcpus=4.0, price_per_hour=Decimal("0.2")
)
FINEWEB = without_training(recipe_of("gpt2-124m"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A person with a catalogue and credentials of a store; no settings."""
    for name in ("GPTCTL_STORE", "GPTCTL_CLOUD", "GPTCTL_NODE_ROOT", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("HOME", "."), ("XDG_DATA_HOME", "data"), ("XDG_CONFIG_HOME", "config")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("text")
    install(tmp_path, "lambda")
    return tmp_path


@pytest.fixture
def call(capsys):
    """Runs one command line: (exit code, stdout, what stderr says in one line)."""

    def run(*argv, store="s3://bucket/runs"):
        code = main([*argv, "--store", store])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "bug" not in err
        return code, out, " ".join(err.split())

    return run


def make_data_plan(recipe=FINEWEB, **fields):
    plan = make_plan("gpt2-124m", recipe, [CPU], max_hours=2.0)
    return replace(plan, job="prepare", **fields)


def text_of(renderable):
    console = Console(file=io.StringIO(), width=160, markup=False, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def data_view(at_s=1.0, **status):
    """Of a run that prepares."""
    now = NOW + timedelta(seconds=at_s)
    values = {"state": "preparing", "phase": "preparing", "step": 0, "tokens": 0, "val_loss": None}
    values |= {"tokens_per_sec": None, "bill": (make_bill("preparing", 60.0),), "updated_at": now}
    record = make_record(job="prepare")
    return view_run(record, make_status(**(values | status)), "running", store="s3://b", now=now)


def test_plan_of_fineweb_is_of_a_cheap_machine_and_of_its_data_alone(call, home):
    before = set(home.rglob("*"))
    code, out, err = call(*PREPARE, "--dry-run", "--budget", "1")

    assert (code, out) == (0, "")
    for words in (
        "data fineweb, sample-10BT, at 9bb295ddab0e",
        "machine CPU, cpu_4x_general; 4 vCPUs",
        "any region of lambda",
        "$0.20 an hour (SkyPilot's catalogue, ",
        "$1.00, which buys 5 h 00 min",
        "at most 100 shards, 10,000,000,000 tokens, by gigatoken from 28.0 GB of the Hub",
        "estimate likely $0.0302 in 9 min 00 s",
        "disk 26.0 GB for shards and files beside them",
        "s3://bucket/runs",
    ):
        assert words in err, words
    for words in ("parameters", "steps of", "HellaSwag", "reference", "rank", "checkpoints"):
        assert words not in err, words
    assert set(home.rglob("*")) == before


def test_plan_of_all_of_a_source_is_of_as_much_as_is_known_of_it(call):
    whole = ("--dry-run", "--all", "--budget", "9")
    _, _, known = call(*PREPARE, *whole, "--set", "data.config=sample-100BT")
    _, _, unknown = call(*PREPARE, *whole, "--data", "book.txt")

    assert "at most 1,001 shards, 100,100,000,000 tokens" in known
    assert "all of the source, however much that is" in unknown
    assert "estimate unknown: nobody knows how much there is of text" in unknown


def test_plan_is_one_json_document(call):
    code, out, _ = call(*PREPARE, "--dry-run", "--json", "--data", "book.txt")

    plan = json.loads(out)
    assert code == 0
    assert (plan["job"], plan["whole"], plan["device"], plan["nodes"]) == (
        "prepare",
        False,
        "cpu",
        1,
    )
    assert plan["text"] == str(Path("book.txt").absolute())
    assert plan["max_hours"] == 24  # no limit was given


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((*PREPARE[:3], "--cloud", LOCAL), 2, "leave it out to prepare data here"),
        ((*PREPARE, "--to", "shards"), 2, "--to is a folder on this machine"),
        ((*PREPARE[:3], "--budget", "1"), 2, "`--cloud lambda` rents one"),
        ((*PREPARE[:3], "--dry-run"), 2, "`--cloud lambda` rents one"),
        ((*PREPARE, "--store", "/somewhere"), 7, "s3://"),
        ((*PREPARE, "--region", "us-eest-1"), 2, "us-east-1"),
        ((*PREPARE, "--name", "My Run"), 2, "--name gpt2"),
        ((*PREPARE, "--budget", "0.01"), 3, "over its budget of $0.01"),
        ((*PREPARE, "--budget", "1"), 2, "there is no terminal to ask on"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_rented(call, words, code, message):
    store = "/somewhere" if "--store" in words else "s3://bucket/runs"
    told = call(*(word for word in words if word not in ("--store", "/somewhere")), store=store)

    assert told[0] == code
    assert message in told[2]


def test_estimate_is_of_the_slowest_of_fetching_making_and_sending():
    fast = estimate_job(make_data_plan())
    tiktoken_like = replace(FINEWEB, data=replace(FINEWEB.data, source="text", path="x"))
    slow = estimate_job(make_data_plan(tiktoken_like))

    # 10 B tokens are 28 GB from the Hub at 100 MB/s, and 20 GB to the store at as much.
    assert fast.phases["preparing"].seconds == pytest.approx(280)
    assert slow.phases["preparing"].seconds == pytest.approx(2500)  # 4 M a second, in one process
    assert fast.usd == sum(phase.usd for phase in fast.phases.values())
    assert fast.usd_low < fast.usd < fast.usd_high
    assert {"training", "compile"}.isdisjoint(fast.phases)


def test_budget_below_the_likely_cost_is_refused_with_one_that_is_enough():
    plan = replace(make_data_plan(), budget_usd=Decimal("0.02"))
    with pytest.raises(PlanRefusedError, match=r"over its budget of \$0.02") as refused:
        price_job(plan, today=NOW.date())

    enough = Decimal(refused.value.hint.split("`")[1].split()[1])
    assert price_job(replace(plan, budget_usd=enough), today=NOW.date()).estimate is not None


def test_launch_records_the_job_and_the_node_installs_no_torch(tmp_path):
    folder = RunFolder(tmp_path)
    plan = price_job(make_data_plan(whole=True), today=NOW.date())
    record, _ = launch(
        plan,
        store=folder.store,
        backend=FakeBackend(offers=[CPU]),
        patience=Patience(),
        versions={},
        now=NOW,
        tell=print,
    )

    written = read_record(folder.store, record.run_id)
    assert (written.job, written.whole, written.device, written.ranks) == (
        "prepare",
        True,
        "cpu",
        1,
    )
    assert written.estimate_usd == plan.estimate.usd
    names = {line.partition("==")[0].partition("~=")[0] for line in node_requirements(trains=False)}
    assert {*NODE_PACKAGES} - names == {"torch", "safetensors"}


def test_a_record_of_before_there_were_jobs_is_of_one_that_trains():
    fields = json.loads(encode(make_record(job="prepare", whole=True)))
    del fields["job"], fields["whole"]

    record = decode(json.dumps(fields).encode(), RunRecord, name="run.json")
    assert (record.job, record.whole) == ("train", False)


def test_a_stopped_job_goes_on_and_one_that_is_done_does_not(tmp_path):
    run = RunFolder(tmp_path, state="stopped", reason="user", step=0)
    record = make_record(job="prepare", recipe=FINEWEB, offer=CPU, store=str(tmp_path))
    run.store.write(f"runs/{run.run_id}/run.json", encode(record))
    backend = FakeBackend(offers=[CPU])
    options = {"store": run.store, "backend": backend, "patience": Patience(), "now": NOW}

    job = plan_resume(run.run_id, Limits(budget_usd=Decimal(2)), **options)
    assert job.record.job == "prepare"
    assert backend.asked[0].gpus == ()

    run.write_status(state="succeeded", reason="completed")
    with pytest.raises(PlanRefusedError, match="has prepared its data"):
        plan_resume(run.run_id, Limits(), **options)


def test_no_checkpoint_is_looked_for_where_nothing_was_trained(tmp_path):
    run = RunFolder(tmp_path / "store")
    run.store.write(f"runs/{run.run_id}/run.json", encode(make_record(job="prepare")))

    with pytest.raises(NotFoundError, match="prepared data and trained nothing"):
        pull(run.store, run.run_id, "latest", tmp_path / "out")


def test_log_of_a_job_is_that_of_its_preparation(call, tmp_path):
    run = RunFolder(tmp_path / "runs", state="succeeded")
    run.store.write(f"runs/{run.run_id}/run.json", encode(make_record(job="prepare", offer=CPU)))
    for stage in ("setup", "prepare", "supervise"):
        run.write_log(stage, f"said by {stage}\n")

    _, out, _ = call("logs", run.run_id, store=str(tmp_path / "runs"))
    assert out == "said by setup\nsaid by prepare\n"


def test_what_is_prepared_is_shown_and_no_step():
    lead = Lead(
        ready_tokens=200_000_000, wanted_tokens=1_000_000_000, is_done=False, shards=2,
        tokens=200_000_000, seconds=None, tokens_per_sec=2e7,
    )  # fmt: skip
    view = data_view(shards=3, lead=lead)
    told = (
        "preparing data: 3 shards, 200,000,000 of 1,000,000,000 training tokens "
        "at 20,000,000 tokens/s, left 40 s"
    )

    line = progress_line(view)
    assert line.startswith(f"preparing  {told}  ")
    shown = [text_of(found) for found in (live_view(view, Curves()), run_details(view))]
    assert all(told in text for text in shown)
    for text in (line, *shown, text_of(runs_table([view]))):
        assert "step 0" not in text
        assert "0/100" not in text
        assert "MFU" not in text


def test_summary_of_a_job_names_its_data_and_what_to_do_with_it():
    status = {"state": "succeeded", "reason": "completed", "shards": 3}
    record = make_record(job="prepare")
    view = data_view(**status, message="hub-x is in the store: 3 tokens in 3 shards")
    shown = text_of(
        summary(
            view,
            curves=Curves(),
            samples=None,
            cost=cost_of(record, make_status(bill=(make_bill("preparing", 60.0),))),
            record=record,
            command=lambda *words: " ".join(("gptctl", *words)),
        )
    )

    for words in ("small-3f9a: succeeded, preparing data: 3 shards", "hub-x is in the store"):
        assert words in shown
    for command in ("gptctl data list", "gptctl logs small-3f9a", "gptctl cost show small-3f9a"):
        assert command in shown
    assert "val loss" not in shown
    assert "pull-checkpoint" not in shown
