"""Reads what the scripts need out of JSON, so that they need no jq: `pick.py -r .field FILE`, `pick.py -c . FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def find(tree: Any, name: str) -> Any:
    """Return the first value of that name, however deep it lies; None when there is none."""
    if isinstance(tree, dict):
        if name in tree:
            return tree[name]
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            if (found := find(each, name)) is not None:
                return found
    return None


def main(mode: str, *arguments: str) -> int:
    """Print a field, the client's credentials, or judge a load's result."""
    data = json.loads(Path(arguments[-1]).read_text())
    if mode == "--no-failures":
        return int(bool(data["failures"]) or not all(data["done"].values()))
    if mode == "-r":
        print(find(data, arguments[0].removeprefix(".")))
    else:
        print(json.dumps({name: find(data, name) for name in ("client_id", "client_secret")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
