"""The monitor reads what the joiner and the experience collector really write."""

from collections import Counter

from headrace.runner import Event, run
from headrace.step import Count, Record
from monitor.report import build_report
from monitor.settings import MonitorSettings
from monitor.tally import PartitionTally
from schemas.codec import encode_json
from schemas.exposure import ExposedItem, Exposure
from schemas.feedback import Feedback
from schemas.topics import DEAD_LETTERS, EXPOSURES, FEEDBACK, SAMPLES, TRANSITIONS

T0 = 1_700_000_000_000
PAGES = 3
USERS = ("u-policy", "u-baseline", "u-early")


def an_exposure(user: str, page: int) -> Event:
    arm = {"u-policy": ("fusion", "fusion-000001"), "u-baseline": ("baseline", ""), "u-early": ("fusion", "")}[user]
    shown = Exposure(
        request_id=f"{user}-{page}",
        user_id=user,
        ts_ms=T0 + page * 10_000,
        policy=arm[0],
        model_version=arm[1],
        state={"hour": 1.0},
        action=[1.0],
        items=[ExposedItem("i-1", 0), ExposedItem("i-2", 1)],
    )
    return Event(shown.ts_ms, EXPOSURES, encode_json(shown))


def a_click(user: str, page: int) -> Event:
    ts_ms = T0 + page * 10_000 + 400
    click = Feedback(event_id=f"e-{user}-{page}", request_id=f"{user}-{page}", user_id=user, item_id="i-2", ts_ms=ts_ms, kind="click")
    return Event(ts_ms, FEEDBACK, encode_json(click))


def test_what_the_stages_wrote_is_what_the_monitor_counts() -> None:
    from functools import partial

    from experience.sessions import PartitionSessions
    from experience.settings import ExperienceSettings
    from headrace.memory_rows import InMemory, MemoryRows
    from joiner.join import PartitionJoin
    from joiner.settings import JoinerSettings

    join = InMemory(partial(PartitionJoin, JoinerSettings(join_window_ms=5_000, feedback_kinds=("click",)), 0))
    sessions = PartitionSessions(ExperienceSettings(session_gap_ms=30_000), 0, MemoryRows())
    exposures = [an_exposure(user, page) for page in range(PAGES) for user in USERS]
    clicks = [a_click("u-policy", page) for page in range(PAGES)] + [a_click("u-baseline", 1)]
    events = sorted([*exposures, *clicks, Event(T0 + 1, FEEDBACK, b"{")], key=lambda event: event.ts_ms)
    emitted, chain = run(join, sessions, events, now_ms=T0 + 60_000)

    tally = PartitionTally(MonitorSettings(), 0)
    refused = [encode_json(letter) for letter in emitted.dead_letters]
    counts: Counter[Count] = Counter()
    for topic, values in (
        (SAMPLES, [message.value for message in emitted.samples]),
        (TRANSITIONS, [message.value for message in emitted.transitions]),
        (DEAD_LETTERS, refused),
    ):
        outcome = tally.apply(topic, [Record(offset, T0, value) for offset, value in enumerate(values)], T0)
        assert not outcome.dead_letters
        counts.update(outcome.counts)

    assert counts == Counter({Count("in", SAMPLES): 18, Count("in", TRANSITIONS): 9, Count("in", DEAD_LETTERS): 1})
    report = build_report([tally], chain.counts)
    assert report["stages"]["joiner"] == {"in": 9 + 5, "out": 18, "rejected": {"malformed": 1}}
    assert report["stages"]["experience"] == {"in": 18, "out": 9, "rejected": {}}
    assert {arm: reward["pages"] for arm, reward in report["reward"].items()} == {"baseline": 3, "policy": 3, "exploration": 3}
    assert report["reward"]["policy"]["mean"] == 1.0
    assert report["join"] == {"pages": 9, "rate": 4 / 9, "label_delay_s_mean": 0.4}
    [version] = report["versions"]
    assert (version["model_version"], version["first_response_ms"], version["pages"]) == ("fusion-000001", T0, 3)
