from datetime import date
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gptctl.errors import PlanRefusedError, UsageError
from gptctl.order import Order, check_path, plan_order
from gptctl.plan import Limits
from tests.gptctl.run_folder import OFFER, FakeBackend
from training.errors import StorageError

TODAY = date(2026, 11, 21)
BUCKET = "s3://bucket/runs"
A100 = replace(
    OFFER, cloud="lambda", region="us-east-1", gpu="A100-80GB", gpu_count=8,
    price_per_hour=Decimal("22.32"),
)  # fmt: skip
H100 = replace(A100, gpu="H100", price_per_hour=Decimal("31.92"))


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.chdir(tmp_path)


class Clouds:
    """Opens a backend and remembers which clouds it was asked for."""

    def __init__(self, *offers):
        self.backend = FakeBackend(offers=offers or (OFFER,))
        self.asked = None

    def __call__(self, *clouds):
        self.asked = clouds
        return self.backend


def plan(clouds, *, store=BUCKET, **order):
    order.setdefault("recipe", "gpt2-124m")
    ordered, backend = plan_order(Order(**order), open_backend=clouds, store=store, today=TODAY)
    assert backend is clouds.backend
    return ordered


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("text")
    return path


def test_recipe_says_where_it_runs_unless_the_user_does(book):
    clouds = Clouds(A100)
    plan(clouds, data=book)
    assert clouds.asked == ("lambda",)

    plan(clouds, data=book, cloud="runpod,aws")
    assert clouds.asked == ("runpod", "aws")

    plan(here := Clouds(), recipe="demo", store="folder")
    assert here.asked == ("local",)


def test_backend_is_asked_for_what_the_recipe_needs(book):
    clouds = Clouds(A100)
    price = Limits(price_per_hour=Decimal(3))
    plan(clouds, data=book, region="us-west-1", spot=True, limits=price)

    (wanted,) = clouds.backend.asked
    assert wanted.gpus[:2] == ("A100-80GB:8", "H100:8")
    assert (wanted.region, wanted.spot, wanted.price_per_hour) == ("us-west-1", True, 3)
    assert wanted.today == TODAY


def test_gpus_of_the_user_go_before_those_of_the_recipe(book):
    clouds = Clouds(H100)
    ordered = plan(clouds, data=book, gpus=" H100:8, A100:8 ")

    assert clouds.backend.asked[0].gpus == ("H100:8", "A100:8")
    assert ordered.recipe.node.gpus == ("H100:8", "A100:8")


def test_plan_keeps_every_machine_it_may_get_and_prices_all_nodes(book):
    ordered = plan(Clouds(A100, H100), data=book, nodes=2)

    assert ordered.offers == (A100, H100)
    assert (ordered.nodes, ordered.ranks, ordered.price_per_hour) == (2, 16, Decimal("44.64"))


def test_spot_machine_is_always_recovered_another_when_it_is_asked_for(book):
    assert plan(Clouds(A100), data=book, spot=True).recover
    assert plan(Clouds(A100), data=book, recover=True).recover
    assert not plan(Clouds(A100), data=book).recover


@pytest.mark.parametrize(
    "flags", [{"region": "us-east-1"}, {"spot": True}, {"recover": True}, {"nodes": 2}]
)
def test_flags_about_rented_machines_are_refused_for_this_one(flags):
    with pytest.raises(UsageError, match="rented machines") as refused:
        plan(Clouds(), recipe="demo", store="folder", **flags)

    assert "--cloud lambda" in refused.value.hint


def test_cloud_needs_a_store_that_it_can_reach(book):
    with pytest.raises(StorageError, match="folder of this machine") as refused:
        plan(clouds := Clouds(A100), data=book, store="/home/ada/store")

    assert "--store s3://bucket/prefix" in refused.value.hint
    assert clouds.asked is None


def test_cloud_needs_credentials_for_the_store(book, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(StorageError) as refused:
        plan(Clouds(A100), data=book)

    assert "AWS_ACCESS_KEY_ID" in refused.value.hint


def test_text_for_this_machine_is_recorded_where_it_lies(book):
    ordered = plan(Clouds(), recipe="shakespeare", store="folder", data=book)

    assert (ordered.recipe.data.path, ordered.text) == (str(book), None)


def test_text_of_the_recipe_itself_is_made_absolute(book):
    ordered = plan(
        Clouds(), recipe="shakespeare", store="folder", overrides=("data.path=book.txt",)
    )

    assert ordered.recipe.data.path == str(book)


@pytest.mark.parametrize("name", ["book.txt", "books"])
def test_text_for_a_rented_machine_is_brought_there(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "books" else path.write_text("text")
    ordered = plan(Clouds(A100), data=path)

    assert (ordered.recipe.data.source, ordered.recipe.data.path) == ("text", f"text/{name}")
    assert ordered.text == path


def test_glob_is_for_this_machine_only(tmp_path, book):
    pattern = tmp_path / "*.txt"
    assert plan(Clouds(), recipe="shakespeare", store="folder", data=pattern).text is None

    with pytest.raises(PlanRefusedError, match="no text") as refused:
        plan(Clouds(A100), data=pattern)
    assert "a file or a folder" in refused.value.hint


def test_text_that_is_not_there_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(PlanRefusedError, match="no text at"):
        plan(clouds := Clouds(A100), data=tmp_path / "absent.txt")
    assert clouds.asked is None


def test_text_is_found_as_the_node_would_find_it(tmp_path, book):
    check_path(book, globs=True)
    check_path(tmp_path, globs=True)
    check_path(tmp_path / "**" / "*.txt", globs=True)
    with pytest.raises(PlanRefusedError):
        check_path(tmp_path / "*.md", globs=True)


@pytest.fixture
def tokens(tmp_path):
    """A folder as nanoGPT's, beside what made it."""
    folder = tmp_path / "tokens [1]"
    folder.mkdir()
    for name in ("train.bin", "val.bin", "prepare.py"):
        (folder / name).write_bytes(b"\x01\x00" * 9)
    return folder


@pytest.mark.parametrize("name", ["", "train.bin"])
def test_token_files_are_told_from_text_and_brought_to_a_rented_machine_alike(tokens, name):
    ordered = plan(Clouds(A100), data=tokens / name)

    data = ordered.recipe.data
    assert (data.source, data.path) == ("tokens", f"text/{name or tokens.name}")
    assert ordered.text == tokens / name


def test_token_files_may_be_a_glob_on_this_machine(tokens, tmp_path):
    pattern = tmp_path / "tokens*" / "*.bin"
    gpt2 = ("data.tokenizer=gpt2", "model.vocab_size=50257")
    ordered = plan(Clouds(), recipe="shakespeare", store="folder", overrides=gpt2, data=pattern)

    data = ordered.recipe.data
    assert (data.source, data.path, data.val_fraction) == ("tokens", str(pattern), 0.0)


def test_files_beside_which_token_files_only_lie_further_down_are_text(tokens, tmp_path):
    (tmp_path / "book.txt").touch()
    assert plan(Clouds(A100), data=tmp_path).recipe.data.source == "text"
    assert plan(Clouds(A100), data=tokens / "prepare.py").recipe.data.source == "text"


def test_tokens_need_a_recipe_of_gpt2s_tokenizer(tokens):
    with pytest.raises(UsageError, match=r"data\.tokenizer='bytes' does not fit") as refused:
        plan(Clouds(), recipe="shakespeare", store="folder", data=tokens)
    assert "--set data.tokenizer=gpt2" in refused.value.hint


def test_tokens_of_another_vocabulary_are_not_brought_to_a_rented_machine(tokens):
    (tokens / "meta.pkl").touch()
    with pytest.raises(UsageError, match=r"a vocabulary of its own, as meta\.pkl"):
        plan(clouds := Clouds(A100), data=tokens / "train.bin")
    assert clouds.asked is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.tokenizer=bytes", "whose tokens are ready made by 'gpt2'"),
        ("data.val_fraction=0.1", "does not fit the source 'hub-shards:owner/name'"),
    ],
)
def test_a_recipe_that_does_not_fit_ready_made_tokens_is_refused(change, told):
    changes = ("data.source=hub-shards:owner/name", change)
    with pytest.raises(UsageError, match=told):
        plan(Clouds(A100), overrides=changes)


def test_a_recipe_of_tokens_without_a_path_is_told_to_name_them():
    with pytest.raises(PlanRefusedError, match="trains on tokens that you choose"):
        plan(Clouds(A100), overrides=("data.source=tokens",))


def test_data_set_that_cannot_be_prepared_is_refused():
    with pytest.raises(PlanRefusedError, match="no data source 'books'"):
        plan(Clouds(A100), overrides=("data.source=books",))
