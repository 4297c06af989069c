"""A cloud's node without a cloud: what is started on it, what may go wrong there, and its end."""

import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.runs.node import OFFER, Node

pytestmark = pytest.mark.slow

A100 = "570.86.15, NVIDIA A100-SXM4-80GB, 81920, 0"
ENDLESS = 1_000_000


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path)
    yield one
    one.clean_up()


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path, steps=ENDLESS)
    yield one
    one.clean_up()


def test_a_bare_node_is_set_up_lives_the_run_and_goes_down(node: Node) -> None:
    said = node.live()
    status = node.status
    assert (status.state, status.step, status.life) == ("succeeded", 30, 1), said
    assert status.offer == OFFER
    phases = [line.phase for line in status.bill]
    assert phases[:3] == ["checking_hardware", "installing", "starting"]  # it had booted before
    assert status.bill[-1].phase == "going_down"
    assert status.bill[-1].seconds == 20
    assert {line.price_per_hour for line in status.bill} == {Decimal(36)}
    for stage in ("setup", "supervise", "prepare", "train"):
        assert node.stored.log(stage).stat().st_size, stage
    assert node.stored.record.exists()  # from the environment
    # $10 at a cent a second are 1000 s, of which some are gone.
    assert node.asked == [17, 0]


def test_a_run_that_is_over_is_not_lived_again_nor_anything_installed_twice(node: Node) -> None:
    node.live()
    ended = node.status
    said = node.live()
    assert "already installed" in said
    assert "succeeded already" in said
    assert node.status == ended
    assert node.asked == [17, 0, 0]


def test_a_killed_supervisor_is_followed_by_another_that_goes_on(endless: Node) -> None:
    node = endless
    bootstrap = node.start()
    node.wait_for_checkpoint()
    first = node.supervisor()
    first.kill()
    node.wait_until(lambda: node.count_events("training_resumed"))
    assert node.supervisor().pid != first.pid
    node.supervisor().terminate()
    node.wait(bootstrap)
    status = node.status
    assert (status.state, status.reason, status.life) == ("stopped", "user", 2)
    again = [line.phase for line in status.bill if line.life == 2]
    assert again[0] == "starting"  # since the last word of the life before
    assert "installing" not in again
    assert node.asked[-1] == 0


def test_a_supervisor_that_is_killed_again_and_again_is_given_up(endless: Node) -> None:
    node = endless
    bootstrap = node.start()
    for life in range(1, 5):
        node.wait_until(lambda life=life: node.count_events("life_started") == life)
        node.supervisor().kill()
    said = node.wait(bootstrap, exit_code=137)
    status = node.status
    assert (status.state, status.reason) == ("failed", "killed"), said
    assert "killed 4 times" in str(status.message)
    assert node.asked[-1] == 0
    node.wait_until(lambda: not node.processes())  # some still have to notice


def test_a_hung_supervisor_is_bypassed_when_the_machine_ends(endless: Node) -> None:
    node = endless
    bootstrap = node.start()
    node.wait_for_checkpoint()
    node.supervisor().send_signal(signal.SIGSTOP)
    said = node.rescue()
    assert "no sign of life" in said
    status = node.status
    assert (status.state, status.reason) == ("stopped", "user")
    assert "hung" in str(status.message)
    assert [line.phase for line in status.bill][-2:] == ["hung", "going_down"]
    # The step at which training was told to stop, not only the one that had been sent.
    assert node.steps[-1] == status.step
    bootstrap.communicate(timeout=60)  # another supervisor finds the run held, or ended
    assert bootstrap.returncode in (0, 1)
    assert node.status == status
    assert node.count_events("life_started") == 1
    node.wait_until(lambda: not node.processes())  # some still have to notice


def test_a_supervisor_that_is_at_work_ends_the_run_itself(endless: Node) -> None:
    node = endless
    bootstrap = node.start()
    node.wait_for_checkpoint()
    assert "it has ended" in node.rescue()
    assert (node.status.state, node.status.reason) == ("stopped", "user")
    node.wait(bootstrap)
    assert "nothing is to be saved" in node.rescue()


def test_what_ends_the_job_early_saves_the_run_first(endless: Node) -> None:
    node = endless
    bootstrap = node.start()
    node.wait_for_checkpoint()
    bootstrap.terminate()
    node.wait(bootstrap)
    assert (node.status.state, node.status.reason) == ("stopped", "user")
    assert node.steps[-1] == node.status.step
    # As it was told, and again at its end; in between the wall may still be armed.
    assert node.asked.count(0) == 2
    assert node.asked[-1] == 0


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ((), "no NVIDIA driver"),
        (("515.43.04, NVIDIA A100-SXM4-80GB, 81920, 0",) * 2, "driver is 515.43.04"),
        ((A100,), "shows 1 GPUs, the machine should have 2"),
        ((A100, "570.86.15, NVIDIA A10, 23028, 0"), "not alike"),
        ((A100, A100.replace(", 0", ", 3")), "uncorrected memory errors"),
    ],
)
def test_a_machine_that_cannot_train_is_told_and_given_back(
    node: Node, gpus: tuple[str, ...], message: str
) -> None:
    node.env["NODE_GPUS"] = "2"
    if gpus:
        node.add_gpus(*gpus)
    said = node.live(exit_code=1)
    status = node.status
    assert (status.state, status.reason) == ("failed", "setup"), said
    assert message in str(status.message)
    assert status.hint
    assert message in node.stored.log("setup").read_text()
    assert [line.phase for line in status.bill][-1] == "going_down"
    assert node.asked[-1] == 0


def test_cards_without_ecc_are_no_worse(node: Node) -> None:
    node.env["NODE_GPUS"] = "2"
    node.add_gpus(*("570.86.15, NVIDIA GeForce RTX 4090, 24564, [N/A]",) * 2)
    node.live()
    assert node.status.state == "succeeded"


def test_a_stack_that_cannot_be_installed_is_told_in_its_installers_words(node: Node) -> None:
    node.env["NODE_REQUIREMENTS"] = "no-such-stack==1.0"
    said = node.live(exit_code=1)
    status = node.status
    assert (status.state, status.reason) == ("failed", "setup"), said
    assert "no-such-stack" in str(status.message)
    assert node.asked[-1] == 0


def test_a_store_that_is_out_of_reach_still_lets_the_machine_go(node: Node) -> None:
    node.store.write_text("in the way")
    said = node.live(exit_code=1)
    assert "a file is where a folder should be" in said
    assert node.asked == [0]


def test_a_node_that_cannot_be_set_up_leaves_word_for_the_head(endless: Node) -> None:
    node = endless
    node.env |= {"NODE_COUNT": "2", "NODE_RANK": "1", "NODE_GPUS": "2"}
    node.live(exit_code=1)
    assert not node.stored.status.exists()  # the head's
    assert "no NVIDIA driver" in node.stored.log("setup-1").read_text()
    node.env |= {"NODE_RANK": "0", "NODE_GPUS": "0"}
    bootstrap = node.start()  # it waits for the other
    node.wait_until(lambda: node.processes("training.gpu_check"))
    bootstrap.terminate()  # as SkyPilot does where a node has failed
    node.wait(bootstrap, exit_code=1)
    assert (node.status.state, node.status.reason) == ("failed", "setup")
    assert "node 1 of 2: no NVIDIA driver" in str(node.status.message)
