"""Text as roff(7), with the macros of man(7).

Text here is marked up as in Markdown, as far as that is needed: `bold` in backquotes for what is typed as it stands,
*italic* for what stands for something else.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator

DATE = "2026-11-29"
WIDTH = 79

_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
"""What roff takes for something else, and what its fonts would print in another shape (groff_char(7))."""

_MARKUP = re.compile(r"`([^`]+)`|\*([^*]+)\*")


def page(*parts: Iterable[str]) -> str:
    """The whole page, of lines."""
    lines = [line for part in parts for line in part]
    needed = [line for before, line in zip(["", *lines], lines, strict=False) if not _begins_twice(before, line)]
    return "\n".join(needed) + "\n"


def _begins_twice(before: str, line: str) -> bool:
    """A paragraph right below a title is one anyway."""
    return line == ".PP" and before.startswith((".SH", ".SS"))


def head(program: str, purpose: str, *forms: str) -> Iterator[str]:
    """Up to the synopsis."""
    yield '.\\" Written by docs/write_man.py: change that, not this.'
    yield f".TH {literal(program.upper())} 1 {DATE} trio\\-passt"
    yield from title("NAME")
    yield f"{literal(program)} \\- {literal(purpose)}"
    yield from title("SYNOPSIS")
    for number, form in enumerate(forms):
        if number:
            yield ".br"
        yield from filled(marked(f"`{program}` {form}"))


def literal(text: str) -> str:
    """`text` as it stands."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def marked(text: str) -> str:
    """`text` with its markup as fonts."""
    out, position = "", 0
    for match in _MARKUP.finditer(text):
        out += literal(text[position : match.start()])
        out += f"\\fB{literal(match[1])}\\fR" if match[1] else f"\\fI{literal(match[2])}\\fR"
        position = match.end()
    return out + literal(text[position:])


def filled(roff: str) -> list[str]:
    """Lines of one paragraph, none of which begins like a request."""
    lines = textwrap.wrap(roff, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"\\&{line}" if line.startswith((".", "'")) else line for line in lines]


def title(text: str) -> list[str]:
    """Of a section."""
    return [f".SH {literal(text)}" if " " not in text else f'.SH "{literal(text)}"']


def subtitle(text: str) -> list[str]:
    """Of a part of a section."""
    return [f'.SS "{literal(text)}"']


def paragraphs(*texts: str) -> Iterator[str]:
    """Each as one of its own."""
    for text in texts:
        yield from (".PP", *filled(marked(text)))


def tagged(tag: str, text: str) -> Iterator[str]:
    """A word, and what it means, further to the right."""
    yield ".TP"
    yield from (marked(tag), *filled(marked(text)))


def example(*lines: str) -> Iterator[str]:
    """Lines as they stand, in the middle of a text."""
    yield from (".PP", ".in +4n", ".EX", *map(literal, lines), ".EE", ".in")


def see_also(*names: str) -> Iterator[str]:
    """Other pages."""
    yield from title("SEE ALSO")
    yield from filled(
        ", ".join(re.sub(r"^([\w-]+)", lambda match: f"\\fB{literal(match[1])}\\fR", name) for name in names)
    )
