import asyncio
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

import httpx
import msgspec
import numpy as np
import pytest
from fastapi import FastAPI
from serving_models import ACTION, FEATURES, GOLDEN_INPUTS, INPUTS, MemoryProducer, WriteVersion, graph

from headrace.embedding_files import embedding_folder
from headrace.policy_settings import PolicySettings
from schemas import exposure as exposures
from schemas import feedback as feedbacks
from schemas.avro import avro_format, shipped_schema
from schemas.drift import dense_reference
from schemas.event_format import EventFormat, event_format
from schemas.exposure import Exposure
from schemas.features import DenseFeature, FeatureSpec
from schemas.feedback import Feedback
from schemas.state_reader import StateReader
from serving.app import create_app
from serving.embeddings import ServedEmbeddings
from serving.exploration import Exploration
from serving.metrics import ServingMetrics
from serving.settings import ServingSettings
from serving.swap import ServedVersion
from serving.versions import ModelStore

STATE = {"hour": 13.0, "city": "hz", "recent_items": ["i-3", "i-9"], "unknown_feature": 1.0}
ACT = {"request_id": "r-1", "user_id": "u-42", "scene": "home", "state": STATE}
CANDIDATES = [
    {"item_id": "a", "scores": {"click": 0.2, "pay": 0.1}, "features": {"price": 3.5}},
    {"item_id": "b", "scores": {"click": 0.4, "pay": 0.3}},
    {"item_id": "c", "scores": {"click": 0.3, "pay": 0.2}},
]
RANK = {**ACT, "candidates": CANDIDATES, "page_size": 2}
EXPOSURE = msgspec.to_builtins(exposures.EXAMPLE)
FEEDBACK = msgspec.to_builtins(feedbacks.EXAMPLE)

NOW_MS = 1_700_000_000_000


class Client:
    """HTTP without a network: requests go straight into the application, within its life cycle."""

    def __init__(self, app: FastAPI) -> None:
        self._runner = asyncio.Runner()
        self._life = app.router.lifespan_context(app)
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://serving")

    def start(self) -> None:
        self._runner.run(self._life.__aenter__())

    def stop(self) -> None:
        self._runner.run(self._http.aclose())
        self._runner.run(self._life.__aexit__(None, None, None))
        self._runner.close()

    def get(self, path: str) -> httpx.Response:
        return self._runner.run(self._http.get(path))

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self._runner.run(self._http.post(path, **body))


class RememberedUsers:
    """A user state in memory; `why` is its trouble."""

    def __init__(self, features: dict[str, Any]) -> None:
        self.features, self.why, self.asked = features, "", []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def of(self, user_id: str, now_ms: int) -> dict[str, Any]:
        self.asked.append((user_id, now_ms))
        return self.features

    def trouble(self) -> str:
        return self.why


class Api:
    """A running application with what was injected into it."""

    def __init__(
        self,
        policy: PolicySettings,
        producer: MemoryProducer,
        formats: Mapping[str, EventFormat],
        user_state: Any = None,
        **settings: Any,
    ) -> None:
        self.metrics = ServingMetrics()
        folder = embedding_folder(policy.model_dir, policy.policy, policy.spec_hash)
        self.versions = ServedVersion(policy, 1, self.metrics, ServedEmbeddings(policy.features, folder, 1.0, self.metrics))
        self.producer = producer
        served = ServingSettings(**settings)
        app = create_app(
            served, policy, self.versions, producer, self.metrics, now_ms=lambda: NOW_MS, formats=formats, user_state=user_state
        )
        self.client = Client(app)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def start(policy: PolicySettings, producer: MemoryProducer) -> Iterator[Any]:
    running = []

    def start(formats: Mapping[str, EventFormat] = MappingProxyType({}), **settings: Any) -> Api:
        api = Api(policy, producer, formats, **{"baseline_share": 0.0, **settings})
        api.client.start()
        running.append(api)
        assert api.versions.settled(20.0)
        return api

    yield start
    for api in running:
        api.client.stop()
        assert api.producer.stopped


@pytest.fixture
def promoted(policy: PolicySettings, write_version: WriteVersion) -> None:
    write_version(7, [0.5, 1.5])
    ModelStore(policy.model_dir, "fusion", policy.spec_hash).promote("fusion-000007", [], now_ms=1)


@pytest.mark.usefixtures("promoted")
def test_act_gives_the_served_versions_action_with_its_density(start: Any, policy: PolicySettings) -> None:
    answer = start(explore_sigma=0.2).client.post("/v1/act", json=ACT)
    assert answer.status_code == 200
    body = answer.json()
    assert {**body, "action": None, "propensity": None} == {
        "request_id": "r-1",
        "user_id": "u-42",
        "policy": "fusion",
        "model_version": "fusion-000007",
        "action": None,
        "propensity": None,
        "baseline_action": [1.0, 1.0],
        "spec_hash": policy.spec_hash,
        "stored_state": {},
    }
    assert body["propensity"] == pytest.approx(Exploration(ACTION, 0.2).density(body["action"], [0.5, 1.5]))


def test_drift_is_measured_against_the_version_served_once_the_window_is_full(
    start: Any, policy: PolicySettings, write_version: WriteVersion
) -> None:
    trained_on = np.random.default_rng(0).normal(12.0, 3.0, (4000, 1)).astype(np.float32)
    write_version(7, dense_reference=dense_reference(trained_on))
    ModelStore(policy.model_dir, "fusion", policy.spec_hash).promote("fusion-000007", [], now_ms=1)
    api = start(drift_window_requests=100)
    for hour in trained_on[:99, 0].tolist():
        api.client.post("/v1/act", json={"user_id": "u", "state": {"hour": hour}})
    assert "headrace_serving_feature_psi{" not in api.client.get("/metrics").text
    api.client.post("/v1/act", json={"user_id": "u", "state": {"hour": 12.0}})
    before = api.sample("headrace_serving_feature_psi", feature="hour")
    for _ in range(60):
        api.client.post("/v1/act", json={"user_id": "u", "state": {"hour": 23.0}})
    after = api.sample("headrace_serving_feature_psi", feature="hour")
    assert before is not None
    assert after is not None
    assert (before < 0.25, after > 1.0) == (True, True)


def test_a_number_that_passes_as_it_is_has_no_part_in_drift(
    policy: PolicySettings, producer: MemoryProducer, write_version: WriteVersion
) -> None:
    share = DenseFeature(name="share", normalisation="none")
    features = FeatureSpec(dense=(share, *FEATURES.dense), ids=FEATURES.ids, sequences=FEATURES.sequences)
    policy = policy.model_copy(update={"features": features})
    trained_on = np.random.default_rng(0).normal(12.0, 3.0, (4000, 1)).astype(np.float32)
    write_version(
        7,
        model=graph([1.0, 1.0], inputs=(*INPUTS, "plain")),
        spec_hash=policy.spec_hash,
        golden_inputs={**GOLDEN_INPUTS, "plain": [[0.5]]},
        golden_action=[1.0, 1.0],
        dense_reference=dense_reference(trained_on),
    )
    ModelStore(policy.model_dir, "fusion", policy.spec_hash).promote("fusion-000007", [], now_ms=1)
    api = Api(policy, producer, {}, drift_window_requests=100)
    api.client.start()
    assert api.versions.settled(20.0)
    for hour in trained_on[:100, 0].tolist():
        assert api.client.post("/v1/act", json={"user_id": "u", "state": {"hour": hour, "share": 1e6}}).status_code == 200
    shown = [line for line in api.client.get("/metrics").text.splitlines() if line.startswith("headrace_serving_feature_psi{")]
    psi = api.sample("headrace_serving_feature_psi", feature="hour")
    api.client.stop()
    assert len(shown) == 1
    assert psi is not None
    assert psi < 0.25


def test_a_request_without_an_id_is_given_one(start: Any) -> None:
    api = start()
    first, second = (api.client.post("/v1/act", json={"user_id": "u", "state": {}}).json()["request_id"] for _ in range(2))
    assert len(first) == 32
    assert first != second


@pytest.mark.usefixtures("promoted")
def test_rank_orders_by_the_fused_score_and_logs_exactly_the_page_that_it_gave(start: Any, policy: PolicySettings) -> None:
    api = start(explore_sigma=0.0)
    body = api.client.post("/v1/rank", json=RANK).json()
    assert [(item["item_id"], item["position"]) for item in body["items"]] == [("b", 0), ("c", 1)]
    assert body["items"][0]["score"] == pytest.approx(0.4**0.5 * 0.3**1.5)
    assert (body["logged"], body["action"], body["propensity"], body["model_version"]) == (True, [0.5, 1.5], 1.0, "fusion-000007")
    ((topic, key, value),) = api.producer.sent
    assert (topic, key) == ("exposures", "u-42")
    logged = msgspec.json.decode(value, type=Exposure)
    assert msgspec.to_builtins(logged) == {
        "version": 1,
        "request_id": "r-1",
        "user_id": "u-42",
        "ts_ms": NOW_MS,
        "scene": "home",
        "policy": "fusion",
        "model_version": "fusion-000007",
        "state": STATE,
        "action": [0.5, 1.5],
        "propensity": 1.0,
        "spec_hash": policy.spec_hash,
        "bucket": "72",
        "items": [
            {"item_id": "b", "position": 0, "scores": {"click": 0.4, "pay": 0.3}, "features": {}},
            {"item_id": "c", "position": 1, "scores": {"click": 0.3, "pay": 0.2}, "features": {}},
        ],
    }
    StateReader(FEATURES).columns([logged.state])


@pytest.mark.usefixtures("promoted")
def test_baseline_users_get_the_rankers_own_order(start: Any) -> None:
    body = start(baseline_share=1.0).client.post("/v1/rank", json={**RANK, "page_size": 3}).json()
    assert (body["policy"], body["model_version"], body["action"], body["propensity"]) == ("baseline", "", [1.0, 1.0], 1.0)
    assert [item["item_id"] for item in body["items"]] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("route", "body", "status", "detail"),
    [
        ("/v1/act", b"{", 400, "Input data was truncated"),
        ("/v1/act", b"", 400, "Input data was truncated"),
        ("/v1/act", b'{"user_id": "u", "state": {"hour": NaN}}', 400, "JSON is malformed: invalid character (byte 35)"),
        ("/v1/act", b'{"user_id": "u", "state": {"city": "\xff"}}', 400, "invalid"),
        ("/v1/act", b"[" * 100_000, 413, "the body is larger"),
        ("/v1/events", b'{"feedback": [' + b"[" * 4000, 400, "recursion"),
        ("/v1/act", b"[]", 422, "Expected `object`, got `array`"),
        ("/v1/act", b'{"user_id": 7, "state": {}}', 422, "Expected `str`, got `int` - at `$.user_id`"),
        ("/v1/act", b'{"user_id": "", "state": {}}', 422, "Expected `str` of length >= 1 - at `$.user_id`"),
        ("/v1/act", b'{"user_id": "u"}', 422, "Object missing required field `state`"),
        ("/v1/act", b'{"user_id": "u", "state": {}, "stat": 1}', 422, "Object contains unknown field `stat`"),
        ("/v1/act", b'{"user_id": "u", "state": {"hour": null}}', 422, "Expected `float | str | object | array`, got `null`"),
        ("/v1/act", b'{"user_id": "u", "state": {"hour": 1e999}}', 422, "Number out of range"),
        ("/v1/act", b'{"user_id": "u", "state": {"hour": 1e300}}', 422, "feature hour: expected a finite number, got 1e+300"),
        ("/v1/act", b'{"user_id": "u", "state": {"hour": "noon"}}', 422, "feature hour: expected a finite number, got 'noon'"),
        ("/v1/act", b'{"user_id": "u", "state": {"city": 3}}', 422, "feature city: expected a string, got 3.0"),
        ("/v1/act", b'{"user_id": "u", "state": {"recent_items": "i-3"}}', 422, "feature recent_items: expected a list of strings"),
        ("/v1/rank", {**RANK, "candidates": []}, 422, "Expected `array` of length >= 1 - at `$.candidates`"),
        ("/v1/rank", {**RANK, "page_size": 0}, 422, "Expected `int` >= 1 - at `$.page_size`"),
        ("/v1/rank", {**RANK, "page_size": 9}, 422, "page_size 9; at most 5 (serving.max_page_size)"),
        ("/v1/rank", {**RANK, "candidates": CANDIDATES * 2}, 413, "6 candidates; at most 5 (serving.max_candidates)"),
        ("/v1/rank", {**RANK, "candidates": CANDIDATES[:2] * 2}, 422, "candidate a is given twice"),
        ("/v1/rank", {**RANK, "candidates": [{"item_id": "a", "scores": {"click": 0.1}}]}, 422, "candidate a: no score for objective pay"),
        ("/v1/rank", {**RANK, "state": {"hour": "noon"}}, 422, "feature hour: expected a finite number, got 'noon'"),
        ("/v1/events", b"{", 400, "Input data was truncated"),
        ("/v1/events", {}, 422, "no events: give `exposures`, `feedback` or both"),
        ("/v1/events", {"feedbacks": []}, 422, "Object contains unknown field `feedbacks`"),
        ("/v1/events", {"feedback": [1] * 21}, 413, "21 events; at most 20 in one request (serving.max_events)"),
        ("/v1/act", b" " * 5000, 413, "the body is larger than 4096 bytes (serving.max_body_bytes)"),
        ("/v1/events", b" " * 500_000, 413, "the body is larger than 4096 bytes (serving.max_body_bytes)"),
    ],
)
def test_a_bad_request_gets_one_clear_error(start: Any, route: str, body: Any, status: int, detail: str) -> None:
    api = start(max_body_bytes=4096, max_candidates=5, max_page_size=5, max_events=20)
    answer = api.client.post(route, content=body if isinstance(body, bytes) else msgspec.json.encode(body))
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert detail.lower() in answer.json()["detail"].lower()
    assert api.producer.sent == []
    assert api.sample("headrace_serving_requests_total", route=route, status=str(status)) == 1


def test_events_travel_on_as_the_bytes_that_came_and_bad_ones_are_named(start: Any) -> None:
    api = start()
    bad = {**FEEDBACK, "kind": 3}
    answer = api.client.post("/v1/events", json={"exposures": [EXPOSURE], "feedback": [bad, FEEDBACK, {**FEEDBACK, "extra": 1}]})
    assert answer.status_code == 202
    assert answer.json() == {
        "accepted": {"exposures": 1, "feedback": 1},
        "rejected": [
            {"kind": "feedback", "index": 0, "error": "Expected `str`, got `int` - at `$.kind`"},
            {"kind": "feedback", "index": 2, "error": "Object contains unknown field `extra`"},
        ],
    }
    assert [(topic, key, msgspec.json.decode(value)) for topic, key, value in api.producer.sent] == [
        ("exposures", "u-42", EXPOSURE),
        ("feedback", "u-42", FEEDBACK),
    ]
    assert api.sample("headrace_serving_events_accepted_total", kind="feedback") == 1
    assert api.sample("headrace_serving_events_rejected_total", kind="feedback", reason="malformed") == 2


@pytest.mark.parametrize("name", ["msgpack", "avro"])
def test_pages_and_events_are_written_in_the_format_of_their_topic(start: Any, name: Literal["msgpack", "avro"]) -> None:
    formats = {"exposures": event_format(name, Exposure)}
    api = start(formats=formats)
    assert api.client.post("/v1/rank", json=RANK).json()["logged"] is True
    answer = api.client.post("/v1/events", json={"exposures": [EXPOSURE, {**EXPOSURE, "ts_ms": "now"}], "feedback": [FEEDBACK]})
    assert answer.json()["accepted"] == {"exposures": 1, "feedback": 1}
    assert [entry["error"] for entry in answer.json()["rejected"]] == ["Expected `int`, got `str` - at `$.ts_ms`"]
    (_, _, page), (_, _, exposure), (_, _, feedback) = api.producer.sent
    read = [msgspec.json.decode(formats["exposures"].to_json(value), type=Exposure) for value in (page, exposure)]
    assert (read[0].request_id, read[0].state) == ("r-1", STATE)
    assert read[1] == exposures.EXAMPLE
    assert msgspec.json.decode(feedback) == FEEDBACK


def test_what_the_topics_schema_cannot_hold_is_named_and_costs_no_page(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    def without(message: type[msgspec.Struct], name: str) -> EventFormat:
        schema = shipped_schema(message)
        return avro_format(message, {**schema, "fields": [field for field in schema["fields"] if field["name"] != name]}, None)

    api = start(formats={"exposures": without(Exposure, "propensity"), "feedback": without(Feedback, "value")})
    page = api.client.post("/v1/rank", json=RANK)
    assert (page.status_code, page.json()["logged"], len(page.json()["items"])) == (200, False, 2)
    assert "page r-1 is served and not logged: the topic's Avro schema has no place for it" in caplog.text
    assert api.sample("headrace_serving_exposures_total", outcome="not_logged") == 1
    events = api.client.post("/v1/events", json={"feedback": [FEEDBACK]})
    assert events.status_code == 422
    assert "no place for it: record contains more fields than the schema specifies: value" in events.json()["rejected"][0]["error"]
    assert api.producer.sent == []


def test_when_every_event_is_bad_the_answer_is_422_with_the_reasons(start: Any) -> None:
    api = start(max_event_bytes=1024)
    answer = api.client.post("/v1/events", json={"feedback": [{**FEEDBACK, "event_id": "e" * 2000}, {}]})
    assert answer.status_code == 422
    assert [entry["error"] for entry in answer.json()["rejected"]] == [
        "2142 bytes; at most 1024 (serving.max_event_bytes)",
        "Object missing required field `event_id`",
    ]
    assert api.sample("headrace_serving_events_rejected_total", kind="feedback", reason="too_large") == 1


def test_when_the_queue_is_full_a_page_is_still_served_and_events_are_sent_back(start: Any) -> None:
    api = start()
    api.producer.full = True
    page = api.client.post("/v1/rank", json=RANK)
    assert (page.status_code, page.json()["logged"], len(page.json()["items"])) == (200, False, 2)
    assert api.sample("headrace_serving_exposures_total", outcome="not_logged") == 1
    events = api.client.post("/v1/events", json={"feedback": [FEEDBACK]})
    assert (events.status_code, events.headers["retry-after"]) == (503, "1")
    assert events.json()["detail"] == "the queue is full, send all of them again later: the broker is away"
    assert api.client.post("/v1/act", json=ACT).status_code == 200


def test_without_a_broker_the_process_is_alive_not_ready_and_answers(start: Any) -> None:
    api = start()
    api.producer.why = "the broker 127.0.0.1:9 does not answer"
    assert api.client.get("/healthz").json() == {"status": "ok"}
    ready = api.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"detail": "the broker 127.0.0.1:9 does not answer"})
    assert api.client.post("/v1/act", json=ACT).status_code == 200
    api.producer.why = ""
    assert api.client.get("/readyz").json() == {"status": "ready", "model_version": ""}


@pytest.mark.usefixtures("promoted")
def test_metrics_name_the_version_its_first_response_and_the_arms(start: Any) -> None:
    api = start()
    api.client.post("/v1/act", json=ACT)
    first = api.sample("headrace_serving_first_response_timestamp_seconds", model_version="fusion-000007")
    api.client.post("/v1/rank", json=RANK)
    assert api.sample("headrace_serving_first_response_timestamp_seconds", model_version="fusion-000007") == first
    text = api.client.get("/metrics").text
    for line in (
        'headrace_serving_version_info{model_version="fusion-000007",policy="fusion"} 1.0',
        'headrace_serving_decisions_total{policy="fusion"} 2.0',
        'headrace_serving_exposures_total{outcome="queued"} 1.0',
        'headrace_serving_requests_total{route="/v1/act",status="200"} 1.0',
        'headrace_serving_latency_seconds_count{route="/v1/rank"} 1.0',
        "headrace_serving_load_seconds_count 1.0",
    ):
        assert line in text


def test_unknown_paths_and_methods_have_the_same_error_body_and_one_label(start: Any) -> None:
    api = start()
    assert api.client.get("/v2/act").json() == {"detail": "Not Found"}
    assert api.client.get("/v1/act").json() == {"detail": "Method Not Allowed"}
    assert api.sample("headrace_serving_requests_total", route="other", status="404") == 1


def test_a_fault_of_ours_is_a_500_that_shows_no_internals(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api = start()

    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(api.producer, "send", fail)
    answer = api.client.post("/v1/rank", json=RANK)
    assert (answer.status_code, answer.json()) == (500, {"detail": "internal error: RuntimeError"})
    assert api.sample("headrace_serving_requests_total", route="/v1/rank", status="500") == 1


def test_the_openapi_examples_are_accepted_by_the_routes_that_they_describe(start: Any) -> None:
    api = start()
    document = api.client.get("/openapi.json").json()
    for route in ("/v1/act", "/v1/rank", "/v1/events"):
        operation = document["paths"][route]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"].rpartition("/")[2] in document["components"]["schemas"]
        example = content["example"]
        for candidate in example.get("candidates", []):
            assert set(candidate["scores"]) == {"click", "pay"}
        answer = api.client.post(route, json=example)
        success = next(status for status in operation["responses"] if status.startswith("2"))
        assert str(answer.status_code) == success
        assert set(answer.json()) == set(operation["responses"][success]["content"]["application/json"]["example"])


def test_every_reference_of_the_openapi_document_resolves(start: Any) -> None:
    text = start().client.get("/openapi.json").text
    document = msgspec.json.decode(text)
    references = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references
    assert references <= set(document["components"]["schemas"])


@pytest.mark.usefixtures("promoted")
def test_what_is_remembered_of_a_user_is_part_of_the_state_as_served_and_logged(start: Any) -> None:
    users = RememberedUsers({"recent_items": ["i-1", "i-2"], "hour": 3.0, "click_1h": 2.0})
    api = start(user_state=users)
    body = api.client.post("/v1/rank", json={**RANK, "state": {"hour": 5.0}}).json()
    ((_, _, value),) = api.producer.sent
    # what the request says itself is newer than what is stored
    assert msgspec.json.decode(value, type=Exposure).state == {"recent_items": ["i-1", "i-2"], "hour": 5.0, "click_1h": 2.0}
    assert body["stored_state"] == users.features
    assert users.asked == [("u-42", NOW_MS)]  # one read a request, at the time that is logged
    answer = api.client.post("/v1/act", json={**ACT, "state": {}}).json()
    assert answer["stored_state"] == users.features
    assert len(users.asked) == 2


def test_stored_features_of_the_wrong_type_are_refused_as_the_request_s_own_are(start: Any) -> None:
    api = start(user_state=RememberedUsers({"recent_items": "i-1"}))
    answer = api.client.post("/v1/act", json={**ACT, "state": {}})
    assert (answer.status_code, answer.json()["detail"][:20]) == (422, "feature recent_items")


def test_a_user_state_that_cannot_be_read_makes_serving_unready_and_refuses_nobody(start: Any) -> None:
    users = RememberedUsers({})
    api = start(user_state=users)
    assert api.client.get("/readyz").status_code == 200
    users.why = "no state in var/state/user-state/0: No such file or directory"
    ready = api.client.get("/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (503, users.why)
    assert api.client.post("/v1/act", json=ACT).status_code == 200
