"""What one clone has run, another takes from a DVC remote, a folder or S3, and then has nothing to run itself."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from omegaconf import OmegaConf

from tests.chaos.kills import call
from tests.stage_runner import ENVIRONMENT, copy_project, make_repository

pytestmark = pytest.mark.slow
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET, RUNNING = "quiet-star", "Running stage"
STAGES = ("inputs", "corpus", "tasks", "tokenize")  # of the graph: those that train nothing


@pytest.fixture
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """The `dvc` commands that configure a remote: a folder, or a bucket on an S3 server of this process."""
    for name, value in (ENVIRONMENT | CREDENTIALS | {"DVC_NO_ANALYTICS": "1"}).items():
        monkeypatch.setenv(name, value)
    if request.param == "folder":
        yield [["remote", "add", "-d", "shared", str(tmp_path / "remote")]]
        return
    s3 = ThreadedMotoServer(port=0)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        endpoint = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        yield [
            ["remote", "add", "-d", "shared", f"s3://{BUCKET}/dvc"],
            ["remote", "modify", "shared", "endpointurl", endpoint],
        ]
    finally:
        s3.stop()


@pytest.mark.parametrize("remote", ["folder", "s3"], indirect=True)
def test_a_second_clone_has_nothing_to_run(remote: list[list[str]], tmp_path: Path):
    first, bare = copy_project(tmp_path / "first"), tmp_path / "bare.git"
    make_repository(first, STAGES, call)
    call(tmp_path, "git", "init", "-q", "--bare", "-b", "main", str(bare))
    for words in remote:
        call(first, "dvc", *words)
    call(first, "git", "commit", "-qam", "a remote")
    call(first, "git", "remote", "add", "origin", str(bare))
    assert call(first, "dvc", "repro").count(RUNNING) == len(STAGES)
    call(first, "git", "add", "dvc.lock")
    call(first, "git", "commit", "-qm", "what came out")
    call(first, "dvc", "exp", "run", "--name", "other", "-S", "tokenize.span=20")
    call(first, "git", "checkout", "-q", "--force", "main")
    call(first, "git", "push", "-q", "origin", "main")
    call(first, "dvc", "push", "--run-cache")
    call(first, "dvc", "exp", "push", "origin", "other")

    second = tmp_path / "second"
    call(tmp_path, "git", "clone", "-q", str(bare), str(second))
    call(second, "dvc", "pull", "--run-cache")
    assert call(second, "dvc", "repro").count(RUNNING) == 1  # inputs always run
    assert call(second, "dvc", "status").split() == ["inputs:", "always", "changed"]
    for name in ("data/tokens/train.arrow", "data/corpus/texts/train.arrow"):
        assert (second / name).read_bytes()
    assert call(second, "git", "status", "--porcelain") == ""

    call(second, "dvc", "exp", "pull", "origin", "other")
    assert "other" in call(second, "dvc", "exp", "list")
    call(second, "dvc", "exp", "apply", "other")
    assert OmegaConf.load(second / "params.yaml").tokenize.span == 20
    assert call(second, "dvc", "repro").count(RUNNING) == 1
