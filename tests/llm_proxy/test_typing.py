"""Type checkers of programs that use the SDK see all of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import llm_proxy


def test_every_public_name_comes_from_a_package_marked_as_typed() -> None:
    packages = {getattr(llm_proxy, name).__module__.partition(".")[0] for name in llm_proxy.__all__}
    unmarked = {each for each in packages if not _marker(each).is_file()}
    assert not unmarked, "PEP 561: without py.typed its types are Any to whoever imports them"


def _marker(package: str) -> Path:
    importlib.import_module(package)
    file = sys.modules[package].__file__
    assert file is not None
    return Path(file).with_name("py.typed")
