"""What the site takes from elsewhere in the repository, so that nothing is written twice (a hook of mkdocs).

- ``[Install](../README.md#install)`` alone on a line: on GitHub a link, on the site that section of the README.
- ``<!-- performance -->``, ``<!-- records -->``, ``<!-- how -->``: from benchmarks/results/ and benchmarks/README.md.
- ``<!-- commands -->``: the help of every command.
- CHANGELOG.md and CONTRIBUTING.md are pages, benchmarks/results/ are files of the site.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
"""Where a link to a file of the repository leads on the site."""
_SECTION_LINK = re.compile(r"^\[[^\]]+\]\(\.\./README\.md#([\w-]+)\)$", re.M)
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that lie outside docs/."""
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = _relinked((ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, PAGES[name], content=text))
    for path in sorted(RESULTS.glob("*/*.*")):
        name = f"results/{path.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put sections of the README and generated tables where a page asks for them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    markdown = _SECTION_LINK.sub(lambda found: _relinked(section(readme, found[1])), markdown)
    if page.file.src_uri == "benchmarks.md":
        markdown = _with_benchmarks(markdown)
    return markdown.replace("<!-- commands -->", "\n".join(_commands()) if "<!-- commands -->" in markdown else "")


def section(readme: str, anchor: str) -> str:
    """Return the section that a link to `anchor` shows, without its heading; deeper headings stay."""
    blank = _FENCED.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), readme)  # a comment in bash is no heading
    headings = [(len(found[1]), found[2], found) for found in re.finditer(r"^(#+) (.+)$", blank, re.M)]
    for number, (level, title, found) in enumerate(headings):
        if re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") == anchor:
            ends = (other.start() for depth, _, other in headings[number + 1 :] if depth <= level)
            return readme[found.end() : next(ends, len(readme))].strip()
    raise PluginError(f"docs/hooks.py: expected a section #{anchor} in README.md, found none; mend the link.")


def _relinked(text: str) -> str:
    """Links of a file at the repository's root, as a page at the site's."""
    text = re.sub(r"\]\((?:docs|benchmarks)/", "](", text)
    return re.sub(r"\]\((CHANGELOG|CONTRIBUTING|README)\.md", lambda found: f"]({PAGES[f'{found[1]}.md']}", text)


def _with_benchmarks(markdown: str) -> str:
    import task2vec_ext  # noqa: F401  # first: from here on its sources, beside benchmarks/, would hide what is installed

    sys.path.insert(0, str(ROOT))
    from benchmarks.page import page
    from benchmarks.report import table

    how = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    parts = {"performance": table(RESULTS), "records": page(RESULTS, how), "how": how.split("\n", 1)[1]}
    for name, text in parts.items():
        markdown = markdown.replace(f"<!-- {name} -->", text)
    return markdown


def _commands() -> Iterator[str]:
    """The help of every command, as the terminal shows it."""
    import typer.main
    from typer.testing import CliRunner

    from task2vec_ext.cli import app

    waiting = [((), typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        parts = getattr(command, "commands", {})
        waiting[:0] = [((*name, part), parts[part]) for part in sorted(parts)]
        found = CliRunner().invoke(app, [*name, "--help"], prog_name="task2vec", env={"COLUMNS": "100"})
        yield f"## {' '.join(('task2vec', *name))}\n\n```text\n{found.stdout.strip()}\n```\n"
