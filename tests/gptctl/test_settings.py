"""Settings come from a flag, else the environment, else the config file, else a default."""

from pathlib import Path

import pytest

from gptctl.errors import UsageError
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
