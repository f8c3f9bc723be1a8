"""The `motet` command: one verb a function, one file a group of verbs; heavy imports happen inside the verbs.

    argv --Typer--> a verb in `commands` --> the rooms;  what goes wrong --`main`--> one line on stderr and an exit code

Exit codes: 0 done; 1 failed; 2 the user's input or configuration is wrong; 3 done, but with more rejects than allowed;
130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from motet.core.errors import UserError
from motet.core.urls import censored
from motet.orchestration.commands import generate, inspect, rejects, run, score, tokenize, tokenizer, train

GOES_ON = ("tokenize", "train", "run", "demo")
"""Verbs that keep what they have done."""


class _Verbs(TyperGroup):
    """Says what an interrupted verb leaves; Typer itself ends without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; ends the process on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            verb = ctx.invoked_subcommand
            if verb in GOES_ON:
                _fail("interrupted; what was committed is kept, and the same command goes on from there", 130)
            _fail(f"interrupted; `motet {verb}` keeps nothing of what it began", 130)


app = typer.Typer(
    name="motet",
    cls=_Verbs,
    help="Raw text, pictures and speech in, a trained Mixture-of-Transformers out. `motet demo` shows the whole line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("motet-orchestration"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the verb."""


app.command("demo", rich_help_panel="Start here")(run.demo)
app.command("tokenize", rich_help_panel="Corpus to shards")(tokenize.tokenize)
app.command("stats", rich_help_panel="Corpus to shards")(inspect.stats)
app.command("view", rich_help_panel="Corpus to shards")(inspect.view)
app.command("verify", rich_help_panel="Corpus to shards")(inspect.verify)
app.command("rejects", rich_help_panel="Corpus to shards")(rejects.rejects)
app.command("gc", rich_help_panel="Corpus to shards")(tokenize.gc)
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel="Corpus to shards")
app.command("upcycle", rich_help_panel="Shards to model")(train.upcycle)
app.command("plan", rich_help_panel="Shards to model")(train.plan)
app.command("train", rich_help_panel="Shards to model")(train.train)
app.command("why", rich_help_panel="Shards to model")(train.why)
app.command("evaluate", rich_help_panel="Shards to model")(train.evaluate)
app.command("export", rich_help_panel="Shards to model")(train.export)
app.command("generate", rich_help_panel="Shards to model")(generate.generate)
app.command("score", rich_help_panel="Shards to model")(score.score)
app.command("sheet", rich_help_panel="Shards to model")(score.sheet)
app.command("run", rich_help_panel="The whole line")(run.run)


def main() -> None:
    """Entry point of the command; ends the process."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    try:
        code = app(prog_name="motet", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Exception as error:
        if debug:
            print(censored(traceback.format_exc()), end="", file=sys.stderr)
            sys.exit(1)
        if isinstance(error, UserError):
            _fail(str(error), 2)
        told = getattr(error, "format_message", None)  # Typer's own: a wrong verb or option
        if told is not None:
            where = getattr(getattr(error, "ctx", None), "command_path", "motet")
            if not told():  # nothing was asked, and the help has been shown
                sys.exit(2)
            _fail(f"{told()} (`{where} --help` shows what there is)", 2)
        known = type(error).__module__.startswith("motet.")
        _fail(str(error) if known else f"{type(error).__name__}: {error} (`motet --debug ...` shows where)", 1)


def _fail(message: str, code: int) -> None:
    print(f"motet: {censored(message)}", file=sys.stderr)
    sys.exit(code)
