"""`llm-proxy simulate` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from auth.errors import Invalid
from gateway.cli.simulate import simulate
from gateway.simulation.synthetic import synthesize
from gateway.simulation.trace import write_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("".join(write_trace(synthesize(requests=80, duration_s=60))), encoding="utf-8")
    return path


def test_prints_a_row_a_strategy_and_writes_the_page(trace: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    words = ["--trace", str(trace), "--strategies", "weighted,round_robin", "--report", str(page)]
    done = CliRunner().invoke(simulate, words, catch_exceptions=False, terminal_width=120)
    assert done.exit_code == 0
    said = page.read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in said for name in ("oracle", "weighted", "round_robin"))
    assert "80 requests of trace.csv" in said


def test_replays_a_pool_file_at_its_own_limits(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool.json"
    pool.write_text('{"keys": [{"name": "only", "limits": {"rpm": 6000}}]}', encoding="utf-8")
    simulate.main(
        ["--trace", str(trace), "--pool", str(pool), "--strategies", "weighted", "--json"], standalone_mode=False
    )
    results = json.loads(capsys.readouterr().out)
    assert [each["strategy"] for each in results] == ["oracle", "weighted"]
    assert all(each["served"] == each["requests"] for each in results)
    assert results[1]["by_key"] == {"only": [results[1]["requests"], 0]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategies", "nonsense"], "unknown strategy 'nonsense'"),
        (["--trace", "BAD"], "columns are missing"),
        (["--pool", "BAD"], "the pool file is not usable"),
    ],
)
def test_explains_bad_input(words: list[str], said: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(Invalid) as caught:
        simulate.main([str(bad) if word == "BAD" else word for word in words], standalone_mode=False)
    assert said in caught.value.public
    assert "docs/simulate.md" in caught.value.hint
