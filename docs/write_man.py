"""Write the manual pages `docs/trio-*.1`, whose options are those of `--help`: both read one table.

`python docs/write_man.py`; a unit test compares what it writes with the pages that are there.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # the pages are about the programs beside it

from manual.passt import passt  # noqa: E402
from manual.pasta import pasta  # noqa: E402
from manual.slirp4netns import slirp4netns  # noqa: E402


def pages() -> dict[str, str]:
    """What the files are to contain."""
    return {"trio-passt.1": passt(), "trio-pasta.1": pasta(), "trio-slirp4netns.1": slirp4netns()}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, "utf-8")
