"""What presets set: Hydra config groups in pipeline/preset/groups, expanded to parameters by dotted name."""

import string
from collections.abc import Mapping
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import errors, params, typed_yaml

PARSER = OverridesParser.create()
PRESETS = Path(__file__).parent / "groups"


def options(arguments: list[str], root: str | None = None) -> dict[str, object]:
    """The parameters that these groups (``data=gsm8k``) and values (``train.steps=5``) set, by dotted name.

    Raises UserError for a group or preset that does not exist, and for values that params.yaml could not hold.
    """
    groups = [a for a in arguments if "." not in a.partition("=")[0]]
    for group in groups:
        if group not in known():
            raise errors.UserError(f"there is no preset {group}: there are {', '.join(known())}")
    flat = _flat(_composed(groups)) | _flat(dict(map(_value, (a for a in arguments if a not in groups))))
    if root is not None:
        flat |= {k: str(Path(root) / v) for k, v in flat.items() if k.startswith("corpus.hub.") and k.endswith(".path")}
        flat |= _rooted_defaults(flat, root) | {"tasks.root": root}
        flat |= {f"corpus.hub.{split}.revision": None for split in ("pretrain", "train", "heldout")}
    params.load(changes=flat)
    for name, value in flat.items():
        _check_readable(name, value)
    return flat


def _composed(groups: list[str]) -> dict:
    for group in groups:
        typed_yaml.read(PRESETS / f"{group.replace('=', '/')}.yaml")  # Hydra has a traceback for one that is no YAML
    try:
        with initialize_config_dir(str(PRESETS), version_base=None):
            return OmegaConf.to_container(compose("preset", overrides=groups), resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise errors.UserError(errors.reason(error)) from error


def _value(word: str) -> tuple[str, object]:
    """The name and the value in ``name=value``, as `dvc exp run` reads it."""
    try:
        override = PARSER.parse_override(word)
    except HydraException as error:
        raise errors.UserError(f"{word} cannot be read as name=value: {errors.reason(error)}") from error
    if override.is_sweep_override():
        raise errors.UserError(f"{word} is several values to `dvc exp run`: write it into params.yaml")
    return word.partition("=")[0], override.value()


def known() -> list[str]:
    """Every preset, as ``group=name``."""
    return sorted(f"{path.parent.name}={path.stem}" for path in PRESETS.glob("*/*.yaml"))


def words(values: Mapping[str, object]) -> list[str]:
    """The values as ``key=value`` words, which `options` and `dvc exp run -S` read."""
    return [f"{name}={_text(value)}" for name, value in values.items()]


def _rooted_defaults(flat: dict[str, object], root: str) -> dict[str, object]:
    """The data sets that the preset leaves as params.yaml has them, under ``root`` too."""
    hub = OmegaConf.load(params.PARAMS_FILE).corpus.hub
    names = {f"corpus.hub.{split}.path": source.path for split, source in hub.items()}
    return {name: str(Path(root) / path) for name, path in names.items() if name not in flat}


def _flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _check_readable(name: str, value: object) -> None:
    """Raise UserError for a value that the shell would split, or `dvc exp run` take for another one."""
    text = _text(value)
    try:
        readable = not set(text) & set(string.whitespace) and PARSER.parse_override(f"{name}={text}").value() == value
    except HydraException:
        readable = False
    if not readable:
        raise errors.UserError(f"{name} cannot be {text!r} on a command line: write it into params.yaml")


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
