"""The command line: a thin, lazy skin over the Python functions of the same names."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer

from hescribe.cli.commands import benchmark, datasets, demo, doctor, evaluate, predict, report, train
from hescribe.cli.commands.biology import regions, survival, tls, volume
from hescribe.cli.commands.predictions import export, view
from hescribe.cli.options import everywhere
from hescribe.errors import HescribeError, HescribeWarning
from hescribe.version import __version__

# typer carries a copy of click; this is its ClickException, the base of all errors of usage
_INTERRUPTED = 130  #: exit code after Ctrl-C
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="hescribe",
    help="Read the spatial transcriptome off an H&E slide.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global(
    debug: bool = typer.Option(False, "--debug", help="Show full tracebacks and all warnings of libraries."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if debug:
        os.environ["HESCRIBE_DEBUG"] = "1"
    set_up_logging(debug=debug)


for command in (
    *(demo.demo, train.train, predict.predict, evaluate.evaluate, benchmark.benchmark),
    *(report.report, view.view, export.export),
    *(regions.regions, tls.tls, volume.volume, survival.survival),
):
    app.command()(everywhere(command))
app.add_typer(datasets.app, name="datasets")
app.command()(everywhere(doctor.doctor))


def set_up_logging(*, debug: bool) -> None:
    """One clean line per message on stderr; warnings of other libraries only when debugging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("hescribe")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", HescribeWarning)
        # Hub clients report every retry; the one line that matters is our own error
        for name in ("huggingface_hub", "timm", "lightning.pytorch", "lightning.fabric", "httpx"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of a torn file, our own line says
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        text = f"warning: {message}"
        if text not in shown:
            shown.add(text)
            logger.warning(
                text if issubclass(category, HescribeWarning) else f"warning: {category.__name__}: {message}"
            )

    warnings.showwarning = show  # type: ignore[assignment]


def run() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except HescribeError as error:
        _fail(f"hescribe: error: {error}")
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(0)  # the help has been shown
        _fail(
            f"hescribe: error: {' '.join(str(getattr(error, 'format_message', error.__str__)()).split())} (see '{_command(error)} --help')"
        )
    except (KeyboardInterrupt, typer.Abort):
        print("hescribe: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(_INTERRUPTED)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"hescribe: error: {where}{error.strerror or error}")
    if code == _INTERRUPTED:  # typer has caught it
        print("hescribe: interrupted", file=sys.stderr)  # noqa: T201
    sys.exit(code if isinstance(code, int) else 0)


def _command(error: Exception) -> str:
    """What was typed before its options, such as ``hescribe report``."""
    names: list[str] = []
    context = getattr(error, "ctx", None)
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(["hescribe", *names])


def _fail(line: str) -> None:
    if os.environ.get("HESCRIBE_DEBUG"):
        raise  # noqa: PLE0704 - called while the error is being handled
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(2)


if __name__ == "__main__":
    run()
