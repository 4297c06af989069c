import os
import subprocess
import sys

import pytest

from gptctl.backends import CLOUDS, open_backend, parse_clouds
from gptctl.backends.cloud import CloudBackend
from gptctl.backends.local import LocalBackend
from gptctl.errors import UsageError

LIST_CLOUDS = "from sky.skylet.constants import ALL_CLOUDS; print(*ALL_CLOUDS)"


def test_clouds_are_those_that_skypilot_drives(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", LIST_CLOUDS],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert sorted(CLOUDS) == sorted(ran.stdout.split())


@pytest.mark.parametrize(
    ("text", "clouds"),
    [
        ("lambda", ("lambda",)),
        ("Lambda", ("lambda",)),
        ("lambda,runpod, aws", ("lambda", "runpod", "aws")),
        ("aws,lambda,aws", ("aws", "lambda")),
        ("k8s", ("kubernetes",)),
        ("any", ("any",)),
        ("local", ("local",)),
    ],
)
def test_clouds_are_read_as_people_write_them(text, clouds):
    assert parse_clouds(text) == clouds


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("lamda", "there is no cloud 'lamda'; nearest: 'lambda'", "aws, azure"),
        ("lambda,runpd", "'runpd'; nearest: 'runpod'", "`local`, `any`"),
        ("moon", "there is no cloud 'moon'", "`local`, `any`, or one or several of: aws"),
        ("", "there is no cloud ''", "lambda"),
        ("lambda,", "there is no cloud ''", "lambda"),
        ("lambda,local", "stand alone", "lambda,runpod"),
        ("any,aws", "stand alone", "lambda,runpod"),
    ],
)
def test_cloud_that_is_none_is_refused_with_the_nearest(text, message, hint):
    with pytest.raises(UsageError) as refused:
        parse_clouds(text)

    assert message in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("clouds", "kind"), [(("local",), LocalBackend), (("lambda", "aws"), CloudBackend)]
)
def test_each_cloud_has_its_backend(tmp_path, clouds, kind):
    backend = open_backend(clouds, node_root=tmp_path, state=tmp_path, home=tmp_path, env={})

    assert isinstance(backend, kind)
    assert list(tmp_path.iterdir()) == []
