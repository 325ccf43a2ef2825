"""One dialect for all docstrings of the package: what the linter does not hold."""

import ast
import re
from pathlib import Path

import pytest

import task2vec_ext

ROOT = Path(task2vec_ext.__file__).parent
SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:    .*\n|\n)+)", re.M)
ENTRY = re.compile(r"^    (\*{0,2}\w[\w.]*): (.*(?:\n {8,}.*)*)", re.M)
UNIFORM = ("`", "*", '"')  # code needs no capital


def entries(docstring: str, section: str) -> list[tuple[str, str]]:
    """(name, text) of a section's entries; several paragraphs are one text."""
    found = [body for title, body in SECTION.findall(docstring + "\n") if title == section]
    return [(name, " ".join(text.split())) for body in found for name, text in ENTRY.findall(body)]


def docstrings() -> list[tuple[str, str]]:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "module")
                found.append((f"{file.relative_to(ROOT)}:{name}", text))
    return found


def wrong(docstring: str) -> list[str]:
    """What does not follow the dialect."""
    arguments = [*entries(docstring, "Args"), *entries(docstring, "Attributes")]
    found = [
        f"{name}: begins small: {text!r}"
        for name, text in arguments
        if text[0].isascii() and text[0].islower() and not text.startswith(UNIFORM)
    ]
    found += [f"{name}: no full stop: {text!r}" for name, text in arguments if not text.endswith(".")]
    for name, text in entries(docstring, "Raises"):
        if not text.startswith("If ") or not text.endswith("."):
            found.append(f"{name}: expected 'If … .': {text!r}")
    return found


def test_arguments_begin_large_and_end_with_a_full_stop_and_raises_begin_with_if():
    found = [f"{place}: {text}" for place, docstring in docstrings() for text in wrong(docstring)]
    assert found == []


@pytest.mark.parametrize(
    "docstring",
    [
        "Do.\n\nArgs:\n    x: small.\n",
        "Do.\n\nArgs:\n    x: Large\n        and long\n",
        "Do.\n\nRaises:\n    ValueError: Two differ.\n",
    ],
)
def test_the_check_finds_what_is_wrong(docstring):
    assert len(wrong(docstring)) == 1
