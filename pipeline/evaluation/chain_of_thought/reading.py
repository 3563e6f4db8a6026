"""The vote in what a model wrote after a task's answer prompt."""

import re
from collections.abc import Sequence

from pipeline.data.tasks.questions import number_in

# "... in trees. A lemur lives ...": a sentence's own "A"
ARTICLE = re.compile(r"(?:(?<=[.!?]\s)|(?<=\n))A(?=\s+[a-z])")


def vote_in(written: str, labels: Sequence[str]) -> str:
    """The first of ``labels`` or, where there are none, the first number (`number_in`); "" where there is neither.

    A label is a word of its own in its own case: "(B)", "B.", "B: wood", but not in "Bears" or "B-side". The article
    that begins a later sentence is not label A. The first word of all is, whatever follows it: it goes on the sentence
    of the answer prompt ("the answer is"), where an article would be small, as in "A because ...". Kojima et al. 2022
    (arXiv 2205.11916), whose prompts these are, take the first such letter anywhere.
    """
    if not labels:
        return number_in(written) or ""
    names = "|".join(map(re.escape, labels))
    found = re.search(rf"(?<!\w)(?<!\w['’-])(?:{names})(?!\w|['’-]\w)", ARTICLE.sub("", written.strip()))
    return found[0] if found else ""
