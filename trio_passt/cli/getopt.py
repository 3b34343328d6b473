"""GNU getopt_long(3) as a function from words to (option, value) pairs; the table of options is data.

Why not `argparse` or `getopt` of the standard library: callers of passt(1) rely on GNU's exact wording and
order.  Options act in the order given (`--version --bogus` prints the version), and Podman looks for
`unrecognized option '--NAME'`.
"""

from collections.abc import Iterator, Sequence

from attrs import frozen

from trio_passt.cli.mode import Mode
from trio_passt.cli.values import UsageError


@frozen
class Option:
    """One option: its long names (the first is the one that messages use), short letter, and help.

    `argument` is the placeholder that help shows; `None`: the option takes none.  `mode` is the one that has this
    option; `None`: both have.
    """

    names: tuple[str, ...]
    short: str | None
    argument: str | None
    help: str
    mode: Mode | None = None

    @property
    def key(self) -> str:
        """The first long name: the option's identity."""
        return self.names[0]


@frozen
class Section:
    """Options that belong together, under one title of the help and of the manual page."""

    title: str
    options: tuple[Option, ...]


@frozen
class Given:
    """An option as it was given: `value` is `None` exactly when the option takes no argument."""

    option: Option
    value: str | None


def scan(table: Sequence[Option], words: Sequence[str], *, permutes: bool = True) -> Iterator[Given | str]:
    """The options in order, then the words that are no options, as plain strings.

    These may stand anywhere if it `permutes`; else the first one ends the options (getopt's "+"), for the options that
    follow it are its own.  Lazy: an error (`UsageError`) is raised when its word's turn comes, so that earlier options
    may act first.
    """
    remaining = list(reversed(words))
    others: list[str] = []
    while remaining:
        word = remaining.pop()
        if word == "--":
            others.extend(reversed(remaining))
            break
        if word.startswith("--"):
            yield _long(table, word, remaining)
        elif word.startswith("-") and word != "-":
            yield from _bundle(table, word[1:], remaining)
        else:
            others.append(word)
            if not permutes:
                others.extend(reversed(remaining))
                break
    yield from others


def _long(table: Sequence[Option], word: str, remaining: list[str]) -> Given:
    name, equals, value = word[2:].partition("=")
    option, full_name = _find_long(table, name, word)
    if option.argument is None:
        if equals:
            raise UsageError(f"option '--{full_name}' doesn't allow an argument")
        return Given(option, None)
    if equals:
        return Given(option, value)
    if not remaining:
        raise UsageError(f"option '--{full_name}' requires an argument")
    return Given(option, remaining.pop())


def _find_long(table: Sequence[Option], name: str, word: str) -> tuple[Option, str]:
    """The option and the full name that `name` stands for: exact, or a prefix of one option's names."""
    matches = [(option, full) for option in table for full in option.names if full.startswith(name)]
    for option, full in matches:
        if full == name:
            return option, full
    if not matches:
        raise UsageError(f"unrecognized option '{word}'")
    if len({option.key for option, _ in matches}) > 1:
        possibilities = " ".join(f"'--{full}'" for _, full in matches)
        raise UsageError(f"option '{word}' is ambiguous; possibilities: {possibilities}")
    return matches[0]


def _bundle(table: Sequence[Option], letters: str, remaining: list[str]) -> Iterator[Given]:
    """`-fd` is `-f -d`; the first letter that takes an argument gets the rest, or the next word."""
    by_letter = {option.short: option for option in table if option.short}
    while letters:
        letter, letters = letters[0], letters[1:]
        option = by_letter.get(letter)
        if option is None:
            raise UsageError(f"invalid option -- '{letter}'")
        if option.argument is None:
            yield Given(option, None)
            continue
        if not letters and not remaining:
            raise UsageError(f"option requires an argument -- '{letter}'")
        yield Given(option, letters or remaining.pop())
        return
