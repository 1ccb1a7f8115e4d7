"""Metrics of several workers in one answer."""

from __future__ import annotations

from pathlib import Path

from gateway.siblings import Siblings, merge
from gateway.telemetry import Metrics


def test_each_sample_is_labelled_and_each_family_stands_once() -> None:
    one = b'# HELP a_total What.\n# TYPE a_total counter\na_total{x="1",y="{2} 3"} 4.0\n'
    one += b"# HELP b It.\n# TYPE b gauge\nb 5.0\n"
    two = b"# HELP b It.\n# TYPE b gauge\nb 6.0\n# HELP c New.\n# TYPE c gauge\nc 7.0\n"
    assert merge({"0": one, "1": two}).decode().splitlines() == [
        "# HELP a_total What.",
        "# TYPE a_total counter",
        'a_total{worker="0",x="1",y="{2} 3"} 4.0',
        "# HELP b It.",
        "# TYPE b gauge",
        'b{worker="0"} 5.0',
        'b{worker="1"} 6.0',
        "# HELP c New.",
        "# TYPE c gauge",
        'c{worker="1"} 7.0',
    ]


async def test_any_worker_answers_for_all_and_leaves_out_who_does_not_answer(tmp_path: Path) -> None:
    first, second = Metrics(), Metrics()
    first.job_runs.labels("tidy", "done").inc(3)
    second.job_runs.labels("tidy", "done").inc(4)
    places = [Siblings(str(tmp_path), 0, first.scrape), Siblings(str(tmp_path), 1, second.scrape)]
    for place in places:
        await place.start()
    (tmp_path / "worker-2.sock").touch()
    text = (await places[0].metrics()).decode()
    assert 'llm_proxy_job_runs_total{worker="0",result="done",task="tidy"} 3.0' in text
    assert 'llm_proxy_job_runs_total{worker="1",result="done",task="tidy"} 4.0' in text
    assert text.count("# TYPE llm_proxy_job_runs_total counter") == 1
    for place in places:
        await place.close()
