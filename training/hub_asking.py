"""Asking the Hub: what may pass is asked again, what will not becomes a DataError.

Knows how the Hub refuses (rate limits, gates, unknown names) and nothing of what is asked.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
from msgspec import Struct

from training.errors import DataError

T = TypeVar("T")

SILENCE_S = 30.0
"""How long a connection may stay silent. huggingface_hub's own requests would wait for ever."""

_MAY_PASS = {408, 429, 500, 502, 503, 504}


class Patience(Struct, frozen=True, kw_only=True):
    """For how long the same thing is asked again, in seconds since it last got any further."""

    unreachable_s: float = 60.0
    """While no connection comes about."""
    refused_s: float = 360.0
    """While it answers 429 or 5xx, or connections break: its rate limits are for five minutes."""
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    """Waits double from the first to the longest, unless the Hub says how long to wait."""


PATIENCE = Patience()


class Asked(Struct, frozen=True, kw_only=True):
    """What a question is about, for the words of an error."""

    repo: str
    revision: str


def ask(
    question: Callable[[], T],
    asked: Asked,
    patience: Patience,
    *,
    progress: Callable[[], int] = int,
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """The answer to `question`, a call of huggingface_hub, asked until there is one.

    `progress` grows when a question that failed got further than the one before: then patience
    begins anew. Raises DataError. Other exceptions of `question` pass through.
    """
    began, reached, pause_s = time.monotonic(), progress(), patience.first_wait_s
    while True:
        get_session().timeout = SILENCE_S
        try:
            return question()
        except (OfflineModeIsEnabled, HFValidationError) as error:
            raise _refusal(error, asked) from error
        except HfHubHTTPError as error:
            if error.response.status_code not in _MAY_PASS:
                raise _refusal(error, asked) from error
            failure: httpx.HTTPError = error
        except httpx.RequestError as error:
            failure = error
        if progress() > reached:
            began, reached, pause_s = time.monotonic(), progress(), patience.first_wait_s
        spent_s = time.monotonic() - began
        unreachable = isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout)
        limit_s = patience.unreachable_s if unreachable else patience.refused_s
        wait_s = _asked_wait_s(failure)
        if spent_s >= limit_s or (wait_s or 0) > limit_s:
            raise _surrender(failure, asked, spent_s, wait_s) from failure
        wait(pause_s if wait_s is None else wait_s)
        pause_s = min(2 * pause_s, patience.longest_wait_s)


def _asked_wait_s(failure: httpx.HTTPError) -> float | None:
    """How long the Hub asks to be left alone; None where it does not say."""
    if not isinstance(failure, HfHubHTTPError):
        return None
    headers = failure.response.headers
    if said := headers.get("Retry-After"):
        if said.isdecimal():
            return float(said)
        try:
            until = parsedate_to_datetime(said)
        except ValueError:
            return None
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    window = parse_ratelimit_headers(headers)
    return None if window is None else window.reset_in_seconds + 1.0  # said in whole seconds


def _refusal(error: Exception, asked: Asked) -> DataError:
    repo, revision = asked.repo, asked.revision
    page = f"{constants.ENDPOINT}/datasets/{repo}"
    if isinstance(error, OfflineModeIsEnabled):
        return DataError(
            f"{repo} was not asked for: HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE, or train on your own text: `--data PATH`",
        )
    if isinstance(error, GatedRepoError):
        return DataError(
            f"{repo} is gated: the Hub gives its files only to those who accepted its terms",
            hint=f"accept them at {page}, and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, RevisionNotFoundError):
        return DataError(
            f"{repo} has no revision {revision!r}",
            hint=f"a commit, a branch or a tag of {page}: `--set data.revision=main`, say",
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return DataError(
            f"the Hub has no data set {repo!r}, or it is private",
            hint="its name is written owner/name, as in HuggingFaceFW/fineweb; for one that is "
            "private, set HF_TOKEN",
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status in (401, 403):
        return DataError(
            f"the Hub refused the token that was sent for {repo}: {_first_line(error)}",
            hint="set HF_TOKEN to a valid one that may read it, or unset it for public data sets",
        )
    return DataError(
        f"the Hub refused what was asked of {repo}: {_first_line(error)}",
        hint=f"look at {page}; is HF_ENDPOINT, if it is set, the address of a Hub?",
    )


def _surrender(
    failure: httpx.HTTPError, asked: Asked, spent_s: float, wait_s: float | None
) -> DataError:
    what = f"{asked.repo} could not be had from {constants.ENDPOINT}"
    if not isinstance(failure, HfHubHTTPError):
        return DataError(
            f"{what} in {spent_s:.0f} s: {_first_line(failure)}",
            hint="check this machine's network and, if it is set, HF_ENDPOINT; then prepare again",
        )
    if failure.response.status_code == 429:
        rest = f", and asks to wait {wait_s:.0f} s" if wait_s else f" for {spent_s:.0f} s"
        return DataError(
            f"{what}: it takes no more requests from here{rest}",
            hint="set HF_TOKEN, which raises the limit, or prepare again later",
        )
    return DataError(
        f"{what} in {spent_s:.0f} s: {_first_line(failure)}",
        hint="see https://status.huggingface.co, and prepare again later: it goes on from there",
    )


def _first_line(error: Exception) -> str:
    """What the libraries say, without its paragraphs of advice."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
