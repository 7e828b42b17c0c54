"""The command line: parse, build, train, answer. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import sys
import traceback
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hookloop.arguments import config_options, names
from hookloop.errors import HookloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from hookloop.core import Run
    from hookloop.manager import Assembly


_HELP = 120
"""Characters of a command's help in a list."""


class Commands(click.Group):
    """Our own commands and those offered in group ``hookloop.commands``, loaded only when named.

    An entry point ``init.downscaling`` is the command ``hookloop init downscaling``.
    """

    prefix = ""

    def _offered(self) -> dict[str, str]:
        names = (entry.name for entry in entry_points(group="hookloop.commands"))
        return {
            name.removeprefix(self.prefix): name
            for name in names
            if name.startswith(self.prefix) and "." not in name.removeprefix(self.prefix)
        }

    def _described(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, if it may be imported for its help alone: those of this package import nothing heavy."""
        entries = entry_points(group="hookloop.commands", name=self._offered().get(name, ""))
        light = all(entry.dist is not None and entry.dist.name == "hookloop" for entry in entries)
        return self.get_command(ctx, name) if light else super().get_command(ctx, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command by name, without loading any."""
        return sorted({*super().list_commands(ctx), *self._offered()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """One command, imported if it is not ours."""
        own = super().get_command(ctx, name)
        if own is None and name in (offered := self._offered()):
            return _load_command(offered[name])
        return own

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; those of others, which would have to be imported, are named without their help."""
        rows = []
        for name in self.list_commands(ctx):
            own = self._described(ctx, name)
            rows.append((name, own.get_short_help_str(_HELP) if own else "from a plugin; see its --help"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _load_command(name: str) -> click.Command:
    """Import one offered command.

    :raises HookloopError: where two distributions offer it or it cannot be imported.
    """
    entries = {entry.value: entry for entry in entry_points(group="hookloop.commands", name=name)}
    if len(entries) > 1:
        found = " and ".join(sorted(entry.dist.name if entry.dist else "?" for entry in entries.values()))
        raise HookloopError(f"command '{name}': offered by {found}; uninstall one")
    ((value, entry),) = entries.items()
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise HookloopError(f"command '{name}' ({value}): cannot be imported: {error}") from error
    if not isinstance(loaded, click.Command):
        raise HookloopError(f"command '{name}' ({value}): found no click command there")
    return loaded


class InitCommands(Commands):
    """``hookloop init NAME``."""

    prefix = "init."


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hookloop")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train models with an event loop made of plugins.

    Try: hookloop init downscaling sample && hookloop run sample/cfg.yaml
    """
    context.obj = _make_run  # for commands of plugins, which must not import what assembles plugins


def _make_run(config: Path, plugins: Sequence[str] | None, overrides: Sequence[str]) -> Run:
    """Make the run that a configuration describes, and touch nothing on the disk."""
    from hookloop import logs, manager

    return manager.make_run(_assemble(config, plugins, overrides), logs.events_to(None))


@cli.command()
@config_options
@click.option("--dir", "directory", metavar="DIR", help="Where the run writes; overrides run.dir.")
@click.option("--fresh", is_flag=True, help="Demand an empty or absent directory instead of resuming.")
def run(
    config: Path, plugins: list[str] | None, overrides: tuple[str, ...], directory: str | None, *, fresh: bool
) -> None:
    """Train as CONFIG says, or go on where the run in its directory stopped."""
    from hookloop import locking, logs
    from hookloop.core import train

    assembly = _assemble(config, plugins, overrides, directory)
    where = assembly.config.dir
    _make_directory(where)
    events = logs.events_to(where / "log.jsonl")
    with locking.lock(where, events):
        if fresh:
            _expect_empty(where)
        with _running(assembly, events) as this:
            train(this, begun=lambda: _record(assembly))
        sys.exit(_tell_end(this))


@contextmanager
def _running(assembly: Assembly, events: FilteringBoundLogger) -> Iterator[Run]:
    """Make the run; what ends it goes into its log as well, the console has it from :func:`main`."""
    from hookloop import logs, manager

    for note in assembly.notes:
        events.info("section.skipped", note=note)
    this = manager.make_run(assembly, events)
    try:
        yield this
    except BaseException as error:
        path = assembly.config.dir / "log.jsonl"
        logs.events_to(path, io.StringIO()).error("run.failed", error=repr(error))
        raise


def _record(assembly: Assembly) -> None:
    """Write down what is run, and where."""
    from hookloop import manager, records

    where = assembly.config.dir
    records.write_config(where, assembly.document, manager.listing_of(list(assembly.plugins)))
    records.write_environment(where)


def _tell_end(run: Run) -> int:
    """Tell how a run has ended, and give the exit code."""
    at, stop = run.progress, run.stopping
    if stop is None:
        run.events.info("run.finished", epoch=at.epoch, step=at.step)
        return 0
    run.events.info("run.stopped", why=stop.why, epoch=at.epoch, step=at.step, code=stop.code)
    return stop.code


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@config_options
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to write; evaluations/CHECKPOINT in run.dir if not given.",
)
def evaluate(
    checkpoint: Path,
    config: Path,
    plugins: list[str] | None,
    overrides: tuple[str, ...],
    directory: Path | None,
) -> None:
    """Validate and infer once with CHECKPOINT, any file of a run, as CONFIG says.

    Prints a line for each metric, its key and its value. With the run's own CONFIG these are the numbers that
    the run logged for that epoch. Whatever CONFIG says, inference takes place (generation.epochs is '::1') and
    the epoch of the checkpoint is the last (run.max_epochs).
    """
    from hookloop import evaluate as evaluation
    from hookloop import locking, logs, warm_start

    assembly = _assemble(config, plugins, overrides)
    state = warm_start.read(checkpoint)
    where = evaluation.directory_for(checkpoint, assembly.config.dir, directory)
    assembly = evaluation.adapt(assembly, state, where)
    _make_directory(where)
    events = logs.events_to(where / "log.jsonl")
    with locking.lock(where, events):
        with _running(assembly, events) as this:
            metrics = evaluation.evaluate(this, checkpoint, state, begun=lambda: _record(assembly))
            events.info("evaluation.written", directory=str(where))
        code = _tell_end(this)
    for key, value in (metrics or {}).items():
        click.echo(f"{key} {value!r}")
    sys.exit(code)


def _make_directory(where: Path) -> None:
    from hookloop.durable import make_directory

    try:
        make_directory(where)
    except OSError as error:
        raise HookloopError(f"{where}: cannot be written: {error.strerror}; choose another --dir") from error


def _expect_empty(where: Path) -> None:
    """A start that failed before it trained leaves a log and nothing else: that is still empty."""
    if {path.name for path in where.iterdir()} - {"run.lock", "log.jsonl"}:
        raise HookloopError(f"{where}: not empty, and --fresh expects an empty or absent directory")


def _assemble(
    config: Path, plugins: Sequence[str] | None, overrides: Sequence[str], directory: str | None = None
) -> Assembly:
    from hookloop import manager, yamlfile

    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise HookloopError(f"{config}: cannot be read: {reason}") from error
    document = yamlfile.read(text, str(config), overrides)
    if directory is not None:
        section = document.data.get("run")
        if section is None or isinstance(section, dict):
            document.data["run"] = {**(section or {}), "dir": directory}
            document.places["run", "dir"] = "--dir"
    return manager.assemble(document, plugins)


@cli.group(cls=InitCommands)
def init() -> None:
    """Write sample data and a configuration that runs as it is."""


@cli.group()
def config() -> None:
    """Look at configurations."""


@config.command()
@config_options
def check(config: Path, plugins: list[str] | None, overrides: tuple[str, ...]) -> None:
    """Say whether CONFIG is sound, or every problem in it, a line each."""
    assembly = _assemble(config, plugins, overrides, None)
    for note in assembly.notes:
        click.echo(f"note: {note}")
    if not any(hasattr(plugin, "make_task") for plugin in assembly.plugins.values()):
        click.echo("note: none of the plugins makes a task, so there is nothing to train")
    click.echo(f"{config}: sound; plugins in firing order: {', '.join(assembly.plugins)}")


@cli.command(name="plugins")
def list_plugins() -> None:
    """List every installed plugin: version, source, hooks and options."""
    from hookloop import describe

    click.echo(describe.plugins())


@cli.command()
@click.option("--order", is_flag=True, help="Who answers each hook, in firing order.")
@click.option("--plugins", callback=names, metavar="LIST", help="Plugins in firing order, with --order.")
def hooks(plugins: list[str] | None, *, order: bool) -> None:
    """Print the hook reference, or with --order who answers each hook."""
    from hookloop import describe

    if plugins is not None and not order:
        raise click.UsageError("--plugins goes with --order")
    click.echo(describe.order(plugins or []) if order else describe.hooks())


def main(argv: Sequence[str] | None = None) -> None:
    """Answer with an exit code: 0 finished, 1 a crash, 2 the user's mistake, 75 and 128+N resumable."""
    try:
        code = cli.main(args=argv, prog_name="hookloop", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)  # an int is what a command gave to ctx.exit
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except HookloopError as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - ours: the traceback is the message
        if _is_an_interrupt(error):
            sys.exit(130)
        traceback.print_exc()
        sys.exit(1)


def _is_an_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: compiled code, such as HDF5's, turns it into errors of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
