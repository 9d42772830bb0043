"""Refusal: the answer to a request that is not served, in the form of OpenAI's errors."""

from __future__ import annotations

from typing import Any

RETRY_AFTER = 1  # seconds that a client should wait before it tries again


class Refusal(Exception):
    """A request is not served. Holds the HTTP status and the content of OpenAI's error.

    `param` is the name of the field at fault in the request. `code` names the kind of error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object that the client gets."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def overloaded(why: str) -> Refusal:
    """The refusal of a server that is full or shuts down, with the advice to try again later."""
    return Refusal(503, f"The server cannot answer now: {why}. Try again later.", code="overloaded")
