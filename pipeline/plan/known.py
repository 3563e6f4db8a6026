"""The shapes of hub models; those of the presets' are known without a network."""

from pathlib import Path

import yaml
from transformers import AutoConfig

from pipeline.errors import UserError, reason
from pipeline.files import check_model_folder
from pipeline.models.shape import Shape, shape_from

KNOWN = Path(__file__).parent / "models.yaml"


def hub_shape(path: str, revision: str | None) -> Shape:
    """The shape of a hub model or local folder; the presets' models are known without a network.

    Raises UserError if there is no configuration, or if the model cannot be planned.
    """
    known = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    if path in known and known[path]["revision"] == revision:
        return shape_from(AutoConfig.for_model(**known[path]["config"]))
    check_model_folder(path)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise UserError(f"no configuration at {path}: {reason(error)}") from error
    return shape_from(config)
