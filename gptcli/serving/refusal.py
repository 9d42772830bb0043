"""Refusal: an answer that says why a request is not served, in the form of OpenAI's errors."""

from __future__ import annotations

from typing import Any

RETRY_AFTER = 1  # seconds after which a client should try again if the server is full


class Refusal(Exception):
    """A request that is not served: HTTP status, and what OpenAI's errors say.

    `param` names the field of the request that is wrong, `code` the kind of error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The object that the client gets."""
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
    """The server is full: the client should try again later."""
    return Refusal(503, f"The server is overloaded: {why}. Try again later.", code="overloaded")
