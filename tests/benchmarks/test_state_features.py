"""The features' benchmark measures ways to the same tensors."""

import numpy as np
import pytest

from benchmarks import state_features


def test_every_way_gives_the_same_tensors_and_every_figure_is_there() -> None:
    report = state_features.measure(rounds=1, rows=600)
    assert report["faults"] == []
    assert report.keys() >= {"rows_per_s", "payload_ratio_to_orjson", "encode_ratio_to_torch", "peak_rss_mb"}
    assert all(report[name] > 0 for name in ("rows_per_s", "payload_ratio_to_orjson", "encode_ratio_to_torch", "peak_rss_mb"))


def test_a_way_to_other_tensors_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(ids: object) -> np.ndarray:
        return crcs(ids) + 1

    crcs = state_features.OpenColumns.raw.__globals__["crcs_of_column"]
    monkeypatch.setitem(state_features.OpenColumns.raw.__globals__, "crcs_of_column", shifted)
    faults = state_features.measure(rounds=1, rows=600)["faults"]
    assert {"ids of OrjsonLoop", "items of OrjsonLoop", "matrix of TunedOrjsonLoop"} <= {*faults}
