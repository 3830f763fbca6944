"""`tailrace dev`: everything on this machine, with one command."""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailrace.cli.console import complain, err, out
from tailrace.cli.serve import look_at_redis
from tailrace.cli.target import FOLDER, SPOOL_FOLDER, TOKEN_FILE, URL_FILE
from tailrace.cli.token import SECRET_FILE, mint
from tailrace.errors import ConfigError

if TYPE_CHECKING:
    from tailrace.config import Settings

__all__ = ["dev", "running_redis"]

DEMO = "run:demo"
TOKEN_SECONDS = 10 * 365 * 86_400
DRAIN_SECONDS = 1.0


def dev(
    port: Annotated[int | None, typer.Option("--port", "-p", min=0, max=65_535, help="[TAILRACE_PORT, 8080]")] = None,
    host: Annotated[str | None, typer.Option("--host", help="[TAILRACE_HOST, 127.0.0.1]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Data, keys and spools. [TAILRACE_DATA_DIR, .tailrace]")
    ] = None,
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="Use this Redis instead of one of our own.")
    ] = None,
) -> None:
    """Start a gateway with a Redis of its own, on this machine, and print how to use it.

    The data and the keys are kept in `.tailrace`: the next start finds them again. Ctrl-C ends everything.

    **Examples**

    `tailrace dev`

    `tailrace dev --port 9000`
    """
    from tailrace import server
    from tailrace.config import load_settings
    from tailrace.observe import configure_logging

    options = {"port": port, "host": host, "data_dir": data_dir, "redis_url": redis}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "TAILRACE_DRAIN_SECONDS" not in os.environ:
        given["drain_seconds"] = DRAIN_SECONDS
    if sys.stderr.isatty() and "TAILRACE_LOG_LEVEL" not in os.environ:
        given["log_level"] = "warning"
    settings = load_settings(**given)
    folder = settings.data_dir.absolute()
    lock = _claim(folder)
    if lock is None:
        _show_running(folder)
        return
    settings, token = _with_keys(load_settings, given, settings, folder)
    configure_logging(settings)
    raise typer.Exit(server.run(lambda: _dev(settings, folder, token)))


async def _dev(settings: Settings, folder: Path, token: str | None) -> int:
    """Own the Redis and the gateway."""
    import asyncio

    from pydantic import SecretStr

    from tailrace.eventlog.embedded import EmbeddedRedis

    if settings.redis_url is not None:
        # Somebody waits for it in front of a terminal: without that Redis nothing of what would be printed is true.
        if code := await look_at_redis(settings):
            return code
        return await _serve(settings, _listen(settings), folder, token)
    sock = _listen(settings)
    embedded = EmbeddedRedis(folder)
    try:
        with _progress("starting Redis"):
            await embedded.start()
        settings = settings.model_copy(update={"redis_url": SecretStr(embedded.url)})
        keeper = asyncio.create_task(embedded.run(), name="embedded-redis")
        try:
            return await _serve(settings, sock, folder, token)
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
    finally:
        sock.close()
        await embedded.stop()


async def _serve(settings: Settings, sock: Any, folder: Path, token: str | None) -> int:
    """Serve, and deliver what killed commands left in the folder."""
    import asyncio

    from tailrace import server
    from tailrace.cli.leftovers import deliver_leftovers

    leftovers: list[asyncio.Task[None]] = []

    def started(url: str) -> None:
        _started(folder, url, token)
        if token is not None:
            delivering = deliver_leftovers(folder / SPOOL_FOLDER, url, token)
            leftovers.append(asyncio.create_task(delivering, name="leftovers"))

    try:
        return await server.serve(settings, sock=sock, on_started=started)
    finally:
        for task in leftovers:
            task.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)


def _listen(settings: Settings) -> Any:
    from tailrace import server

    try:
        return server.listener(settings)
    except ConfigError as exc:
        raise ConfigError(f"{exc}; choose another one with --port (make run PORT=9000), or 0 for any") from None


# -- keys ------------------------------------------------------------------------------------------------------


def _claim(folder: Path) -> int | None:
    """Lock the folder for one `dev`; None: another one runs. The lock ends with the process."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "dev.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"the data folder {folder} cannot be used: {exc.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _with_keys(load: Any, given: dict[str, Any], settings: Settings, folder: Path) -> tuple[Settings, str | None]:
    """The settings with a key for tokens, and a token; both are made once. None: the keys are somebody else's."""
    if settings.has_token_key and settings.jwt_secret is None:
        return settings, None
    if settings.jwt_secret is not None:
        # Not kept: the secret is set from outside, and another one may be set tomorrow.
        return settings, _minted(settings.jwt_secret.get_secret_value(), settings)
    secret = _kept(folder / SECRET_FILE, lambda: secrets.token_urlsafe(48))
    token = _kept(folder / TOKEN_FILE, lambda: _minted(secret, settings))
    if not _good(token, secret):
        (folder / TOKEN_FILE).unlink()
        token = _kept(folder / TOKEN_FILE, lambda: _minted(secret, settings))
    from pydantic import SecretStr

    return load(**given, jwt_secret=SecretStr(secret)), token


def _minted(secret: str, settings: Settings) -> str:
    return mint(
        secret,
        "dev",
        {"read": [], "write": [], "admin": True},
        TOKEN_SECONDS,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
    )


def _good(token: str, secret: str) -> bool:
    """Whether a kept token is signed with the kept secret and will not expire today."""
    import jwt

    try:
        claims = jwt.decode(token, secret, algorithms=["HS256"], options={"verify_aud": False})
    except jwt.PyJWTError:
        return False
    return float(claims.get("exp", 0)) > time.time() + 86_400


def _kept(path: Path, make: Any) -> str:
    """Read a secret, or make it; nobody else can read it."""
    try:
        text = path.read_text().strip()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        if text:
            return text
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from None
    made = str(make())
    _write_private(path, made)
    return made


def _write_private(path: Path, text: str) -> None:
    """All or nothing, and never readable by others."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text + "\n")
    fresh.replace(path)


# -- words -----------------------------------------------------------------------------------------------------


def _started(folder: Path, url: str, token: str | None) -> None:
    _write_private(folder / URL_FILE, url)
    if token is not None:
        _write_private(folder / TOKEN_FILE, token)
    _banner(folder, url, token, "is ready")


def _show_running(folder: Path) -> None:
    try:
        url = (folder / URL_FILE).read_text().strip()
        token = (folder / TOKEN_FILE).read_text().strip()
    except OSError:
        complain(f"another `tailrace dev` is starting on {folder}")
        raise typer.Exit(0) from None
    _banner(folder, url, token or None, "is running already")


def _banner(folder: Path, url: str, token: str | None, state: str) -> None:
    program = _program(folder)
    commands = (
        ("publish", f"""{program} publish {DEMO} '{{"text": "hello"}}'"""),
        ("tail", f"{program} tail {DEMO}"),
        ("exec", f"""{program} exec -- sh -c 'for i in 1 2 3 4 5; do echo "line $i"; sleep 1; done'"""),
    )
    link = f"{url}/#token={token}&stream={DEMO}" if token is not None else url
    if not sys.stdout.isatty():
        print(f"tailrace {state}: {url}\nlink: {link}")
        for _, command in commands:
            print(command)
        sys.stdout.flush()
        return
    console = out()
    console.print(f"\n  [bold]tailrace[/] {state}: [bold cyan]{url}[/]   [dim](data in {_short(folder)})[/]\n")
    console.print("  Open this link; it signs you in:\n")
    console.print(f"    {link}\n", markup=False, style="cyan")
    console.print("  Or copy and paste in another terminal, from this folder:\n")
    for name, command in commands:
        console.print(f"    [dim]# {name}[/]")
        console.print(f"    {command}\n", markup=False)
    if state == "is ready":
        console.print("  [dim]Ctrl-C ends it; the data stays.[/]\n")


def _program(folder: Path) -> str:
    """How this program is called from here in another terminal, whatever is activated there."""
    found = Path(sys.argv[0]).absolute()
    if found.name == "__main__.py":
        program = f"{_short(Path(sys.executable))} -m tailrace"
    elif not os.environ.get("VIRTUAL_ENV") and shutil.which("tailrace") == str(found):
        program = "tailrace"
    else:
        program = shlex.quote(_short(found))
    if folder != Path.cwd() / FOLDER:
        return f"TAILRACE_DATA_DIR={shlex.quote(_short(folder))} {program}"
    return program


def _short(path: Path) -> str:
    """Relative to this folder where it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class _progress:  # noqa: N801 - used as a function
    """A word on the terminal while something takes long."""

    def __init__(self, text: str) -> None:
        self._status = err().status(f"{text} …") if sys.stderr.isatty() else None

    def __enter__(self) -> None:
        if self._status is not None:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


def running_redis(folder: Path) -> str | None:
    """The address of the folder's Redis, if one is running.

    Raises:
        ConfigError: the folder's notes cannot be read.
    """
    from tailrace.eventlog.embedded_server import State

    state = State.read(folder / "redis")
    return f"unix://{state.socket}" if state is not None and Path(state.socket).exists() else None
