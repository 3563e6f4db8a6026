"""What presets set: Hydra config groups in pipeline/preset/groups, expanded to parameters by dotted name."""

import string
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import errors, params, typed_yaml

PARSER = OverridesParser.create()  # DVC reads `-S` with it too
PRESETS = Path(__file__).parent / "groups"


def options(arguments: list[str], root: str | None = None) -> dict[str, object]:
    """The parameters that these groups (``data=gsm8k``) and values (``train.steps=5``) set, by dotted name.

    With ``root``, every data set is read from that folder. Raises UserError for a group or preset that does not exist,
    for values that params.yaml could not hold, and for values that a command line cannot carry to `dvc exp run`.
    """
    groups = [a for a in arguments if "." not in a.partition("=")[0]]
    for group in groups:
        if group not in known():
            raise errors.UserError(f"there is no preset {group}: there are {', '.join(known())}")
        typed_yaml.read(PRESETS / f"{group.replace('=', '/')}.yaml")  # for Hydra, bad YAML is a traceback
    try:
        with initialize_config_dir(str(PRESETS), version_base=None):
            found = params.flat(OmegaConf.to_container(compose("preset", overrides=groups), resolve=True))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise errors.UserError(errors.reason(error)) from error
    values = {}
    for word in (a for a in arguments if a not in groups):
        try:
            override = PARSER.parse_override(word)
        except HydraException as error:
            raise errors.UserError(f"{word} cannot be read as name=value: {errors.reason(error)}") from error
        if override.is_sweep_override():
            raise errors.UserError(f"{word} is several values to `dvc exp run`: write it into params.yaml")
        values[word.partition("=")[0]] = override.value()
    found |= params.flat(values)
    if root == "":
        raise errors.UserError("root= is empty: name the folder that holds the data sets")
    if root is not None:
        for split, rows in vars(params.load(changes=found).corpus.hub).items():
            found |= {f"corpus.hub.{split}.path": str(Path(root) / rows.path), f"corpus.hub.{split}.revision": None}
        found["tasks.root"] = root
    params.load(changes=found)
    for name, value in found.items():  # the shell splits at spaces, and DVC may take a value for another one
        text, readable = _text(value), False
        with suppress(HydraException):
            read = PARSER.parse_override(f"{name}={text}").value()
            readable = read == value and not set(text) & set(string.whitespace)
        if not readable:
            raise errors.UserError(f"{name} cannot be {text!r} on a command line: write it into params.yaml")
    return found


def known() -> list[str]:
    """Every preset, as ``group=name``."""
    return sorted(f"{path.parent.name}={path.stem}" for path in PRESETS.glob("*/*.yaml"))


def words(values: Mapping[str, object]) -> list[str]:
    """The values as ``key=value`` words, which `options` and `dvc exp run -S` read."""
    return [f"{name}={_text(value)}" for name, value in values.items()]


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(some)}" for name, some in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
