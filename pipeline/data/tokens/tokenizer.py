"""The tokenizer: trained on the corpus, or a pretrained model's own."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.errors import UserError, reason
from pipeline.files import check_model_folder
from pipeline.params import BaseModel

PAD, END = "<|pad|>", "<|end|>"
# labels like (A); words with the mark or space before them; single digits; other marks; line ends; other space
WORDS = r"\(\p{Lu}\)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most ``vocabulary`` tokens, which encodes any text without loss."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, END], show_progress=False)
    trainer.initial_alphabet = to_bytes.alphabet()
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def pretrained_tokenizer(params: BaseModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model ``params.path``. Raises UserError where there is none that the stages can use."""
    check_model_folder(params.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(params.model, revision=params.revision)
    except Exception as error:  # transformers, huggingface_hub and tokenizers each raise their own
        raise UserError(f"no tokenizer at {params.model}: {reason(error)}") from error
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:  # an empty one: files are missing
        raise UserError(f"no tokenizer at {params.path}: its files are missing")
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {params.path} is not a fast one, which token spans need")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"the tokenizer of {params.path} has neither a padding nor an end token")
    return tokenizer
