"""The user state's agent: feedback in, histories on this disk or in a server of the Redis protocol."""

from collections.abc import Mapping
from functools import partial

import faust

from headrace.app import add_stage, create_app
from headrace.redis_store import RedisStore
from headrace.settings import StreamSettings
from headrace.step import StoredRows
from headrace.store import PartitionStore
from schemas.event_format import EventFormat
from schemas.topics import FEEDBACK
from serving.user_state.settings import UserStateSettings
from serving.user_state.step import STAGE, PartitionUserState, redis_name


def create(stream_settings: StreamSettings, settings: UserStateSettings, formats: Mapping[str, EventFormat], web_port: int) -> faust.App:
    """The application. `formats` are those of the topics whose messages are not JSON."""
    app = create_app(STAGE, stream_settings, web_port)

    def remember(partition: int, stored: StoredRows) -> PartitionUserState:
        return PartitionUserState(settings, stored, formats.get(FEEDBACK))

    stage = add_stage(app, STAGE, stream_settings, remember, [FEEDBACK])
    if settings.redis:
        stage.open_store = partial(RedisStore, settings.redis, redis_name(stream_settings.group_prefix))
    else:
        stage.open_store = partial(PartitionStore, is_followed=True)
    return app
