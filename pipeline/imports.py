"""Which of the project's files a module runs, read from their import statements."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline/__init__.py"


def closure(path: Path) -> set[Path]:
    """The file and every project file that running it imports; what the package itself imports only registers."""
    found, left = set(), [path]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left.extend(filter(None, map(_file_of, _imported(one) if one != PACKAGE else ())))
    return found


def _imported(path: Path) -> Iterator[str]:
    """Every module of the project that a file names in an import, with the packages above it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = str(name).split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)) if parts[0] == "pipeline")


def _file_of(module: str) -> Path | None:
    stem = ROOT / module.replace(".", "/")
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)
