"""The data centre of the session, and the bill that every test must leave empty."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.background import MARK, Lane, lane_of
from tests.e2e.cloud_user import CloudUser
from tests.e2e.datacentre import DataCentre

HERE = Path(__file__).parent
GRACE_S = 30.0  # for a terminate that was asked for in the test's last moment
TEST_TIMEOUT_S = 600  # the first test also pays for the data centre
LANES: dict[str, Lane] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(lane): see tests/e2e/background.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
    items.sort(key=lambda item: lane_of(item) is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    lane = lane_of(pyfuncitem)
    if lane is None:
        return None
    LANES[lane].outcomes[pyfuncitem.nodeid].result(timeout=TEST_TIMEOUT_S - 20)
    return True


@pytest.fixture(scope="session")
def datacentre(request: pytest.FixtureRequest) -> Iterator[DataCentre]:
    with DataCentre() as centre:
        for item in request.session.items:
            if (name := lane_of(item)) is not None:
                if name not in LANES:
                    LANES[name] = Lane(centre, name)
                LANES[name].add(item)
        for lane in LANES.values():
            lane.start()
        yield centre
        left = centre.wait_until_empty(GRACE_S)
        centre.terminate(left)
        assert not left, f"still there, and billed, after the session: {left}"


@pytest.fixture(autouse=True)
def nothing_bills_after(datacentre: DataCentre) -> Iterator[None]:
    """Fails the test that leaves a VM, and ends the VM, so that the next test starts clean."""
    yield
    datacentre.clear_faults()
    left = datacentre.wait_until_empty(GRACE_S)
    if left:
        datacentre.terminate(left)
        pytest.fail(f"still there, and billed, after the test: {left}")


@pytest.fixture
def user(datacentre: DataCentre, request: pytest.FixtureRequest) -> CloudUser:
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))
    return CloudUser(datacentre, name.strip("-")[:60])
