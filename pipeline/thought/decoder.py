"""Any transformers decoder, reduced to the four operations that thoughts need: embed, read, run rows, predict."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .attention import pick
from .head import Head
from .layout import pads_before_end, row_position_ids, text_position_ids
from .rows import Packing, Rows
from .views import NAME, KeyValueCache, TextView, ThoughtView, View

RANDOM = ("dropout", "_pdrop", "layerdrop", "jitter_noise")  # ends of the names of settings that add noise
CHECKED = 6  # tokens of the text, and of the thought, that a decoder is checked with
# differences that rounding makes: in float32 a share of what the text changes, and one of the logits; in half precision
EXACT, ROUNDING, ROUNDED = 1e-4, 1e-5, 0.05
NO_INTERFACE = "it does not use transformers' attention interface"
WINDOWS = ("sliding_window", "attention_chunk_size")  # tokens that a layer attends to; a config has them, or its layers


class UnsupportedDecoderError(ValueError):
    """The decoder cannot think in parallel: it bypasses transformers' attention interface or goes beyond it."""


class Decoder:
    """A causal language model of transformers, run on texts and on thought rows. Holds no weights of its own."""

    def __init__(self, base: PreTrainedModel):
        self._base = base

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (..., D) of ``ids`` (...)."""
        return self._base.get_input_embeddings()(ids)

    def read(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, attention: str = "auto"
    ) -> tuple[Tensor, TextView]:
        """The text pass: hidden states (B, N, D) and the view through which thoughts see the text.

        ``attention``: how thoughts will attend to it (`attention.pick`). Raises ValueError for an unknown name.
        """
        valid = attention_mask.bool() if pads_before_end(attention_mask) else None
        path = pick(attention, input_ids.device)
        view = TextView(text_position_ids(attention_mask, input_ids), valid, path)
        return self.run(self.embed(input_ids), view.position_ids, view), view

    def run_rows(
        self,
        embeddings: Tensor,
        text: TextView,
        positions: Tensor,
        packing: Packing,
        first: int = 0,
        own: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (m, S, D) of the packed rows of thoughts after ``positions`` (`Rows`), from ``embeddings``.

        The embeddings (m, S, D) are those of row tokens ``first`` on; ``own`` caches the earlier ones.
        """
        position_ids = row_position_ids(text.position_ids, positions, first, embeddings.shape[1])
        rows = Rows(positions, position_ids, text.position_ids, text.valid, first, packing.real)
        ids = packing.pack(position_ids.unsqueeze(1)).reshape(1, -1)
        view = ThoughtView(text, rows, packing, own)
        return self.run(embeddings.flatten(0, 1).unsqueeze(0), ids, view).view(embeddings.shape)

    def run(self, embeddings: Tensor, position_ids: Tensor, view: View) -> Tensor:
        """Last hidden states (B, L, D) of tokens with these embeddings (B, L, D) and position ids (B, L)."""
        output = self._base.base_model(
            inputs_embeds=embeddings, position_ids=position_ids, use_cache=False, look=view.attend, return_dict=True
        )
        return output.last_hidden_state

    @property
    def head(self) -> Head:
        """The LM head, its weight gathered where FSDP shards it. Raises UnsupportedDecoderError if that cannot be."""
        layer = self._base.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            raise UnsupportedDecoderError(f"{self._base.config.model_type}: its LM head is not a linear layer")
        if layer.weight.is_meta:
            raise UnsupportedDecoderError(
                "the LM head is offloaded (device_map), but a thought reads its weights itself"
            )
        if isinstance(layer, FSDPModule):
            layer.unshard()  # FSDP2 does so in a layer's own forward pass only, which is never run here
        config = self._base.config.get_text_config()
        # Cohere multiplies its logits, Granite divides them, Gemma 2 caps them
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(layer.weight, layer.bias, getattr(config, "final_logit_softcapping", None), scale)


def build_decoder(config: PretrainedConfig) -> PreTrainedModel:
    """A decoder with new weights and our attention, and without dropout.

    With dropout, the pass that scores a thought would differ from the one that sampled it.
    Raises UnsupportedDecoderError for a model that transformers cannot build so.
    """
    for name in vars(config):
        if name.endswith(RANDOM) and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    try:
        base = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    except ValueError as error:
        raise UnsupportedDecoderError(f"{config.model_type}: {_first_line(error)}") from error
    except KeyError:  # the model has its own table of attention classes
        base = None
    if base is None or not base._supports_attention_backend:
        raise UnsupportedDecoderError(f"{config.model_type}: {NO_INTERFACE}")
    return base


@torch.no_grad()
def check_decoder(base: PreTrainedModel) -> None:
    """Run a thought in parallel and as an ordinary sequence; raise UnsupportedDecoderError if the logits differ.

    The ordinary run is the model's own forward pass with eager attention. So this finds everything a model does that
    the views and `Head` do not (state-space layers, ALiBi, attention sinks, ...), without a list of supported models. A
    window that layers do not tell the attention interface of is found too, as it is made shorter than these texts.
    """
    if isinstance(getattr(base, "decoder", None), Decoder):
        raise UnsupportedDecoderError("it is a trained Quiet-STaR model: name the one that it was trained on")
    config = base.config.get_text_config()
    if not base._supports_attention_backend:
        raise UnsupportedDecoderError(f"{config.model_type}: {NO_INTERFACE}")
    ids = torch.arange(1, 3 * CHECKED + 1, device=base.device).unsqueeze(0) % config.vocab_size
    text, row, another = ids.split(CHECKED, dim=1)
    try:
        with _short_windows(base, CHECKED - 2):
            base.set_attn_implementation("eager")
            expected, elsewhere = (
                base(torch.cat([before, row], dim=1), use_cache=False).logits[:, CHECKED:] for before in (text, another)
            )
            base.set_attn_implementation(NAME)
            decoder = Decoder(base)
            _, view = decoder.read(text, attention="reference")
            last = torch.tensor([CHECKED - 1], device=base.device)
            rows = decoder.run_rows(decoder.embed(row), view, last, Packing((1, 1, 1)))
            actual = decoder.head.logits(rows)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        reason = f"a thought cannot be run in parallel ({_first_line(error)})"
        raise UnsupportedDecoderError(f"{config.model_type}: {reason}") from error
    # small new weights make little of the text: what comes of it is then far below the logits themselves
    difference, all_of_it, of_text = ((one - expected).float().norm() for one in (actual, 0.0, elsewhere))
    allowed = EXACT * of_text + ROUNDING * all_of_it if expected.dtype == torch.float32 else ROUNDED * all_of_it
    if not difference < allowed:
        share = f"{difference / all_of_it:.2g} of the logits, in which the text makes {of_text / all_of_it:.2g}"
        raise UnsupportedDecoderError(f"{config.model_type}: a thought run in parallel differs by {share}")


@contextmanager
def _short_windows(base: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Let the layers that have a window attend to at most ``tokens`` meanwhile."""
    places = [base.config.get_text_config(), *base.modules()]
    found = [(place, name, getattr(place, name, None)) for place in places for name in WINDOWS]
    found = [(place, name, value) for place, name, value in found if isinstance(value, int)]
    for place, name, value in found:
        setattr(place, name, min(value, tokens))
    try:
        yield
    finally:
        for place, name, value in found:
            setattr(place, name, value)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
