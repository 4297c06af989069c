import os
import subprocess
import sys

import pytest

from gptctl.backends.launched import Launched, Note, this_process


@pytest.fixture
def launched(tmp_path):
    return Launched(tmp_path / "launched")


def make_note(run_id="small-3f9a", **fields):
    values = {"store": "s3://b/p", "clouds": ("lambda", "aws"), "managed": False}
    return Note(run_id=run_id, **(values | fields))


def ended_process():
    """Of the id and the start of a process that is no more."""
    code = "import psutil, os; print(os.getpid(), psutil.Process().create_time())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, began = ran.stdout.split()
    return int(pid), float(began)


def test_note_is_read_as_it_was_written(launched):
    note = make_note(text="/home/ada/book.txt", managed=True, launcher=(17, 1234.5))
    launched.write(note)

    assert launched.read("small-3f9a") == note


def test_run_that_was_never_launched_from_here_has_no_note(launched):
    assert launched.read("small-3f9a") is None
    launched.forget("small-3f9a")
    assert launched.cut_short() == []


def test_forgotten_run_was_never_here(launched):
    launched.write(make_note())
    launched.forget("small-3f9a")

    assert launched.read("small-3f9a") is None


def test_damaged_note_is_none(launched, tmp_path):
    launched.write(make_note())
    (tmp_path / "launched" / "small-3f9a.json").write_text('{"run_id": "sm')

    assert launched.read("small-3f9a") is None
    assert launched.cut_short() == []


def test_launch_that_goes_on_is_not_cut_short():
    assert not make_note(launcher=this_process()).is_cut_short


def test_launch_that_has_finished_is_not_cut_short():
    assert not make_note(launcher=None).is_cut_short


def test_launch_whose_process_is_gone_is_cut_short(launched):
    launched.write(make_note("cut-0001", launcher=ended_process()))
    launched.write(make_note("under-way-0002", launcher=this_process()))
    launched.write(make_note("running-0003"))

    assert [note.run_id for note in launched.cut_short()] == ["cut-0001"]


def test_process_that_merely_has_the_same_id_is_another():
    pid, began = this_process()

    assert pid == os.getpid()
    assert make_note(launcher=(pid, began - 3600)).is_cut_short
