"""YAML files that people write (parameters, tasks, grids), read as one of the project's dataclasses."""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml.constructor import ConstructorError

from pipeline.errors import UserError, reason

T = TypeVar("T")
DEEPEST = 20  # levels of sections and lists in a file
BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))
_structured = cache(OmegaConf.structured)  # takes half of the time of a load; a merge copies it


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the C parser takes a tenth of the time
    """PyYAML's safe loader, without aliases (a few lines unfold to gigabytes), repeated keys and deep nesting.

    Plain words are read as DVC reads them, by YAML 1.2: yes and no are text, and 010 and 1:30 are not 8 and 90.
    """

    depth = 0

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        if node in self.constructed_objects:
            raise ConstructorError(problem="aliases (*) are not allowed: write it out", problem_mark=node.start_mark)
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if str(key.value) in keys:
                raise ConstructorError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConstructorError(problem=f"more than {DEEPEST} levels of nesting", problem_mark=node.start_mark)
        value = super().construct_object(node, deep=True)
        self.depth -= 1
        return value


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in some if tag not in (BOOL, INT, FLOAT)]
    for first, some in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])
Loader.add_implicit_resolver(INT, re.compile("[-+]?(?:0|[1-9][0-9]*)$"), [*"-+0123456789"])
DECIMAL = (
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
Loader.add_implicit_resolver(FLOAT, re.compile(DECIMAL), [*"-+.0123456789"])


def load(path: Path, schema: type[T], changes: Mapping[str, object] | None = None) -> T:
    """Read the file as a ``schema`` (a dataclass), with ``changes`` by dotted name put on top.

    Raises UserError as `read` does, and if the content does not fit the schema.
    """
    given = read(path)
    if not isinstance(given, dict):
        raise UserError(f"{path} {'is empty' if given is None else 'must be a list of keys and their values'}")
    for name, value in (changes or {}).items():
        *sections, key = name.split(".")
        inner = given
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[key] = value
    try:
        return OmegaConf.to_object(OmegaConf.merge(_structured(schema), _prepared(schema, given, "")))
    except MissingMandatoryValue as error:
        raise UserError(f"{path}: {error.full_key} is missing") from error
    except ConfigKeyError as error:
        raise UserError(f"{path}: there is no key {error.full_key}") from error
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{path}: {f'{key}: ' if key else ''}{reason(error)}") from error


def read(path: Path) -> object:
    """The file's values. Raises UserError if there is no file, or if it is not plain YAML."""
    try:
        return yaml.load(path.read_bytes(), Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run from the project's root, or correct the name") from error
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # as of `!!int ""`
        mark, problem = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path} is not readable YAML: {place}{problem or reason(error)}") from error


def no_home(path: str | None) -> bool:
    """Whether a path begins with ~NAME, and nobody here has this name."""
    try:
        Path(path or "").expanduser()
    except RuntimeError:
        return True
    return False


def _prepared(kind: object, value: object, name: str) -> object:
    """``value`` as OmegaConf should take it for a field of type ``kind``.

    Raises ValueError for a section or list of the wrong shape, as OmegaConf does not name it. Escapes ``${``, with
    which OmegaConf would read other keys and the environment, unseen by DVC.
    """
    kinds = (kind, *get_args(kind))
    if value is None and NoneType in kinds:
        return None
    section = next(filter(is_dataclass, kinds), None)
    if list in map(get_origin, kinds):
        if not isinstance(value, list) or section is None and any(isinstance(item, list | dict) for item in value):
            raise ValueError(f"{name} is {value}, but must be a list of {'sections' if section else 'single values'}")
        items = [_prepared(section, item, f"{name}[{i}]") for i, item in enumerate(value)]
        for i, item in enumerate(items if section else ()):
            try:
                OmegaConf.merge(_structured(section), item)
            except OmegaConfBaseException as error:  # which does not say of which item
                raise ValueError(f"{name}[{i}].{error.full_key}: {reason(error)}") from error
        return items
    if section is not None:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value}, but must be a section")
        hints = get_type_hints(section)
        return {key: _prepared(hints.get(key), some, f"{name}.{key}".strip(".")) for key, some in value.items()}
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
