"""YAML files that people write (parameters, tasks, grids), read as one of the project's dataclasses.

Only what a settings file needs is taken: no tags, no aliases (a few lines of them unfold to gigabytes), no key twice.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.constructor import ConstructorError

from pipeline.errors import UserError, reason

T = TypeVar("T")
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
    for problem in _not_sections(schema, given):
        raise UserError(f"{path}: {problem}")
    try:
        config = OmegaConf.merge(_structured(schema), _literal(given))
        for name, value in (changes or {}).items():
            OmegaConf.update(config, name, _literal(value), force_add=False)
        return OmegaConf.to_object(config)
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{path}: {f'{key}: ' if key else ''}{reason(error)}") from error


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


def _not_sections(schema: type, given: object, name: str = "") -> Iterator[str]:
    """Values where a section belongs: OmegaConf's own complaint does not say which."""
    if not isinstance(given, Mapping):
        yield f"{name or 'the whole file'} is {given}, but must be a section"
        return
    for key, kind in get_type_hints(schema).items():
        section = next((some for some in (kind, *get_args(kind)) if is_dataclass(some)), None)
        absent = key not in given or (given[key] is None and section is not kind)
        if section is not None and not absent:
            yield from _not_sections(section, given[key], f"{name}.{key}".removeprefix("."))


def _literal(value: object) -> object:
    """The values with their ``${`` as text: OmegaConf would read other keys and the environment, unseen by DVC."""
    if isinstance(value, dict):
        return {key: _literal(some) for key, some in value.items()}
    if isinstance(value, list):
        return [_literal(some) for some in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
