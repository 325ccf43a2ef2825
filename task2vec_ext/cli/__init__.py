"""The command line: a file for each group of commands; `options` has what they share.

Commands import what they run when they run: help and the shell's completion do not wait for torch.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

from .._util.interrupt import INTERRUPTED, quiet_interrupt
from .._util.warnings import Task2VecWarning

with quiet_interrupt():
    import typer
    from typer import Option

    from .compare import distances, nearest
    from .demo import demo
    from .embed import embed, info
    from .env import env
    from .expert import expert
    from .library import library
    from .options import as_options, at_home, interrupted
    from .plot import atlas, plot
    from .select import select

__all__ = ["app", "main"]

app = typer.Typer(
    help="Turn image data sets into vectors (Task2Vec) and compare them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # one line, or the plain traceback with --debug
    rich_markup_mode=None,
)

# Mistakes in the input or the environment: one line. Anything else is a bug and keeps its traceback.
_EXPECTED = (ValueError, TypeError, NotImplementedError, RuntimeError, OSError, ImportError, MemoryError, OverflowError)


def main() -> NoReturn:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text that a terminal takes
    warnings.formatwarning = _format_warning
    try:
        app([at_home(argument) for argument in arguments], prog_name="task2vec")
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's, for Ctrl-C
            _end_interrupted()
        raise
    except _EXPECTED as error:
        if debug:
            raise
        print(f"task2vec: error: {as_options(_words_of(error))}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _end_interrupted() -> NoReturn:
    print(f"\ntask2vec: interrupted; {interrupted()}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _words_of(error: Exception) -> str:
    """Return an error's message; of the system's errors, their path and words without the number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    paths = [
        os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, (str, bytes, os.PathLike))
    ]
    return ": ".join([*paths, error.strerror])


_python_format = warnings.formatwarning


def _format_warning(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    """Return a warning of ours in one line, without the place in the code; others as Python does."""
    ours = issubclass(category, Task2VecWarning)
    return (
        f"task2vec: warning: {as_options(str(message))}\n"
        if ours
        else _python_format(message, category, *where, **line)
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        from ..kernels.native import build_info

        info = build_info()
        architectures = ", ".join(info.cuda_architectures or ())
        cuda = f"CUDA {info.cuda_version} for {architectures}" if info.cuda_version else "no CUDA"
        print(f"task2vec_ext {info.version} ({info.compiler}, {cuda}, OpenMP {info.openmp or 'off'})")
        raise typer.Exit


@app.callback(
    epilog="Every command takes --debug: show the traceback of an error. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)
def _options(
    version: Annotated[
        bool, Option("--version", help="Print version and build, and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options of the program itself."""


for _command in (demo, embed, distances, info, nearest, plot, atlas, env):
    app.command()(_command)
app.add_typer(library, name="library")
app.add_typer(select, name="select")
app.add_typer(expert, name="expert")
