"""Makes helm/llm-proxy/README.md from the `## @param` lines of values.yaml.

`python helm/readme.py` writes it; `--check` exits with 1 when it is not up to date. A value without its `@param`
line, or a line without its value, is an error.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "llm-proxy"
START, END = "<!-- values: made by helm/readme.py -->", "<!-- end of values -->"
_LINE = re.compile(r"^\s*## @(param|section) (?:(\S+) (.+)|.+)$")
_SECTION = re.compile(r"^## @section (.+)$")


@dataclass(frozen=True)
class Param:
    """One documented value: dotted path, default, meaning."""

    path: str
    default: Any
    meaning: str


def sections(text: str) -> dict[str, list[Param]]:
    """Read values.yaml; raises ValueError that lists every mismatch between values and their documentation."""
    values = yaml.safe_load(text)
    found: dict[str, list[Param]] = {}
    section, problems = "", []
    for line in text.splitlines():
        if heading := _SECTION.match(line):
            section = heading[1]
            found[section] = []
        elif (match := _LINE.match(line)) and match[1] == "param":
            path, meaning = match[2], match[3]
            try:
                found[section].append(Param(path, lookup(values, path), meaning))
            except KeyError:
                problems.append(f"{path} is documented and does not exist")
    documented = {param.path for params in found.values() for param in params}
    problems += [f"{path} has no @param line" for path in leaves(values, documented) if path not in documented]
    if problems:
        raise ValueError("values.yaml: " + "; ".join(problems))
    return found


def lookup(values: dict[str, Any], path: str) -> Any:
    """Return the value at a dotted path; KeyError when there is none."""
    at: Any = values
    for part in path.split("."):
        at = at[part]
    return at


def leaves(values: dict[str, Any], documented: set[str], prefix: str = "") -> list[str]:
    """List the paths of all values; a documented mapping counts as one value."""
    paths: list[str] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in documented:
            paths += leaves(value, documented, f"{path}.")
        else:
            paths.append(path)
    return paths


def table(text: str) -> str:
    """Render the values as Markdown tables, one a section."""
    parts = []
    for section, params in sections(text).items():
        rows = [f"| `{p.path}` | {p.meaning.replace('|', chr(92) + '|')} | `{json.dumps(p.default)}` |" for p in params]
        parts.append("\n".join([f"### {section}", "", "| value | meaning | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def readme(current: str, values: str) -> str:
    """Return the README with its tables made anew; everything outside the two marks stays."""
    before, _, rest = current.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table(values)}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write README.md, or only compare it."""
    path = CHART / "README.md"
    current = path.read_text()
    wanted = readme(current, (CHART / "values.yaml").read_text())
    if arguments == ["--check"]:
        if current != wanted:
            sys.stderr.write("helm/llm-proxy/README.md is not up to date: run `make chart-docs`.\n")
            return 1
        return 0
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
