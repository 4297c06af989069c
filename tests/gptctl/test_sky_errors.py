import ast
import inspect
import os
import subprocess
import sys

import pytest

from gptctl.backends import sky_errors
from gptctl.backends.sky_errors import explain, plain, translated
from gptctl.errors import BackendError, CapacityError, PlanRefusedError, UsageError

BUILTIN_OR_REQUESTS = {"ConnectionError", "ChunkedEncodingError"}


def fake(name, text="it broke", **attributes):
    """An error of a class of that name, as which alone SkyPilot's are known here."""
    error = type(name, (Exception,), {})(text)
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def named_kinds():
    """The classes' names that the module compares with."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(sky_errors))):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "kind":
            found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return found


def test_every_error_that_is_named_exists_in_skypilot(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", "import sky.exceptions as e; print(*vars(e))"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert len(named_kinds()) > 5
    assert named_kinds() - BUILTIN_OR_REQUESTS <= set(ran.stdout.split())


@pytest.mark.parametrize(
    ("name", "kind", "message", "hint"),
    [
        ("ApiServerConnectionError", BackendError, "API server does not answer", "sky api start"),
        ("ConnectionError", BackendError, "API server does not answer", "sky api start"),
        ("ChunkedEncodingError", BackendError, "API server does not answer", "sky api start"),
        ("APIVersionMismatchError", BackendError, "another version: it broke", "sky api stop"),
        ("APINotSupportedError", BackendError, "another version: it broke", "sky api stop"),
        ("ApiServerAuthenticationError", BackendError, "it broke", "sky api login"),
        ("NoCloudAccessError", PlanRefusedError, "no cloud is enabled", "sky check"),
        ("InvalidCloudCredentials", PlanRefusedError, "it broke", "gptctl doctor"),
        ("CloudUserIdentityError", PlanRefusedError, "it broke", "gptctl doctor"),
        ("PermissionDeniedError", PlanRefusedError, "it broke", "gptctl doctor"),
        ("CommandError", BackendError, "a command on the node failed: it broke", ""),
        ("ResourcesUnavailableError", CapacityError, "it broke", "--wait HOURS"),
        ("ClusterOwnerIdentityMismatchError", BackendError, "MismatchError: it broke", "doctor"),
    ],
)
def test_each_error_says_what_why_and_what_to_do(name, kind, message, hint):
    found = explain(fake(name), "start the machine")

    assert type(found) is kind
    assert message in found.message
    assert hint in found.hint


def test_no_capacity_tells_each_reason_once():
    refused = fake("CloudError", "insufficient capacity in us-east-1")
    other = fake("CloudError", "insufficient capacity in us-west-1")
    error = fake("ResourcesUnavailableError", failover_history=[refused, refused, other])

    found = explain(error, "start the machine")

    assert found.message.endswith(
        "to give: insufficient capacity in us-east-1; insufficient capacity in us-west-1"
    )


@pytest.mark.parametrize(
    "why", ["Unauthorized", "API key was invalid", "HTTP 403: forbidden", "status code: 401"]
)
def test_refused_credentials_are_not_taken_for_a_lack_of_machines(why):
    history = [fake("CloudError", why)]
    found = explain(fake("ResourcesUnavailableError", failover_history=history), "start it")

    assert type(found) is PlanRefusedError
    assert why in found.message
    assert "gptctl doctor" in found.hint


def test_number_inside_another_is_no_refusal():
    history = [fake("CloudError", "no capacity for request 14012 of 4030")]
    found = explain(fake("ResourcesUnavailableError", failover_history=history), "start it")

    assert type(found) is CapacityError


def test_one_cloud_that_refuses_does_not_hide_that_another_may_yet_have_a_machine():
    history = [fake("CloudError", "Unauthorized"), fake("CloudError", "insufficient capacity")]
    found = explain(fake("ResourcesUnavailableError", failover_history=history), "start it")

    assert type(found) is CapacityError


def test_words_are_shown_without_colour_on_one_line_and_not_without_end():
    assert plain("\x1b[31mno\x1b[0m\n  machine") == "no machine"
    assert len(plain("x" * 10_000)) < 700


def test_foreign_error_is_translated_and_kept_as_the_cause():
    error = fake("NoCloudAccessError")

    with pytest.raises(PlanRefusedError) as refused, translated("start the machine"):
        raise error

    assert refused.value.__cause__ is error


@pytest.mark.parametrize("error", [UsageError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_not_skypilots_passes_through(error):
    with pytest.raises(type(error)) as seen, translated("start the machine"):
        raise error

    assert seen.value is error
