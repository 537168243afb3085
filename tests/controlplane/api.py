"""A client of the Kubernetes REST API: dictionaries in, dictionaries out."""

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from .web import WebClient

Json = dict[str, Any]
Body = Mapping[str, Any] | Sequence[Any]  # a JSON patch is a list

MERGE = "application/merge-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_FIRST_ERROR = 400


class ApiError(Exception):
    """The server refused; `status` is HTTP's, `reason` Kubernetes' (`Forbidden`, `Conflict`)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Api:
    """Calls as one user. Paths start with `/api/v1` or `/apis/GROUP/VERSION`.

    Each call raises ApiError where the server refuses, OSError where there is none.
    """

    def __init__(self, url: str, token: str, context: ssl.SSLContext) -> None:
        self._web = WebClient(url, context)
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}

    def get(self, path: str, **query: str) -> Json:
        """Return one object or a list object; `query` such as `labelSelector="a=b"`."""
        return _object(self._call("GET", f"{path}?{urlencode(query)}" if query else path))

    def text(self, path: str) -> str:
        """Return a page that is not JSON, such as `/metrics`."""
        return self._call("GET", path, headers={"Accept": "*/*"}).decode()

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """Create an object, or a subresource such as a binding."""
        return _object(self._call("POST", path, body))

    def patch(self, path: str, body: Body, kind: str = MERGE) -> Json:
        """Change an object; `kind` is one of MERGE, STRATEGIC_MERGE, JSON_PATCH."""
        return _object(self._call("PATCH", path, body, headers={"Content-Type": kind}))

    def delete(self, path: str, grace_seconds: int | None = None) -> None:
        """Delete an object, or all of a collection, with the given or the object's own grace."""
        options: Json = {"propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        self._call("DELETE", path, options)

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        self._web.close()

    def _call(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **self._headers, **(headers or {})}
        reply = self._web.request(method, path, data, sent)
        if reply.status >= _FIRST_ERROR:
            raise _error(reply.status, reply.body)
        return reply.body


def _object(body: bytes) -> Json:
    decoded: Json = json.loads(body)
    return decoded


def _error(status: int, body: bytes) -> ApiError:
    try:
        answer = _object(body)
        return ApiError(status, str(answer.get("reason", "")), str(answer.get("message", "")))
    except (ValueError, AttributeError):  # a plain text, as from /metrics
        reason = http.client.responses.get(status, "")
        return ApiError(status, reason, body.decode(errors="replace"))
