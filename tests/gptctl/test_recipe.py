"""Recipes are found, decoded strictly and overridden; every fault can be mended from its text."""

from decimal import Decimal
from pathlib import Path

import pytest

from gptctl.errors import NotFoundError, UsageError
from gptctl.recipe import find_recipe, read_recipe, recipe_names

RECIPE = """
summary = "tiny"

[model]
n_layer = 2
n_head = 2
n_embd = 32
block_size = 16
vocab_size = 257

[data]
source = "python-stdlib"
tokenizer = "bytes"
shard_tokens = 1000

[train]
steps = 10
batch_tokens = 64
micro_batch_size = 2
max_lr = 1e-3
warmup_steps = 2

[eval]
every = 5
tokens = 64

[checkpoint]
every = 5
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_recipe(str(path), overrides)
    return caught.value.message


def test_a_file_of_ones_own_is_read_and_named_after_itself(mine: Path) -> None:
    name, recipe = read_recipe(str(mine))
    assert name == "mine"
    assert recipe.train.max_lr == 1e-3
    assert recipe.checkpoint.keep == 2


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_is_valid_and_called_as_its_file(name: str) -> None:
    assert read_recipe(name)[0] == name == find_recipe(name).stem


def test_unknown_recipe_names_the_nearest_and_the_list() -> None:
    with pytest.raises(NotFoundError, match=r"gpt2-124M.*nearest: `gpt2-124m`") as caught:
        read_recipe("gpt2-124M")
    assert "gptctl recipes" in caught.value.hint


def test_missing_file_is_not_taken_for_a_recipe_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no recipe file .*absent\.toml"):
        read_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("[train]\nmax_Ir = 3e-4", "`train.max_lr`, a number above 0"),
        ("[train]\nstep = 4", "`train.steps`, a whole number of at least 1"),
        ("[train]\nn_layer = 4", "`model.n_layer`, a whole number of at least 1"),
        ("[budget]\ndollars = 4\nusd = 3", "; the keys here are `budget.usd`, `budget.max_hours`"),
        ("[chekpoint]\nkeep = 1", "`checkpoint`, a section"),
        ("[reference]\nsorce = 'x'", "`reference.source`, a string"),
    ],
)
def test_unknown_key_names_file_dotted_key_and_the_nearest_with_its_type(
    mine: Path, written: str, near: str
) -> None:
    section, _, line = written.partition("\n")
    if section in mine.read_text():
        edit(mine, section, written)
    else:
        mine.write_text(mine.read_text() + written)
    message = fault(mine)
    name = section.strip("[]")
    key = name if name == "chekpoint" else f"{name}.{line.partition(' ')[0]}"
    assert f"{mine}: unknown key `{key}`" in message
    assert near in message


def test_all_unknown_keys_are_reported_at_once_and_no_consequence_of_them(mine: Path) -> None:
    edit(mine, "n_layer", "n_layers")
    edit(mine, "max_lr", "max_learning_rate")
    edit(mine, "summary", "sumary")
    lines = fault(mine).splitlines()
    assert [line.split("`")[1] for line in lines] == [
        *("sumary", "model.n_layers", "train.max_learning_rate"),
    ]


def test_missing_keys_are_reported_with_what_belongs_there(mine: Path) -> None:
    edit(mine, "n_layer = 2\n", "")
    edit(mine, 'tokenizer = "bytes"\n', "")
    assert fault(mine).splitlines() == [
        f"{mine}: missing key `model.n_layer`, a whole number of at least 1",
        f'{mine}: missing key `data.tokenizer`, one of "bytes", "gpt2"',
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "max_lr = 1e-3",
            'max_lr = "6e-4"',
            'must be a number above 0, not the string "6e-4": write it without quotes',
        ),
        ("steps = 10", "steps = 10.5", "`train.steps` must be a whole number of at least 1, not"),
        ("steps = 10", "steps = 0", "`train.steps` must be a whole number of at least 1, not 0"),
        (
            "steps = 10",
            "steps = true",
            "`train.steps` must be a whole number of at least 1, not tr",
        ),
        ("= 1e-3", "= inf", "`train.max_lr` must be a number above 0, not inf"),
        ("= 1e-3", "= nan", "`train.max_lr` must be a number above 0, not nan"),
        ('"bytes"', '"byte"', 'must be one of "bytes", "gpt2", not the string "byte"'),
        ("= 1000", "= 3_000_000_000", "of at least 1 and below 2,147,483,648, not 3000000000"),
        ('"tiny"', "3", "`summary` must be a string, not 3"),
    ],
)
def test_wrong_value_names_key_expected_type_and_what_was_found(
    mine: Path, old: str, new: str, expected: str
) -> None:
    edit(mine, old, new)
    message = fault(mine)
    assert message.startswith(f"{mine}: ")
    assert expected in message


@pytest.mark.parametrize("usd", ["nan", "inf", '"40"', "true"])
def test_a_budget_that_is_no_amount_is_refused(mine: Path, usd: str) -> None:
    assert "`budget.usd` must be an amount of dollars" in fault(mine, f"budget.usd={usd}")


@pytest.mark.parametrize("usd", ["0", "-1"])
def test_a_budget_that_allows_nothing_is_refused(mine: Path, usd: str) -> None:
    assert f"usd={usd} must be more than 0" in fault(mine, f"budget.usd={usd}")


def test_a_budget_keeps_its_cents(mine: Path) -> None:
    _, recipe = read_recipe(str(mine), ["budget.usd=12.10"])
    assert recipe.budget.usd == Decimal("12.1")


def test_a_rule_between_keys_is_reported_with_their_section(mine: Path) -> None:
    edit(mine, "warmup_steps = 2", "warmup_steps = 20")
    assert fault(mine).startswith(f"{mine}: `train`: warmup_steps=20")
    assert "must be a multiple of model.block_size=16" in fault(
        mine, "train.warmup_steps=1", "train.batch_tokens=65"
    )


def test_a_whole_number_will_do_for_a_number(mine: Path) -> None:
    _, recipe = read_recipe(str(mine), ["train.grad_clip=2"])
    assert recipe.train.grad_clip == 2.0


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = \n", "line 2"), ('a = 1\n\nb = "open', "line 3")]
)
def test_broken_toml_names_file_and_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    message = fault(path)
    assert message.startswith(f"{path} is not TOML")
    assert line in message


def test_a_file_that_is_not_text_and_a_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"a = '\xff'")
    assert fault(path) == f"{path} is not UTF-8 text (at byte 5)"
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert fault(folder).startswith(f"{folder} cannot be read")


def test_overrides_apply_in_turn_and_bare_words_are_strings(mine: Path) -> None:
    _, recipe = read_recipe(
        str(mine),
        [
            "train.max_lr=3e-4",
            "train.max_lr = 2e-4",
            "data.path=some/where.txt",
            "budget.usd=40",
            'node.gpus=["H100:8"]',
            "sample.prompt='def = '",
        ],
    )
    assert recipe.train.max_lr == 2e-4
    assert recipe.data.path == "some/where.txt"
    assert recipe.budget.usd == 40
    assert recipe.node.gpus == ("H100:8",)
    assert recipe.sample.prompt == "def = "


def test_an_override_cannot_smuggle_in_a_second_key(mine: Path) -> None:
    assert "not the string" in fault(mine, "train.max_lr=1e-4\nsteps = 1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_Ir=3e-4", "unknown key `train.max_Ir`; nearest: `train.max_lr`"),
        (
            "train.steps=many",
            '`train.steps` must be a whole number of at least 1, not the string "m',
        ),
        ("node.gpus=[1]", "`node.gpus[0]` must be a string, not 1"),
        ("node.gpus=H100:8", "`node.gpus` must be a list, each a string, not the string"),
        ("train=3", "`train` must be a section, not 3"),
        ("summary.x=3", "`summary` is a value, not a section"),
    ],
)
def test_a_faulty_override_is_blamed_and_not_the_file(
    mine: Path, override: str, expected: str
) -> None:
    message = fault(mine, override)
    assert message.startswith(f"`--set {override}`: ")
    assert expected in message


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.=3", ".steps=3", ""])
def test_an_override_without_key_or_value_shows_how_one_looks(mine: Path, override: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(str(mine), [override])
    assert "train.max_lr=3e-4" in caught.value.hint
