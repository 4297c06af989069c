"""Model repositories of the Hub: who we are there, what is there, and sending a folder.

The Hub's client takes long to import: so does this module. The token is that of HF_TOKEN, or of
`hf auth login`; the Hub that of HF_ENDPOINT. Xet or plain uploads are the client's affair.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    disable_progress_bars,
    validate_repo_id,
)
from msgspec import Struct

from gptctl.errors import BackendError, UsageError

T = TypeVar("T")
SILENCE_S = 60.0
"""How long a connection may stay silent. huggingface_hub's own requests would wait for ever."""
BORN_WITH = frozenset({".gitattributes"})
"""What a repository has that nobody has put anything into."""


class Target(Struct, frozen=True, kw_only=True):
    """A repository as it is now; `commit` None: it is not there yet."""

    repo: str
    url: str
    commit: str | None = None
    private: bool = False
    files: tuple[str, ...] = ()


def check_name(repo: str) -> None:
    """Raises UsageError for what is no `owner/name`."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise _bad_name(repo, str(error)) from error
    if repo.count("/") != 1:
        raise _bad_name(repo, "it has no owner")


def look_at(repo: str) -> Target:
    """The repository, once it is sure that we may write to it, as far as the Hub tells.

    Raises UsageError for a bad name, BackendError: no token, no right, no network.
    """
    check_name(repo)
    owner = repo.partition("/")[0]
    if get_token() is None:
        raise BackendError(
            "there is no token of the Hub on this machine, and it takes one to publish",
            hint="make one that may write at https://huggingface.co/settings/tokens, then "
            "`hf auth login`, or set HF_TOKEN",
        )
    account = _ask(repo, lambda: HfApi().whoami())
    names = [account["name"], *(org["name"] for org in account.get("orgs", ()))]
    if owner.lower() not in (name.lower() for name in names):
        raise BackendError(
            f"the Hub's token is one of {account['name']}, who does not publish as {owner!r}",
            hint=f"owner is one of {', '.join(names)}, or set HF_TOKEN to another account's",
        )
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise _no_right(repo, "it is a token for reading only")
    url = f"{constants.ENDPOINT}/{repo}"
    try:
        info = _ask(repo, lambda: HfApi().model_info(repo, timeout=SILENCE_S), may_lack=True)
    except RepositoryNotFoundError:
        return Target(repo=repo, url=url)
    return Target(
        repo=repo,
        url=url,
        commit=info.sha,
        private=bool(info.private),
        files=tuple(sorted(file.rfilename for file in info.siblings or ())),
    )


def send(target: Target, folder: Path, *, private: bool, message: str) -> str:
    """The URL of the commit that holds all files of `folder`: all of them, or none.

    What an earlier try has uploaded is not sent again, and what lies there under other names
    stays. Raises BackendError; also where it has changed since it was looked at.
    """
    api = HfApi()
    repo = target.repo
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it advises, in the midst of talk
    if target.commit is None:
        _ask(repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
    commit = _ask(
        repo,
        lambda: api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            parent_commit=target.commit,
        ),
    )
    return str(commit.commit_url)


def _ask(repo: str, question: Callable[[], T], *, may_lack: bool = False) -> T:
    get_session().timeout = SILENCE_S
    try:
        return question()
    except OfflineModeIsEnabled as error:
        raise BackendError("HF_HUB_OFFLINE is set", hint="unset it to publish") from error
    except RepositoryNotFoundError as error:
        if may_lack:
            raise
        raise _no_right(repo, "it is not there, or hidden from this token") from error
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except RuntimeError as error:  # an upload's own words; what happened is behind them
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(repo, cause) from error
        raise _unfinished(repo, cause or error) from error
    except (httpx.RequestError, OSError, ValueError) as error:
        raise _unfinished(repo, error) from error


def _refusal(repo: str, error: HfHubHTTPError) -> BackendError:
    status = error.response.status_code
    said = error.server_message or _first_line(error)
    if status == 401:
        return BackendError(
            f"the Hub does not know the token that was sent: {said}",
            hint="`hf auth login` with a valid one, or set HF_TOKEN to it",
        )
    if status == 403:
        return _no_right(repo, said)
    if status == 412:
        return BackendError(
            f"{repo} was changed while this was prepared: nothing of it was replaced",
            hint="look at it, then publish once more",
        )
    if status == 429:
        return BackendError(
            f"the Hub takes no more requests from this account now: {said}",
            hint="publish later: what was uploaded is not sent again",
        )
    return _unfinished(repo, said)


def _no_right(repo: str, why: str) -> BackendError:
    return BackendError(
        f"the Hub's token gives no right to write to {repo}: {why}",
        hint="one with the role `write`, or a fine-grained one for this repository, from "
        "https://huggingface.co/settings/tokens",
    )


def _unfinished(repo: str, why: object) -> BackendError:
    told = _first_line(why) if isinstance(why, BaseException) else why
    return BackendError(
        f"publishing {repo} to {constants.ENDPOINT} came to no end: {told}",
        hint="publish once more: nothing is seen of a half, and what was uploaded is not sent "
        "again; check this machine's network and, if it is set, HF_ENDPOINT",
    )


def _bad_name(repo: str, why: str) -> UsageError:
    return UsageError(
        f"{repo!r} is no name of a repository: {_first_line(why)}",
        hint="owner/name, as in openai-community/gpt2; owner is your account or organization",
    )


def _first_line(error: object) -> str:
    """What the libraries say, without its paragraphs of advice."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
