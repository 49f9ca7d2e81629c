"""The experience collector's agent: samples in, transitions out."""

from collections.abc import Iterable
from typing import Any

import faust

from experience.sessions import PartitionSessions
from experience.settings import ExperienceSettings
from headrace.app import add_stage, create_app
from headrace.settings import StreamSettings
from schemas.topics import SAMPLES


def create(stream_settings: StreamSettings, settings: ExperienceSettings, web_port: int) -> faust.App:
    """The experience collector's application."""
    app = create_app("experience", stream_settings, web_port)

    def sessions(partition: int, stored: Iterable[tuple[bytes, bytes]]) -> PartitionSessions:
        return PartitionSessions(settings, partition, stored)

    stage = add_stage(app, "experience", stream_settings, sessions)

    @app.agent(app.topic(SAMPLES))
    async def on_samples(stream: Any) -> None:
        async for event in stream.events():
            await stage.on_batch(event)

    return app
