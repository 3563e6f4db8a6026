"""What one clone has run, another takes from a DVC remote, a folder or S3, and then has nothing to run itself."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from omegaconf import OmegaConf

from tests.stage_runner import ENVIRONMENT, copy_project, make_repository

pytestmark = pytest.mark.slow
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester", "AWS_DEFAULT_REGION": "us-east-1"}
WHO = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PATHS = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
BUCKET = "quiet-star"
STAGES = ("corpus", "tasks", "tokenize")  # of the graph: those that train nothing


def call(folder: Path, *words: str) -> str:
    environment = os.environ | ENVIRONMENT | CREDENTIALS | WHO | PATHS
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[list[str]]]:
    """What configures a remote: its address and, for S3, the server's."""
    if request.param == "folder":
        yield [["remote", "add", "-d", "shared", str(tmp_path / "remote")]]
        return
    s3 = ThreadedMotoServer(port=0)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        endpoint = f"http://127.0.0.1:{port}"
        make_bucket(endpoint)
        yield [
            ["remote", "add", "-d", "shared", f"s3://{BUCKET}/dvc"],
            ["remote", "modify", "shared", "endpointurl", endpoint],
        ]
    finally:
        s3.stop()


def make_bucket(endpoint: str) -> None:
    import boto3

    keys = {"aws_access_key_id": "tester", "aws_secret_access_key": "tester"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=BUCKET)


def project(folder: Path, remote: list[list[str]]) -> Path:
    """A clone, on little data, of the graph's first stages, with a bare repository beside it."""
    copy_project(folder)
    make_repository(folder, STAGES, call)
    bare = folder.parent / "bare.git"
    call(folder.parent, "git", "init", "-q", "--bare", "-b", "main", str(bare))
    for words in remote:
        call(folder, "dvc", *words)
    call(folder, "git", "commit", "-qam", "a remote")
    call(folder, "git", "remote", "add", "origin", str(bare))
    return folder


def runs(output: str) -> int:
    return output.count("Running stage")


@pytest.mark.parametrize("server", ["folder", "s3"], indirect=True)
def test_a_second_clone_has_nothing_to_run(server: list[list[str]], tmp_path: Path):
    first = project(tmp_path / "first", server)
    assert runs(call(first, "dvc", "repro")) == len(STAGES)
    call(first, "git", "add", "dvc.lock")
    call(first, "git", "commit", "-qm", "what came out")
    change = "tokenize.span=20"
    call(first, "dvc", "exp", "run", "--name", "other", "-S", change)
    call(first, "git", "checkout", "-q", "--force", "main")
    call(first, "git", "push", "-q", "origin", "main")
    call(first, "dvc", "push", "--run-cache")
    call(first, "dvc", "exp", "push", "origin", "other")

    second = tmp_path / "second"
    call(tmp_path, "git", "clone", "-q", str(tmp_path / "bare.git"), str(second))
    call(second, "dvc", "pull", "--run-cache")
    assert runs(call(second, "dvc", "repro")) == 0
    assert "up to date" in call(second, "dvc", "status")
    for name in ("data/tokens/train.arrow", "data/corpus/texts/train.arrow"):
        assert (second / name).read_bytes()
    assert call(second, "git", "status", "--porcelain") == ""

    call(second, "dvc", "exp", "pull", "origin", "other")
    assert "other" in call(second, "dvc", "exp", "list")
    call(second, "dvc", "exp", "apply", "other")
    assert OmegaConf.load(second / "params.yaml").tokenize.span == 20
    assert runs(call(second, "dvc", "repro")) == 0
