"""The joiner's application: exposures and feedback in, samples out."""

import faust

from headrace.app import add_stage, create_app
from headrace.settings import StreamSettings
from headrace.step import StoredRows
from joiner.input_format import event_formats
from joiner.join import PartitionJoin
from joiner.settings import JoinerSettings
from schemas.topics import EXPOSURES, FEEDBACK


def create(stream_settings: StreamSettings, settings: JoinerSettings, web_port: int) -> faust.App:
    """The joiner's application."""
    app = create_app("joiner", stream_settings, web_port)
    formats = event_formats(settings)

    def join(partition: int, stored: StoredRows) -> PartitionJoin:
        return PartitionJoin(settings, partition, stored, formats)

    add_stage(app, "joiner", stream_settings, join, [EXPOSURES, FEEDBACK])
    return app
