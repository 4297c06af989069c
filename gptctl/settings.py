"""Settings: a flag, else the environment, else the user's config file, else a default.

Pure but for reading that one file: the environment and the home folder come in as values.
"""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from gptctl.strict_toml import decode_table, read_toml

STORE_VARIABLE = "GPTCTL_STORE"
CLOUD_VARIABLE = "GPTCTL_CLOUD"
NODE_ROOT_VARIABLE = "GPTCTL_NODE_ROOT"


class Settings(Struct, frozen=True, kw_only=True):
    """`store`: a folder or `s3://…`; `node_root`: where the local backend's nodes work.

    `cloud` None leaves it to the recipe; `state`: notes on what was launched from here.
    """

    store: str
    cloud: str | None
    node_root: Path
    state: Path


class ConfigFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `config.toml` may say."""

    store: str | None = None
    cloud: str | None = None
    node_root: str | None = None


def config_path(env: Mapping[str, str], *, home: Path) -> Path:
    return _base_folder(env, "XDG_CONFIG_HOME", home / ".config") / "gptctl" / "config.toml"


def read_settings(
    env: Mapping[str, str],
    *,
    home: Path,
    store: str | None = None,
    cloud: str | None = None,
    node_root: str | None = None,
) -> Settings:
    """The settings in force; the named arguments are flags, None where none was given.

    Raises UsageError, naming the file and the key, for a config file that makes no sense.
    """
    config = _read_config(config_path(env, home=home))
    data = _base_folder(env, "XDG_DATA_HOME", home / ".local" / "share") / "gptctl"
    return Settings(
        store=expand_home(
            resolve(store, env.get(STORE_VARIABLE), config.store, str(data / "store")), home
        ),
        cloud=cloud or env.get(CLOUD_VARIABLE) or config.cloud or None,
        node_root=Path(
            expand_home(
                resolve(
                    node_root, env.get(NODE_ROOT_VARIABLE), config.node_root, str(data / "node")
                ),
                home,
            )
        ),
        state=data / "launched",
    )


def resolve(flag: str | None, variable: str | None, config: str | None, default: str) -> str:
    """The first that says something: an empty string says nothing."""
    return flag or variable or config or default


def _read_config(path: Path) -> ConfigFile:
    try:
        table = read_toml(path)
    except FileNotFoundError:
        return ConfigFile()
    return decode_table(table, ConfigFile, where=lambda key: str(path))


def _base_folder(env: Mapping[str, str], variable: str, default: Path) -> Path:
    """An XDG base folder; the specification says that a relative one is to be ignored."""
    folder = Path(env.get(variable, ""))
    return folder if folder.is_absolute() else default


def expand_home(path: str, home: Path) -> str:
    """`~/runs` under `home`: no shell has read a config file, or what stands behind a `=`."""
    return str(home / path[2:]) if path.startswith("~/") else path
