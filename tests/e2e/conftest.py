"""The data centre of the session, and the bill that every test must leave empty."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cloud_user import CloudUser
from tests.e2e.datacentre import DataCentre
from tests.e2e.switched_off import NAMES, SwitchedOff

HERE = Path(__file__).parent
GRACE_S = 30.0  # for a terminate that was asked for in the test's last moment
TEST_TIMEOUT_S = 600  # the first test also pays for the data centre
LAST = "switched_off"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
    items.sort(key=_waits_longest)


def _waits_longest(item: pytest.Item) -> bool:
    return LAST in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def datacentre() -> Iterator[DataCentre]:
    with DataCentre() as centre:
        yield centre


@pytest.fixture(scope="session", autouse=True)
def started_early(datacentre: DataCentre, request: pytest.FixtureRequest) -> SwitchedOff | None:
    """What waits longest is started first, where it is among the tests of this session."""
    if not any(_waits_longest(item) for item in request.session.items):
        return None
    runs = SwitchedOff(datacentre)
    runs.start()
    return runs


@pytest.fixture
def switched_off(started_early: SwitchedOff | None) -> SwitchedOff:
    assert started_early is not None
    return started_early


@pytest.fixture(autouse=True)
def nothing_bills_after(datacentre: DataCentre) -> Iterator[None]:
    """Fails the test that leaves a VM, and ends the VM, so that the next test starts clean."""
    yield
    datacentre.clear_faults()
    left = datacentre.wait_until_empty(GRACE_S, but=NAMES)
    if left:
        datacentre.terminate(left)
        pytest.fail(f"still there, and billed, after the test: {left}")


@pytest.fixture
def user(datacentre: DataCentre, request: pytest.FixtureRequest) -> CloudUser:
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))
    return CloudUser(datacentre, name.strip("-")[:60])
