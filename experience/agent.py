"""The experience collector's agent: samples in, transitions out."""

import faust

from experience.sessions import PartitionSessions, topics_of
from experience.settings import ExperienceSettings
from headrace.app import add_stage, create_app
from headrace.settings import StreamSettings
from headrace.step import StoredRows


def create(stream_settings: StreamSettings, settings: ExperienceSettings, web_port: int) -> faust.App:
    """The experience collector's application."""
    app = create_app("experience", stream_settings, web_port)

    def sessions(partition: int, stored: StoredRows) -> PartitionSessions:
        return PartitionSessions(settings, partition, stored)

    add_stage(app, "experience", stream_settings, sessions, topics_of(settings))
    return app
