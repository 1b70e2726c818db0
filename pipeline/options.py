"""The options that the stages of the command line share, and how a stage becomes a command."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

CONSOLE_COMMAND: Final = "spoken-language-pipeline"
PROGRAM: Final = CONSOLE_COMMAND if Path(sys.argv[0]).name == CONSOLE_COMMAND else "python -m pipeline.run"
"""How the command line was called, for help texts and messages."""

Command = Callable[..., int | None]
Decorator = Callable[[Any], Any]


@dataclass(frozen=True)
class Options:
    """The options that all stages share."""

    out: str
    corpus: str | None
    config_file: Path | None
    overrides: tuple[str, ...]
    cluster: str
    cluster_file: Path | None
    executor: str
    workers: int | None
    max_failed_fraction: float


class ExpandedPath(click.Path):
    """A path in which ~ is the home folder: a shell expands it neither in --config=~/run.yaml nor in quotes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        if not value:
            self.fail("it is empty; name a file, or leave the option out", param, ctx)
        path = os.fspath(super().convert(value, param, ctx))
        return Path(os.path.expanduser(os.fsdecode(path)))  # noqa: PTH111 Path raises without a home


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse nan, which click takes to be in any range."""
    if math.isnan(value):
        raise click.BadParameter("nan is not in the range 0<=x<=1.", context, parameter)
    return value


SHARED: Final = (
    click.option("--corpus", metavar="URI", help="Recordings: LANGUAGE/[SPEAKER/…]/file (wav, flac, mp3, ogg, …)."),
    click.option("--out", metavar="URI", required=True, help="The output folder; scan creates it."),
    click.option("--config", "config_file", type=ExpandedPath(), help="Settings in YAML."),
    click.option("--set", "overrides", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable."),
    click.option("--cluster", default="local", show_default=True, metavar="PROFILE",
                 help="A profile of ./cluster.yaml or of the file that comes with the package."),
    click.option("--cluster-file", type=ExpandedPath(), help="Take the profile from this file."),
    click.option("--executor", type=click.Choice(["dask", "serial"]), default="dask", show_default=True,
                 help="Run tasks on the cluster, or in this process."),
    click.option("--workers", type=click.IntRange(min=1),
                 help="Dask workers, one thread each.  [default: one per core]"),
    click.option("--max-failed-fraction", type=click.FloatRange(0, 1), default=0.01, show_default=True,
                 callback=_finite, help="Exit with 3 if a larger fraction of the recordings failed."),
)  # fmt: skip
PRUNE: Final = click.option(
    "--prune", is_flag=True, help="Mask stored sequences of recordings that are gone or have changed."
)
UNCHANGED_EXIT_CODE: Final = click.option(
    "--unchanged-exit-code", type=click.IntRange(0, 255), default=0, show_default=True, metavar="N",
    help="Exit with N if nothing is new and the last run reached its report (99 skips an Airflow task).",
)  # fmt: skip

EXIT_CODES: Final = """
\b
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 done, but too many recordings failed;
130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (the same command continues).
"""


def epilog(*examples: str) -> str:
    """Return the end of a help text: examples, which are arguments of the program, and the exit codes."""
    lines = "\n".join(f"  {PROGRAM} {example}" for example in examples)
    return f"\n\b\nExample{'s' if len(examples) > 1 else ''}:\n{lines}\n{EXIT_CODES}"


class StageGroup(click.Group):
    """The stages as commands, listed in the order of their definition; `all` if the command line names none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default stage in front of a command line that begins with an option."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["all", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the stage that the command line names; raises click.UsageError if there is no such stage."""
        if args[0] not in self.commands:
            ctx.fail(f"STAGE {args[0]}: there is no such stage; the stages are {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click prescribes it
        """Return the names of the stages."""
        return list(self.commands)

    def stage(self, *extra: Decorator, examples: Sequence[str] = ()) -> Callable[[Command], click.Command]:
        """Add the stage that a function of `Options` and of the `extra` options carries out; it returns an exit code.

        The stage has the function's name, and its docstring and `examples` as help.
        """

        def decorate(function: Command) -> click.Command:
            name = function.__name__.rstrip("_")

            @wraps(function)
            def call(**given: Any) -> int | None:
                shared = {field.name: given.pop(field.name) for field in fields(Options)}
                return function(Options(**shared), **given)

            for option in reversed((*SHARED, *extra)):
                call = option(call)
            text = epilog(*(examples or (f"{name} --out out/mine",)))
            return self.command(name, epilog=text, short_help=function.__doc__)(call)

        return decorate


def explain(error: click.ClickException, group: click.Group) -> str:
    """Return one line on wrong usage: what is wrong, and which help text to read."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    see = f"see {context.command_path if context else PROGRAM} --help"
    if isinstance(error, click.NoSuchOption) and context is not None:
        option = error.option_name
        owners = [name for name, stage in group.commands.items() if any(option in each.opts for each in stage.params)]
        if owners:
            return f"{option} is an option of {', '.join(owners)}, not of {context.info_name}; {see}"
    return f"{error.format_message().rstrip('.')}; {see}"
