"""Settings come from a flag, else the environment, else the config file, else a default."""

import stat
from decimal import Decimal
from pathlib import Path

import pytest

from gptctl.errors import UsageError
from gptctl.month import read_month_budget, set_month_budget
from gptctl.settings import read_settings

HOME = Path("/home/ada")


def write_config(home: Path, text: str) -> Path:
    path = home / ".config/gptctl/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_defaults_lie_under_the_data_folder_of_the_user() -> None:
    settings = read_settings({}, home=HOME)
    assert settings.store == "/home/ada/.local/share/gptctl/store"
    assert settings.node_root == HOME / ".local/share/gptctl/node"
    assert settings.cloud is None  # as the recipe says
    assert settings.state == HOME / ".local/share/gptctl/launched"
    assert settings.ledger == HOME / ".local/share/gptctl/month"
    assert settings.config == HOME / ".config/gptctl/config.toml"


def test_base_folders_are_moved_by_the_environment(tmp_path: Path) -> None:
    config = tmp_path / "conf/gptctl/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('cloud = "lambda"')
    env = {"XDG_DATA_HOME": "/srv/data", "XDG_CONFIG_HOME": str(tmp_path / "conf")}
    settings = read_settings(env, home=HOME)
    assert settings.store == "/srv/data/gptctl/store"
    assert settings.cloud == "lambda"


def test_a_relative_base_folder_is_ignored() -> None:
    settings = read_settings({"XDG_DATA_HOME": "data"}, home=HOME)
    assert settings.store.startswith("/home/ada/")


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    write_config(tmp_path, 'store = "s3://file/runs"\ncloud = "file"')
    env = {"GPTCTL_STORE": "s3://env/runs"}
    flagged = read_settings(env, home=tmp_path, store="s3://flag/runs")
    assert (flagged.store, flagged.cloud) == ("s3://flag/runs", "file")
    assert read_settings(env, home=tmp_path).store == "s3://env/runs"
    assert read_settings({"GPTCTL_STORE": ""}, home=tmp_path).store == "s3://file/runs"


def test_home_is_filled_in_where_no_shell_did(tmp_path: Path) -> None:
    write_config(tmp_path, 'store = "~/runs"\nnode_root = "~/node"')
    settings = read_settings({}, home=tmp_path)
    assert settings.store == str(tmp_path / "runs")
    assert settings.node_root == tmp_path / "node"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('stor = "x"', "unknown key `stor`; nearest: `store`, a string"),
        ("store = 3", "`store` must be a string, not 3"),
        ("[store]\na = 1", "`store` must be a string, not a section"),
        ("store = ", "is not TOML: Invalid value (at the end, line 1"),
        ("month_budget_usd = -1", "month_budget_usd=-1 must be above 0 and at most 1,000,000"),
        ("month_budget_usd = 0", "month_budget_usd=0 must be above 0"),
        ("month_budget_usd = 1e9", "must be above 0 and at most 1,000,000"),
        ("month_budget_usd = nan", "`month_budget_usd` must be an amount of dollars, not nan"),
        ('month_budget_usd = "20"', "must be an amount of dollars, not the string"),
    ],
)
def test_a_faulty_config_file_is_named_with_the_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = write_config(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_settings({}, home=tmp_path)
    assert str(path) in caught.value.message
    assert expected in caught.value.message


COMMENTED = """# mine, since March
store = "s3://ada/runs"   # the big one

month_budget_usd =  50    # until the grant comes
cloud = "lambda"
"""


def test_a_month_has_no_budget_until_one_is_set(tmp_path: Path) -> None:
    assert read_month_budget(tmp_path / "config.toml") is None


def test_budget_is_set_in_a_file_that_did_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "gptctl" / "config.toml"
    set_month_budget(path, Decimal("199.90"))
    assert read_month_budget(path) == Decimal("199.9")
    assert path.read_text() == "month_budget_usd = 199.90\n"


def test_budget_is_changed_where_it_stands_and_nothing_else_is(tmp_path: Path) -> None:
    path = write_config(tmp_path, COMMENTED)
    set_month_budget(path, Decimal("2E+2"))
    assert path.read_text() == COMMENTED.replace("50 ", "200 ")
    set_month_budget(path, None)
    assert path.read_text() == COMMENTED.replace(
        "month_budget_usd =  50    # until the grant comes\n", ""
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('cloud = "aws"', 'cloud = "aws"\nmonth_budget_usd = 20\n'),
        ('# cloud\r\ncloud = "aws"\r\n', '# cloud\r\ncloud = "aws"\r\nmonth_budget_usd = 20\r\n'),
        ("# month_budget_usd = 7\n", "# month_budget_usd = 7\nmonth_budget_usd = 20\n"),
        ("month_budget_usd = 7", "month_budget_usd = 20"),
    ],
)
def test_budget_is_added_at_the_end(tmp_path: Path, before: str, after: str) -> None:
    path = write_config(tmp_path, "")
    path.write_bytes(before.encode())
    set_month_budget(path, Decimal(20))
    assert path.read_bytes().decode() == after


def test_a_budget_that_stands_where_it_cannot_be_found_is_left_alone(tmp_path: Path) -> None:
    path = write_config(tmp_path, text := '"month_budget_usd" = 7\n')
    with pytest.raises(UsageError, match="is not on a line of its own"):
        set_month_budget(path, Decimal(20))
    assert path.read_text() == text


def test_a_line_inside_a_string_is_not_taken_for_the_key(tmp_path: Path) -> None:
    path = write_config(tmp_path, text := 'store = """\nmonth_budget_usd = 7\n"""\n')
    with pytest.raises(UsageError, match="is not on a line of its own"):
        set_month_budget(path, Decimal(20))
    assert path.read_text() == text


@pytest.mark.parametrize("usd", [Decimal(0), Decimal(-3), Decimal("1e7")])
def test_an_absurd_budget_is_not_written(tmp_path: Path, usd: Decimal) -> None:
    path = write_config(tmp_path, COMMENTED)
    with pytest.raises(UsageError, match="month_budget_usd="):
        set_month_budget(path, usd)
    assert path.read_text() == COMMENTED


def test_a_faulty_file_is_not_written_over(tmp_path: Path) -> None:
    path = write_config(tmp_path, "stor = 1\n")
    with pytest.raises(UsageError, match="unknown key `stor`"):
        set_month_budget(path, Decimal(20))
    assert path.read_text() == "stor = 1\n"


def test_a_linked_private_file_stays_linked_and_private(tmp_path: Path) -> None:
    path = write_config(tmp_path, "")
    real = tmp_path / "dotfiles.toml"
    real.write_text('cloud = "aws"\n')
    real.chmod(0o600)
    path.unlink()
    path.symlink_to(real)
    set_month_budget(path, Decimal(20))
    assert path.is_symlink()
    assert read_month_budget(real) == 20
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
