"""Thought attention: the reference equals a loop over tokens, the other paths equal the reference."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from pipeline.thought import attention as pick
from pipeline.thought import attention_blocked as blocked
from pipeline.thought import attention_flex as flex
from pipeline.thought import attention_reference as reference
from pipeline.thought.layout import pads_before_end, row_position_ids, text_position_ids
from pipeline.thought.rows import Attend, Rows, Style
from pipeline.thought.views import causal_attention
from tests.thought.tiny import Largest, error, peak


@dataclass(frozen=True)
class Shape:
    """A call of `Attend`. ``fold``: H/G. ``padding``: tokens before each text's first."""

    positions: tuple[int, ...] = (1, 2, 5)
    texts: int = 2
    tokens: int = 7
    rationales: int = 2
    first: int = 0
    new: int = 3
    groups: int = 2
    fold: int = 2
    size: int = 4
    window: int | None = None
    softcap: float | None = None
    padding: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Call:
    """What `Attend` is given, and a gradient for what it returns."""

    rows: Rows
    inputs: tuple[Tensor, ...]
    style: Style
    gradient: Tensor

    def run(self, attend: Attend, inputs: tuple[Tensor, ...] | None = None) -> Tensor:
        query, key, value, text_key, text_value = inputs or self.inputs
        return attend(self.rows, query, key, value, (text_key, text_value), self.style)

    def outcome(self, attend: Attend) -> list[Tensor]:
        """The output, and the gradients of query, key, value and the text's key and value."""
        inputs = tuple(x.detach().requires_grad_() for x in self.inputs)
        output = self.run(attend, inputs)
        return [output, *torch.autograd.grad(output, inputs, self.gradient)]

    def to(self, dtype: torch.dtype) -> "Call":
        return replace(self, inputs=tuple(x.to(dtype) for x in self.inputs), gradient=self.gradient.to(dtype))


def make(shape: Shape, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Call:
    """Random numbers, laid out in memory as a decoder's layers do it: heads beside their token."""
    mask = None
    if shape.padding is not None:
        mask = (torch.arange(shape.tokens) >= torch.tensor(shape.padding)[:, None]).long().to(device)
    positions = torch.tensor(shape.positions, device=device)
    places = text_position_ids(mask, torch.zeros(shape.texts, shape.tokens, device=device))
    ids = row_position_ids(places, positions, shape.first, shape.new)
    rows = Rows(positions, ids, places, mask.bool() if pads_before_end(mask) else None, shape.first)
    generator = torch.Generator().manual_seed(0)
    heads, count = shape.groups * shape.fold, shape.rationales * len(positions)

    def normal(heads: int, *tokens: int) -> Tensor:
        numbers = torch.randn(shape.texts, *tokens, heads, shape.size, generator=generator, dtype=torch.float64)
        return numbers.movedim(-2, 1).to(device, dtype)

    query, gradient = (normal(heads, count, shape.new) for _ in range(2))
    key, value = (normal(shape.groups, count, shape.first + shape.new) for _ in range(2))
    text = [normal(shape.groups, shape.tokens) for _ in range(2)]
    return Call(rows, (query, key, value, *text), Style(0.7, shape.window, shape.softcap), gradient)


def alone(call: Call) -> Tensor:
    """Every token by itself: the keys that it sees, one softmax."""
    rows, style = call.rows, call.style
    query, key, value, text_key, text_value = call.inputs
    output, window = torch.empty_like(query), style.window or 10**9
    for b, h, row, s in torch.cartesian_prod(*map(torch.arange, query.shape[:4])).tolist():
        g, p = h // (query.shape[1] // key.shape[1]), row % len(rows.positions)
        place = rows.position_ids[b, p, s].item()
        seen = [
            (text_key[b, g, j], text_value[b, g, j])
            for j in range(rows.positions[p] + 1)
            if place - rows.text_position_ids[b, j] < window and (rows.valid is None or rows.valid[b, j])
        ]
        now = rows.first + s
        seen += [(key[b, g, row, t], value[b, g, row, t]) for t in range(now + 1) if now - t < window]
        scores = torch.stack([k @ query[b, h, row, s] * style.scaling for k, _ in seen])
        if style.softcap is not None:
            scores = style.softcap * torch.tanh(scores / style.softcap)
        output[b, h, row, s] = scores.softmax(0) @ torch.stack([v for _, v in seen])
    return output


VARIANTS = {
    "every position, the last one too": Shape(positions=tuple(range(7))),
    "grouped heads": Shape(groups=1, fold=3),
    "window": Shape(window=4, groups=3, fold=1),
    "window shorter than a row": Shape(window=2),
    "capped": Shape(softcap=0.9),
    "a thought at padding": Shape(positions=(0, 1, 4), padding=(3, 0)),
    "padding and all else": Shape(window=4, softcap=0.9, padding=(3, 0), first=2, new=2),
    "token by token, window": Shape(first=3, new=1, window=3),
}


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_reference_equals_a_loop_over_tokens(shape):
    call = make(shape)
    torch.testing.assert_close(call.run(reference.attend), alone(call), atol=1e-12, rtol=0)


@st.composite
def shapes(draw: Callable) -> Shape:
    tokens = draw(st.integers(1, 20))
    positions = draw(st.sets(st.integers(0, tokens - 1), min_size=1) | st.just(range(tokens)))
    few = st.integers(1, 3)
    return Shape(
        tuple(sorted(positions)),
        texts=draw(few),
        tokens=tokens,
        rationales=draw(few),
        first=draw(st.integers(0, 3)),
        new=draw(st.integers(1, 4)),
        groups=draw(few),
        fold=draw(few),
        size=draw(st.sampled_from([1, 2, 4, 5, 8, 16])),
    )


@contextmanager
def blocks(size: int | None, flash: bool) -> Iterator[None]:
    """Blocks of ``size`` positions (None: as they come), with flash attention or without."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if size is not None:
            monkeypatch.setattr(blocked, "SMALLEST_BLOCK", size)
            monkeypatch.setattr(blocked, "LARGEST_BLOCK", size)
        if not flash:
            monkeypatch.setattr(blocked, "has_flash", lambda _: False)
        yield


@settings(max_examples=100)
@given(shapes(), st.integers(1, 8), st.booleans())
def test_blocks_equal_the_reference(shape, size, flash):
    call = make(shape)
    with blocks(size, flash):
        actual = call.outcome(blocked.attend)
    for found, expected in zip(actual, call.outcome(reference.attend), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


LONG = Shape(positions=tuple(range(150)), tokens=150, new=6, size=16)  # of blocks as they come
FLASH = pytest.mark.parametrize("flash", [True, False], ids=["flash", "no flash"])


@FLASH
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str
)
def test_blocks_are_as_exact_as_their_numbers(dtype, tolerance, flash):
    """Compared with the reference in float64, on numbers that every dtype has."""
    call = make(LONG, torch.bfloat16)
    with blocks(None, flash):
        actual = call.to(dtype).outcome(blocked.attend)
    for found, expected in zip(actual, call.to(torch.float64).outcome(reference.attend), strict=True):
        assert found.dtype == dtype
        assert error(found.double(), expected) < tolerance


@FLASH
def test_scores_too_large_for_exp_are_no_trouble(flash):
    call = make(replace(LONG, positions=(0, 3, 149)))
    call = replace(call, style=replace(call.style, scaling=1e3))
    with blocks(2, flash):
        actual = call.outcome(blocked.attend)
    for found, expected in zip(actual, call.outcome(reference.attend), strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def test_the_flash_operator_is_there():
    """Without it tests of the fallback are all that runs, and training on a CPU is slow."""
    assert blocked.has_flash(torch.zeros(1))
    assert not blocked.has_flash(torch.zeros(1, device="meta"))


def largest(call: Call, attend: Attend) -> int:
    with Largest() as found:
        call.outcome(attend)
    return found.elements


@FLASH
def test_blocks_hold_no_scores(flash):
    """What waits for the backward pass grows with the text alone, and flash makes no tensor larger than the query."""
    waiting = {}
    for tokens in (64, 300):
        call = make(replace(LONG, positions=tuple(range(tokens)), tokens=tokens, texts=1), torch.float32)
        size = call.inputs[0].numel()
        with blocks(None, flash):
            waiting[tokens] = {a: peak(partial(call.outcome, a)) / size for a in (blocked.attend, reference.attend)}
    assert waiting[300][blocked.attend] < 4
    assert waiting[300][blocked.attend] <= waiting[64][blocked.attend]
    assert waiting[300][reference.attend] > 2 * waiting[64][reference.attend]
    assert largest(call, reference.attend) >= size // 16 * 300
    assert largest(call, blocked.attend) <= size


@pytest.mark.parametrize("attend", [reference.attend, blocked.attend], ids=["reference", "blocked"])
def test_the_text_is_not_repeated_for_thoughts_nor_for_heads(attend):
    """Many keys, few queries: no tensor is larger than the text's keys, which 3 x 4 rows and 2 x 3 heads share."""
    shape = Shape(positions=(397, 398, 399), tokens=400, texts=1, rationales=4, new=1, fold=3, size=64)
    call = make(shape, torch.float32)
    assert largest(call, attend) <= call.inputs[3].numel()


def taken(path: str, shape: Shape) -> str:
    """The path that `pick.attend` takes where it is given ``path``."""
    called: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in pick.PATHS:
            monkeypatch.setitem(pick.PATHS, name, lambda *_, name=name: called.append(name))
        make(shape).run(partial(pick.attend, path))
    return called.pop()


REFERENCE, BUT_FLEX, EVERY = ["reference"], ["reference", "blocked"], list(pick.PATHS)
EXPRESSED = {  # by which paths
    "padded on the left": (Shape(padding=(2, 0), size=16), REFERENCE),
    "a window one too short": (Shape(window=9, size=16), REFERENCE),
    "capped": (Shape(softcap=0.9, size=16), REFERENCE),
    "one position": (Shape(positions=(4,), size=16), REFERENCE),
    "the rest of a row": (Shape(size=16, first=2, new=2), BUT_FLEX),
    "a row of one token": (Shape(size=16, new=1), BUT_FLEX),
    "small heads": (Shape(size=8), BUT_FLEX),
    "plain": (Shape(size=16), EVERY),
    "a window as long as the text and a row": (Shape(size=16, window=10), EVERY),
    "padded on the right": (Shape(size=16, padding=(0, 0)), EVERY),
}


@pytest.mark.parametrize(("shape", "paths"), EXPRESSED.values(), ids=EXPRESSED.keys())
def test_what_a_path_cannot_express_is_left_to_the_reference(shape, paths):
    """And nothing else is."""
    assert [taken(path, shape) for path in EVERY] == [path if path in paths else "reference" for path in EVERY]


def test_where_flex_does_not_run_the_reference_does_and_one_line_says_so(caplog, monkeypatch):
    """The reason is the compiler's first line; what was asked for by name is not replaced."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no triton here\nand much more")

    assert flex.fails(torch.device("cpu")) is None or "backward" in flex.fails(torch.device("cpu"))
    monkeypatch.setattr(flex, "_kernel", lambda _: broken)
    assert flex.fails(torch.device("cpu")) == "no triton here"
    monkeypatch.setattr(pick, "flex_fails", lambda _: flex.fails(torch.device("cpu")))
    pick.pick.cache_clear()
    with caplog.at_level(logging.WARNING, logger=pick.__name__):
        assert [pick.pick(name, torch.device("cuda")) for name in ("auto", "auto", "flex")] == ["reference"] * 2 + [
            "flex"
        ]
    pick.pick.cache_clear()
    (record,) = caplog.records
    assert record.message == ("FlexAttention does not run here, so every score is in memory at once: no triton here")


def test_paths_are_picked_by_name_or_device_and_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(pick, "flex_fails", lambda _: None)
    pick.pick.cache_clear()
    by_device = [pick.pick("auto", torch.device(device)) for device in ("cpu", "cuda", "mps")]
    assert by_device == ["blocked", "flex", "reference"]
    assert all(pick.pick(path, torch.device(device)) == path for path in pick.PATHS for device in ("cpu", "cuda"))
    for name in ("flash", "Blocked", ""):
        with pytest.raises(ValueError, match=f"'{name}', but must be one of auto, reference, blocked, flex"):
            pick.pick(name, torch.device("cpu"))
    pick.pick.cache_clear()
    caplog.clear()  # a command that ran in this process has left the project's messages on
    with caplog.at_level(logging.INFO, logger=pick.__name__):
        for _ in range(3):
            pick.pick("auto", torch.device("cpu"))
        pick.pick("reference", torch.device("cpu"))
    expected = ["thought attention: blocked (cpu)", "thought attention: reference (cpu)"]
    assert [record.message for record in caplog.records] == expected


FLEX = {
    "every position": Shape(positions=tuple(range(7)), size=16),
    "grouped heads": Shape(groups=1, fold=3, size=16),
    "the text is a tile": Shape(positions=(0, 77, 127), tokens=128, size=16),
    "more than a tile": Shape(positions=tuple(range(90, 130)), tokens=130, size=16, groups=1, fold=1, texts=1),
    "the rows are a tile": Shape(positions=tuple(range(16)), tokens=16, new=4, size=16, groups=1, texts=1),
}


@pytest.fixture
def dynamo() -> None:
    """FlexAttention's compiler, without what earlier tests compiled: it stops after eight versions of a function."""
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("FlexAttention needs torch.compile, which does not run on this platform")
    torch._dynamo.reset()


@pytest.fixture
def compiled(dynamo: None, monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What FlexAttention is compiled to from now on, a graph a version; the graphs run as they are."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph

    kernel = torch.compile(flex_attention, dynamic=False, backend=backend)
    monkeypatch.setattr(flex, "_kernel", lambda _: kernel)
    return graphs


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.usefixtures("dynamo")
@torch.no_grad()
@pytest.mark.parametrize("shape", FLEX.values(), ids=FLEX.keys())
def test_flex_as_written_equals_the_reference(shape):
    """FlexAttention has no backward pass on CPUs; tests/thought/test_cuda.py has the rest."""
    call = make(shape, torch.float32)
    actual = call.run(flex.attend)
    assert actual.shape == call.inputs[0].shape
    assert error(actual, call.run(reference.attend)) < 1e-6


def test_a_block_mask_is_made_once_in_which_padded_queries_see_the_first_token_only():
    cpu = torch.device("cpu")
    mask = flex.block_mask(((0, 2),), 4, 4, 3, cpu)
    seen = mask.mask_mod(0, 0, torch.arange(12, 128)[:, None], torch.arange(256))
    assert mask.shape == (1, 1, 128, 256) and seen[:, 0].all() and not seen[:, 1:].any()
    assert flex.block_mask(((0, 2),), 4, 4, 3, cpu) is mask
    others = [(((0, 3),), 4, 4, 3), (((0, 2),), 5, 4, 3), (((0, 2),), 4, 6, 3), (((0, 2),), 4, 4, 2)]
    assert all(flex.block_mask(*other, cpu) is not mask for other in others)


def test_more_shapes_than_the_compilers_limit_are_all_compiled(compiled, monkeypatch):
    """Nothing falls back to every score at once; beyond our own limit there is an error."""
    with torch.no_grad():
        for tiles in range(1, 11):
            call = make(Shape(positions=(0, 100 * tiles), tokens=128 * tiles, size=16, texts=1), torch.float32)
            assert error(call.run(flex.attend), call.run(reference.attend)) < 1e-6
    shapes = {flex._round_up(128 * tiles) for tiles in range(1, 11)}
    assert len(compiled) == len(shapes) > 8
    monkeypatch.setattr(flex, "KERNELS", len(shapes))
    with pytest.raises(Exception, match="recompile_limit"):
        make(Shape(positions=(0, 1), tokens=5000, size=16, texts=1), torch.float32).run(flex.attend)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("texts", [1, 3])
def test_the_tiles_of_a_block_mask_are_those_that_its_rule_sees(texts: int):
    """Every tile that any of its queries sees is listed, no other, and the whole ones as whole."""
    generator = torch.Generator().manual_seed(0)
    for tokens, count, rationales, new in ((300, 40, 2, 7), (128, 9, 1, 3), (513, 130, 3, 1), (40, 40, 2, 8)):
        positions = torch.randint(tokens, (texts, count), generator=generator).sort(1).values
        at, cpu = tuple(map(tuple, positions.tolist())), torch.device("cpu")
        mask = flex.block_mask(at, tokens, rationales * count, new, cpu)
        queries, keys = mask.seq_lengths
        every = [
            mask.mask_mod(torch.tensor(b), 0, torch.arange(queries)[:, None], torch.arange(keys)) for b in range(texts)
        ]
        tiles = torch.stack(every).unflatten(2, (-1, flex.TILE)).unflatten(1, (-1, flex.TILE))
        seen, whole = tiles.any(4).any(2), tiles.all(4).all(2)
        for listed, counts, expected in (
            (mask.full_kv_indices, mask.full_kv_num_blocks, whole),
            (mask.kv_indices, mask.kv_num_blocks, seen & ~whole),
        ):
            found = torch.zeros_like(expected)
            for b, q in torch.cartesian_prod(torch.arange(texts), torch.arange(expected.shape[1])).tolist():
                found[b, q, listed[b, 0, q, : counts[b, 0, q]].long()] = True
            assert torch.equal(found, expected)


def test_flex_is_compiled_once_for_lengths_that_pad_to_one(compiled):
    """Past eight versions of a function, torch.compile runs it as written: every score at once, on any device."""
    with torch.no_grad():
        for tokens in (4, 5, 6, 7):
            call = make(Shape(positions=tuple(range(tokens)), tokens=tokens, size=16), torch.float32)
            assert error(call.run(flex.attend), call.run(reference.attend)) < 1e-6
    assert len(compiled) == 1


@pytest.mark.parametrize("new", [1, 3, 7])
@pytest.mark.parametrize("padding", [None, (0, 3)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 0.5)])
def test_grouped_heads_of_a_text_are_those_of_each_token_alone(new, padding, window, softcap):
    """Six query heads share two key heads: the newest tokens, or all of them, of texts with padding or none."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, count, 4, generator=generator, dtype=torch.float64)
        for heads, count in ((6, new), (2, 7), (2, 7))
    )
    mask = torch.ones(2, 7) if padding is None else (torch.arange(7) >= torch.tensor(padding)[:, None])
    places, valid = text_position_ids(mask.long(), mask), None if padding is None else mask.bool()
    style, expected = Style(0.7, window, softcap), torch.empty_like(query)
    for b, h, m in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        i, g = 7 - new + m, h // 3
        seen = [
            j for j in range(i + 1) if j == i or mask[b, j] and (window is None or places[b, i] - places[b, j] < window)
        ]
        scores = key[b, g, seen] @ query[b, h, m] * style.scaling
        weights = (scores if softcap is None else softcap * torch.tanh(scores / softcap)).softmax(0)
        expected[b, h, m] = weights @ value[b, g, seen]
    found = causal_attention(query, key, value, places, valid, style)
    assert found.shape == expected.shape and error(found, expected) < 1e-12
