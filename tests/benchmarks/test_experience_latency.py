"""The latency benchmark: early transitions leave earlier, and with their amendments they are the complete ones."""

from benchmarks.experience_latency import main


def test_early_transitions_leave_with_the_next_page_and_end_up_the_same() -> None:
    report = main(users=40, minutes=5)
    assert report["mismatches"] == 0
    assert report["early"]["next_page"]["p50_s"] < 60
    assert report["complete"]["next_page"]["p50_s"] > 600
    assert report["early"]["amendment"]["transitions"] < report["early"]["next_page"]["transitions"]
    assert "amendment" not in report["complete"]
