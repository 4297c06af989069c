"""Which parquet files make up a config and a split of a data set on the Hub.

Read as `datasets` reads it, with its own functions: from `configs:` in the README, else from the
names of folders and files. Its `load_dataset_builder` is not used: it lists every file of the
first config to look at another, which for FineWeb are tens of thousands.
"""

from collections.abc import Mapping
from posixpath import commonpath, dirname
from typing import Any

from huggingface_hub import DatasetCard
from huggingface_hub.errors import RemoteEntryNotFoundError

from training.errors import DataError
from training.hub import HubFile, list_folder, open_file, some_of
from training.hub_asking import PATIENCE, Asked, Patience, ask

DEFAULT = "default"
"""What `datasets` calls the config of a repository that names none."""
PARQUET_COPY = "refs/convert/parquet"
"""The branch where the Hub keeps its own copy of a data set, in parquet: `CONFIG/SPLIT/*`."""


def config_files(
    repo: str, commit: str, config: str, split: str, *, patience: Patience = PATIENCE
) -> list[HubFile]:
    """The files of `split`, in the order in which `datasets` reads them. `config` may be "".

    Where the README names no configs, a config is a folder. Raises DataError: unknown config or
    split (with those that there are), no files, files that are not parquet, Hub out of reach.
    """
    asked = Asked(repo=repo, revision=commit)
    paths = ask(lambda: _paths(repo, commit, config, split), asked, patience)
    other = [path for path in paths if not path.endswith(".parquet")]
    if other:
        raise DataError(
            f"{repo} is not in parquet: {some_of(other)}",
            hint=f'the Hub keeps a copy that is: set data.revision = "{PARQUET_COPY}"',
        )
    there = list_folder(repo, commit, commonpath(map(dirname, paths)), patience=patience)
    files = {file.path: file for file in there}
    return [files[path] for path in paths]


def _paths(repo: str, commit: str, config: str, split: str) -> list[str]:
    # Imported here because it takes seconds, and what names its files needs none of it.
    from datasets.data_files import resolve_pattern  # type: ignore[import-untyped]  # noqa: PLC0415

    root = f"hf://datasets/{repo}@{commit}"
    base, patterns = _patterns(root, _read_configs(repo, commit), repo, config)
    if split not in patterns:
        raise DataError(
            f"{repo} has no split {split!r}" + (f" in its config {config}" if config else ""),
            hint=f"data.split is one of: {some_of(patterns)}",
        )
    found = []
    for pattern in patterns[split]:
        try:
            found += resolve_pattern(pattern, base_path=base)
        except FileNotFoundError:
            continue  # as `datasets` does, as long as another pattern finds something
    if not found:
        raise DataError(
            f"{repo} names files for its split {split!r} that it does not have",
            hint=f"its README says {some_of(patterns[split])}; choose another config or revision",
        )
    return [path.removeprefix(f"{root}/") for path in found]


def _patterns(
    root: str, configs: Mapping[str, Any], repo: str, config: str
) -> tuple[str, dict[str, list[str]]]:
    """Where the globs of the config start from, and those of each split."""
    from datasets.data_files import (  # noqa: PLC0415
        EmptyDatasetError,
        get_data_patterns,
        sanitize_patterns,
    )

    name = config or _default_name(configs, repo)
    if configs and name not in configs:
        raise DataError(
            f"{repo} has no config {config!r}",
            hint=f"data.config is one of: {some_of(configs)}",
        )
    fields = configs.get(name, {"data_dir": "" if name == DEFAULT else name})
    base = f"{root}/{fields.get('data_dir') or ''}".rstrip("/")
    try:
        named = fields.get("data_files")
        return base, sanitize_patterns(named) if named else get_data_patterns(base)
    except ValueError as error:
        raise _senseless(repo, error) from error
    except EmptyDatasetError as error:
        raise DataError(
            f"{repo} has no files for its config {name!r}"
            + ("" if configs else ", which would be a folder: its README names no configs"),
            hint="look at its files on the Hub, and choose data.config or data.revision by them",
        ) from error


def _default_name(configs: Mapping[str, Any], repo: str) -> str:
    """The config that is meant where none is named."""
    chosen = [name for name, fields in configs.items() if name == DEFAULT or fields.get("default")]
    names = chosen or list(configs) or [DEFAULT]
    if len(names) > 1:
        raise DataError(
            f"{repo} has several configs, and none was chosen",
            hint=f"data.config is one of: {some_of(configs)}",
        )
    return names[0]


def _read_configs(repo: str, commit: str) -> Mapping[str, Any]:
    """The configs of the README, by name; none where there is no README."""
    from datasets.utils.metadata import (  # type: ignore[import-untyped]  # noqa: PLC0415
        MetadataConfigs,
    )

    try:
        with open_file(repo, commit, "README.md") as response:
            text = response.read().decode("utf-8", errors="replace")
    except RemoteEntryNotFoundError:
        return {}
    try:
        configs: Mapping[str, Any] = MetadataConfigs.from_dataset_card_data(DatasetCard(text).data)
    except Exception as error:  # of YAML's own kinds too
        raise _senseless(repo, error) from error
    return configs


def _senseless(repo: str, error: Exception) -> DataError:
    return DataError(
        f"the README of {repo} does not say which files it is made of: {error}",
        hint=f'try the copy that the Hub keeps: data.revision = "{PARQUET_COPY}"',
    )
