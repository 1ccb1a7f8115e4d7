"""How answers and errors look on a terminal, and as JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auth.errors import Fault

_PIPE_WIDTH = 1_000
"""Into a pipe tables are written unfolded, for grep and awk."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
errors = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """Write JSON, plain when it goes into a pipe."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if console.is_terminal:
        console.print_json(text)
    else:
        sys.stdout.write(text + "\n")


def print_list(items: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print items as a table of `columns` (dotted paths reach inside), or all of them as JSON."""
    rows = list(items)
    if as_json:
        print_json(rows)
        return
    if not rows:
        errors.print("none yet", style="dim")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.rsplit(".", 1)[-1].replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(reach(row, column))) for column in columns))
    console.print(table)


def print_one(item: Mapping[str, Any], *, as_json: bool, leave_out: Sequence[str] = ()) -> None:
    """Print one thing, a field a line, or as JSON."""
    if as_json:
        print_json(item)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in item.items():
        if name not in leave_out:
            table.add_row(name.replace("_", " "), Text(show(value)))
    console.print(table)


def reach(item: Any, path: str) -> Any:
    """Follow a dotted path; None where it ends early."""
    for name in path.split("."):
        item = item.get(name) if isinstance(item, Mapping) else None
    return item


def show(value: Any) -> str:
    """Say a value in a few characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    if isinstance(value, list):
        return ", ".join(show(each) for each in value) or "-"
    return str(value)


def print_fault(fault: Fault) -> None:
    """Say what is wrong, every place of it, and how to mend it."""
    errors.print(Text.assemble(("error: ", "bold red"), fault.public), soft_wrap=True)
    for place, sentence in getattr(fault, "errors", ()):
        if sentence in fault.public:
            continue
        line = f"  - {place}: {sentence}" if place and not sentence.startswith(place) else f"  - {sentence}"
        errors.print(Text(line), soft_wrap=True)
    if fault.hint:
        errors.print(Text(fault.hint, style="dim"), soft_wrap=True)
    if fault.debug:
        errors.print(Text(fault.debug, style="dim"), soft_wrap=True)
    if request_id := getattr(fault, "request_id", ""):
        errors.print(Text(f"request id: {request_id}", style="dim"), soft_wrap=True)
