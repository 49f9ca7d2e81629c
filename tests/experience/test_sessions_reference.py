"""The step against forty obvious lines, over random logs."""

from itertools import pairwise

from experience_log import KINDS, SETTINGS, Life, Shown, exposure_bytes, message, record, transitions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.codec import decode_batch

GAP_MS = 10
# No deadline: a busy machine is not a wrong result. Derandomised: the same logs every time.
random_logs = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
REFERENCE_SETTINGS = SETTINGS.model_copy(update={"session_gap_ms": GAP_MS, "max_session_pages": 4, "dedup_horizon_ms": 1000})


def expected(log):
    """What every page of a log must become, computed from the whole log at once."""
    rows = []
    for user_id in {page.user_id for page in log}:
        pages = sorted((page for page in log if page.user_id == user_id), key=lambda page: (page.ts_ms, page.request_id))
        session, step = pages[0].request_id, 0
        for page, following in pairwise([*pages, None]):
            went_on = following is not None and not page.left and following.ts_ms - page.ts_ms <= GAP_MS
            done = not went_on or step == REFERENCE_SETTINGS.max_session_pages - 1
            clicks, pays = (sum(column) for column in zip(*page.labels, strict=True))
            no_conversion = clicks == 0 and pays == 0
            parts = (clicks, 10 * pays, -0.5 if no_conversion and went_on else 0, -2 if no_conversion and not went_on else 0)
            count = sum(any(labels) for labels in page.labels)
            following_exposure = None if done else exposure_bytes(following)
            rows.append((page.request_id, session, step, parts, sum(parts), done, count, exposure_bytes(page), following_exposure))
            session, step = (following and following.request_id, 0) if done else (session, step + 1)
    return sorted(rows)


def found(life):
    parts = [*(f"reward_{kind}" for kind in KINDS), "penalty_no_conversion", "penalty_left"]
    head = ("transition_id", "session_id", "step")
    tail = ("reward", "done", "feedback_count", "exposure", "next_exposure")
    return sorted((*(row[name] for name in head), tuple(row[name] for name in parts), *(row[name] for name in tail)) for row in life.rows())


@st.composite
def logs(draw):
    """Pages of three users in event-time order; many share a millisecond."""
    steps = draw(st.lists(st.tuples(st.sampled_from([0, 0, 1, 3, 10, 11]), st.sampled_from("uvw"), st.booleans()), max_size=30))
    names = draw(st.permutations(range(len(steps))))
    values = st.tuples(st.sampled_from([0.0, 0.0, 1.0]), st.sampled_from([0.0, 0.0, 0.0, 2.0]))
    log, ts_ms = [], 1000
    for name, (wait_ms, user_id, left) in zip(names, steps, strict=True):
        ts_ms += wait_ms
        labels = tuple(draw(st.lists(values, min_size=1, max_size=3)))
        log.append(Shown(f"r{name:02}", user_id, ts_ms, labels, left and draw(st.booleans())))
    return log


@st.composite
def deliveries(draw, log):
    """The log cut into messages, each with an honest watermark, and the messages cut into deliveries."""
    records, rest = [], list(log)
    while rest:
        size = draw(st.integers(1, len(rest)))
        pages, rest = rest[:size], rest[size:]
        honest_ms = min((page.ts_ms for page in rest), default=pages[-1].ts_ms + draw(st.integers(0, 20)))
        records.append(record(len(records), message(pages, honest_ms - draw(st.integers(0, 5)))))
    cut = []
    while records:
        size = draw(st.integers(1, len(records)))
        cut.append(records[:size])
        records = records[size:]
    return cut


def live(cuts, rebuild_at=frozenset()):
    life = Life(REFERENCE_SETTINGS)
    for number, records in enumerate(cuts):
        if number in rebuild_at:
            life.rebuild()
        life.deliver(*records)
    if len(cuts) in rebuild_at:
        life.rebuild()
    life.end()
    return life


@random_logs
@given(st.data())
def test_every_cut_of_a_log_gives_the_transitions_of_the_reference(data):
    log = data.draw(logs())
    life = live(data.draw(deliveries(log)))
    assert found(life) == expected(log)
    assert life.step.gauges()["open_sessions"] == 0
    assert [key for key in life.stored if key.startswith(b"u")] == []


@random_logs
@given(st.data())
def test_pages_in_any_order_that_the_watermark_allows_give_the_same_transitions(data):
    log = data.draw(logs())
    shuffled = data.draw(st.permutations(log))
    assert found(live(data.draw(deliveries(shuffled)))) == expected(log)


@random_logs
@given(st.data())
def test_a_step_rebuilt_from_its_rows_does_byte_for_byte_what_the_undisturbed_one_does(data):
    cuts = data.draw(deliveries(data.draw(logs())))
    rebuild_at = data.draw(st.sets(st.integers(0, len(cuts))))
    assert live(cuts, rebuild_at).outcomes == live(cuts).outcomes


@random_logs
@given(st.data())
def test_messages_delivered_again_after_a_crash_change_nothing(data):
    log = data.draw(logs())
    cuts = data.draw(deliveries(log))
    again = [cut for cut in cuts for _ in range(data.draw(st.integers(1, 2)))]
    numbered, offset = [], 0
    for cut in again:
        numbered.append([one._replace(offset=offset + place) for place, one in enumerate(cut)])
        offset += len(cut)
    assert found(live(numbered)) == expected(log)


@random_logs
@given(st.data())
def test_no_page_is_lost_or_sent_twice_when_the_watermark_is_wrong(data):
    log = data.draw(st.permutations(data.draw(logs())))
    life = Life(REFERENCE_SETTINGS)
    for offset, page in enumerate(log):
        life.deliver(record(offset, message([page], data.draw(st.integers(900, 1500)))))
    life.end()
    assert sorted(row["transition_id"] for row in life.rows()) == sorted(page.request_id for page in log)


@random_logs
@given(st.data())
def test_no_batch_holds_a_page_older_than_the_watermark_of_an_earlier_one(data):
    promised_ms = 0
    for outcome in live(data.draw(deliveries(data.draw(logs())))).outcomes:
        for output in outcome.outputs:
            batch, watermark_ms = decode_batch(output.value, "transitions")
            assert min(batch.column("ts_ms").to_pylist()) >= promised_ms
            promised_ms = watermark_ms


@random_logs
@given(st.data())
def test_a_step_without_its_disk_rebuilds_what_waited_from_the_offset_it_needs(data):
    cuts = data.draw(deliveries(data.draw(logs())))
    stop = data.draw(st.integers(0, len(cuts)))
    life = Life(REFERENCE_SETTINGS)
    for cut in cuts[:stop]:
        life.deliver(*cut)
    needed_from = life.outcomes[-1].needed_from["samples"] if life.outcomes else 0
    other = Life(REFERENCE_SETTINGS)
    for one in (one for cut in cuts for one in cut if one.offset >= needed_from):
        other.deliver(one)
    other.end()
    for cut in cuts[stop:]:
        life.deliver(*cut)
    life.end()
    sent_by_both = {row["transition_id"] for row in life.rows()}
    before = {row["transition_id"] for outcome in life.outcomes[:stop] for row in transitions(outcome)}
    assert sent_by_both - before <= {row["transition_id"] for row in other.rows()} <= sent_by_both
