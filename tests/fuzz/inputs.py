"""Hypothesis strategies that make texts, bytes and JSON: some are almost valid, and some completely
invalid."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

Text = st.SearchStrategy[str]
Bytes = st.SearchStrategy[bytes]

YAML_TOKENS = (
    "model", "train", "data", "run", "tokenizer", "n_layer", "n_embd", "seed", "source", "auto",
    ":", ": ", "- ", "? ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", "&a ", "*a", "<<: ",
    "!!int ", "!!python/object/apply:os.system ", "!x ", "'", '"', "|\n", ">\n", "# ", "%YAML 1\n",
    "---\n", "...\n", "1", "-1", "0x10", "1e3", "1e999", ".nan", "-.inf", "null", "~", "true", "on",
    "2024-01-01", "é", "\x85", "\ufeff", "\\ud800", "\x00", "\t", "@", "`", "=", "9" * 25, ".5",
)  # fmt: skip

ODD_NUMBERS = (0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 10**400)

yaml_like: Text = st.lists(st.sampled_from(YAML_TOKENS), max_size=24).map("".join)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(ODD_NUMBERS)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["__class__", "../../x", "\ud800", "a" * 3000, "NaN"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=6,
)

_edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "cut", "drop", "insert", "repeat"]),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def edited(base: bytes) -> Bytes:
    """A strategy that changes, removes, repeats or inserts bytes at a few places of `base`."""

    def apply(edits: list[tuple[float, str, bytes]]) -> bytes:
        data = base
        for where, what, payload in edits:
            place = int(where * len(data))
            if what == "flip" and data:
                data = data[:place] + bytes([data[place] ^ (payload[0] or 1)]) + data[place + 1 :]
            elif what == "cut":
                data = data[:place]
            elif what == "drop":
                data = data[:place] + data[place + len(payload) :]
            elif what == "insert":
                data = data[:place] + payload + data[place:]
            else:
                data = data[:place] + data[place : place + 40] * (1 + payload[0] % 8) + data[place:]
        return data

    return _edits.map(apply)


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above]
    pairs = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list)
        else ()
    )  # fmt: skip
    for key, inner in pairs:
        found += _paths(inner, (*above, key))
    return found


def changed(base: Any) -> st.SearchStrategy[Any]:
    """A strategy that replaces, renames or removes a few parts of the JSON value `base`."""
    places = _paths(base)
    # Change parts of the two upper levels more often, because there are many more parts deeper in
    # the value.
    shallow = [place for place in places if len(place) <= 2] or places

    def apply(changes: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
        result = json.loads(json.dumps(base))
        for place, what, value in changes:
            if not place:
                if what == "replace" and len(changes) == 1:
                    return value
                continue
            holder = result
            try:
                for key in place[:-1]:
                    holder = holder[key]
                if what == "drop":
                    del holder[place[-1]]
                elif what == "rename" and isinstance(holder, dict):
                    holder[str(value)[:20]] = holder.pop(place[-1])
                else:
                    holder[place[-1]] = value
            except (KeyError, IndexError, TypeError):
                pass
        return result

    change = st.tuples(
        st.sampled_from(places) | st.sampled_from(shallow),
        st.sampled_from(["replace", "replace", "drop", "rename"]),
        json_values,
    )
    return st.lists(change, min_size=1, max_size=3).map(apply)


def as_json(value: Any) -> bytes:
    """`value` as JSON in ASCII, in which even a lone surrogate is written as an escape."""
    return json.dumps(value).encode("ascii")


nested: Bytes = st.tuples(
    st.sampled_from([b"[", b'{"a":', b"[[{", b'{"":[']), st.sampled_from([50, 900, 5000, 100_000])
).map(lambda pair: pair[0] * pair[1])

any_bytes: Bytes = st.binary(max_size=60) | st.text(max_size=40).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
