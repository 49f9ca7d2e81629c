"""Simulated users at work: each asks for a page, looks at it, reacts, and asks for the next one.

Half of them ask /v1/rank and get their page logged; the others ask /v1/act, rank the page and send its exposure themselves. Of both,
half send events through /v1/events and the others produce to the topics. (The shares are settings.)
"""

import asyncio
import time
from typing import NamedTuple

import aiohttp
import msgspec
import numpy as np

from headrace.bad_events import bad_event, draw_kind
from headrace.outbox import Event
from headrace.simulate_settings import SimulateSettings
from headrace.user_client import Api, EventSender, Way
from headrace.user_counts import UserCounts, arm
from headrace.users import PAGE_ITEMS, Page, SimulatedUser, exposed_items, item_id, item_index, item_scores, rank
from schemas.exposure import BASELINE, Exposure, FeatureValue, encode_exposure
from schemas.feedback import LEAVE, Feedback, encode_feedback
from schemas.topics import EXPOSURES, FEEDBACK

SCENE = "demo"
LOOKED_AT = 0.5
"""Share of the page interval during which a page is clicked at, from its top to its bottom."""


class _Item(msgspec.Struct):
    item_id: str


class _Answer(msgspec.Struct):
    """What users read of an answer of /v1/act and /v1/rank."""

    policy: str
    model_version: str
    action: list[float]
    propensity: float
    spec_hash: str = ""
    stored_state: dict[str, FeatureValue] = {}
    items: list[_Item] = []
    logged: bool = True


class Visitor(NamedTuple):
    """A user and how that user's client works; its mishaps are drawn from `random`."""

    user: SimulatedUser
    random: np.random.Generator
    ranks_itself: bool
    way: Way


class Shown(NamedTuple):
    """A page before a user's eyes."""

    request_id: str
    items: list[int]
    arm: str
    logged: bool


_decode_answer = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


class Crowd:
    """`settings.users` users at a time. Choices are drawn from `seed`; `run_id` keeps request ids of different runs apart."""

    def __init__(self, settings: SimulateSettings, seed: int, run_id: str, broker: str, max_event_bytes: int) -> None:
        self.counts = UserCounts()
        self.stop = asyncio.Event()
        self._settings, self._seed, self._run_id, self._broker = settings, seed, run_id, broker
        self._max_event_bytes = max_event_bytes
        self._next_index = 0
        self._candidate_json: dict[int, msgspec.Raw] = {}

    async def run(self) -> None:
        """Users come and go until `stop` is set; then the events on their way are sent."""
        timeout = aiohttp.ClientTimeout(self._settings.timeout_s)
        async with aiohttp.ClientSession(self._settings.api, connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
            api = Api(http, self._settings.backoff_s, self.counts.errors)
            sender = EventSender(self._settings, self._broker, api, self.counts.errors)
            async with asyncio.TaskGroup() as tasks:
                for work in (sender.produce(), sender.collect()):
                    tasks.create_task(work)
                await asyncio.wait([tasks.create_task(self._place(place, api, sender)) for place in range(self._settings.users)])
                sender.close()

    async def _place(self, place: int, api: Api, sender: EventSender) -> None:
        """One user after another. The first ones come over the length of a session, so that they do not all leave at once."""
        session_s = self._settings.session_pages * self._settings.page_interval_s
        await self._pause(session_s * place / self._settings.users)
        while not self.stop.is_set():
            visitor = self._next_visitor()
            self.counts.at_work += 1
            await self._session(visitor, api, sender)
            self.counts.at_work -= 1

    def _next_visitor(self) -> Visitor:
        settings, index = self._settings, self._next_index
        self._next_index += 1
        user = SimulatedUser(self._seed, index, settings.session_pages, settings.candidates)
        random = np.random.default_rng([self._seed, index])
        ranks_itself, uses_topics = random.random(2) < (settings.ranks_itself_share, settings.topic_share)
        return Visitor(user, random, bool(ranks_itself), "topic" if uses_topics else "api")

    async def _session(self, visitor: Visitor, api: Api, sender: EventSender) -> None:
        user, interval_s, requests = visitor.user, self._settings.page_interval_s, 0
        clicks_by_arm: dict[str, list[int]] = {}
        last = None
        while not user.done and not self.stop.is_set():
            requests += 1
            shown = await self._ask(visitor, f"{self._run_id}-{user.user_id}-{requests}", api, sender)
            if shown is not None:
                last = shown
                clicks = user.react(shown.items)
                clicks_by_arm.setdefault(shown.arm, []).append(sum(clicks))
                self.counts.clicks[shown.arm] += sum(clicks)
                self._send_clicks(visitor, shown, clicks, sender)
            await self._pause(interval_s * visitor.random.uniform(0.75, 1.25))
        if last is not None:
            self._send_feedback(visitor, last, "", LEAVE, _now_ms(), sender)
        for arm_name, clicks_a_page in clicks_by_arm.items():
            self.counts.add_session(arm_name, len(clicks_a_page), sum(clicks_a_page))
        self.counts.sessions += 1

    async def _ask(self, visitor: Visitor, request_id: str, api: Api, sender: EventSender) -> Shown | None:
        """The next page; None where the API refuses it, or is away when the users are told to stop."""
        page, user_id = visitor.user.next_page(), visitor.user.user_id
        request: dict[str, object] = {"request_id": request_id, "user_id": user_id, "scene": SCENE, "state": page.state}
        if not visitor.ranks_itself:
            request |= {"candidates": [self._candidate(item) for item in page.candidates], "page_size": PAGE_ITEMS}
        body = await api.post("/v1/act" if visitor.ranks_itself else "/v1/rank", _encode(request), self.stop.is_set)
        if body is None:
            return None
        answer = _decode_answer(body)
        served_by = arm(answer.policy, answer.model_version)
        self.counts.pages[served_by] += 1
        self.counts.versions[answer.model_version or BASELINE] += 1
        if visitor.ranks_itself:
            items = rank(page.candidates, answer.action)
            self._send_exposure(visitor, request_id, page, answer, items, sender)
            return Shown(request_id, items, served_by, True)
        if not answer.logged:
            self.counts.errors["not_logged"] += 1
        return Shown(request_id, [item_index(item.item_id) for item in answer.items], served_by, answer.logged)

    def _candidate(self, item: int) -> msgspec.Raw:
        """A candidate as JSON, encoded once: candidates are most of a request."""
        if item not in self._candidate_json:
            self._candidate_json[item] = msgspec.Raw(_encode({"item_id": item_id(item), "scores": item_scores(item)}))
        return self._candidate_json[item]

    def _send_exposure(self, visitor: Visitor, request_id: str, page: Page, answer: _Answer, items: list[int], sender: EventSender) -> None:
        exposure = Exposure(
            request_id=request_id,
            user_id=visitor.user.user_id,
            ts_ms=_now_ms(),
            scene=SCENE,
            policy=answer.policy,
            model_version=answer.model_version,
            state={**answer.stored_state, **page.state},
            action=answer.action,
            propensity=answer.propensity,
            spec_hash=answer.spec_hash,
            items=exposed_items(items),
        )
        self.counts.exposures[visitor.way] += 1
        sender.send(visitor.way, Event(EXPOSURES, exposure.user_id, encode_exposure(exposure)), exposure.ts_ms)

    def _send_clicks(self, visitor: Visitor, shown: Shown, clicks: list[bool], sender: EventSender) -> None:
        now_ms, item_ms = _now_ms(), 1000 * LOOKED_AT * self._settings.page_interval_s / PAGE_ITEMS
        for position, clicked in enumerate(clicks):
            if clicked:
                ts_ms = now_ms + int(item_ms * (position + 1))
                self._send_feedback(visitor, shown, item_id(shown.items[position]), "click", ts_ms, sender)

    def _send_feedback(self, visitor: Visitor, shown: Shown, item: str, kind: str, ts_ms: int, sender: EventSender) -> None:
        """Feedback on a page that was logged, with the mishaps that the settings ask for."""
        if not shown.logged:
            return
        settings, random, user_id = self._settings, visitor.random, visitor.user.user_id
        event_id = f"{shown.request_id}-{kind}-{item}"
        feedback = Feedback(event_id=event_id, request_id=shown.request_id, user_id=user_id, item_id=item, ts_ms=ts_ms, kind=kind)
        is_late = kind != LEAVE and random.random() < settings.late_share  # a lost `leave` would keep its session open to the end
        due_ms = ts_ms + (random.exponential(settings.late_mean_ms) if is_late else 0.0)
        copies = 2 if random.random() < settings.duplicate_share else 1
        for _ in range(copies):
            sender.send(visitor.way, Event(FEEDBACK, user_id, encode_feedback(feedback)), due_ms)
        self.counts.feedback[visitor.way] += copies
        self.counts.duplicates += copies - 1
        if random.random() < settings.bad_share:
            bad_kind = draw_kind(random)
            bad = bad_event(bad_kind, user_id, event_id, _now_ms(), self._max_event_bytes)
            sender.send("topic", Event(bad.topic, user_id, bad.value), due_ms)
            self.counts.bad_events[bad_kind] += 1

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond `stop`."""
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
