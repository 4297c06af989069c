"""Sending a folder to a Hub on this machine, through the Hub's real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download

from gptctl.errors import BackendError, UsageError
from gptctl.model_hub import look_at, send
from tests.hub_server import Fault, HubServer, running_hub
from tests.hub_writes import MODELS, Account

# huggingface_hub's own, as it puts a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO, TOKEN = "ann/small-gpt", "hf_ann"
CARD = "---\nlibrary_name: transformers\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(tmp_path / "hub", monkeypatch) as server:
        server.sign_up(TOKEN, Account(name="ann", orgs=("lab",)))
        server.sign_up("hf_reader", Account(name="ann", role="read"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (made / "config.json").write_text("{}\n")
    (made / "README.md").write_text(CARD)
    return made


def publish(folder: Path, repo: str = REPO, *, private: bool = False) -> str:
    return send(look_at(repo), folder, private=private, message="a model")


def files_of(repo: str) -> list[str]:
    return sorted(HfApi().list_repo_files(repo))


@pytest.mark.parametrize("repo", [REPO, "lab/small-gpt"])
def test_a_folder_comes_down_as_it_went_up(hub: HubServer, folder: Path, repo: str) -> None:
    assert look_at(repo).commit is None
    url = publish(folder, repo, private=True)
    target = look_at(repo)
    assert url == f"{hub.url}/{repo}/commit/{target.commit}"
    assert target.private
    there = Path(snapshot_download(repo))
    for file in folder.iterdir():
        assert (there / file.name).read_bytes() == file.read_bytes()
    # A store of large files gets no token of ours.
    assert not [r for r in hub.requests_for("/lfs-upload/*") if r.token]


def test_what_else_a_repository_has_stays_and_nothing_is_committed_twice(
    hub: HubServer, folder: Path
) -> None:
    hub.commit(MODELS + REPO, {"README.md": b"# mine", "notes.txt": b"mine"})
    assert look_at(REPO).files == ("README.md", "notes.txt")
    first = publish(folder)
    assert files_of(REPO) == ["README.md", "config.json", "model.safetensors", "notes.txt"]
    assert (Path(snapshot_download(REPO)) / "README.md").read_text() == CARD
    assert publish(folder) == first
    assert len(hub.requests_for("*/commit/*")) == 1


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("", "no token"),
        ("hf_unknown", "does not know the token"),
        ("hf_reader", "for reading only"),
        (TOKEN, "ann, lab"),
    ],
)
def test_who_may_not_write_is_told_so_before_anything_is_made(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BackendError) as error:
        look_at("bob/model" if token == TOKEN else REPO)
    assert told in error.value.message + error.value.hint
    assert "hf_" not in error.value.message + error.value.hint
    assert not [r for r in hub.requests if r.method != "GET"]


@pytest.mark.parametrize("name", ["model", "ann/a b", "ann/b/c", "/b", "ann/" + "x" * 200, ""])
def test_a_name_that_is_none_is_told_without_asking_the_hub(hub: HubServer, name: str) -> None:
    with pytest.raises(UsageError, match="no name of a repository"):
        look_at(name)
    assert not hub.requests


def test_an_upload_that_breaks_shows_nothing_and_is_not_sent_again(
    hub: HubServer, folder: Path
) -> None:
    hub.inject(Fault(path="/api/models/*/commit/*", status=500))
    with pytest.raises(BackendError, match="came to no end") as error:
        publish(folder)
    assert "publish once more" in error.value.hint
    assert files_of(REPO) == [".gitattributes"]
    publish(folder)
    assert "model.safetensors" in files_of(REPO)
    assert len(hub.requests_for("/lfs-upload/*")) == 1


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/lfs-upload/*", 403, "no right to write"),
        ("/api/repos/create", 403, "no right to write"),
        ("/api/models/*/preupload/*", 401, "does not know the token"),
        ("/api/models/*/commit/*", 429, "no more requests"),
        ("/api/validate-yaml", 500, "came to no end"),
    ],
)
def test_a_hub_that_refuses_is_told_of_and_shows_nothing(
    hub: HubServer, folder: Path, path: str, status: int, told: str
) -> None:
    hub.inject(Fault(path=path, status=status, times=9))
    with pytest.raises(BackendError, match=told):
        publish(folder)
    assert look_at(REPO).files in ((), (".gitattributes",))


def test_a_repository_that_changed_since_it_was_looked_at_is_left_alone(
    hub: HubServer, folder: Path
) -> None:
    hub.commit(MODELS + REPO, {"README.md": b"# mine"})
    target = look_at(REPO)
    hub.commit(MODELS + REPO, {"README.md": b"# mine, too"})
    with pytest.raises(BackendError, match="was changed while"):
        send(target, folder, private=False, message="a model")
    assert files_of(REPO) == ["README.md"]


def test_without_a_network_it_says_so(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BackendError, match="came to no end") as error:
        look_at(REPO)
    assert "HF_ENDPOINT" in error.value.hint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackendError):
        look_at(REPO)
