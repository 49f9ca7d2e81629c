"""Starts each service as this process: loads its settings, checks what it needs, and runs it."""

from headrace import broker
from headrace.app import WEB_PORTS
from headrace.policy_settings import PolicySettings
from headrace.settings import StreamSettings, load
from headrace.worker import configure_logging, run
from serving.controller_settings import ControllerSettings


def run_service(service: str, web_port: int | None, log_level: str) -> None:
    """Run a worker. Raises ConfigError where a setting, the port or the broker is wrong."""
    stream = load(StreamSettings)
    port = web_port or (load(ControllerSettings).metrics_port if service == "controller" else WEB_PORTS[service])
    broker.require_free_port(port, "--web-port", stream.web_host)
    broker.require(stream.broker, timeout_s=30.0)
    broker.create_topics(stream)
    match service:
        case "joiner":
            from joiner import agent as joiner
            from joiner.settings import JoinerSettings

            run(joiner.create(stream, load(JoinerSettings), port), log_level)
        case "experience":
            from experience import agent as experience
            from experience.settings import ExperienceSettings

            run(experience.create(stream, load(ExperienceSettings), port), log_level)
        case "trainer":
            from trainer import agent as trainer
            from trainer.settings import TrainerSettings

            run(trainer.create(stream, load(TrainerSettings), load(PolicySettings), port), log_level)
        case "monitor":
            from monitor import agent as monitor
            from monitor.settings import MonitorSettings

            run(monitor.create(stream, load(MonitorSettings), port), log_level)
        case "sink":
            from joiner.sink import agent as sink
            from joiner.sink.settings import SinkSettings
            from joiner.sink.target import open_target, require

            sink_settings = load(SinkSettings)
            target = open_target(sink_settings.uri, sink_settings.storage)
            require(target, patience_s=30.0)
            run(sink.create(stream, sink_settings, target, port), log_level)
        case "user-state":
            from joiner.input_format import event_formats
            from joiner.settings import JoinerSettings
            from serving.user_state import agent as user_state
            from serving.user_state.settings import UserStateSettings

            run(user_state.create(stream, load(UserStateSettings), event_formats(load(JoinerSettings)), port), log_level)
        case "controller":
            from serving.controller_server import run as run_controller

            configure_logging(log_level)
            run_controller(load(ControllerSettings, metrics_port=port), load(PolicySettings), stream)
        case _:
            raise AssertionError(service)


def run_serving(log_level: str) -> None:
    """Run the serving API. What it writes into a topic is what the joiner reads there."""
    from joiner.input_format import event_formats
    from joiner.settings import JoinerSettings
    from serving.server import run as run_server
    from serving.settings import ServingSettings
    from serving.user_state.settings import UserStateSettings

    configure_logging(log_level)
    formats = event_formats(load(JoinerSettings))
    run_server(load(ServingSettings), load(PolicySettings), load(StreamSettings), formats, load(UserStateSettings))
