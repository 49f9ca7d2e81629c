"""The comparison of emission modes: its figures by hand, its streams whole, and what it finds on the real log."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_logs import MONDAY_MS, kuairand_row, kuairand_rows, write_kuairand_csv
from test_real_logs import log_folder

from benchmarks import delay_log, delayed_feedback
from benchmarks.delay_log import DelayLog, Rows, check_is_whole
from benchmarks.delay_plot import svg
from headrace.settings import ConfigError
from joiner.labels import NEVER
from joiner.settings import JoinerSettings


def settings(mode: str, **more: object) -> JoinerSettings:
    return JoinerSettings.model_validate({"feedback_kinds": ("long_view",), "emission_mode": mode, **more})


def small_log(tmp_path: Path, pages: int = 400) -> DelayLog:
    return delay_log.read_log(write_kuairand_csv(tmp_path / "log.csv", kuairand_rows(pages)), None)


def test_auc_and_log_loss_by_hand() -> None:
    positive = np.array([True, False, True, False])
    assert delayed_feedback.auc(positive, np.array([0.9, 0.1, 0.4, 0.6])) == 0.75
    assert delayed_feedback.auc(positive, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert delayed_feedback.auc(positive, np.array([0.9, 0.1, 0.6, 0.6])) == 0.875
    found = delayed_feedback.mean_log_loss(positive, np.array([0.5, 0.5, 0.25, 0.75]))
    assert found == pytest.approx((2 * np.log(2) + 2 * np.log(4)) / 4)


def test_the_log_s_delays_are_the_times_of_play(tmp_path: Path) -> None:
    rows = [
        kuairand_row(7, 1, MONDAY_MS, long_view=1, is_click=1, play_time_ms=90_000, duration_ms=60_000),
        kuairand_row(7, 2, MONDAY_MS + 700_000, is_click=1, play_time_ms=5_000, duration_ms=60_000),
        kuairand_row(8, 1, MONDAY_MS + 700_001, long_view=1, play_time_ms=20_000, duration_ms=60_000),
    ]
    log = delay_log.read_log(write_kuairand_csv(tmp_path / "log.csv", rows), None)
    assert log.delay_ms.tolist() == [90_000, NEVER, 20_000]
    assert log.chunk_starts() == [0, 1, 3, 3], "the last page may lie on the end of a chunk"
    assert [delayed_feedback.in_third(log, third).tolist() for third in (0, 2)] == [[True, False, False], [False, True, True]]
    user, item = log.tokens_NF[:, 0].tolist(), log.tokens_NF[:, 1].tolist()
    assert user[0] == user[1] != user[2]
    assert item[0] == item[2] != item[1]


def test_a_log_that_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    pages = [kuairand_row(7, page, MONDAY_MS + page * 600_000) for page in range(9)]
    path = write_kuairand_csv(tmp_path / "log.csv", pages)
    with pytest.raises(ConfigError, match="expected exposures with long_view, got 9 exposures and 0 long_view"):
        delayed_feedback.main(path, 1)
    write_kuairand_csv(path, [*pages[:8], {**pages[8], "long_view": 1, "play_time_ms": 5_000}])
    with pytest.raises(ConfigError, match="every third of the log's time needs exposures with and without long_view"):
        delayed_feedback.main(path, 1)


def test_each_mode_s_rows_come_in_the_chunk_in_which_the_mode_lets_them_go(tmp_path: Path) -> None:
    log = small_log(tmp_path)
    delay_ms = np.where(log.is_positive, 45 * 60_000, NEVER)
    window_ms, chunk_ms = 60 * 60_000, delay_log.CHUNK_MS
    asked_ms = log.shown_ms[0] + chunk_ms * np.arange(1, len(log.chunk_starts()))

    def ages_ms(mode: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of positives and of negatives, how old rows are at least, and at most, when they are learned."""
        ages: dict[bool, list[int]] = {True: [], False: []}
        for end_ms, rows in zip(asked_ms, delay_log.emitted(log, delay_ms, settings(mode, join_window_ms=window_ms)), strict=True):
            for place, is_positive in zip(rows.place.tolist(), rows.is_positive.tolist(), strict=True):
                ages[is_positive].append(int(end_ms - log.shown_ms[place]))
        return (min(ages[True]), max(ages[True])), (min(ages[False]), max(ages[False]))

    for mode, kinds in (("window", (0, 1)), ("eager", (1,))):
        for least, most in (ages_ms(mode)[kind] for kind in kinds):
            assert window_ms <= least <= most <= window_ms + 3 * chunk_ms, mode
    for mode in ("eager", "fast"):
        least, most = ages_ms(mode)[0]
        assert 45 * 60_000 <= least <= most <= 45 * 60_000 + chunk_ms, mode
    assert ages_ms("fast")[1][1] <= chunk_ms


def test_a_row_that_is_missing_doubled_or_wrong_is_found() -> None:
    truth = np.array([True, False])

    def rows(places: list[int], positive: list[bool]) -> Rows:
        one = np.ones(len(places), np.float32)
        return Rows(np.array(places), np.array(positive), np.zeros(len(places), np.bool_), one, one, one, one)

    check_is_whole([rows([0, 1], [True, False])], truth, 1.0)
    check_is_whole([rows([0], [True])], truth, 0.5)
    for places, positive, keep_rate, message in (
        ([0], [True], 1.0, "1 are missing, 0 doubled, 0 have a wrong label"),
        ([1], [False], 0.5, "1 are missing, 0 doubled, 1 have a wrong label"),
        ([0, 1, 1], [True, False, False], 1.0, "0 are missing, 1 doubled, 0 have a wrong label"),
        ([0, 1], [True, True], 1.0, "0 are missing, 0 doubled, 1 have a wrong label"),
    ):
        with pytest.raises(ValueError, match=message):
            check_is_whole([rows(places, positive)], truth, keep_rate)


@pytest.mark.slow
def test_the_report_has_every_contestant_is_seeded_and_makes_a_picture(tmp_path: Path) -> None:
    path = write_kuairand_csv(tmp_path / "log.csv", kuairand_rows(300))
    report = delayed_feedback.main(path, 2, ["stretched", "drawn"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert delayed_feedback.main(path, 2, ["drawn"])["variants"]["drawn"] == report["variants"]["drawn"]
    assert list(report["variants"]) == ["stretched", "drawn"]
    for variant in report["variants"].values():
        contestants = variant["contestants"]
        assert list(contestants) == list(delayed_feedback.CONTESTANTS)
        assert contestants["oracle"]["log_loss_over_oracle"] == {"mean": 0.0, "sd": 0.0}
        assert contestants["1/4 negatives, uncorrected"]["calibration"]["mean"] > contestants["oracle"]["calibration"]["mean"]
    delayed_feedback.show(report)
    assert svg(report).count("<polyline") > 2 * 2 * 8


@pytest.mark.logs
@pytest.mark.slow
def test_on_the_real_log_with_drawn_delays_late_positives_make_plain_log_loss_too_low_and_fnw_and_fnc_do_not() -> None:
    log = delay_log.read_log(log_folder("kuairand_pure"), 40_000)
    variant = delayed_feedback.VARIANTS["drawn"]
    delay_ms = np.full(len(log.delay_ms), NEVER)
    delay_ms[log.is_positive] = variant.delays_ms(log.delay_ms[log.is_positive], np.random.default_rng(0))
    sent = delay_log.emitted(log, delay_ms, settings("fast", join_window_ms=variant.window_ms))
    found = {
        name: delayed_feedback.judged(log, delayed_feedback.predictions(log, sent, delayed_feedback.CONTESTANTS[name], 0.05, 0))
        for name in ("fast, plain", "fast, FNW", "fast, FNC")
    }
    assert found["fast, plain"]["calibration"] < 0.85
    for name in ("fast, FNW", "fast, FNC"):
        assert 0.9 < found[name]["calibration"] < 1.15, name
        assert found[name]["log_loss"] < found["fast, plain"]["log_loss"] - 0.005, name
