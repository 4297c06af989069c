"""What SkyPilot's errors mean to our users. By their names: this module does not import it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gptctl.errors import BackendError, CapacityError, GptctlError, PlanRefusedError

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_REFUSED = re.compile(r"api key|unauthorized|credential|\b40[13]\b", re.IGNORECASE)
_LONGEST = 600


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raises BackendError, or a kind of it, for whatever SkyPilot raised inside."""
    try:
        yield
    except (GptctlError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise explain(error, doing) from error


def explain(error: BaseException, doing: str) -> GptctlError:
    kind, text = type(error).__name__, plain(str(error))
    failed = f"SkyPilot could not {doing}"
    if kind == "ResourcesUnavailableError":
        return _explain_no_machine(error, doing)
    if kind in ("ApiServerConnectionError", "ConnectionError", "ChunkedEncodingError"):
        return BackendError(
            f"{failed}: its API server does not answer",
            hint="`sky api start` starts it, `sky api info` says where it is",
        )
    if kind in ("APIVersionMismatchError", "APINotSupportedError"):
        return BackendError(
            f"{failed}: its API server is of another version: {text}",
            hint="`sky api stop`, then `sky api start`, with the SkyPilot that gptctl installs",
        )
    if kind == "ApiServerAuthenticationError":
        return BackendError(f"{failed}: {text}", hint="`sky api login`")
    if kind == "NoCloudAccessError":
        return PlanRefusedError(
            "no cloud is enabled in SkyPilot", hint="`sky check` says what each of them lacks"
        )
    if kind in ("InvalidCloudCredentials", "CloudUserIdentityError", "PermissionDeniedError"):
        return PlanRefusedError(f"{failed}: {text}", hint="`gptctl doctor` tries each credential")
    if kind == "CommandError":
        return BackendError(f"{failed}: a command on the node failed: {text}")
    return BackendError(f"{failed}: {kind}: {text}", hint="`gptctl doctor` looks for what is wrong")


def plain(text: str) -> str:
    """Without colours, and no longer than a screen."""
    text = " ".join(_ANSI.sub("", text).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _explain_no_machine(error: BaseException, doing: str) -> GptctlError:
    """No capacity, or a refusal that only looks like it: SkyPilot raises one error for both."""
    reasons = list(dict.fromkeys(plain(str(e)) for e in getattr(error, "failover_history", ())))
    reasons = reasons or [plain(str(error))]
    told = "; ".join(reasons)
    if all(_REFUSED.search(reason) for reason in reasons):
        return PlanRefusedError(
            f"the cloud refused the credentials: {told}",
            hint="`gptctl doctor` tries each credential and says where it is read from",
        )
    return CapacityError(
        f"no cloud had such a machine to give: {told}",
        hint="`--wait HOURS` keeps asking; `--cloud any`, or other `--gpus`, ask more widely",
    )
