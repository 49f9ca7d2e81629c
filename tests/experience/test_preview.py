"""Early transitions and their amendments: whoever keeps the highest revision of each has what `complete` would have sent."""

from typing import Any

import pytest
from experience_log import MINUTE_MS, SETTINGS, Life, Shown, early_message, message, page_of, record, transitions
from hypothesis import given
from hypothesis import strategies as st
from test_sessions_reference import INSTANCES, deliveries, logs, random_logs, reference_settings, seen, should

from headrace.step import Count

M = MINUTE_MS
EARLY = SETTINGS.model_copy(update={"labels": "early"})
POINTWISE = "pointwise-samples"
CLICKED = ((1.0, 0.0), (0.0, 0.0))


def early(life: Life, offset: int, *pages: Shown, **how: Any) -> list[dict[str, Any]]:
    return transitions(life.deliver(record(offset, early_message(pages, **how)), topic=POINTWISE))


def folded(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["transition_id"] not in newest or row["revision"] >= newest[row["transition_id"]]["revision"]:
            newest[row["transition_id"]] = row
    return newest


def test_a_page_leaves_as_soon_as_the_next_one_is_shown_with_the_labels_of_that_moment() -> None:
    life = Life(EARLY)
    assert early(life, 0, Shown("a", "u", 1000, CLICKED)) == []
    assert early(life, 1, Shown("x", "v", 1500)) == []
    [row] = early(life, 2, Shown("b", "u", 2000))
    assert (row["transition_id"], row["revision"], row["reward"], page_of(row["next_exposure"])) == ("a", 0, 1.0, "b")


def test_final_labels_that_say_the_same_send_nothing_and_others_an_amendment() -> None:
    life = Life(EARLY)
    early(life, 0, Shown("a", "u", 1000), Shown("b", "u", 2000), Shown("c", "u", 3000))
    outcome = life.deliver(record(0, message([Shown("a", "u", 1000), Shown("b", "u", 2000, CLICKED), Shown("c", "u", 3000)], 3001)))
    [row] = transitions(outcome)
    assert (row["transition_id"], row["revision"], row["reward"], row["penalty_no_conversion"]) == ("b", 1, 1.0, 0.0)


def test_a_leave_that_comes_late_amends_its_page_and_all_that_followed_in_the_session() -> None:
    life = Life(EARLY)
    early(life, 0, Shown("a", "u", 1000), Shown("b", "u", 2000), Shown("c", "u", 3000))
    life.deliver(record(0, message([Shown("a", "u", 1000, left=True), Shown("b", "u", 2000), Shown("c", "u", 3000)], 3001)))
    rows = folded(life.rows())
    assert [(rows[name]["session_id"], rows[name]["step"], rows[name]["done"], rows[name]["revision"]) for name in "ab"] == [
        ("a", 0, True, 1),
        ("b", 0, False, 1),
    ]


def test_early_rows_of_a_page_that_are_not_all_there_are_counted_and_corrections_say_nothing() -> None:
    life = Life(EARLY)
    page = Shown("a", "u", 1000)
    whole = early_message([page])
    cut = life.deliver(record(0, early_message([page], closed_by="correction")), record(1, whole), topic=POINTWISE)
    assert cut.counts == {Count("in", POINTWISE): 4}
    partial = life.deliver(record(2, early_message([Shown("b", "u", 1001)], rows=1)), topic=POINTWISE)
    assert partial.counts == {Count("in", POINTWISE): 1, Count("ignored", "incomplete_page"): 1}
    again = life.deliver(record(3, whole), topic=POINTWISE)
    assert again.counts == {Count("in", POINTWISE): 2, Count("ignored", "duplicate"): 2}


def test_a_session_ends_early_by_its_gap_where_the_early_topic_is_silent() -> None:
    life = Life(EARLY)
    early(life, 0, Shown("a", "u", 1000))
    life.keep(life.step.tick(0))
    [row] = transitions(life.keep(life.step.tick(31 * M)))
    assert (row["transition_id"], row["done"], row["revision"]) == ("a", True, 0)


def test_what_is_no_batch_of_point_wise_samples_is_a_dead_letter_of_that_topic() -> None:
    life = Life(EARLY)
    outcome = life.deliver(record(4, b"{}"), record(5, message([Shown("a", "u", 0)], 0)), topic=POINTWISE)
    assert [(letter.source_topic, letter.source_offset, letter.reason) for letter in outcome.dead_letters] == [
        (POINTWISE, 4, "malformed"),
        (POINTWISE, 5, "malformed"),
    ]
    assert outcome.counts[Count("rejected", "malformed")] == 2


def test_the_complete_mode_reads_no_early_rows() -> None:
    with pytest.raises(ValueError, match="reads samples, not pointwise-samples"):
        Life(SETTINGS).deliver(record(0, early_message([Shown("a", "u", 0)])), topic=POINTWISE)


def test_early_offsets_are_committed_up_to_the_oldest_page_that_waits() -> None:
    life = Life(EARLY)
    assert life.deliver(record(7, early_message([Shown("a", "u", 1000)])), topic=POINTWISE).needed_from == {POINTWISE: 7}
    assert life.deliver(record(8, early_message([Shown("b", "v", 2000)])), topic=POINTWISE).needed_from == {POINTWISE: 7}
    outcome = life.deliver(record(9, early_message([Shown("c", "u", 3000, left=True)])), topic=POINTWISE)
    assert [row["transition_id"] for row in transitions(outcome)] == ["a", "c"]
    assert outcome.needed_from == {POINTWISE: 8}


def test_the_complete_mode_drops_what_the_early_one_has_stored() -> None:
    life = Life(EARLY)
    early(life, 0, Shown("a", "u", 1000), Shown("b", "u", 2000))
    assert {key[0] for key in life.stored} == set(b"PQSVW")
    life.settings = SETTINGS
    life.rebuild()
    life.deliver(record(0, message([Shown("a", "u", 1000)], 1000)))
    assert {key[0] for key in life.stored} == set(b"psw")
    life.settings = EARLY
    life.rebuild()
    assert early(life, 1, Shown("c", "u", 3000)) == []


@random_logs
@given(st.data())
def test_with_amendments_folded_in_the_transitions_are_those_of_the_reference(data: Any) -> None:
    """Early pages with other labels, some missing, some twice, in any order among themselves and the final ones; crashes between."""
    log = data.draw(logs())
    of = reference_settings(data.draw(INSTANCES)).model_copy(update={"labels": "early"})
    hasty = [page._replace(left=False, labels=((0.0, 0.0),) * len(page.labels)) if data.draw(st.booleans()) else page for page in log]
    shown = [page for page in data.draw(st.permutations(hasty)) if data.draw(st.integers(0, 4))]
    shown += data.draw(st.lists(st.sampled_from(shown), max_size=3)) if shown else []
    calls: list[tuple[str, list[Any]]] = [("samples", cut) for cut in data.draw(deliveries(log))]
    for offset, page in enumerate(shown):
        calls.insert(data.draw(st.integers(0, len(calls))), (POINTWISE, [record(offset, early_message([page]))]))
    life = Life(of)
    offset = 0
    for topic, records in calls:
        if data.draw(st.integers(0, 3)) == 0:
            life.rebuild()
        if topic == POINTWISE:  # as they come, so are their offsets
            life.deliver(records[0]._replace(offset=offset), topic=topic)
            offset += 1
        else:  # final messages keep their order
            life.deliver(*records, topic=topic)
    life.end()
    rows = folded(life.rows())
    assert {name: seen(row) for name, row in rows.items()} == should(log, of)
    assert [key for key in life.stored if key[:1] in b"pqPQ"] == []


@random_logs
@given(st.data())
def test_early_pages_in_order_with_final_labels_need_no_amendment(data: Any) -> None:
    log = sorted(data.draw(logs()), key=lambda page: (page.ts_ms, page.request_id))
    of = reference_settings(data.draw(INSTANCES)).model_copy(update={"labels": "early"})
    life = Life(of)
    for start in range(0, len(log), 4):
        life.deliver(record(start, early_message(log[start : start + 4])), topic=POINTWISE)
    life.keep(life.step.tick(0))
    life.keep(life.step.tick(40_000))
    before = len(life.rows())
    for cut in data.draw(deliveries(log)):
        life.deliver(*cut)
    life.end()
    same_ms = {(one.user_id, one.ts_ms) for one in log if sum((one.user_id, one.ts_ms) == (two.user_id, two.ts_ms) for two in log) > 1}
    if not same_ms:  # a page of the very millisecond may have been shown in a later message, and belong in between
        assert before == len(life.rows()) == len(log) * len(of.instances)
    assert {name: seen(row) for name, row in folded(life.rows()).items()} == should(log, of)
