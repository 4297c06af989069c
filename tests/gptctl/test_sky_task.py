"""The task of a run: what it says, and that the real SkyPilot takes it."""

import ast
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from gptctl.backends import Job
from gptctl.backends.node_requirements import NODE_PACKAGES, node_requirements
from gptctl.backends.sky_task import compose_task, minutes_to_live, redact, to_yaml
from gptctl.recipe import read_recipe
from tests.gptctl.catalogues import install
from tests.gptctl.run_folder import OFFER, RECIPE, make_record
from training.layout import Offer

ROOT = Path(__file__).parents[2]
SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "very/secret+key"}
STORE = "s3://bucket/runs?endpoint_url=http://10.0.0.1:8333"


def make_offer(gpus="A100-80GB:8", region="us-east-1", price="22.32", **fields):
    gpu, _, count = gpus.partition(":")
    values = {
        "cloud": "lambda",
        "region": region,
        "instance_type": f"gpu_{gpu}",
        "gpu": gpu,
        "gpu_count": int(count),
        "price_per_hour": Decimal(price),
    }
    return replace(OFFER, **(values | fields))


CPU = make_offer("CPU:0", price="0.20", instance_type="cpu_4x_general")
ANYWHERE = (
    make_offer(),
    make_offer(region="us-west-1"),
    make_offer("H100:8", price="31.92"),
    make_offer("H100:8", region="us-west-1", price="31.92"),
)


def make_job(*offers: Offer, nodes=1, **fields):
    offers = offers or (make_offer(),)
    record = make_record(nodes=nodes, offer=offers[0], store=STORE)
    values = {"record": record, "store": STORE, "offers": offers, "budget_usd": Decimal(40)}
    return Job(**(values | fields))


def compose(job):
    return compose_task(
        job, source=ROOT / "training", requirements=["torch==2.13.0"], secrets=SECRETS
    )


def candidates(*offers):
    return compose(make_job(*offers))["resources"]["ordered"]


READ_BY_SKYPILOT = """
import json, sys
import sky, yaml

answers = []
for text in json.load(sys.stdin):
    task = sky.Task.from_yaml_config(yaml.safe_load(text))
    answers.append({
        "repr": repr(task),
        "again": task.to_yaml_config(),
        "resources": [
            [str(r.cloud), r.region, r.accelerators, r.instance_type, r.use_spot]
            for r in task.resources
        ],
        "autostop": [vars(r.autostop_config) for r in task.resources],
    })
print(json.dumps(answers, default=str))
"""
JOBS = {
    "one": make_job(),
    "anywhere": make_job(*ANYWHERE),
    "cpu": make_job(CPU, nodes=2),
    "own": make_job(make_offer(cloud="kubernetes", region=""), max_hours=3.0),
    "text": make_job(text=ROOT / "README.md"),
}


@pytest.fixture(scope="module")
def read_by_skypilot(tmp_path_factory):
    """What the real SkyPilot makes of the emitted YAML of each of JOBS, secrets put back."""
    home = tmp_path_factory.mktemp("home")
    install(home, "lambda")
    texts = [to_yaml(compose(job)) for job in JOBS.values()]
    ran = subprocess.run(
        [sys.executable, "-c", READ_BY_SKYPILOT],
        input=json.dumps(texts),
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        },
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(zip(JOBS, json.loads(ran.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", JOBS)
def test_skypilot_takes_the_task_as_it_is(read_by_skypilot, name):
    asked, read = compose(JOBS[name]), read_by_skypilot[name]["again"]

    for key in ("name", "run", "envs", "file_mounts", "config"):
        assert read[key] == asked[key], key
    assert read.get("num_nodes", 1) == asked["num_nodes"]


def test_skypilot_sees_the_candidates_in_our_order(read_by_skypilot):
    assert read_by_skypilot["anywhere"]["resources"] == [
        ["Lambda", None, {"A100-80GB": 8}, None, False],
        ["Lambda", None, {"H100": 8}, None, False],
    ]
    assert read_by_skypilot["cpu"]["resources"] == [
        ["Lambda", "us-east-1", None, "cpu_4x_general", False]
    ]
    assert read_by_skypilot["own"]["resources"][0][:2] == ["Kubernetes", None]


@pytest.mark.parametrize("name", JOBS)
def test_skypilot_ends_the_machine_whatever_runs_on_it(read_by_skypilot, name):
    for autostop in read_by_skypilot[name]["autostop"]:
        assert autostop["enabled"]
        assert autostop["down"]
        assert autostop["idle_minutes"] == minutes_to_live(JOBS[name])
        assert "none" in str(autostop["wait_for"]).lower()


def test_skypilot_does_not_show_the_secrets(read_by_skypilot):
    for read in read_by_skypilot.values():
        assert not any(secret in read["repr"] for secret in SECRETS.values())


@pytest.mark.parametrize("name", JOBS)
def test_emitted_yaml_is_the_task_without_its_secrets(name):
    task = compose(JOBS[name])
    text = to_yaml(redact(task))

    assert yaml.safe_load(to_yaml(task)) == task
    assert yaml.safe_load(text) == task | {"secrets": dict.fromkeys(SECRETS, "<redacted>")}
    assert not any(secret in text for secret in SECRETS.values())
    assert not any(secret in repr(JOBS[name]) for secret in SECRETS.values())


def test_secrets_are_in_the_task_as_secrets_and_nowhere_else():
    task = compose(make_job())

    assert task.pop("secrets") == SECRETS
    assert not any(secret in repr(task) for secret in SECRETS.values())


def test_emitted_scripts_can_be_read_by_a_person():
    text = to_yaml(compose(make_job()))

    assert "\nrun: |\n  export NODE_ROOT=~/gptctl-node\n" in text


def test_scripts_are_bash_and_short_enough_for_skypilot():
    task = compose(make_job())
    (hook,) = task["config"]["hooks"]

    for script in (task["run"], hook["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert len(script.encode()) <= 16 * 1024
    assert "setup" not in task


def test_run_script_writes_the_way_down_and_starts_our_bootstrap(tmp_path):
    source = tmp_path / "gptctl-node" / "source" / "training"
    source.mkdir(parents=True)
    (source / "bootstrap.sh").write_text("env; ls $NODE_ROOT")
    env = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_CLUSTER_INFO": '{"cloud": "Lambda", "region": "us-east-1"}',
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    ran = subprocess.run(
        ["bash", "-c", compose(make_job())["run"]],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip

    for line in (
        f"NODE_ROOT={tmp_path}/gptctl-node",
        "NODE_RANK=1",
        "NODE_COUNT=2",
        "NODE_IPS=10.0.0.1\n10.0.0.2",
        'NODE_PLACE={"cloud": "Lambda", "region": "us-east-1"}',
        "NODE_GPUS=8",
        f"NODE_GO_DOWN_IN={tmp_path}/gptctl-node/go-down-in",
    ):
        assert f"{line}\n" in ran.stdout
    way_down = tmp_path / "gptctl-node" / "go-down-in"
    assert os.access(way_down, os.X_OK)
    subprocess.run(["bash", "-n", str(way_down)], check=True)
    assert way_down.read_text().endswith('"$1"\n')


def test_region_is_pinned_where_only_one_will_do_and_else_left_to_skypilot():
    assert candidates(*ANYWHERE) == [
        {"infra": "lambda", "use_spot": False, "accelerators": {"A100-80GB": 8}},
        {"infra": "lambda", "use_spot": False, "accelerators": {"H100": 8}},
    ]
    assert candidates(make_offer(), make_offer("H100:8", region="us-west-1")) == [
        {"infra": "lambda/us-east-1", "use_spot": False, "accelerators": {"A100-80GB": 8}},
        {"infra": "lambda/us-west-1", "use_spot": False, "accelerators": {"H100": 8}},
    ]


def test_candidates_are_in_the_order_of_the_offers():
    runpod = make_offer(cloud="runpod", region="US", instance_type="8x", spot=True)
    own = make_offer(cloud="kubernetes", region="", instance_type="")

    assert [(c["infra"], c["use_spot"]) for c in candidates(runpod, make_offer(), own)] == [
        ("runpod/US", True),
        ("lambda/us-east-1", False),
        ("kubernetes", False),
    ]


def test_machine_without_gpus_is_asked_for_by_its_type_or_by_its_cores():
    own = replace(CPU, cloud="ssh", region="rack", instance_type="")

    assert candidates(CPU, own) == [
        {"infra": "lambda/us-east-1", "use_spot": False, "instance_type": "cpu_4x_general"},
        {"infra": "ssh/rack", "use_spot": False, "cpus": "4+"},
    ]


def test_node_is_told_of_the_run_its_machines_and_its_limits():
    job = make_job(*ANYWHERE, max_hours=1.5)
    envs = compose(job)["envs"]

    assert (envs["RUN_ID"], envs["RUN_STORE"]) == ("small-3f9a", STORE)
    assert (envs["RUN_BUDGET_USD"], envs["RUN_MAX_HOURS"]) == ("40", "1.5")
    assert json.loads(envs["RUN_RECORD"])["recipe"]["train"]["steps"] == RECIPE.train.steps
    assert [offer["region"] for offer in json.loads(envs["RUN_OFFERS"])] == [
        offer.region for offer in ANYWHERE
    ]
    assert all(isinstance(value, str) for value in envs.values())
    assert compose(make_job(max_hours=2.0, budget_usd=None))["envs"]["RUN_BUDGET_USD"] == ""


def test_text_lies_where_the_recipe_on_the_node_looks_for_it(tmp_path):
    data = replace(RECIPE.data, source="text", path="text/book.txt")
    record = make_record(recipe=replace(RECIPE, data=data), store=STORE)

    mounts = compose(make_job(record=record, text=tmp_path / "book.txt"))["file_mounts"]

    assert mounts == {
        "~/gptctl-node/source/training": str(ROOT / "training"),
        "~/gptctl-node/text/book.txt": str(tmp_path / "book.txt"),
    }
    assert list(compose(make_job())["file_mounts"]) == ["~/gptctl-node/source/training"]


@pytest.mark.parametrize(
    ("fields", "minutes"),
    [
        ({"budget_usd": Decimal("22.32")}, 60 + 10),
        ({"budget_usd": Decimal("22.32"), "max_hours": 0.5}, 30 + 10),
        ({"budget_usd": None, "max_hours": 0.01}, 1 + 10),
        ({"nodes": 2, "budget_usd": Decimal("22.32")}, 30 + 10),
    ],
)
def test_machine_lives_no_longer_than_the_nearest_limit_and_a_little(fields, minutes):
    assert minutes_to_live(make_job(**fields)) == minutes


def test_machine_lives_as_long_as_the_budget_buys_of_the_cheapest_that_it_may_be():
    job = make_job(make_offer("H100:8", price="40"), make_offer(price="20"))

    assert minutes_to_live(job) == 120 + 10


def test_disk_is_asked_for_where_shards_and_checkpoints_do_not_fit_the_usual_one():
    def asked(config):
        _, recipe = read_recipe("gpt2-774m", (f"data.config={config}",))
        job = make_job()
        job = replace(job, record=replace(job.record, recipe=recipe))
        [machine] = compose(job)["resources"]["ordered"]
        return machine.get("disk_size")

    assert asked("sample-10BT") is None
    assert asked("sample-100BT") == 284  # 200.2 GB of shards, 6 of files, 37.2 of checkpoints, 40


def test_requirements_are_what_training_imports_and_no_more():
    imported = set()
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"training"}

    others_own = {"botocore", "s3transfer"} | {"httpx", "fsspec"}  # boto3's, and the Hub client's
    assert foreign - others_own == {name.replace("-", "_") for name in NODE_PACKAGES}


def test_requirements_are_pinned_as_in_our_own_metadata():
    pinned = node_requirements()

    assert len(pinned) == len(NODE_PACKAGES)
    assert "torch==2.13.0" in pinned
    assert all(any(mark in line for mark in ("==", "~=")) for line in pinned)
