"""SkyPilot's cost report, made up here: the real one is asked in tests/e2e."""

from decimal import Decimal

import pytest

from gptctl.backends import sky
from gptctl.backends.sky import SkyPilot
from gptctl.errors import BackendError


class Report:
    """SkyPilot, whose clusters cost that; `clusters` may be an error."""

    def __init__(self, clusters):
        self.clusters = clusters
        self.asked = []

    def cost_report(self, days):
        self.asked.append(days)
        return "request"

    def get(self, request):
        assert request == "request"
        if isinstance(self.clusters, Exception):
            raise self.clusters
        return self.clusters


@pytest.fixture
def ask(monkeypatch):
    def call(clusters, **options):
        report = Report(clusters)
        monkeypatch.setattr(sky.SkyPilot, "_sky", lambda self: report)
        return SkyPilot().cost_report(**options), report.asked

    return call


def cluster(name, duration, total_cost):
    return {"name": name, "duration": duration, "total_cost": total_cost}


def test_clusters_that_had_one_name_are_added_up_to_the_digit(ask):
    found, _ = ask([cluster("a-1", 60, 0.1), cluster("b-2", 7, 0.0), cluster("a-1", 30, 0.20004)])

    assert found == {"a-1": (90, Decimal("0.3000")), "b-2": (7, Decimal(0))}


def test_report_goes_back_as_far_as_is_asked(ask):
    assert ask([], days=400) == ({}, [400])


def test_skypilot_that_does_not_answer_is_a_fault_of_the_backend(ask):
    with pytest.raises(BackendError, match="what its clusters cost"):
        ask(RuntimeError("no server"))
