"""What the Hub has: the commit behind a revision, and the files of a data set there.

Data set repositories only. Everything is asked at a commit, so that it stays the same while the
repository goes on. `hub_configs` knows which files a config is made of, `hub_fetch` brings them,
`hub_asking` words what goes wrong. A token is taken from HF_TOKEN, or from where
`hf auth login` put it.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import httpx
from fsspec.utils import glob_translate  # type: ignore[import-untyped]
from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from training.errors import DataError
from training.hub_asking import PATIENCE, SILENCE_S, Asked, Patience, ask
from training.layout import Record

REPO_TYPE = "dataset"
PUBLIC_ENDPOINT = "https://huggingface.co"
_NAMED_AT_MOST = 12


class HubFile(Record, frozen=True, kw_only=True):
    path: str
    """In the repository."""
    size_bytes: int
    sha256: str | None
    """None for the small files that the Hub keeps in git: it publishes no such hash of them."""


def resolve(repo: str, revision: str, *, patience: Patience = PATIENCE) -> str:
    """The commit that `revision` (a commit, branch or tag) is now.

    Raises DataError: unknown repository or revision, no right to its files, Hub out of reach.
    """

    def question() -> str:
        api = HfApi()
        info = api.dataset_info(repo, revision=revision, expand=["sha", "gated"], timeout=SILENCE_S)
        if info.gated:  # what it is may be seen by all, its files not
            api.auth_check(repo, repo_type=REPO_TYPE)
        assert info.sha, "a revision that is there has a commit"
        return info.sha

    return ask(question, Asked(repo=repo, revision=revision), patience)


def node_environment() -> dict[str, str]:
    """What a machine elsewhere needs in its environment to read the Hub as this one does: secrets.

    Empty where this machine has no token and asks the Hub itself.
    """
    named = {"HF_TOKEN": get_token()}
    if constants.ENDPOINT != PUBLIC_ENDPOINT:
        named["HF_ENDPOINT"] = constants.ENDPOINT
    return {name: value for name, value in named.items() if value}


def list_files(
    repo: str, commit: str, pattern: str, *, patience: Patience = PATIENCE
) -> list[HubFile]:
    """The files that match `pattern`, sorted by path: `sample/10BT/*.parquet`, `**/*.bin`.

    `*` stays within a folder. Only the folder that the pattern begins with is listed, as a
    repository may hold tens of thousands of files. Raises DataError where none match.
    """
    folder = _fixed_folder(pattern)
    there = list_folder(repo, commit, folder, patience=patience)
    matches = re.compile(glob_translate(pattern)).match
    found = [file for file in there if matches(file.path)]
    if not found:
        at_top = "" if there else " at its top"
        names = [f.path for f in there] or _top_names(repo, commit, patience)
        raise DataError(
            f"no file of {repo} matches {pattern} at revision {commit}",
            hint=f"it has{at_top}: {some_of(names)}",
        )
    return found


def list_folder(
    repo: str, commit: str, folder: str, *, patience: Patience = PATIENCE
) -> list[HubFile]:
    """All files below `folder` ("" is the root), sorted by path; none if it is not there.

    Raises DataError as `resolve` does.
    """

    def question() -> list[HubFile]:
        try:
            entries = HfApi().list_repo_tree(
                repo,
                path_in_repo=folder or None,
                recursive=True,
                revision=commit,
                repo_type=REPO_TYPE,
            )
            return [_hub_file(entry) for entry in entries if isinstance(entry, RepoFile)]
        except RemoteEntryNotFoundError:
            return []

    files = ask(question, Asked(repo=repo, revision=commit), patience)
    return sorted(files, key=lambda file: file.path)


@contextmanager
def open_file(
    repo: str, commit: str, path: str, *, first_byte: int = 0
) -> Iterator[httpx.Response]:
    """The answer that brings the file, to be read as it comes: status 206 from `first_byte` on.

    To be called by way of `ask`: raises what huggingface_hub and httpx raise.
    """
    url = hf_hub_url(repo, path, repo_type=REPO_TYPE, revision=commit)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        yield response


def some_of(names: Iterable[str]) -> str:
    """The names for a sentence: all of a few, the first of many."""
    found = list(names)
    rest = len(found) - _NAMED_AT_MOST
    return ", ".join(found[:_NAMED_AT_MOST]) + (f" and {rest:,} more" if rest > 0 else "")


def _hub_file(entry: RepoFile) -> HubFile:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    return HubFile(path=entry.path, size_bytes=entry.size, sha256=sha256)


def _fixed_folder(pattern: str) -> str:
    """The folder that all matches are in, as far as the pattern names it."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed.rpartition("/")[0]


def _top_names(repo: str, commit: str, patience: Patience) -> list[str]:
    def question() -> list[str]:
        entries = HfApi().list_repo_tree(repo, revision=commit, repo_type=REPO_TYPE)
        return sorted(
            entry.path if isinstance(entry, RepoFile) else f"{entry.path}/" for entry in entries
        )

    return ask(question, Asked(repo=repo, revision=commit), patience)
