"""The user state's worker and serving as processes on a broker: killed, and robbed of its state, it gives an undisturbed run's features."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pipeline
import pytest

from headrace.broker import create_topics, free_port
from headrace.memory_rows import InMemory
from headrace.runner import Event
from headrace.settings import StreamSettings
from headrace.step import Record
from schemas.features import FeatureSpec
from schemas.feedback import Feedback, encode_feedback
from schemas.topics import FEEDBACK
from serving.user_state.features import StoredFeatures
from serving.user_state.history import decode_history
from serving.user_state.reader import partition_of
from serving.user_state.settings import UserStateSettings
from serving.user_state.step import PartitionUserState, user_row

USERS = 20
GROUP = "users"
HOUR_MS = 3_600_000
SPEC = {
    "dense": [{"name": "click_1d"}, {"name": "pay_1w"}, {"name": "click_1h"}],
    "sequences": [{"name": "recent_click", "length": 5}, {"name": "recent_click_categories", "length": 5}],
    "binary_sequences": [{"name": "click_code", "digits": 3}],
}
SETTINGS = UserStateSettings(kinds=("click", "pay"), max_events=20, recent_items=5)
ENVIRONMENT = {
    "HEADRACE_USER_STATE_KINDS": '["click", "pay"]',
    "HEADRACE_USER_STATE_MAX_EVENTS": "20",
    "HEADRACE_USER_STATE_RECENT_ITEMS": "5",
    "HEADRACE_USER_STATE_SERVE": "true",
    "HEADRACE_POLICY_FEATURES": json.dumps(SPEC),
}


def log_of(count: int, users: list[str]) -> list[tuple[int, Event]]:
    """Clicks and payments of the last five hours, but not of the last two: the features stand still while the test runs."""
    now_ms = int(time.time() * 1000)
    events = []
    for number in range(count):
        feedback = Feedback(
            event_id=f"e-{number}",
            request_id="r",
            user_id=users[number * 7 % len(users)],
            item_id=f"i-{number}",
            ts_ms=now_ms - 5 * HOUR_MS + number * 3 * HOUR_MS // count,
            kind="pay" if number % 5 == 0 else "click",
            category=f"c-{number % 3}",
        )
        events.append((partition_of(feedback.user_id, pipeline.PARTITIONS), Event(feedback.ts_ms, FEEDBACK, encode_feedback(feedback))))
    return events


def undisturbed(events: list[tuple[int, Event]], users: list[str]) -> dict[str, dict[str, Any]]:
    now_ms = int(time.time() * 1000)
    step = InMemory(lambda stored: PartitionUserState(SETTINGS, stored))
    step.apply(FEEDBACK, [Record(place, now_ms, event.value) for place, (_, event) in enumerate(events)], now_ms)
    features = StoredFeatures(FeatureSpec.model_validate(SPEC), SETTINGS.kinds, SETTINGS.recent_items, SETTINGS.horizon_ms)
    rows = step._rows.get([user_row(user) for user in users])
    return {user: features.of(decode_history(row), now_ms) for user, row in zip(users, rows, strict=True)}


@contextmanager
def serving(broker: str, state_dir: Path, models: Path) -> Iterator[int]:
    port = free_port()
    environment = {
        **os.environ,
        "HEADRACE_STREAM_BROKER": broker,
        "HEADRACE_STREAM_STATE_DIR": str(state_dir),
        "HEADRACE_POLICY_MODEL_DIR": str(models),
        "HEADRACE_SERVING_PORT": str(port),
        "HEADRACE_STREAM_GROUP_PREFIX": GROUP,
    }
    process = subprocess.Popen([sys.executable, "-m", "headrace", "serve"], env=environment)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def stored(port: int, users: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What serving says of users; empty while it does not answer."""
    found = {}
    for user in users:
        body = json.dumps({"user_id": user, "state": {}}).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/act", body), timeout=10) as answer:
                found[user] = json.loads(answer.read())["stored_state"]
        except urllib.error.URLError:
            return {}
    return found


def assert_comes_to(port: int, expected: dict[str, dict[str, Any]]) -> None:
    deadline_s = time.monotonic() + 60
    while (found := stored(port, expected)) != expected and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert found == expected


@pytest.fixture(params=["disk", "redis"])
def forget(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Says where the state is kept; robs the worker of it."""
    if request.param == "disk":
        return lambda: shutil.rmtree(tmp_path / "state" / "user-state")
    server = request.getfixturevalue("redis_server")
    monkeypatch.setenv("HEADRACE_USER_STATE_REDIS", server.address)
    return server.forget_everything


@pytest.mark.slow
def test_killed_and_robbed_of_its_state_the_worker_gives_serving_what_an_undisturbed_run_gives(
    any_broker: tuple[str, float], forget: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    broker, session_s = any_broker
    users = [f"{tmp_path.name}-{number}" for number in range(USERS)]  # another test's events are in the topic, too
    events = log_of(1200, users)
    half, whole = undisturbed(events[:700], users), undisturbed(events, users)
    assert half[users[3]] != whole[users[3]]
    assert {*whole[users[3]]} == {"click_1d", "pay_1w", "click_1h", "recent_click", "recent_click_categories", "click_code"}
    state = tmp_path / "state"
    create_topics(StreamSettings(broker=broker))
    worker = pipeline.Worker("user-state", broker, state, GROUP, tmp_path, session_s)
    try:
        with serving(broker, state, tmp_path / "models") as port:
            pipeline.produce(broker, events[:700], seconds=2.0)
            assert_comes_to(port, half)
            worker.kill()
            pipeline.produce(broker, events[700:])
            worker.start()
            assert_comes_to(port, whole)
            worker.kill()
            forget()
            assert_comes_to(port, {user: {} for user in whole})
            worker.start()
            assert_comes_to(port, whole)
    finally:
        worker.stop()
