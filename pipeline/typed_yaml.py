"""YAML files that people write (parameters, tasks, grids), read as one of the project's dataclasses.

Only what a settings file needs is taken: no tags, no aliases (a few lines of them unfold to gigabytes), no key twice.
"""

import re
from collections.abc import Iterator, Mapping
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
LARGEST = 2**63 - 1  # what numpy and torch can count to
DEEPEST = 20  # levels of sections and lists in a file
TAG = "tag:yaml.org,2002:"
KINDS = {TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value")}


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the one in C takes a tenth of the time
    """PyYAML's safe loader; a date stays the text that it is."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != f"{TAG}timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load(path: Path, schema: type[T], changes: Mapping[str, object] | None = None) -> T:
    """The file as a ``schema`` (a dataclass), with ``changes`` by dotted name.

    Raises FileNotFoundError where there is none, UserError for one that does not say what a ``schema`` has.
    """
    given = read(path)
    for name, value in (changes or {}).items():
        _set(given, name.split("."), value)
    for problem in _misshapen(schema, given):
        raise UserError(f"{path}: {problem}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(_structured(schema), _literal(given)))
    except MissingMandatoryValue as error:
        raise UserError(f"{path}: {error.full_key} is missing") from error
    except ConfigKeyError as error:
        raise UserError(f"{path}: there is no key {error.full_key}") from error
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{path}: {f'{key}: ' if key else ''}{reason(error)}") from error


def _set(given: object, names: list[str], value: object) -> None:
    for name in names[:-1]:
        given = given.setdefault(name, {}) if isinstance(given, dict) else None
    if isinstance(given, dict):  # what is no section is told of when all is set
        given[names[-1]] = value


_structured = cache(OmegaConf.structured)  # half of the time; a merge copies it


def read(path: Path) -> object:
    """The file's values. Raises FileNotFoundError where there is none, UserError for one that is no plain YAML."""
    try:
        return _values(path.read_bytes())
    except FileNotFoundError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path} is not readable YAML: {place}{error.problem or error.context}") from error
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable YAML: {reason(error)}") from error


def _values(text: bytes) -> object:
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, set())
        return loader.construct_document(node)
    except (KeyError, IndexError, AttributeError) as error:  # as PyYAML ends at `!!bool perhaps` and `!!int ""`
        raise ConstructorError(problem="a tag on a value that is not of its kind") from error
    finally:
        loader.dispose()


def _check(node: yaml.Node, seen: set[int], depth: int = 0) -> None:
    if id(node) in seen:
        _refuse(node, "it is used again by an alias (*): write it out")
    if node.tag not in KINDS:
        _refuse(node, f"it has the tag {node.tag.replace(TAG, '!!')}, but values have no tags here")
    if depth > DEEPEST:
        _refuse(node, f"it is nested more than {DEEPEST} deep")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
    for child in _children(node):
        _check(child, seen, depth + 1)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.MappingNode) -> None:
    keys: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse(key, "a key must be a word")
        if key.value in keys:
            _refuse(key, f"the key {key.value} is there twice")
        keys.add(key.value)


def _refuse(node: yaml.Node, problem: str) -> None:
    raise ConstructorError(problem=problem, problem_mark=node.start_mark)


def _misshapen(schema: type, given: object, name: str = "") -> Iterator[str]:
    """Values of which OmegaConf's complaint has no name, or that it lets pass."""
    if not isinstance(given, Mapping):
        yield f"{name or 'the whole file'} is {given}, but must be a section" if name or given else "the file is empty"
        return
    for key, kind in get_type_hints(schema).items():
        full, value, kinds = f"{name}.{key}".removeprefix("."), given.get(key), (kind, *get_args(kind))
        if key not in given or (value is None and NoneType in kinds):
            continue
        section = next((some for some in kinds if is_dataclass(some)), None)
        if section is not None:
            yield from _misshapen(section, value, full)
        elif list in map(get_origin, kinds) and not _is_flat_list(value):
            yield f"{full} is {value}, but must be a list of single values"
        elif any(isinstance(some, int) and abs(some) > LARGEST for some in _single(value)):
            yield f"{full} is {value}, but must be at most {LARGEST}"


def _single(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _is_flat_list(value: object) -> bool:
    return isinstance(value, list) and not any(isinstance(some, list | dict) for some in value)


def _literal(value: object) -> object:
    """The values with their ``${`` as text: OmegaConf would read other keys and the environment, unseen by DVC."""
    if isinstance(value, dict):
        return {key: _literal(some) for key, some in value.items()}
    if isinstance(value, list):
        return [_literal(some) for some in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
