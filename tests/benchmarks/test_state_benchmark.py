import pytest

from benchmarks.state import main, show


@pytest.mark.slow
def test_every_part_beside_its_peer_gives_its_figures() -> None:
    report = main(rounds=1, cold_ids=10_000)
    show(report)
    assert (report["cold_ids"], report["faults"]) == (10_000, [])
    for name in (
        "rows_per_s",
        "payload_ratio_to_orjson",
        "encode_ratio_to_torch",
        "zscore_rows_per_s",
        "zscore_ratio_to_numpy",
        "ratio_to_river",
        "gather_rows_per_s",
        "gather_scatter_rows_per_s",
        "torch_gather_scatter_rows_per_s",
        "cold_rows_per_s",
        "peak_rss_mb",
    ):
        assert report[name] > 0, name
