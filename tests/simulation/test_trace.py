"""Traces: what is read, and what is said about the rest."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import pytest

from gateway.simulation.demand import make_demands
from gateway.simulation.synthetic import synthesize
from gateway.simulation.trace import Arrival, BadTrace, parse_trace, read_trace, write_trace

EXPORT = (
    "id,tenant_id,at,client_id,model,input_tokens,output_tokens,cached_input_tokens\n"
    "1,x,2026-01-01 00:00:00+00,app,m,2,3,1\n"
)


@pytest.mark.parametrize(
    ("text", "arrival"),
    [
        ("t,inp,out,kind\n0.5,374,44,conv\n", Arrival(0.5, 374, 44, 0, "conv")),
        ("t,inp,out,cached,kind\n0,10,6,4,x\n", Arrival(0, 10, 6, 4, "x")),
        ("time,input_tokens,output_tokens,model,tenant\n1,2,3,m,a\n", Arrival(1, 2, 3, 0, "a", "m")),
        ("Timestamp, prompt_tokens ,completion_tokens\n2026-01-01T00:00:00Z,2,3\n", Arrival(0, 2, 3)),
        (EXPORT, Arrival(0, 2, 3, 1, "app", "m")),
        ("started_at,input_tokens,output_tokens\n1767225600.0,2,3\n", Arrival(0, 2, 3)),
    ],
)
def test_reads(text: str, arrival: Arrival) -> None:
    assert parse_trace(text.splitlines(keepends=True)) == [arrival]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns are missing"),
        ("a,b\n1,2\n", r"columns are missing.*found: a, b"),
        ("t,inp\n1,2\n", "output: out, output"),
        ("t,inp,out\n", "no requests"),
        ("t,inp,out\nx,1,2\n", "line 2: 'x' is neither"),
        ("t,inp,out\n1,1,2\n-1,1,2\n", "line 3"),
        ("t,inp,out\nnan,1,2\n", "line 2"),
        ("t,inp,out\n1,-4,2\n", "line 2: input tokens '-4'"),
        ("t,inp,out\n1,4\n", "line 2: output tokens ''"),
    ],
)
def test_refuses_with_the_line(text: str, said: str) -> None:
    with pytest.raises(BadTrace, match=said):
        parse_trace(text.splitlines(keepends=True))


def test_files_plain_packed_and_neither(tmp_path: Path) -> None:
    made = synthesize(requests=50)
    text = "".join(write_trace(made)).encode()
    (tmp_path / "plain.csv").write_bytes(text)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(text))
    assert read_trace(tmp_path / "plain.csv") == read_trace(tmp_path / "packed.csv.gz") == made
    assert len(read_trace(tmp_path / "plain.csv", limit=7)) == 7
    for name, data in (("binary", b"\xff\xfe\x00"), ("cut.gz", gzip.compress(text)[:40])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadTrace, match="not a CSV file"):
            read_trace(tmp_path / name)


def test_the_sample_in_the_repository_is_the_generated_one() -> None:
    sample = Path(__file__).parents[2] / "bench" / "traces" / "sample.csv"
    assert sample.read_text(encoding="utf-8") == "".join(write_trace(synthesize()))


def test_demand_is_the_same_for_the_same_seed_and_fits_the_trace() -> None:
    arrivals = synthesize(requests=500)
    demands = make_demands(arrivals, Random(3))
    assert demands == make_demands(arrivals, Random(3))
    for arrival, demand in zip(arrivals, demands, strict=True):
        assert demand.output_tokens == arrival.output_tokens
        assert demand.max_tokens is None or demand.max_tokens >= arrival.output_tokens
        assert demand.at < demand.deadline_at < demand.patience_until
