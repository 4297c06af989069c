"""Logs of a rented run: one text out of the store and of a node that may die at any byte."""

import pytest

from gptctl.backends import LOCAL
from gptctl.backends.launched import Launched, Note
from gptctl.cli import main
from gptctl.errors import BackendError
from gptctl.log_stream import SILENT_S, follow_log, is_past
from gptctl.transcript import Transcript
from tests.gptctl.run_folder import NOW, FakeBackend, RunFolder
from tests.gptctl.test_cloud_view import RUN, RentedRun, look, view
from training.errors import StorageUnavailableError
from training.layout import run_key

TEXT = "step 1 loss 2,5 ∇\nstep 2 loss 2,25 ∇\nstep 3 loss 2,125 ∇\n".encode()
CHARACTER = TEXT.index("∇".encode(), 30) + 1
"""Inside the second line, and inside a character of three bytes."""


def test_each_byte_is_shown_once_whichever_source_has_it_first():
    text = Transcript()

    assert text.take(b"one\ntw") == b"one\ntw"
    assert text.add(b"two\nthr", at=4) == b"o\nthr"
    assert text.take(b"one\ntwo\n") == b""  # the store lags
    assert text.add(b"ne\n", at=1) == b""
    assert text.add(b"far", at=99) == b""
    assert text.take(b"one\ntwo\nthree\n") == b"ee\n"


@pytest.mark.parametrize("shared", [0, 1, 4, 6, 9])
def test_log_that_goes_on_from_before_lost_lines_is_shown_from_where_it_differs(shared):
    text, shown = Transcript(), b"aa\nbb\ncc\ndd\n"
    text.add(shown, at=0)
    other = shown[:shared] + b"XX\nYY\n"

    assert text.take(other) == other[shown[:shared].rfind(b"\n") + 1 :]
    assert text.size == len(other)
    assert text.take(other) == b""


class Scene:
    """A run, its store and its node, in which each look at the run is the next act."""

    def __init__(self, folder, *acts, state="training"):
        self.run = RentedRun(folder, state=state)
        self.node = FakeBackend("running")
        self.acts = iter(acts)
        self.lives = []
        self.opened_at = []
        self.waits = 0
        self.now = 0.0
        self.reads = 0

    def look(self):
        for act in self.acts:
            act()
            break
        self.reads += 1
        return look(self.run, self.node, launched=None)

    def store(self, size, stage="train"):
        return lambda: self.run.store.write(run_key(RUN, "logs", f"{stage}.log"), TEXT[:size])

    def end(self, size=None):
        def act():
            self.store(len(TEXT) if size is None else size)()
            self.run.write_status(state="succeeded")

        return act

    def open_live(self, offset):
        """The next of `lives`: where its bytes end; then it dies. None: it says nothing."""
        self.opened_at.append(offset)
        if not self.lives:
            return iter(())
        return self._live(offset, self.lives.pop(0))

    def _live(self, offset, end):
        if end is None:
            while True:
                self.now += 10
                yield b""
        for at in range(offset, end, 5):
            self.now += 0.1
            yield TEXT[at : min(at + 5, end)]
            yield b""

    def wait(self):
        self.waits += 1
        self.now += 5

    def follow(self, stage="train"):
        return list(
            follow_log(
                self.run.store,
                RUN,
                stage,
                self.look,
                open_live=self.open_live,
                wait=self.wait,
                poll_s=5.0,
                clock=lambda: self.now,
            )
        )


def test_live_log_that_dies_inside_a_character_goes_on_from_the_store(tmp_path):
    scene = Scene(tmp_path)
    scene.acts = iter([scene.store(10), lambda: None, scene.store(CHARACTER - 20), scene.end()])
    scene.lives = [CHARACTER]

    assert b"".join(scene.follow()) == TEXT
    assert scene.opened_at[0] == 10


def test_live_log_is_taken_up_again_where_the_store_had_brought_it(tmp_path):
    scene = Scene(tmp_path)
    scene.acts = iter([lambda: None, scene.store(30), lambda: None, scene.end()])
    scene.lives = [7, len(TEXT)]

    assert b"".join(scene.follow()) == TEXT
    assert scene.opened_at[:2] == [0, 30]


def test_store_is_left_alone_while_the_node_speaks(tmp_path):
    scene = Scene(tmp_path)

    class Counting:
        def __init__(self, store):
            self.store, self.listed, self.url = store, 0, store.url

        def list(self, prefix):
            self.listed += 1
            return self.store.list(prefix)

        def __getattr__(self, name):
            return getattr(self.store, name)

    def speak(offset):
        for _ in range(300):
            scene.now += 0.2
            yield b"x"

    store = Counting(scene.run.store)
    looks = iter([lambda: None] * 8)

    def next_look():
        if next(looks, None) is None:
            scene.run.write_status(state="succeeded")
        return look(scene.run, scene.node, launched=None)

    args = {"open_live": speak, "wait": scene.wait, "poll_s": 5.0, "clock": lambda: scene.now}
    assert b"".join(follow_log(store, RUN, "train", next_look, **args)).startswith(b"x" * 100)
    assert store.listed == 2  # before the node was asked, and at the end


def test_node_that_hangs_does_not_hide_what_the_store_has(tmp_path):
    scene = Scene(tmp_path)
    scene.acts = iter(
        [lambda: None, lambda: None, scene.store(40), *[lambda: None] * 9, scene.end()]
    )
    scene.lives = [None]

    assert b"".join(scene.follow()) == TEXT
    assert scene.now > SILENT_S


def test_lines_that_were_lost_with_their_machine_stay_and_the_next_machines_follow(tmp_path):
    scene = Scene(tmp_path)
    lost, kept = b"step 1\nstep 2\nlost\n", b"step 1\nstep 2\nagain\nend\n"
    key = run_key(RUN, "logs", "train.log")

    def end():
        scene.run.store.write(key, kept)
        scene.run.write_status(state="succeeded")

    scene.acts = iter([lambda: None, lambda: scene.run.store.write(key, kept[:14]), end])
    scene.open_live = lambda offset: iter([lost[offset:]] if not offset else [])

    assert b"".join(scene.follow()) == lost + b"again\nend\n"


def test_node_that_cannot_be_had_is_waited_for_and_not_asked_in_a_hurry(tmp_path):
    scene = Scene(tmp_path)
    scene.acts = iter([lambda: None] * 4 + [scene.end()])

    assert b"".join(scene.follow()) == TEXT
    assert scene.waits == len(scene.opened_at) == 4


def test_store_out_of_reach_for_a_while_makes_for_a_pause(tmp_path):
    scene = Scene(tmp_path)

    def fail():
        raise StorageUnavailableError("down")

    scene.acts = iter([scene.store(5), fail, fail, scene.end()])

    assert b"".join(scene.follow()) == TEXT
    with pytest.raises(StorageUnavailableError):
        Scene(tmp_path, fail).follow()


def test_backend_error_of_the_node_is_no_error_of_the_log(tmp_path):
    scene = Scene(tmp_path)

    def broken(offset):
        raise BackendError("no route")
        yield b""

    scene.open_live = broken
    scene.acts = iter([scene.store(5), scene.end()])

    assert b"".join(scene.follow()) == TEXT


def test_live_source_is_closed_when_nobody_listens_any_more(tmp_path):
    scene, closed = Scene(tmp_path), []

    def live(offset):
        try:
            while True:
                yield b"x"
        finally:
            closed.append(offset)

    scene.open_live = live
    chunks = follow_log(
        scene.run.store, RUN, "train", scene.look, open_live=live, wait=scene.wait, poll_s=5.0
    )
    while not next(chunks):
        pass
    chunks.close()

    assert closed == [0]


@pytest.mark.parametrize(
    ("stage", "state", "backend", "launching", "past"),
    [
        ("provision", "provisioning", "gone", "under_way", False),
        ("provision", "provisioning", "running", "under_way", False),
        ("provision", "provisioning", "running", "none", True),
        ("provision", "provisioning", "unknown", "none", False),
        ("provision", "preparing", "unknown", "none", True),
        ("setup", "provisioning", "running", "none", False),
        ("setup", "preparing", "running", "none", True),
        ("train", "preparing", "running", "none", False),
        ("prepare", "training", "running", "none", False),
        ("train", "succeeded", "running", "none", True),
    ],
)
def test_stage_is_past_when_nothing_more_is_to_be_expected(stage, state, backend, launching, past):
    assert is_past(stage, view(backend, 1.0, launching, state=state)) == past


def test_log_on_this_machine_is_followed_until_its_supervisor_lets_go(tmp_path):
    run = RunFolder(tmp_path, state="stopped")
    seen = [look(run, FakeBackend(state), launched=None) for state in ("running", "gone")]

    assert seen[0].cloud == LOCAL
    assert [is_past("train", v) for v in seen] == [False, True]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GPTCTL_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def backend(monkeypatch):
    backend = FakeBackend("gone")
    monkeypatch.setattr("gptctl.cli.session.open_backend", lambda *_, **__: backend)
    return backend


def test_logs_of_a_rented_run_tell_its_whole_story_in_order(home, backend, capsys):
    run = RentedRun(home / "store", state="succeeded")
    for stage in ("train", "provision", "setup", "supervise"):
        run.write_log(stage, f"{stage}\n")

    for words in ([], ["--follow"]):
        assert main(["logs", RUN, *words]) == 0
        assert capsys.readouterr() == ("provision\nsetup\ntrain\n", "")
    assert main(["logs", RUN, "--stage", "supervise"]) == 0
    assert capsys.readouterr().out == "supervise\n"


def test_set_up_is_told_by_the_machine_before_the_store_has_any_of_it(home, backend, capsys):
    run = RentedRun(home / "store", state="provisioning")
    run.write_log("provision", "made\n")
    backend.logs = lambda run_id: iter(["installing\n"])

    assert main(["logs", RUN]) == 0
    assert capsys.readouterr().out == "made\ninstalling\n"


def test_rented_run_without_any_log_says_so(home, backend, capsys):
    RentedRun(home / "store", state="provisioning", updated_at=NOW)

    assert main(["logs", RUN]) == 6
    assert "has logged nothing yet" in capsys.readouterr().err


def test_story_is_followed_from_stage_to_stage_live_from_the_node(
    home, backend, capsys, monkeypatch
):
    """On this clock the run is a run of now: its heartbeat is fresh."""
    from gptctl.cli.session import utc_now

    run = RentedRun(home / "store", state="provisioning", updated_at=utc_now())
    note = Note(run_id=RUN, store=str(run.folder), clouds=("lambda",), managed=False)
    Launched(home / "data" / "gptctl" / "launched").write(note)
    run.write_log("provision", "made\n")
    backend.now = "running"

    def live(run_id, stage, offset):
        if stage == "setup":
            yield b"installing \xe2\x88"
            yield b"\x87\n"
            run.write_status(state="training", updated_at=utc_now())
        elif stage == "train":
            yield b"step 1\nst"
            run.write_log("setup", "installing ∇\n")
            run.write_log("train", "step 1\nstep 2\n")
            run.write_status(state="succeeded", updated_at=utc_now())

    backend.follow_log = live
    monkeypatch.setattr("time.sleep", lambda s: None)

    assert main(["logs", RUN, "--follow"]) == 0
    assert capsys.readouterr().out == "made\ninstalling ∇\nstep 1\nstep 2\n"


FAKE_SSH = """#!/bin/sh
# Runs the last word here, as sshd would there.
for word; do last=$word; done
exec sh -c "$last"
"""


@pytest.fixture
def node(home, monkeypatch):
    """A node that is this machine: `ssh` runs its command in this home."""
    ssh = home / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:/usr/bin:/bin")
    config = home / ".sky" / "generated" / "ssh" / RUN
    config.parent.mkdir(parents=True)
    config.write_text("")
    log = home / "gptctl-node" / "runs" / RUN / "logs" / "train.log"
    log.parent.mkdir(parents=True)
    return log


def open_sky(home):
    from gptctl.backends.cloud import CloudBackend

    return CloudBackend(("lambda",), state=home / "st", home=home)


def test_log_of_a_node_is_read_from_any_byte_and_as_it_grows(home, node):
    node.write_bytes(TEXT)
    chunks = open_sky(home).follow_log(RUN, "train", CHARACTER)

    assert next(chunk for chunk in chunks if chunk) == TEXT[CHARACTER:]
    assert next(chunks) == b""  # nothing now: whoever follows can look elsewhere
    with node.open("ab") as file:
        file.write(b"more\n")
    assert next(chunk for chunk in chunks if chunk) == b"more\n"
    chunks.close()


def test_log_of_a_node_that_is_not_there_or_shorter_ends_at_once(home, node):
    backend = open_sky(home)
    assert b"".join(backend.follow_log(RUN, "train", 0)) == b""
    node.write_bytes(b"short")
    assert b"".join(backend.follow_log(RUN, "train", 6)) == b""
    assert b"".join(backend.follow_log("other-0001", "train", 0)) == b""
