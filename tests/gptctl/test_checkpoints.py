import shutil

import pytest

from gptctl.checkpoints import list_steps, parse_which, pull, pull_cached, pull_exported
from gptctl.errors import BackendError, NotFoundError, UsageError
from tests.gptctl.run_folder import RunFolder
from training import manifest
from training.errors import CheckpointError


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "store")
    for step in (20, 40, 60):
        run.write_checkpoint(step)
    run.write_metrics(
        {"step": 20, "val_loss": 3.0},
        {"step": 40, "val_loss": 2.0},
        {"step": 50, "val_loss": 1.0},
        {"step": 60, "val_loss": 2.5},
    )
    return run


class Interfering:
    """A store in which something happens at the first download."""

    def __init__(self, store, action):
        self._store, self._action = store, action
        self.url = store.url

    def download(self, *arguments, **options):
        if self._action:
            action, self._action = self._action, None
            action()
        self._store.download(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self._store, name)


def damage(run, step, content=b"weights at zz"):
    (run.paths.checkpoint(step) / "model.safetensors").write_bytes(content)


def uncommit(run, step):
    manifest.drop(run.paths.checkpoints, step)


@pytest.mark.parametrize(("which", "step"), [("latest", 60), ("best", 40), (20, 20)])
def test_pulled_checkpoint_is_whole_and_verifies(run, tmp_path, which, step):
    to = tmp_path / "here" / "model"

    pulled = pull(run.store, run.run_id, which, to)

    assert (pulled.step, pulled.path, pulled.warnings) == (step, to, ())
    assert manifest.verify(to).step == step
    assert [file.name for file in pulled.files] == ["model.safetensors", "state.json"]
    assert [path.name for path in to.parent.iterdir()] == ["model"]


def test_checkpoint_without_a_manifest_does_not_exist(run, tmp_path):
    (run.paths.checkpoint(60) / "manifest.json").unlink()

    assert list_steps(run.store, run.run_id) == [20, 40]
    assert pull(run.store, run.run_id, "latest", tmp_path / "to").step == 40
    with pytest.raises(NotFoundError) as error:
        pull(run.store, run.run_id, 60, tmp_path / "to2")
    assert "20, 40" in error.value.hint


@pytest.mark.parametrize(
    "break_it",
    [
        lambda run: damage(run, 60),
        lambda run: damage(run, 60, b"short"),
        lambda run: (run.paths.checkpoint(60) / "model.safetensors").unlink(),
        lambda run: (run.paths.checkpoint(60) / "manifest.json").write_bytes(b"{"),
    ],
    ids=["tampered", "truncated", "missing", "manifest"],
)
def test_damaged_newest_is_passed_over_and_said_so(run, tmp_path, break_it):
    break_it(run)

    pulled = pull(run.store, run.run_id, "latest", tmp_path / "to")

    assert pulled.step == 40
    assert len(pulled.warnings) == 1
    assert "step-00000060" in pulled.warnings[0]


def test_damaged_best_gives_way_to_the_next_best(run, tmp_path):
    damage(run, 40)

    assert pull(run.store, run.run_id, "best", tmp_path / "to").step == 60


def test_damaged_checkpoint_asked_for_by_step_is_an_error(run, tmp_path):
    damage(run, 60)

    with pytest.raises(CheckpointError, match="sha256") as error:
        pull(run.store, run.run_id, 60, tmp_path / "to")

    assert "20, 40" in error.value.hint
    assert not (tmp_path / "to").exists()


def test_checkpoint_dropped_while_it_is_pulled_gives_way_to_the_newer(run, tmp_path):
    def retention():
        run.write_checkpoint(80)
        uncommit(run, 60)

    store = Interfering(run.store, retention)

    pulled = pull(store, run.run_id, "latest", tmp_path / "to")

    assert (pulled.step, pulled.warnings) == (80, ())


def test_manifest_cannot_write_outside_its_folder(run, tmp_path):
    path = run.paths.checkpoint(60) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"model.safetensors", b"../../../../model"))

    pulled = pull(run.store, run.run_id, "latest", tmp_path / "to")

    assert pulled.step == 40
    assert not (tmp_path / "model").exists()


def test_folder_in_use_is_never_written_to(run, tmp_path):
    (tmp_path / "note.txt").write_text("mine")

    with pytest.raises(UsageError, match="not an empty"):
        pull(run.store, run.run_id, "latest", tmp_path)


def test_export_that_fails_gives_its_reason_and_leaves_nothing(run, tmp_path):
    to = tmp_path / "new" / "model"

    with pytest.raises(BackendError, match="step 60 of small-3f9a could not be exported") as error:
        pull_exported(run.store, run.run_id, 60, to)  # its weights are none

    assert "Traceback" not in error.value.message
    assert list(to.parent.iterdir()) == []


def test_run_without_checkpoints_says_so(tmp_path):
    run = RunFolder(tmp_path / "store")

    with pytest.raises(NotFoundError, match="no latest checkpoint") as error:
        pull(run.store, run.run_id, "latest", tmp_path / "to")

    assert "none is committed yet" in error.value.hint


def test_best_needs_a_loss_measured_at_a_checkpoint(run, tmp_path):
    run.write_metrics({"step": 50, "val_loss": 1.0})

    with pytest.raises(NotFoundError) as error:
        pull(run.store, run.run_id, "best", tmp_path / "to")

    assert "--step latest" in error.value.hint


def test_cached_checkpoint_is_downloaded_once_and_again_when_damaged(run, tmp_path):
    cache = tmp_path / "cache"
    first = pull_cached(run.store, run.run_id, 40, cache)
    (run.paths.checkpoint(40) / "model.safetensors").rename(tmp_path / "kept")

    assert pull_cached(run.store, run.run_id, 40, cache) == first  # not asked of the store

    shutil.move(tmp_path / "kept", run.paths.checkpoint(40) / "model.safetensors")
    (first.path / "model.safetensors").write_bytes(b"weights at zz")
    pull_cached(run.store, run.run_id, 40, cache)
    assert manifest.verify(first.path).step == 40


@pytest.mark.parametrize("text", ["newest", "-1", "1.5", "", "²"])
def test_senseless_step_is_a_usage_error(text):
    with pytest.raises(UsageError, match="--step"):
        parse_which(text)
