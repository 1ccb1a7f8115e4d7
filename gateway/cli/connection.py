"""How the managing commands reach a gateway: from the environment, a profile file, or what `dev` left behind."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import rich_click as click

from auth.errors import Fault
from auth.secret import Secret
from gateway.http_client import Credentials, ManagementClient
from gateway.settings import Settings, settings_from_environment

F = TypeVar("F", bound=Callable[..., Any])

DEV_PROFILE = "dev.json"
OPERATOR_PROFILE = "operator.json"


class NoProfile(Fault):
    """The commands do not know which gateway to talk to, or as whom."""

    code = "no_profile"


def read_profile(path: Path) -> Credentials:
    """Read a profile file: JSON with base_url, client_id and client_secret, readable by its owner alone."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = json.loads(path.read_text())
        credentials = Credentials(
            str(data["base_url"]).rstrip("/"), str(data["client_id"]), Secret(str(data["client_secret"]))
        )
    except FileNotFoundError:
        raise NoProfile(
            f"There is no profile at {path}.",
            hint="Start `llm-proxy dev`, which makes one; or set LLM_PROXY_URL, LLM_PROXY_CLIENT_ID and "
            "LLM_PROXY_CLIENT_SECRET; or name a file with --profile.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoProfile(
            f"The profile {path} cannot be used: {type(error).__name__}.",
            hint="It is a JSON object with base_url, client_id and client_secret.",
        ) from None
    if mode & 0o077:
        raise NoProfile(f"The profile {path} is open to others (mode {mode:04o}).", hint=f"chmod 600 {path}")
    return credentials


def find_credentials(settings: Settings, profile: Path | None, default_name: str) -> Credentials:
    """Choose: --profile, then the three variables (all or none), then LLM_PROXY_PROFILE, then what `dev` wrote."""
    if profile is not None:
        return read_profile(profile)
    given = (settings.url, settings.client_id, settings.client_secret)
    if settings.url and settings.client_id and settings.client_secret:
        return Credentials(settings.url, settings.client_id, settings.client_secret)
    if any(given):
        raise NoProfile(
            "Of LLM_PROXY_URL, LLM_PROXY_CLIENT_ID and LLM_PROXY_CLIENT_SECRET only some are set.",
            hint="Set all three, or none and use a profile.",
        )
    return read_profile(settings.profile or settings.home / default_name)


def connected(command: F) -> F:
    """Add --profile and --json to a command that talks to a gateway."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON instead of a table.")(
        command
    )
    return click.option(
        "--profile",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A profile file (JSON: base_url, client_id, client_secret).",
    )(command)


@contextmanager
def client_for(profile: Path | None, default_name: str = DEV_PROFILE) -> Iterator[ManagementClient]:
    """Open a client for the chosen gateway."""
    with ManagementClient(find_credentials(settings_from_environment(), profile, default_name)) as client:
        yield client


def find_id(client: ManagementClient, path: str, wanted: str, *names: str) -> str:
    """Return the id of the item of a list that is called `wanted` (its id, or one of the fields `names`)."""
    try:
        return str(UUID(wanted))
    except ValueError:
        pass
    seen: list[str] = []
    for item in client.items(path):
        if wanted in (item.get(name) for name in names):
            return str(item["id"])
        seen.append(str(item.get(names[0])))
    kind = path.rsplit("/", 1)[-1].removesuffix("s")
    known = ", ".join(sorted(seen)[:20]) or "none yet"
    raise Fault(f"There is no {kind} called {wanted}.", hint=f"Known: {known}.")
