"""Adds to the site what lies outside docs/ (a hook of mkdocs): three pages, benchmark results, the commands' help."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLACES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/": "results/",
    "docs/": "",
}
"""Where files of the repository are on the site."""
_LINK = re.compile(rf"\]\((?:\.\./)?({'|'.join(map(re.escape, PLACES))})")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that lie outside docs/."""
    for name, place in PLACES.items():
        if name.endswith(".md"):
            files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted(RESULTS.glob("*/*.*")):
        name = f"results/{path.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to the files' places on the site; append what two pages have only there."""
    if page.file.src_uri == "benchmarks.md":
        markdown += f"\n## Every record\n\n{_records()}"
    if page.file.src_uri == "reference/commands.md":
        markdown += "\n".join(["", *_commands()])
    return _LINK.sub(lambda found: f"]({PLACES[found[1]]}", markdown)


def _records() -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from page import page

    return page(RESULTS, (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))


def _commands() -> Iterator[str]:
    """Yield the help of every command, as the terminal shows it."""
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
