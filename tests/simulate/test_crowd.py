"""A small crowd against an API of the tests' own (real HTTP, canned answers) and the embedded broker."""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from confluent_kafka import Consumer, TopicPartition

from headrace.broker import create_topics
from headrace.crowd import Crowd
from headrace.settings import ConfigError, StreamSettings
from headrace.simulate import live, simulate
from headrace.simulate_settings import SimulateSettings
from headrace.users import item_index, rank
from schemas.codec import decode_exposure_key, decode_feedback
from schemas.exposure import Exposure
from schemas.feedback import LEAVE
from schemas.topics import EXPOSURES, FEEDBACK

ACTION = [1.0, 0.5] * 5
PAGES = 4
MAX_EVENT_BYTES = 4096


class CannedApi:
    """Answers every page with ACTION; the first `failures` requests with 503, and user u-1-0 with 422. Calls `stop` after `requests`."""

    def __init__(self, failures: int = 0, requests: int = 60) -> None:
        self.failures, self.requests = failures, requests
        self.stop: Callable[[], object] = lambda: None
        self.asked: list[dict[str, Any]] = []
        self.pages: dict[str, str] = {}
        self.exposures: list[Exposure] = []
        self.feedback: list[bytes] = []

    async def page(self, request: web.Request) -> web.Response:
        if self.failures:
            self.failures -= 1
            return web.Response(status=503)
        asked = await request.json()
        self.asked.append(asked)
        if len(self.asked) >= self.requests:
            self.stop()
        if asked["user_id"] == "u-1-0":
            return web.json_response({"detail": "no"}, status=422)
        self.pages[asked["request_id"]] = request.path
        version = "fusion-000001" if asked["user_id"] > "u-1-2" else ""
        answer = {"policy": "fusion", "model_version": version, "action": ACTION, "propensity": 0.5, "user_id": asked["user_id"]}
        answer["stored_state"] = {"click_gap_s": 2.5, "pages": -1.0}
        if request.path == "/v1/rank":
            candidates = [item_index(candidate["item_id"]) for candidate in asked["candidates"]]
            answer |= {"items": [{"item_id": f"i-{item}", "position": 0} for item in rank(candidates, ACTION)], "logged": True}
        return web.json_response(answer)

    async def events(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.exposures += msgspec.convert(body["exposures"], list[Exposure])
        self.feedback += [msgspec.json.encode(event) for event in body["feedback"]]
        return web.json_response({"accepted": {}, "rejected": []}, status=202)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.post("/v1/act", self.page), web.post("/v1/rank", self.page), web.post("/v1/events", self.events)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def settings(api: str, **others: Any) -> SimulateSettings:
    quick = {
        "users": 6,
        "session_pages": PAGES,
        "page_interval_s": 0.01,
        "late_mean_ms": 20.0,
        "bad_share": 0.0,
        "duplicate_share": 0.0,
        "backoff_s": 0.01,
    }
    return SimulateSettings(**{"api": api, **quick, **others})


async def lived(api: CannedApi, broker: str, **others: Any) -> Crowd:
    async with api.running() as address:
        crowd = Crowd(settings(address, **others), 1, f"{time.time_ns():x}", broker, MAX_EVENT_BYTES)
        api.stop = crowd.stop.set
        await asyncio.wait_for(crowd.run(), 30)
    return crowd


def consumed(broker: str, topic: str, run_ids: set[str]) -> list[tuple[int, bytes, bytes]]:
    """(partition, key, value) of every message of the topic that names one of these requests."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "none", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in consumer.list_topics(topic).topics[topic].partitions])
    found: list[tuple[int, bytes, bytes]] = []
    empty = 0
    while empty < 3:
        message = consumer.poll(0.5)
        if message is None:
            empty += 1
        elif not message.error() and any(run_id.encode() in message.value() for run_id in run_ids):
            found.append((message.partition(), message.key(), message.value()))
    consumer.close()
    return found


@pytest.fixture
def broker(embedded_broker: str) -> str:
    create_topics(StreamSettings(broker=embedded_broker))
    return embedded_broker


async def test_every_page_is_logged_once_and_every_session_ends_with_a_leave(broker: str) -> None:
    api = CannedApi()
    crowd = await lived(api, broker)
    by_topic = {topic: await asyncio.to_thread(consumed, broker, topic, set(api.pages)) for topic in (EXPOSURES, FEEDBACK)}
    exposed = [exposure.request_id for exposure in api.exposures] + [
        decode_exposure_key(value).request_id for _, _, value in by_topic[EXPOSURES]
    ]
    asked_for_an_action = [request_id for request_id, path in api.pages.items() if path == "/v1/act"]
    assert Counter(exposed) == Counter(asked_for_an_action)
    assert crowd.counts.exposures == {"api": len(api.exposures), "topic": len(by_topic[EXPOSURES])}
    assert min(crowd.counts.exposures.values()) > 0

    feedback = [decode_feedback(event) for event in [*api.feedback, *(value for _, _, value in by_topic[FEEDBACK])]]
    assert crowd.counts.feedback == {"api": len(api.feedback), "topic": len(by_topic[FEEDBACK])}
    assert {event.request_id for event in feedback} <= set(api.pages)
    leaves = [event.user_id for event in feedback if event.kind == LEAVE]
    assert sorted(leaves) == sorted({asked["user_id"] for asked in api.asked} - {"u-1-0"})
    assert len([event for event in feedback if event.kind == "click"]) == crowd.counts.clicks.total() > 0
    assert crowd.counts.pages.total() == len(api.pages)


async def test_a_users_messages_lie_on_one_partition_in_both_topics(broker: str) -> None:
    api = CannedApi()
    await lived(api, broker, ranks_itself_share=1.0, topic_share=1.0)
    partitions: dict[bytes, set[int]] = {}
    for topic in (EXPOSURES, FEEDBACK):
        for partition, key, _ in await asyncio.to_thread(consumed, broker, topic, set(api.pages)):
            partitions.setdefault(key, set()).add(partition)
    assert len(partitions) > 6
    assert all(len(own) == 1 for own in partitions.values())
    assert len(set().union(*partitions.values())) > 1


async def test_an_exposure_sent_by_the_user_is_what_the_answer_and_the_ranking_say(broker: str) -> None:
    api = CannedApi()
    await lived(api, broker, ranks_itself_share=1.0, topic_share=0.0)
    states = {asked["request_id"]: asked["state"] for asked in api.asked}
    assert api.exposures
    for exposure in api.exposures:
        assert (exposure.action, exposure.propensity, exposure.policy) == (ACTION, 0.5, "fusion")
        assert exposure.state == {"click_gap_s": 2.5, **states[exposure.request_id]}
        sums = [sum(weight * score for weight, score in zip(ACTION, item.scores.values(), strict=True)) for item in exposure.items]
        assert sums == sorted(sums, reverse=True)
        assert [item.position for item in exposure.items] == list(range(10))


async def test_while_the_api_is_away_requests_are_repeated_and_counted(broker: str) -> None:
    crowd = await lived(CannedApi(failures=9), broker)
    assert crowd.counts.errors["unavailable"] == 9
    assert crowd.counts.pages.total() >= 40


async def test_a_refused_request_is_counted_and_the_user_goes_on(broker: str) -> None:
    api = CannedApi()
    crowd = await lived(api, broker)
    refused = sum(asked["user_id"] == "u-1-0" for asked in api.asked)
    assert refused > 1
    assert crowd.counts.errors["refused"] == refused
    assert crowd.counts.pages.total() == len(api.asked) - refused


async def test_bad_events_and_duplicates_are_sent_on_top_in_their_stated_share(broker: str) -> None:
    api = CannedApi(requests=120)
    crowd = await lived(api, broker, bad_share=0.5, duplicate_share=0.5, topic_share=0.0)
    events = Counter(decode_feedback(event).event_id for event in api.feedback)
    assert crowd.counts.duplicates == sum(count - 1 for count in events.values())
    assert 0.25 < crowd.counts.duplicates / len(events) < 0.75
    assert 0.25 < crowd.counts.bad_events.total() / len(events) < 0.75
    bad = [
        value
        for topic in (EXPOSURES, FEEDBACK)
        for _, _, value in await asyncio.to_thread(consumed, broker, topic, {f"bad-{name}" for name in events})
    ]
    assert len(bad) == crowd.counts.bad_events.total()


async def test_pages_are_told_apart_by_the_arm_that_served_them(broker: str) -> None:
    api = CannedApi()
    crowd = await lived(api, broker)
    assert set(crowd.counts.pages) == {"exploration", "policy"}
    assert crowd.counts.versions["fusion-000001"] == crowd.counts.pages["policy"]
    assert sum(reward.pages for reward in crowd.counts.rewards.values()) == len(api.pages)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_run_cleanly_with_every_page_accounted_for(broker: str, number: signal.Signals) -> None:
    api = CannedApi()
    api.stop = lambda: signal.raise_signal(number)
    async with api.running() as address:
        counts = await asyncio.wait_for(live(settings(address, topic_share=0.0), broker, 0.0, 1, None, MAX_EVENT_BYTES), 30)
    assert counts.pages.total() == len(api.pages)
    assert counts.feedback == {"api": len(api.feedback)}
    assert counts.at_work == 0
    assert counts.errors["delivery"] == 0


def test_a_run_ends_after_its_minutes_when_the_api_never_answers(embedded_broker: str) -> None:
    silent = settings("http://127.0.0.1:9", shutdown_timeout_s=1.0)
    summary = simulate(silent, broker=embedded_broker, minutes=0.005, seed=1, metrics_port=None, max_event_bytes=MAX_EVENT_BYTES)
    assert summary["pages"] == 0
    assert summary["errors"]["unavailable"] >= 6
    assert summary["seconds"] < 10


def test_a_taken_metrics_port_is_one_line_that_names_it(embedded_broker: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--metrics-port {port}: Address already in use; name another one"):
            simulate(settings("http://127.0.0.1:9"), broker=embedded_broker, minutes=0.005, seed=1, metrics_port=port, max_event_bytes=1)
