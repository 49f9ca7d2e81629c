"""What the sink tells beside its counts: files, bytes, time, failures of the target."""

from prometheus_client import CollectorRegistry, Counter, Histogram

FLUSH_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class SinkMetrics:
    """Of this process, since it began."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.files = Counter("headrace_sink_files_total", "Parquet files written", ["kind"], registry=registry)
        self.bytes = Counter("headrace_sink_bytes_total", "Bytes in them", ["kind"], registry=registry)
        self.flush_seconds = Histogram(
            "headrace_sink_flush_seconds", "Time until the rows of a flush count", buckets=FLUSH_BUCKETS_S, registry=registry
        )
        self.retries = Counter(
            "headrace_sink_retries_total", "Operations that the target failed and that are tried again", registry=registry
        )
        for kind in ("flush", "merge"):
            self.files.labels(kind)
            self.bytes.labels(kind)
