"""Ways in which a text file may be wrong, chosen by a random generator."""

import random

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
SIGNS = "\t\x00\x07\x1b:#-[]{}&*!|>'\"%@`,?\\\u00a0\u2028\N{PILE OF POO}"
CHANGES = ("value",) * 3 + ("key", "drop", "repeat", "indent", "flip", "sign", "cut")


def mutated(text: bytes, rng: random.Random) -> bytes:
    """``text`` with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        text = changed(text.splitlines(keepends=True) or [b"\n"], rng)
    return text


def changed(lines: list[bytes], rng: random.Random) -> bytes:
    at, some = rng.randrange(len(lines)), rng.randint(1, 5)
    line, place = lines[at], rng.randrange(len(lines[at]))
    first, second = (rng.choice(VALUES).encode() for _ in range(2))
    match rng.choice(CHANGES):
        case "value":  # where a line has one
            at = rng.choice([i for i, line in enumerate(lines) if b":" in line] or [0])
            lines[at] = lines[at].partition(b":")[0] + b": " + first + b"\n"
        case "key":
            indent = len(line) - len(line.lstrip())
            lines.insert(at, line[:indent] + first + b": " + second + b"\n")
        case "drop":
            del lines[at : at + some]
        case "repeat":
            lines[at:at] = lines[at : at + some]
        case "indent":
            lines[at] = line.lstrip() if rng.random() < 0.5 else b" " * some + line
        case "flip":
            lines[at] = line[:place] + rng.randbytes(some) + line[place + some :]
        case "sign":
            lines[at] = line[:place] + rng.choice(SIGNS).encode() + line[place:]
        case "cut":
            lines[at:] = [line[:place]]
    return b"".join(lines)
