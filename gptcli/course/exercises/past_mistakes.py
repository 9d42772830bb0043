"""The steps and mistakes of the cache exercise for a forward that takes and returns the past.

The steps have the same numbers as in cache_mistakes.py. A mistake that is in both files has the
same slug in both. The messages in this file are for `forward(x, past=(k, v))`. Those of
reset-missing and clear-incomplete are for a module that keeps the keys and values itself.
"""

from __future__ import annotations

from dataclasses import replace

from gptcli.course.exercises.cache_mistakes import MISTAKES as OF_CLASS
from gptcli.course.exercises.cache_mistakes import STEPS as STEPS_OF_CLASS
from gptcli.course.exercises.explainer import ExerciseMistake

_RETURN = r"last:\breturn\b"
_CAT = r"cat\(|stack\(|concat"
_STORED = r"(present|new)\w*(, *\w+)*\s*=(?!=) || cache\w*\[.*\] *=(?!=) || " + _RETURN
_PAST = r"past|cache|kv|prev"

STEPS = (
    replace(
        STEPS_OF_CLASS[0],
        ask="what must be kept of each token, and what must the second call of forward get?",
        show="k = torch.cat((past_k, k), dim=2) for (B, H, T, D), and the same for v; without a "
        "past, k and v stay as they are",
    ),
    replace(
        STEPS_OF_CLASS[1],
        tell="forward computes with the keys and values of all tokens, and returns all of them",
        show="past_k, past_v = past; concatenate, so that k and v are those of all tokens; return "
        "y, (k, v)",
    ),
    replace(
        STEPS_OF_CLASS[2],
        tell="the position of the first new token is the number of tokens in the past",
        show="start = 0 if past is None else past[0].shape[2]; "
        "the positions are arange(start, start + T)",
    ),
    replace(
        STEPS_OF_CLASS[3],
        tell="up to block_size no token may get lost, and a reset must remove all tokens of the "
        "old text",
        show="keep all keys and values; a reset must remove everything that forward stores",
    ),
    STEPS_OF_CLASS[4],
    STEPS_OF_CLASS[5],
)

# fmt: off
MISTAKES = (
    ExerciseMistake("overwrites", 1, "k, v of the new tokens alone, without torch.cat",
            "your forward keeps only the newest tokens: after {S} tokens it has the keys and "
            "values of {found} of them",
            "each call replaces the stored tokens", "concatenate the stored and the new tokens",
            at=_STORED),
    ExerciseMistake("keeps-the-first", 1, "return y, past",
            "your forward keeps only the keys and values of the {found}, not those "
            "of all {S} tokens",
            "the next call needs the new tokens, too", "concatenate, and return the result",
            at=_STORED),
    ExerciseMistake("new-before-old", 1, "torch.cat((k, past_k), dim=2)",
            "your forward puts the tokens in the order {order}, which is not the order of the text",
            "the mask and the positions rely on the order of the text",
            "put the new tokens after the stored ones, and keep the order of the new ones: "
            "torch.cat((past_k, k), dim=2)",
            at=_CAT),
    ExerciseMistake("keys-for-values", 1, "torch.cat((past_k, v)), or return y, (k, k)",
            "your {one} of {S} tokens contain {other}",
            "keys decide which tokens a query looks at; values are what it gets from these tokens",
            "concatenate past_k with k, and past_v with v; return y, (k, v)", at=_STORED),
    ExerciseMistake("queries-stored", 1, "return y, (q, k)",
            "your forward stores queries",
            "no later token needs the query of an earlier token",
            "store keys and values: return y, (k, v)",
            next(m.forms for m in OF_CLASS if m.slug == "queries-stored"), at=_STORED),
    ExerciseMistake("other-dtype", 1, "past = k.half(), v.half()",
            "for x in {given} your forward returns keys or values in {got}",
            "stored keys and values must have the dtype of later queries",
            "do not change the dtype of k and v",
            at=r"half|float|bfloat16|\.to\(|dtype || " + _RETURN),
    ExerciseMistake("past-changed", 1, "past[0][...] = k, past.append(k), k_past.add_(...)",
            "your forward changes the past that it gets: if two texts continue one past, the "
            "output for the second text is wrong",
            "several texts can begin with the same tokens, and each of them continues the same "
            "past",
            "make new tensors, torch.cat((past_k, k), dim=2), and return the new tensors",
            at=r"(past|cache|kv|prev)\w*(\[.*\])?\.(append|extend|insert|\w+_)\( || "
            r"(past|cache|kv|prev)\w*\[.*\]\s*[-+*]?=(?!=) || " + _CAT),
    ExerciseMistake("present-not-returned", 2, "return y",
            "your forward returns no keys and values for the next call: it returns {got}",
            "the next call knows only the keys and values that this call returns",
            "return y, (k, v) with the keys and values of all tokens", at=_RETURN),
    ExerciseMistake("present-new-only", 2, "return y, (k_new, v_new)",
            "your forward computes with all {S} tokens, but returns only the {what} of the newest "
            "{found}",
            "the next call would lack the earlier tokens",
            "return the concatenated tensors", at=_STORED),
    ExerciseMistake("present-old", 2, "return y, past",
            "your forward computes with all {S} tokens, but returns the past without the {found}",
            "the next call would lack the newest tokens",
            "return the concatenated tensors", at=_STORED),
    ExerciseMistake("present-swapped", 2, "return y, (v, k), or v, k = past",
            "your forward exchanges the stored keys and the stored values",
            "forward must read keys and values from the past in the order in which it returns them",
            "use one order: k_past, v_past = past, and return y, (k, v)",
            at=_STORED),
    ExerciseMistake("cache-not-read", 2, "past is returned, but scores use the new keys",
            "your forward computes only with the new keys and values",
            "a new query must be compared with the keys of all tokens",
            "use the concatenated keys and values for scores and output",
            next(m.forms for m in OF_CLASS if m.slug == "cache-not-read"),
            at=r"@ *\w*k|matmul|einsum|scaled_dot_product_attention || " + _CAT),
    ExerciseMistake("half-read", 2, "keys of all tokens, values of the new ones",
            "your forward takes the {one} of all {S} tokens, but only the {other} of the {T}",
            "each key needs the value of its token",
            "concatenate both, and use both",
            at=r"@ *\w*v|matmul|einsum|scaled_dot_product_attention || " + _CAT),
    ExerciseMistake("new-not-read", 2, "scores with past_k",
            "your forward computes only with the stored keys and values, without the new ones",
            "a token also looks at itself",
            "use the concatenated keys and values",
            next(m.forms for m in OF_CLASS if m.slug == "new-not-read"),
            at=_PAST),
    ExerciseMistake("swapped-in-forward", 2, "v, k = past",
            "your forward uses the keys as values and the values as keys",
            "the past must be read in the order in which forward returns it",
            "write k_past, v_past = past", (
                next(m.forms for m in OF_CLASS if m.slug == "swapped-in-forward")),
            at=r"=.*\b(past|cache|kv)\w*\b || " + _CAT),
    ExerciseMistake("appended-twice", 2, "torch.cat((past_k, k, k))",
            "your forward puts the same tokens into the keys or the values twice",
            "each token has one key and one value", "concatenate once", at="last:" + _CAT),
    ExerciseMistake("positions-not-offset", 3, "positions from 0 to T - 1 although there is a past",
            "your forward gives the first new token the position {at}, although {start} "
            "before it",
            "the position of a token is the number of tokens before it",
            "begin at the length of the past: torch.arange(start, start + T)",
            at=r"\bpos\w*\s*=.*(arange|\+) || (rope|rot)\w*\(.*\) || arange || position|cos\b || "
            + _PAST),
    ExerciseMistake("drops-the-oldest", 4, "k[:, :, -block_size + 1:]",
            "with {S} tokens and a block_size of {W}, your forward keeps only the newest {found}",
            "the model has positions for block_size tokens, and a token may look at all tokens "
            "before it",
            "keep every token up to block_size",
            at=r"\[.*-.*:|roll|narrow || " + _CAT),
    ExerciseMistake("reset-missing", 4, "no reset_cache",
            "your module keeps the tokens of a text, and has no method that removes them",
            "the next text would see tokens of the previous text",
            "write `def reset_cache(self):`, which sets keys and values to None",
            at=r"self\.\w*(cache|past|kv)\w*\s*=(?!=)"),
    ExerciseMistake("clear-incomplete", 4, "self.cache_k = None, but not self.cache_v",
            "after a reset your module {problem}",
            "the next text must begin with nothing stored",
            "a reset must remove everything that forward stores",
            at=r"None|= *0|clear\(|\[\] || def \w*(clear|reset)"),
)
# fmt: on
BANK = (
    *MISTAKES,
    *(
        m
        for m in OF_CLASS
        if m.step >= 5
        or m.slug
        in (
            "wrong-dimension",
            "values-not-stored",
            "keys-not-stored",
            "keys-for-values",
            "tokens-lost",
        )
    ),
)  # fmt: skip
"""All known mistakes of a forward with a past; the mistakes of this file come first."""
