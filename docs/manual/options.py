"""The options of a program, from the table that `--help` is made from."""

import re
from collections.abc import Collection, Iterator, Sequence

from manual.roff import filled, literal, paragraphs, subtitle, title

from trio_passt.cli.getopt import Option, Section


def options(sections: Sequence[Section], *, others: Collection[str] = ()) -> Iterator[str]:
    """All of them; `others` are words that stand for something else, besides the options' arguments."""
    yield from title("OPTIONS")
    yield from paragraphs(
        "Arguments follow an option's long name after a blank or `=`, its short name after a blank or at once. Long"
        " names may be shortened as long as they stay unambiguous; short ones without argument may be joined. Options"
        " act in their order. Of one that is given twice the later counts, unless it says otherwise."
    )
    in_help = _pattern(sections, others)
    for section in sections:
        yield from subtitle(section.title)
        for option in section.options:
            yield from _of_option(option, in_help)


def _pattern(sections: Sequence[Section], others: Collection[str]) -> re.Pattern[str]:
    """What has a font of its own in an option's help: options, and what stands for something else."""
    texts = (option.argument or "" for section in sections for option in section.options)
    words = sorted({*others}.union(*(re.findall(r"[A-Z]+", text) for text in texts)), key=len, reverse=True)
    return re.compile(rf"(?P<option>--[a-z][a-z0-9-]*|(?<= )-[a-z0-9]\b)|\b(?P<argument>{'|'.join(words)})\b")


def _of_option(option: Option, in_help: re.Pattern[str]) -> Iterator[str]:
    """All its names, and its help."""
    names = ([f"-{option.short}"] if option.short else []) + [f"--{name}" for name in option.names]
    argument = f" {_in_fonts(option.argument, in_help)}" if option.argument else ""
    yield ".TP"
    yield ", ".join(f"\\fB{literal(name)}\\fR" for name in names) + argument
    yield from filled(_in_fonts(option.help, in_help))


def _in_fonts(text: str, in_help: re.Pattern[str]) -> str:
    out, position = "", 0
    for match in in_help.finditer(text):
        font = "B" if match["option"] else "I"
        out += literal(text[position : match.start()]) + f"\\f{font}{literal(match[0])}\\fR"
        position = match.end()
    return out + literal(text[position:])
