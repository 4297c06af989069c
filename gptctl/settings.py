"""Settings: a flag, else the environment, else the user's config file, else a default.

Pure but for that one file: the environment and the home folder come in as values.
"""

import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from msgspec import Struct

from gptctl.errors import UsageError
from gptctl.strict_toml import decode_table, read_toml
from training.layout import write_atomic

STORE_VARIABLE = "GPTCTL_STORE"
CLOUD_VARIABLE = "GPTCTL_CLOUD"
NODE_ROOT_VARIABLE = "GPTCTL_NODE_ROOT"

_MOST_USD = 1_000_000


class Settings(Struct, frozen=True, kw_only=True):
    """`store`: a folder or `s3://…`; `node_root`: where the local backend's nodes work.

    `cloud` None leaves it to the recipe; `state`: notes on what was launched from here;
    `ledger`: what of the month's budget is taken; `config`: the file, which may not exist;
    `prices`: those that were refreshed; `experience`: how fast runs from here were.
    """

    store: str
    cloud: str | None
    node_root: Path
    state: Path
    ledger: Path
    config: Path
    prices: Path
    experience: Path


class ConfigFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `config.toml` may say."""

    store: str | None = None
    cloud: str | None = None
    node_root: str | None = None
    month_budget_usd: Decimal | None = None
    """For all runs of a calendar month (UTC) together."""

    def __post_init__(self) -> None:
        usd = self.month_budget_usd
        if usd is not None and not 0 < usd <= _MOST_USD:
            raise ValueError(f"month_budget_usd={usd} must be above 0 and at most {_MOST_USD:,}")


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
    path = config_path(env, home=home)
    config = read_config(path)
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
        ledger=data / "month",
        config=path,
        prices=_base_folder(env, "XDG_CACHE_HOME", home / ".cache") / "gptctl" / "prices.csv",
        experience=data / "experience.jsonl",
    )


def resolve(flag: str | None, variable: str | None, config: str | None, default: str) -> str:
    """The first that says something: an empty string says nothing."""
    return flag or variable or config or default


def read_config(path: Path) -> ConfigFile:
    """What the file says; nothing where there is none. Raises UsageError."""
    try:
        table = read_toml(path)
    except FileNotFoundError:
        return ConfigFile()
    return decode_table(table, ConfigFile, where=lambda key: str(path))


def write_number(path: Path, key: str, value: Decimal | None) -> None:
    """Set that key of the config file, or with None take it out; the rest stays as it is.

    Raises UsageError for a file that makes no sense, or would make none then, and for one in
    which the key is not found where it must stand.
    """
    read_config(path)
    path = path.resolve()  # a link into somebody's dotfiles stays one
    before = path.read_bytes().decode() if path.exists() else ""
    after = _set_key(before, key, None if value is None else f"{value:f}")
    wanted = {k: v for k, v in tomllib.loads(before).items() if k != key}
    if value is not None:
        wanted[key] = tomllib.loads(f"x = {value:f}")["x"]
    if _load(after) != wanted:
        raise UsageError(f"`{key}` in {path} is not on a line of its own", hint="edit it by hand")
    decode_table(wanted, ConfigFile, where=lambda key: str(path))
    mode = path.stat().st_mode if path.exists() else None
    write_atomic(path, after.encode())
    if mode is not None:
        path.chmod(mode)


def _set_key(text: str, key: str, value: str | None) -> str:
    line = re.compile(
        rf"^([ \t]*{key}[ \t]*=[ \t]*)[^#\r\n]*?([ \t]*(?:#.*)?)(\r?\n|$)", re.MULTILINE
    )
    if value is None:
        return line.sub("", text)
    if line.search(text):
        return line.sub(lambda found: f"{found[1]}{value}{found[2]}{found[3]}", text)
    end = "\r\n" if "\r\n" in text else "\n"
    gap = end if text and not text.endswith("\n") else ""
    return f"{text}{gap}{key} = {value}{end}"


def _load(text: str) -> dict[str, object] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _base_folder(env: Mapping[str, str], variable: str, default: Path) -> Path:
    """An XDG base folder; the specification says that a relative one is to be ignored."""
    folder = Path(env.get(variable, ""))
    return folder if folder.is_absolute() else default


def expand_home(path: str, home: Path) -> str:
    """`~/runs` under `home`: no shell has read a config file, or what stands behind a `=`."""
    return str(home / path[2:]) if path.startswith("~/") else path
