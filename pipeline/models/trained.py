"""The folder with a trained model, for the stages that use it."""

from pathlib import Path

from pipeline.errors import UserError, reason
from pipeline.models.base import check_finite, load_base
from pipeline.models.device import keep_memory
from pipeline.models.learned import base_of, check_base, load_learned
from pipeline.thought.methods import NO_THOUGHT
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM


def load_plain(folder: Path) -> QuietStarForCausalLM:
    """The base model in ``folder``, ready to predict, to be asked as a trained one is. Raises UserError as above."""
    keep_memory()
    return QuietStarForCausalLM.from_base(load_base(folder), meta_token_ids=[0], method=NO_THOUGHT).eval()


def check_trained(folder: Path) -> None:
    """Raise UserError where ``folder`` holds no model, or another kind; its weights are not read."""
    config = _config(folder)
    if config.get("model_type") != QuietStarConfig.model_type:
        raise UserError(f"{folder} holds a {config.get('model_type')} model, not a trained Quiet-STaR one")


def load_trained(folder: Path) -> QuietStarForCausalLM:
    """The model in ``folder``, ready to predict, adapters merged where it holds some.

    Raises UserError where there is none, or another kind of model, or its base model is not there.
    """
    keep_memory()
    check_trained(folder)
    base = base_of(folder)
    if base is None:
        model = _whole(folder)
    else:
        check_base(folder, base)
        model = load_learned(folder, load_base(base))
    check_finite(model, folder)
    return model.eval()


def _whole(folder: Path) -> QuietStarForCausalLM:
    try:
        model, loading = QuietStarForCausalLM.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True
        )
    except Exception as error:  # transformers and safetensors each raise their own
        raise UserError(f"the model in {folder} cannot be read: {reason(error)}") from error
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise UserError(f"the weights in {folder} are not those of its config.json: {sorted(map(str, wrong))[0]}")
    return model


def known_positions(model: QuietStarForCausalLM) -> int | None:
    """How many positions the base model has; None where its configuration does not say."""
    return getattr(model.base.config.get_text_config(), "max_position_embeddings", None)


def check_room(model: QuietStarForCausalLM, needed: int, what: str) -> None:
    """Raise UserError where a text, or its last thought, would stand past the positions that the model knows."""
    known = known_positions(model)
    if known is not None and needed > known:
        need = "and its last thought need" if model.has_thoughts else "needs"
        raise UserError(f"{what} {need} {needed} positions, but the base model has {known}")


def _config(folder: Path) -> dict:
    try:
        config = QuietStarConfig.get_config_dict(folder, local_files_only=True)[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no trained model: run `dvc repro train`") from error
    if not config:
        raise UserError(f"{folder} holds no trained model: run `dvc repro train`")
    return config
