"""The guard against running another copy of the code than the workspace's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_code_from_elsewhere_is_refused(tmp_path: Path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", "stages.corpus"]
    ran = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: the code in use is ") and "Traceback" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]
