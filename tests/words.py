"""Words that are used neither in the package nor in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator

UNWANTED = {
    r"nursery": "fork server",
    r"workshop": "the folder",
    r"patience": "deadline",
    r"complaints?": "problem",
    r"wish(es)?": "desired",
    r"whoever": "say who",
    r"for so long": "how long",
    r"so many": "how many",
    r"from which on": "at least",
    r"wants (it|a)": "needs",
    r"(?<!there )is no(?! longer| more| better)": "is not a",
    r"(?<!there )are no(?! longer| more)": "are not",
    r"(True|False|None) where": "if",
    r"where (there|none|he|she|they) (is|are|was|has|have|does|can|takes|gives)": "if",
}
"""Words and phrases that are not used, and what to write."""


def unwanted(text: str) -> Iterator[str]:
    """Each line of a text with such a word, and what to write."""
    for number, line in enumerate(text.splitlines(), 1):
        for word, better in UNWANTED.items():
            if re.search(rf"(?i)\b({word})\b", line):
                yield f"{number}: {line.strip()} (write: {better})"
