"""The parts of `llm-proxy dev` that stand between a newcomer and a traceback."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from auth.errors import Unavailable
from gateway.dev.home import DevHome, UnusableHome
from gateway.dev.revival import Revival


def test_a_home_that_is_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(UnusableHome, match="cannot be used: File exists") as refused:
        DevHome(taken)
    assert "LLM_PROXY_HOME" in refused.value.hint


def test_a_home_below_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UnusableHome, match="Not a directory"):
        DevHome(tmp_path / "taken" / "home")


class Dying:
    """A server that fails to come back twice, then does, then lives."""

    def __init__(self) -> None:
        self.answers: list[bool | Unavailable] = [
            Unavailable("No room.", hint="Free some."),
            Unavailable("No room.", hint="Free some."),
            True,
        ]
        self.lives = threading.Event()

    def revive(self) -> bool:
        if not self.answers:
            self.lives.set()
            return False
        answer = self.answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer


def test_a_dead_server_is_revived_and_told_about(caplog: pytest.LogCaptureFixture) -> None:
    server = Dying()
    revival = Revival(server, every_s=0.001)
    with caplog.at_level(logging.WARNING):
        revival.start()
        assert server.lives.wait(20)
        revival.close()
    told = [record.levelname for record in caplog.records]
    assert told == ["ERROR", "ERROR", "WARNING"]
    assert not revival.is_alive()
