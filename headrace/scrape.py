"""Reads the pages of running services over HTTP."""

import json
import urllib.error
import urllib.request
from typing import Any

from headrace.metrics import Page, parse

TIMEOUT_S = 2.0


def metrics(port: int) -> Page | None:
    """The /metrics page of a service on this machine; None where it does not answer now."""
    body = _get(f"http://127.0.0.1:{port}/metrics")
    return None if body is None else parse(body.decode())


def page(port: int, path: str) -> Any:
    """A JSON page; None where the service does not answer now."""
    body = _get(f"http://127.0.0.1:{port}{path}")
    return None if body is None else json.loads(body)


def _get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError):
        return None
