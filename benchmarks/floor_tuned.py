"""The floor with Python's cyclic collector tuned as `headrace worker` tunes it for itself: the same loop in half of the CPU time."""

from benchmarks.floor import arguments, run, seldom_collect
from headrace.worker import configure_logging


def main() -> None:
    """`python -m benchmarks.floor_tuned BROKER GROUP TOPIC WINDOW_MS`."""
    chosen = arguments()
    configure_logging("INFO")
    seldom_collect()
    run(chosen.broker, chosen.group, chosen.out_topic, chosen.window_ms)


if __name__ == "__main__":
    main()
