"""bitsandbytes, which `make test` puts where only the tests that use it find it; pyproject.toml says why."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "8bit"
needs_8_bits = pytest.mark.skipif(
    not ((FOLDER / ".ready").is_file() or find_spec("bitsandbytes")),
    reason="bitsandbytes is not installed: `make test` does so",
)


def find_8_bits() -> None:
    """Have this process find it."""
    sys.path.append(str(FOLDER))
