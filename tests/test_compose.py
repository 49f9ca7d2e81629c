"""The production files: Compose accepts them, and every setting, command, port and metric that they name exists in the code."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from headrace.app import WEB_PORTS
from headrace.cli import app as command_line
from headrace.config import SECTIONS, environment_variable
from headrace.metrics import StageMetrics, gauge_metric
from joiner.sink.metrics import SinkMetrics
from monitor.metrics import MonitorMetrics
from monitor.rules import RejectedShare
from monitor.settings import MonitorSettings
from monitor.webhook import Webhook
from serving.controller import ControllerMetrics
from serving.metrics import ServingMetrics
from serving.settings import ServingSettings

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy/grafana/dashboards/headrace.json"
RULES = ROOT / "deploy/prometheus_rules.yml"
SCRAPES = ROOT / "deploy/prometheus.yml"
SERVICES = ("joiner", "experience", "trainer", "monitor", "controller", "sink", "user-state", "serving")
METRIC_NAME = re.compile(r"\bheadrace_[a-z0-9_]+")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """compose.yaml as Compose itself reads it, with nothing of this machine's environment but the path."""
    compose = Path(sys.executable).parent / "docker-compose"
    command = [str(compose), "--file", str(ROOT / "compose.yaml"), "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.environ["PATH"], "HOME": "/nowhere"}
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def is_built_here(service: dict[str, Any]) -> bool:
    return "build" in service


def test_everything_that_the_loop_needs_is_a_service(composed: dict[str, Any]) -> None:
    assert {*SERVICES, "kafka", "topics", "valkey", "prometheus", "grafana"} == set(composed["services"])


def test_every_service_restarts_is_checked_and_waits_for_the_topics(composed: dict[str, Any]) -> None:
    for name, service in composed["services"].items():
        if name == "topics":
            assert service["depends_on"]["kafka"]["condition"] == "service_healthy"
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        if is_built_here(service):
            assert service["depends_on"]["topics"]["condition"] == "service_completed_successfully", name


def test_images_are_pinned(composed: dict[str, Any]) -> None:
    for name, service in composed["services"].items():
        if not is_built_here(service):
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-alpine)?", service["image"]), name


def test_every_command_is_one_of_the_command_line(composed: dict[str, Any]) -> None:
    commands = {command.name or command.callback.__name__ for command in command_line.registered_commands if command.callback}
    started = {name: service["command"] for name, service in composed["services"].items() if is_built_here(service)}
    assert {command[0] for command in started.values()} <= commands
    assert started == {name: ["worker", name] for name in WEB_PORTS} | {"serving": ["serve"], "topics": ["topics"]}


def test_every_headrace_variable_is_a_setting(composed: dict[str, Any]) -> None:
    known = {environment_variable(section, name) for section in SECTIONS for name in section.model_fields}
    used = {name for service in composed["services"].values() for name in service.get("environment", {}) if name.startswith("HEADRACE_")}
    used |= set(re.findall(r"\bHEADRACE_[A-Z_]+(?==)", (ROOT / "deploy/Dockerfile").read_text()))
    assert used
    assert not used - known


def test_the_settings_of_the_services_are_accepted(composed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICES:
        with monkeypatch.context() as patch:
            for variable, value in composed["services"][name]["environment"].items():
                if value is not None:
                    patch.setenv(variable, value)
            for section in SECTIONS:
                section()


def test_health_checks_and_scrapes_ask_the_port_that_the_service_listens_on(composed: dict[str, Any]) -> None:
    ports = {**WEB_PORTS, "serving": int(composed["services"]["serving"]["environment"]["HEADRACE_SERVING_PORT"])}
    scraped = dict(re.findall(r"names: \[([\w-]+)\], type: A, port: (\d+)", SCRAPES.read_text()))
    assert scraped == {name: str(port) for name, port in ports.items()}
    for name, port in ports.items():
        assert f"http://127.0.0.1:{port}/" in composed["services"][name]["healthcheck"]["test"][-1]
    assert ports["serving"] == ServingSettings.model_fields["port"].default


def test_trainer_controller_and_serving_share_the_models_and_each_worker_has_state_of_its_own(composed: dict[str, Any]) -> None:
    mounts = {name: {volume["target"]: volume["source"] for volume in composed["services"][name].get("volumes", ())} for name in SERVICES}
    assert [mounts[name]["/var/lib/headrace/models"] for name in ("trainer", "controller", "serving")] == ["models"] * 3
    for name in ("joiner", "experience", "trainer", "monitor", "user-state"):
        assert mounts[name]["/var/lib/headrace/state"] == name


def test_serving_reads_the_state_that_the_user_state_s_worker_writes(composed: dict[str, Any]) -> None:
    (written,), read = (
        [volume for volume in composed["services"][name]["volumes"] if volume["target"] == "/var/lib/headrace/state"]
        for name in ("user-state", "serving")
    )
    assert [volume["source"] for volume in read] == [written["source"]]


def test_every_file_that_is_mounted_is_there(composed: dict[str, Any]) -> None:
    bound = [v["source"] for s in composed["services"].values() for v in s.get("volumes", ()) if v["type"] == "bind"]
    assert len(bound) == 4
    assert all(Path(source).exists() for source in bound)


def gauges_of_steps() -> Iterator[str]:
    """The keys that the `gauges` methods and the learner's metrics write down, read from the source."""
    for path in [
        ROOT / "joiner/join.py",
        ROOT / "experience/sessions.py",
        ROOT / "monitor/tally.py",
        ROOT / "trainer/worker.py",
        ROOT / "serving/user_state/step.py",
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "gauges":
                yield from keys_of_dicts(node)
    for node in ast.walk(ast.parse((ROOT / "trainer/ddpg.py").read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in ("_learn_critic", "_learn_actor"):
            yield from keys_of_dicts(node)
    for path, function in [("headrace/stage.py", "_lag"), ("joiner/sink/agent.py", "_looks")]:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                yield from keys_of_dicts(node)


def keys_of_dicts(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            yield from (key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def exported_families() -> Iterator[Metric]:
    settings = MonitorSettings()
    monitor = CollectorRegistry()
    monitor.register(MonitorMetrics(settings, list, RejectedShare(settings), Webhook(settings)))
    sink = CollectorRegistry()
    SinkMetrics(sink)
    for registry in (StageMetrics("any", dict).registry, monitor, sink, ServingMetrics().registry, ControllerMetrics().registry):
        yield from registry.collect()


@pytest.fixture(scope="module")
def exported() -> set[str]:
    names = {family.name + suffix for family in exported_families() for suffix in SUFFIXES[family.type]}
    return names | {gauge_metric(name) for name in gauges_of_steps()}


def expressions() -> list[tuple[str, str]]:
    """(panel or rule, PromQL) of the dashboard and of Prometheus's rules."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]
    rules = re.findall(r"- alert: (\w+)\n\s+expr: (.+)", RULES.read_text())
    assert len(rules) == RULES.read_text().count("expr:")
    return found + rules


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_metric_of_a_panel_or_rule_is_exported(where: str, expression: str, exported: set[str]) -> None:
    names = set(METRIC_NAME.findall(expression))
    assert names or expression == "up == 0", where
    assert not names - exported, where
    assert expression.count("(") == expression.count(")"), where


def test_every_panel_asks_something_of_the_provisioned_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    provisioned = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text()
    uids = {panel["datasource"]["uid"] for panel in panels} | {t["datasource"]["uid"] for panel in panels for t in panel["targets"]}
    assert all(panel["targets"] and panel["description"] for panel in panels)
    assert [f"uid: {uid}" in provisioned for uid in uids] == [True]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_exported_metric_is_documented(exported: set[str]) -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in ("headrace_reward_sum",) else name for name in exported}
    assert not [name for name in sorted(families) if f"`{name}" not in text]
