"""The card of a library on the hub, written from what is in it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .._util.terminal import printable
from .._util.words import counted

if TYPE_CHECKING:
    from .library import Library


def card_of(library: Library, repo: str, license: str, *, has_figure: bool) -> str:
    """Return the ``README.md`` of a library, with the front matter that the hub reads."""
    done = [entry for entry in library.entries() if entry.state == "done"]
    made = {"probe": library.probe, "filters": library.made_with.filters, **library.settings.to_json()}
    settings = [f"| {key} | `{printable(str(value))}` |" for key, value in made.items() if value is not None]
    lines = [
        "---",
        f"license: {license}",
        "tags:",
        "- task2vec",
        "viewer: false",  # the hub's table knows no embeddings, and would show an error
        "---",
        "",
        f"# {repo.split('/')[-1]}: Task2Vec embeddings of {counted(len(done), 'task')}",
        "",
        "Each is the Fisher information of one fixed network for one labelled data set of images, averaged per filter. "
        "Near embeddings are of tasks that are alike; the norm tells how hard a task is.",
        "",
        "| of the tasks | least | median | most |",
        "|---|---|---|---|",
        _spread("images", [entry.images for entry in done], ",.0f"),
        _spread("outputs", [entry.num_outputs for entry in done], ",.0f"),
        _spread("score of the head", [entry.score for entry in done], ".1%"),
        _spread("norm, nats² per weight²", [entry.norm for entry in done], ".4g"),
        *(["", "![Map of the tasks: near is alike](map.png)"] if has_figure else []),
        "",
        "## Compare a task of yours",
        "",
        "`pip install 'task2vec_ext[hub]'`, and then:",
        "",
        "```python",
        "from task2vec_ext import Library, embed_for",
        "",
        f'library = Library.from_hub("{repo}")',
        'mine = embed_for(library, "path/to/images")  # a folder a class',
        "print(library.nearest(mine, k=5))",
        "```",
        "",
        "## Made with",
        "",
        "| | |",
        "|---|---|",
        *settings,
    ]
    return "\n".join(lines) + "\n"


def _spread(what: str, values: list[int | None] | list[float | None], how: str) -> str:
    known = [value for value in values if value is not None]
    cells = [format(of(known), how) for of in (min, statistics.median, max)] if known else ["", "", ""]
    return f"| {what} | {' | '.join(cells)} |"
