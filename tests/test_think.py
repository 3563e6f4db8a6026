"""What a person sees of a model's thoughts: benefits as losses say, each thought before its token, in colours."""

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipeline import think
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.models.prompts import prompt_ids
from pipeline.models.trained import load_trained
from pipeline.think import Seen, main, picture, pieces, see
from tests.local_hub import word_tokenizer
from tests.thought.tiny import KINDS, LLAMA, quiet_star

TEXT = "What is 12 and 42?\nthe & <b>"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def saved(folder: Path, **settings: object) -> Path:
    tokenizer = word_tokenizer()
    size = len(tokenizer)
    options = {"start_token_id": size - 2, "end_token_id": size - 1} | settings
    quiet_star(LLAMA | {"vocab_size": size}, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.mark.parametrize("kind", ["quiet_star", "pause", "ending"])
@torch.no_grad()
def test_a_tokens_benefit_and_thought(kind: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """One position at a time, from a text that ends there."""
    model = load_trained(saved(tmp_path, **KINDS[kind]))
    ids = prompt_ids(tokenizer, TEXT)
    first, *others = see(model, tokenizer, ids)
    assert (first.benefit, first.thought) == (None, None)
    for i, seen in enumerate(others):
        output = model(torch.tensor([ids[: i + 1]]))
        without, with_thought = (logits[0, -1].log_softmax(-1) for logits in (output.base_logits, output.logits))
        assert seen.benefit == pytest.approx((with_thought - without)[ids[i + 1]].item(), abs=1e-4)
        if kind == "pause":
            assert seen.thought is None
        else:
            length = output.thoughts.lengths[0, 0, -1]
            assert seen.thought == tokenizer.decode(output.thoughts.ids[0, 0, -1, :length])
    assert "".join(seen.text for seen in (first, *others)) == tokenizer.decode(ids)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_the_last_ones():
    """In a tokenizer of bytes, which has merged none of these."""
    tokenizer, text = train_tokenizer(["a b"], 300), "a café, 漢 🙂"
    parts = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(parts) == text and "é" in parts and parts[-4:] == ["", "", "", "🙂"]


def test_a_text_in_colours_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder, svg = saved(tmp_path / "model"), tmp_path / "seen.svg"
    main([str(folder), TEXT.replace("\n", r"\n"), "--svg", str(svg)])
    told = capsys.readouterr().out
    assert COLOUR.sub("", told).startswith(TEXT) and COLOUR.search(told)
    tokenizer = word_tokenizer()
    ids = prompt_ids(tokenizer, TEXT)
    rows = COLOUR.sub("", told)[len(TEXT) :].strip().splitlines()
    assert len(rows) == len(ids) and rows[0].split() == ["benefit", "token", "thought", "before", "it"]
    shown = "".join(ElementTree.parse(svg).getroot().itertext())
    assert "".join(shown.split()).startswith("Whatis12and42?⏎the&<b>") and "nats: before" in shown
    main([str(folder), TEXT, "--hide"])
    assert COLOUR.sub("", capsys.readouterr().out).strip() == TEXT


def test_a_picture_shows_control_characters_by_signs():
    """XML cannot hold most of them."""
    seen = [Seen("a\x00\x1b\t"), Seen("\x0c\n", 0.5, "\x01")]
    shown = "".join(ElementTree.fromstring(picture(seen, hide=False)).itertext())
    assert "a␀␛⇥" in shown and "␌⏎" in shown


def test_colours_grow_with_the_benefit():
    strengths = [think._colour(benefit)[0] for benefit in (None, 0.01, 0.1, 0.5, 1.5, 3.0, -0.01, -3.0)]
    assert strengths == [None, None, 194, 157, 120, 83, None, 203]


class Terminal:
    def __init__(self, lines: list[str]):
        self.lines = iter(lines)

    def __call__(self, *_: object) -> str:
        try:
            return next(self.lines)
        except StopIteration:
            raise EOFError from None


@pytest.mark.parametrize("hidden", [True, False])
def test_a_chat_shows_or_masks_thoughts(hidden: bool, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    folder, tokenizer = saved(tmp_path), word_tokenizer()
    monkeypatch.setattr("builtins.input", Terminal([r"What is 12?\nA:", "", "</s>", "the 42"]))
    main([str(folder), "--tokens", "4", *(["--hide"] if hidden else [])])
    told, model = capsys.readouterr().out, load_trained(folder)
    expected = []
    for line in ("What is 12?\nA:", "the 42"):
        ids = prompt_ids(tokenizer, line)
        written = model.generate(torch.tensor([ids]), max_new_tokens=4, eos_token_id=1)[0].tolist()
        new = see(model, tokenizer, written)[len(ids) :]
        assert [seen.thought for seen in see(model, tokenizer, written, len(ids))] == [seen.thought for seen in new]
        answer = "".join(f"⟨{seen.thought}⟩{seen.text}" for seen in new)
        expected.append(tokenizer.decode(written[len(ids) :], skip_special_tokens=True) if hidden else answer)
    assert COLOUR.sub("", told) == "\n".join([*expected, ""])
    assert ("⟨" in told) != hidden


def test_a_gated_chat_tells_how_much_was_thought_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for threshold, share in ((-1e9, "100%"), (1e9, "0%")):
        folder = saved(tmp_path / share, gate=True, gate_threshold=threshold)
        monkeypatch.setattr("builtins.input", Terminal(["the 42"]))
        main([str(folder), "--tokens", "4", "--gate"])
        assert f"thought about {share} of the tokens" in COLOUR.sub("", capsys.readouterr().out)


def test_a_chat_with_thoughts_after_a_marker_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Right after the line, which ends with it, and before none of the words that follow."""
    monkeypatch.setattr("builtins.input", Terminal(["the 42", "42 the"]))
    main([str(saved(tmp_path)), "--tokens", "1", "--marker", "42"])
    told = COLOUR.sub("", capsys.readouterr().out)
    assert re.findall(r"thought about (\d+%)", told) == ["100%", "0%"]


def test_a_chat_template_gets_the_whole_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    folder, tokenizer, asked = saved(tmp_path), word_tokenizer(), []
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr("builtins.input", Terminal(["the", "is"]))
    monkeypatch.setattr(think, "check_room", lambda model, needed, what: asked.append(needed))
    main([str(folder), "--tokens", "3", "--hide"])
    first, second = asked
    assert second > first + 3 and len(capsys.readouterr().out.splitlines()) >= 2


def test_a_line_of_a_chat_that_is_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Q: \xff\n"), "utf-8"))
    with pytest.raises(UserError, match="a line is not UTF-8"):
        main([str(saved(tmp_path))])


def test_mistakes(tmp_path: Path):
    folder = saved(tmp_path / "model")
    for arguments, message in (
        ([str(tmp_path), "a"], "holds no trained model"),
        ([str(saved(tmp_path / "none", method="no_thought")), "a b"], "has no thoughts: its method is no_thought"),
        ([str(folder), ""], "fewer than two tokens"),
        ([str(folder), "What " * 80], "the text and its last thought need"),
        ([str(folder), "--gate"], "has no gate: train one with train.gate"),
        (
            [str(saved(tmp_path / "gated", gate=True)), "a b", "--gate"],
            "--gate and --marker are for a chat: give no text",
        ),
        ([str(folder), "a b", "--marker", "A:"], "--gate and --marker are for a chat: give no text"),
        ([str(folder), "--marker", ""], "--marker is empty"),
        ([str(folder), "--tokens", "0"], "--tokens must be at least 1"),
        ([str(folder), "--temperature", "nan"], "--temperature a number of at least 0"),
        ([str(folder), "Q: \udcff"], "the text is not UTF-8"),
        ([str(folder), "a b", "--svg", str(tmp_path)], "is a folder, not a picture"),
        ([str(folder), "--svg", str(tmp_path / "x.svg")], "--svg writes a text as a picture: give a text"),
    ):
        with pytest.raises(UserError, match=message):
            main(arguments)
