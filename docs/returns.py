"""What a function returns is said in a sentence: a colon in it ends no type (an extension of griffe)."""

from __future__ import annotations

from typing import Any

import griffe


class WholeSentences(griffe.Extension):
    """The type is the signature's; what griffe took for one goes back to the text."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Mend the section of one function."""
        for section in func.docstring.parsed if func.docstring else ():
            if isinstance(section, griffe.DocstringSectionReturns):
                for item in section.value:
                    if func.returns is not None and str(item.annotation) != str(func.returns):
                        item.description = f"{item.annotation}: {item.description}"
                        item.annotation = func.returns
