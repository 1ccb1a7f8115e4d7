"""`llm-proxy apply`: make tenants, pools, keys, quotas and clients what a file declares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.text import Text

from auth.secret import Secret
from gateway.apply.document import Document, DocumentInvalid, merge_documents, read_document
from gateway.apply.execute import Execution
from gateway.apply.plan import Plan, Step, make_plan
from gateway.apply.reading import read_secrets, read_state
from gateway.apply.resource import Address, wanted_of
from gateway.cli.connection import OPERATOR_PROFILE, client_for
from gateway.cli.operate import write_profile
from gateway.cli.output import console, errors, print_json, show
from gateway.settings import environment_secret

EXIT_DIFFERENT: Final = 2
_SUFFIXES: Final = (".yaml", ".yml", ".json", ".toml")
_MARKS: Final = {
    "create": ("+", "green"),
    "change": ("~", "yellow"),
    "rotate": ("~", "yellow"),
    "adopt": ("=", "cyan"),
    "remove": ("-", "red"),
}


@click.command()
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True, allow_dash=True),
    help="What is to be: YAML, .json or .toml, or a directory of them; repeat for several, - for standard input.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; exit code 2 when something differs.")
@click.option("--diff", is_flag=True, help="Show every attribute of what is created too.")
@click.option("--prune", is_flag=True, help="Remove what apply once made and the files declare no more.")
@click.option("--prune-tenants", is_flag=True, help="With --prune: remove whole tenants too, with all that they own.")
@click.option("--owner", default="default", show_default=True, help="Under whose name things are owned and pruned.")
@click.option(
    "--credentials-out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A directory for the credentials of new clients, one profile file (mode 0600) each.",
)
@click.option(
    "--discard-credentials",
    is_flag=True,
    help="Forget the secrets of new clients; `llm-proxy client add-secret` gives others.",
)
@click.option("--allow-inline-secrets", is_flag=True, help="Accept provider keys written into the file.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option(
    "--profile", type=click.Path(path_type=Path, dir_okay=False), help="An operator's profile file (with tenants:act)."
)
def apply(
    *,
    files: tuple[Path, ...],
    dry_run: bool,
    diff: bool,
    prune: bool,
    prune_tenants: bool,
    owner: str,
    credentials_out: Path | None,
    discard_credentials: bool,
    allow_inline_secrets: bool,
    as_json: bool,
    profile: Path | None,
) -> None:
    """Make tenants, pools, keys, quotas and clients what files declare; doing it again changes nothing.

    Needs an operator that may act in tenants (llm-proxy bootstrap --may-act). Secrets are shown as fingerprints only.
    """
    if prune_tenants and not prune:
        raise click.UsageError("--prune-tenants goes with --prune.")
    document = _read(files, allow_inline=allow_inline_secrets)
    secrets, missing = read_secrets(document, environment_secret)
    if missing is not None and not dry_run:
        raise missing
    with client_for(profile, OPERATOR_PROFILE) as operator:
        state, tenant_ids = read_state(operator, document)
        wanted = wanted_of(document, tenant_ids=tenant_ids, secrets=secrets)
        plan = make_plan(wanted, state, owner=owner, prune=prune, prune_tenants=prune_tenants)
        _tell(plan, as_json=as_json, everything=diff)
        for address, sentence in missing.errors if missing is not None else ():
            errors.print(f"not compared: {address}: {sentence}", style="yellow", markup=False)
        if dry_run:
            if plan:
                sys.exit(EXIT_DIFFERENT)
            return
        _check_credentials(plan, document, credentials_out, discard=discard_credentials)
        execution = Execution(
            operator,
            document,
            wanted,
            state,
            tenant_ids=tenant_ids,
            secrets=secrets,
            owner=owner,
            keep=_keeper(credentials_out, operator.base_url),
            done=lambda step: errors.print(f"done: {step.operation} {step.address}", style="dim", markup=False),
        )
        execution.run(plan)


def _read(files: tuple[Path, ...], *, allow_inline: bool) -> Document:
    documents: dict[str, Document] = {}
    every = [each for path in files for each in (sorted(path.iterdir()) if path.is_dir() else [path])]
    for path in (each for each in every if each in files or each.suffix in _SUFFIXES):
        try:
            text = sys.stdin.read() if str(path) == "-" else path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DocumentInvalid(f"{path} cannot be read: {error}.") from None
        documents[str(path)] = read_document(text, str(path), allow_inline=allow_inline)
    if not documents:
        raise DocumentInvalid("There is nothing to apply.", hint=f"Name files that end in {', '.join(_SUFFIXES)}.")
    return merge_documents(documents)


def _tell(plan: Plan, *, as_json: bool, everything: bool) -> None:
    if as_json:
        steps = [
            {
                "operation": step.operation,
                "kind": step.address.kind,
                "tenant": step.address.tenant,
                "name": step.address.name,
                "changes": {name: {"before": old, "after": new} for name, (old, new) in step.changes.items()},
            }
            for step in plan.steps
        ]
        print_json({"steps": steps, "left": [str(address) for address in plan.left]})
        return
    for step in plan.steps:
        mark, style = _MARKS[step.operation]
        console.print(Text(f"{mark} {step.address}{_remark(step)}", style=style), soft_wrap=True)
        if step.operation in ("change", "rotate") or everything:
            for name, (old, new) in sorted(step.changes.items()):
                value = show(new) if step.operation == "create" else f"{show(old)} -> {show(new)}"
                console.print(Text(f"    {name}: {value}"), soft_wrap=True)
    for address in plan.left:
        console.print(Text(f"  {address}: declared no more; --prune removes it", style="dim"), soft_wrap=True)
    if not plan:
        console.print("nothing to do")
        return
    changed = plan.count("change") + plan.count("rotate")
    counts = f"{plan.count('create')} to create, {changed} to change, {plan.count('remove')} to remove"
    console.print(f"{counts}, {plan.count('adopt')} to adopt", style="bold")


def _remark(step: Step) -> str:
    if step.operation == "adopt":
        return " exists already: owned from now on"
    return " with all it owns" if step.operation == "remove" and step.address.kind == "tenant" else ""


def _check_credentials(plan: Plan, document: Document, out: Path | None, *, discard: bool) -> None:
    """Refuse before anything is changed: a secret that is shown once has to go somewhere, or be given up knowingly."""
    new = [
        step.address
        for step in plan.steps
        if step.operation == "create"
        and step.address.kind == "client"
        and document.tenants[step.address.tenant].clients[step.address.name].auth_method.startswith("client_secret")
    ]
    if out is not None:
        paths = [_file_of(out, address) for address in new]
        if taken := sorted({str(path) for path in paths if path.exists() or paths.count(path) > 1}):
            raise DocumentInvalid(
                f"{', '.join(taken)} is taken already.", hint="Move it away, or name another directory or client."
            )
    elif new and not discard:
        raise DocumentInvalid(
            f"New clients get secrets that are shown once: {', '.join(str(address) for address in new)}.",
            hint="Name a directory with --credentials-out, or --discard-credentials and use `llm-proxy client "
            "add-secret` later, or declare auth_method private_key_jwt.",
        )


def _file_of(directory: Path, address: Address) -> Path:
    # A client's name is any text; as a file name it must stay in the directory.
    safe = "".join(char if char.isalnum() or char in "._-" else "_" for char in address.name)
    return directory / f"{address.tenant}.{safe}.json"


def _keeper(directory: Path | None, base_url: str) -> Callable[[Address, str, Secret], None]:
    def keep(address: Address, client_id: str, secret: Secret) -> None:
        if directory is None:
            return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        body: dict[str, Any] = {"base_url": base_url, "client_id": client_id, "client_secret": secret.reveal()}
        write_profile(_file_of(directory, address), body)

    return keep
