"""Ways in which a text file may be wrong, chosen by a random generator."""

import random
from collections.abc import Callable
from itertools import pairwise

VALUES = (
    *("", "null", "~", "???", "true", "no", "-1", "0", "1.5", "1e400", ".inf", "-.inf", ".nan", "9" * 5000, "0x1F"),
    *("ten", "'", '"', '"\\ud800"', '"\\x00\\x1b[31m"', "1:30", "2024-02-30", "2024-01-01", "|", ">-", "<<: 1"),
    *("[]", "[1, [2, [3]]]", "{}", "{a: 1}", "{1: 2}", "{null: 1}", "[{}, null]", "? [a]"),
    *("[" * 3000, "{a: " * 30 + "1" + "}" * 30, "x" * 20000),
    *("${train.steps}", "${oc.env:HOME}", "\\${a}", "${", "${a:${b}}", "$"),
    *("{{ question }}", "{% for a in b %}", "{{ 1 / 0 }}", "{{ choices.text[9] }}"),
    *("&a 1", "*a", "&a [*a]", "!!python/object:os.system x", "!!bool perhaps", '!!int ""', "!!binary x", "!mine 1"),
    *("!!timestamp soon", "\u202e\u0000", "\N{PILE OF POO}" * 50, "e\u0301" * 9, "\x85\u2028", "\ufeff"),
)
LEVELS = "abcdefghijklm"
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise(LEVELS))

Lines = list[bytes]


def mutated(text: bytes, rng: random.Random) -> bytes:
    """``text`` with one to three changes."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = rng.choice(CHANGES)(lines or [b"\n"], rng)
    return b"".join(lines)


def _value(lines: Lines, rng: random.Random) -> Lines:
    """Another value, where a line has one."""
    place = rng.choice([i for i, line in enumerate(lines) if b":" in line] or [0])
    key = lines[place].partition(b":")[0]
    return [*lines[:place], key + b": " + _nasty(rng) + b"\n", *lines[place + 1 :]]


def _key(lines: Lines, rng: random.Random) -> Lines:
    place = rng.randrange(len(lines))
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    return [*lines[:place], indent + _nasty(rng) + b": " + _nasty(rng) + b"\n", *lines[place:]]


def _flip(lines: Lines, rng: random.Random) -> Lines:
    content = bytearray(b"".join(lines))
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content).splitlines(keepends=True)


def _sign(lines: Lines, rng: random.Random) -> Lines:
    content = b"".join(lines)
    place = rng.randrange(len(content) + 1)
    sign = rng.choice("\t\x00\x07\x1b:#-[]{}&*!|>'\"%@`,?\\\u00a0\u2028\N{PILE OF POO}").encode()
    return (content[:place] + sign + content[place:]).splitlines(keepends=True)


def _drop(lines: Lines, rng: random.Random) -> Lines:
    start = rng.randrange(len(lines))
    return lines[:start] + lines[start + rng.randint(1, 5) :]


def _repeat(lines: Lines, rng: random.Random) -> Lines:
    start = rng.randrange(len(lines))
    return lines[: start + rng.randint(1, 5)] + lines[start:]


def _swap(lines: Lines, rng: random.Random) -> Lines:
    a, b = sorted(rng.randrange(len(lines)) for _ in range(2))
    return [*lines[:a], lines[b], *lines[a + 1 : b], lines[a], *lines[b + 1 :]] if a < b else lines


def _indent(lines: Lines, rng: random.Random) -> Lines:
    place = rng.randrange(len(lines))
    line = lines[place].lstrip() if rng.random() < 0.5 else b" " * rng.randint(1, 9) + lines[place]
    return [*lines[:place], line, *lines[place + 1 :]]


def _cut(lines: Lines, rng: random.Random) -> Lines:
    content = b"".join(lines)
    return content[: rng.randrange(len(content) + 1)].splitlines(keepends=True)


def _bomb(lines: Lines, rng: random.Random) -> Lines:
    return rng.choice((lines + [BOMB.encode()], [BOMB.encode()], [b"- " * rng.randint(1, 5000)]))


def _nasty(rng: random.Random) -> bytes:
    return rng.choice(VALUES).encode()


CHANGES: tuple[Callable[[Lines, random.Random], Lines], ...] = (
    *(_value, _value, _value, _key),
    *(_flip, _sign, _drop, _repeat, _swap, _indent, _cut, _bomb),
)
