"""The traffic split: which users always get the baseline. Stable over restarts, replicas and time."""

from hashlib import blake2b

_RANGE = float(1 << 64)


def position(user_id: str, salt: str) -> float:
    """Where in [0, 1) a user stands: uniform over users, the same for the same user and salt."""
    digest = blake2b(f"{salt}\0{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _RANGE


def bucket(user_id: str, salt: str) -> str:
    """Which hundredth of the split a user is in, 0 to 99: logged with each page, so that any part of the traffic can be looked at later."""
    return str(int(100 * position(user_id, salt)))


def is_baseline(user_id: str, baseline_share: float, salt: str) -> bool:
    """Whether this user belongs to the baseline. A larger share keeps the users that a smaller one had."""
    return position(user_id, salt) < baseline_share
