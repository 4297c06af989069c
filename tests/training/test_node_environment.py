"""What a rented node is given to reach the store: this machine's own credentials."""

import pytest

from training.errors import StorageError
from training.storage import node_environment

BUCKET = "s3://bucket/runs?endpoint_url=http://127.0.0.1:9000"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    for name in (
        "PROFILE",
        "ACCESS_KEY_ID",
        "SECRET_ACCESS_KEY",
        "SESSION_TOKEN",
        "DEFAULT_REGION",
    ):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_credentials_of_the_environment_are_passed_on(monkeypatch):
    wanted = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CA_BUNDLE", "")

    assert node_environment(BUCKET) == wanted


def test_credentials_of_a_profile_become_variables(tmp_path):
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = filed\n"
    )
    (tmp_path / "config").write_text("[default]\nregion = us-east-2\n")

    assert node_environment(BUCKET) == {
        "AWS_ACCESS_KEY_ID": "AKIAFILE",
        "AWS_SECRET_ACCESS_KEY": "filed",
        "AWS_DEFAULT_REGION": "us-east-2",
    }


def test_bucket_without_credentials_is_refused_and_says_where_they_go():
    with pytest.raises(StorageError) as refused:
        node_environment(BUCKET)

    assert "AWS_ACCESS_KEY_ID" in refused.value.hint


@pytest.mark.parametrize("url", ["/home/ada/store", "file:///store", "store"])
def test_folder_is_refused(url):
    with pytest.raises(StorageError, match="a folder of this machine") as refused:
        node_environment(url)

    assert "s3://bucket/prefix" in refused.value.hint


def test_url_that_carries_a_password_is_refused_without_repeating_it():
    with pytest.raises(StorageError) as refused:
        node_environment("s3://key:password@bucket/runs")

    assert "password@" not in refused.value.message + refused.value.hint
