"""Reads and checks the body of a completions request: OpenAI's fields with OpenAI's defaults.

Source: OpenAI's API reference, "Create completion". The fields `top_k`, `min_p` and
`repeat_penalty` come from llama.cpp's server; OpenAI does not have them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import ErrorDetails

from gptcli.errors import nearest
from gptcli.plurals import counted
from gptcli.sampling.next_token import SamplingParams
from gptcli.serving.refusal import Refusal

MOST_TEXTS = 256  # the most texts that one request can ask for

_Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
_Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]
_Ids = list[StrictInt]


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool | None = False
    include_obfuscation: StrictBool | None = False


class CompletionRequest(BaseModel):
    """The fields of a request. A field that is null gets its default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: StrictStr | None = None
    prompt: StrictStr | list[StrictStr] | _Ids | list[_Ids] = ""
    max_tokens: Annotated[StrictInt, Field(ge=0)] = 16
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] = 1.0
    top_p: _Fraction = 1.0
    top_k: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] = 0
    min_p: _Fraction = 0.0
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100, strict=True)] = 1.0
    n: Annotated[StrictInt, Field(ge=1, le=128)] = 1
    best_of: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    echo: StrictBool = False
    stop: StrictStr | list[StrictStr] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: dict[str, float] | None = None
    suffix: StrictStr | None = None
    user: StrictStr | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list. Each prompt is a text or a list of token ids."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return given  # type: ignore[no-any-return]

    @property
    def stops(self) -> Sequence[str]:
        """The stop strings, at most four."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event that has the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams(
            self.temperature,
            self.top_k or None,
            None if self.top_p == 1.0 else self.top_p,
            self.min_p or None,
            self.repeat_penalty,
        )


def read_request(body: bytes) -> CompletionRequest:
    """The request in a body. Raises Refusal (400) if the body or one of its fields is wrong."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body of the request is not valid JSON.") from None
    if not isinstance(given, dict):
        raise Refusal(400, "The body of the request must be a JSON object.")
    try:
        request = CompletionRequest.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)) from None
    _refuse_what_cannot_be(request)
    return request


def _refusal(errors: list[ErrorDetails]) -> Refusal:
    """The refusal of a body with wrong fields. It says what is wrong with the first one."""
    first = errors[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        close = nearest(name, CompletionRequest.model_fields)
        guess = f" Did you mean `{close}`?" if close else ""
        return Refusal(
            400, f"Unrecognized request argument supplied: `{_cut(name)}`.{guess}", param=_cut(name)
        )
    what = first["msg"][:1].lower() + first["msg"][1:]
    if len({str(error["loc"][0]) for error in errors}) == 1 and len(errors) > 1:
        what = _FORMS.get(name, what)
    value = _cut(repr(first["input"]))
    return Refusal(400, f"Invalid value for `{name}`: {what}; got {value}.", param=name)


_FORMS = {
    "prompt": "it must be a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": "it must be a text or a list of texts",
}


def _refuse_what_cannot_be(request: CompletionRequest) -> None:
    """Raise Refusal for values that contradict each other, and for unsupported fields."""
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise Refusal(
                400,
                f"`{name}` is not supported; `repeat_penalty` above 1 lowers the probability of "
                "tokens that are already in the text.",
                param=name,
                code="unsupported_parameter",
            )
    for name in ("logit_bias", "suffix"):
        if getattr(request, name):
            raise Refusal(
                400, f"`{name}` is not supported.", param=name, code="unsupported_parameter"
            )
    if len(request.stops) > 4:
        raise Refusal(
            400,
            f"Invalid value for `stop`: at most 4 texts; got {len(request.stops)}.",
            param="stop",
        )
    if "" in request.stops:
        raise Refusal(400, "Invalid value for `stop`: a text must not be empty.", param="stop")
    if request.best_of is not None and request.best_of < request.n:
        raise Refusal(400, "`best_of` must be at least `n`.", param="best_of")
    if request.stream and (request.best_of or request.n) > request.n:
        raise Refusal(400, "`best_of` above `n` cannot be streamed.", param="best_of")
    if request.stream_options is not None and not request.stream:
        raise Refusal(400, "`stream_options` needs `stream`: true.", param="stream_options")
    count = len(request.prompts)
    if count == 0:
        raise Refusal(400, "Invalid value for `prompt`: the list is empty.", param="prompt")
    each = request.best_of or request.n
    if count * each > MOST_TEXTS:
        raise Refusal(
            400,
            f"{count} prompts with {counted(each, 'text')} each are more than the "
            f"{MOST_TEXTS} texts that one request can ask for.",
            param="n",
        )


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
