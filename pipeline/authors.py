"""The checkpoint format of the Quiet-STaR authors' own code, read into ours."""

from torch import Tensor
from transformers import MistralConfig

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

FORWARD_PASSES = 3  # their n_ahead counts the text pass, the start token and the end token beside the K sampled tokens


def from_authors(state: dict[str, Tensor], config: dict, **settings: object) -> QuietStarForCausalLM:
    """Our model from their state dict and the Mistral ``config`` beside it; ``settings`` are `QuietStarConfig`'s.

    Raises ValueError where the state dict is not one of theirs.
    """
    known = {*MistralConfig().to_dict(), "rope_theta"}  # transformers 5 takes the old name, and keeps it elsewhere
    base = MistralConfig(**{name: value for name, value in config.items() if name in known})
    model = QuietStarForCausalLM(QuietStarConfig(base=base.to_dict(), **settings))
    try:
        model.load_state_dict({_our_name(name): _mean_row(name, value) for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"not a checkpoint of the authors' code: {error}") from error
    return model


def _our_name(theirs: str) -> str:
    if theirs.startswith("talk_head.0."):
        return theirs.replace("talk_head.0.", "mixing_head.")
    return theirs if theirs in ("start_embedding", "end_embedding") else f"base.{theirs}"


def _mean_row(name: str, value: Tensor) -> Tensor:
    """Of a meta-token's two rows the mean; the paper's setting does not use the other, a log standard deviation."""
    return value[0] if name in ("start_embedding", "end_embedding") else value


def from_their_counts(n_ahead: int, n_ahead_talk: int, n_passes: int) -> dict[str, int]:
    """Our names and counts for theirs: K = n_ahead - 3, A = n_ahead_talk, R = n_passes."""
    return {"thought_tokens": n_ahead - FORWARD_PASSES, "lookahead": n_ahead_talk, "rationales": n_passes}
