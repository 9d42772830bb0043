"""The six steps of the cache exercise and its bank of known mistakes.

Dimensions: B batch, T new tokens, S tokens in all, H heads, D channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gptcli.course.exercises.cache import Mask, any_attention, causal
from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.lesson import Step

STEPS = (
    Step(
        "store",
        "what must be kept of each token, and what does the second append find in the cache?",
        "keep the keys and the values of all tokens, in the order of the text",
        "concatenate the stored ones and the new ones along time, dim=2 of (B, H, T, D); the first "
        "time there is nothing stored",
    ),
    Step(
        "read",
        "with how many keys does one new query have to be compared?",
        "append returns the keys and the values of all tokens, and forward computes with those",
        "return self.keys, self.values; in forward: k, v = cache.append(k, v)",
    ),
    Step(
        "positions",
        "if 5 tokens are stored, which position does the next one have?",
        "length is the number of tokens stored: 0 at first, then the size of the keys along time",
        "0 if self.keys is None, else self.keys.shape[2]",
    ),
    Step(
        "full window",
        "how many positions has the model, and how many of them are taken?",
        "T more tokens fit if length + T is at most block_size; clear forgets keys and values",
        "return self.length + T <= self.block_size; clear sets keys and values back to None",
    ),
    Step(
        "mask",
        "how many rows and columns does the mask have, and what does its first row allow?",
        "T rows for the new queries, S columns for all keys; query t is token S - T + t of the "
        "text, and looks at keys up to it",
        "torch.ones(T, S, dtype=torch.bool).triu(diagonal=S - T + 1) is True where a key is later "
        "than the query",
    ),
    Step(
        "equality with recomputation",
        "which line gives another result for a piece of the text than for the whole text?",
        "softmax over the keys, weights @ v, the heads side by side, the projection: as in week 1, "
        "with T rows and S columns",
        "(F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, C), then c_proj",
    ),
)


def _diagonal(offset: int) -> Mask:
    """The causal mask, shifted by `offset`."""
    return lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(diagonal=S - T + offset)


def _everything(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool)


def _alone(T: int, S: int) -> Tensor:
    """Masked only if nothing was stored."""
    return causal(T, S) if T == S else _everything(T, S)


def _corner(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril()


def _new_only(T: int, S: int) -> Tensor:
    allowed = causal(T, S)
    allowed[:, : S - T] = False
    return allowed


def _stored_only(T: int, S: int) -> Tensor:
    """The new tokens see the stored ones, and of each other nothing but themselves."""
    allowed = _everything(T, S)
    allowed[:, S - T :] = torch.eye(T, dtype=torch.bool)
    return allowed if T != S else causal(T, S)


def _by(at: Callable[[int, int], int]) -> Mask:
    """The lower triangle with another diagonal, at(T, S)."""
    return lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(diagonal=at(T, S))


def _form(**parts: object) -> partial[Tensor]:
    return partial(any_attention, **parts)  # type: ignore[arg-type]


# Patterns for the line to quote, in order of preference, divided by " || ". A pattern that begins
# with `last:` takes the last line that has it.
_CAT = r"cat\(|stack\(|concat"
_KEPT = r"last:self\.\w+(, *self\.\w+)*\s*=(?!=)"
_CALL = r"\.(append|update|extend|add|store|push)\("
_MASK = (
    r"tri[ul]|is_causal || mask\w*\s*= || masked_fill|attn_mask|\binf\b || "
    r"scaled_dot_product_attention || softmax"
)
_LENGTH = r"last:return || \+= || length"
_RETURN = r"last:\breturn\b"

# fmt: off
MISTAKES = (
    ExerciseMistake("shared-between-caches", 1, "keys = [] in the class body",
            "a new cache begins with {found} tokens of another one: all caches share what they "
            "store",
            "a list or tensor in the class body, in a default argument or in a global variable "
            "exists once, for all layers and texts",
            "make it in __init__: self.keys = None",

            at=r"^\s{2,4}\w+\s*=\s*(\[|None|\{|torch) || def __init__.*=\s*(\[\]|\{\}) || "
            r"^\w+\s*=\s*(\[|None|\{)"),
    ExerciseMistake("overwrites", 1, "self.keys, self.values = k, v",
            "your cache keeps only the newest tokens: after {S} tokens it has {found}",
            "each append replaces what was stored", "concatenate the stored and the new ones",
            at=_KEPT + " || " + _CAT),
    ExerciseMistake("keeps-the-first", 1, "if self.keys is None: self.keys = k",
            "your cache keeps the first {found} tokens and stores no later ones; there are {S}",
            "the second append has to add its tokens", "concatenate, and assign the result",
            at=_CAT + " || is None || " + _KEPT),
    ExerciseMistake("wrong-dimension", 1, "torch.cat((self.keys, k), dim=1)",
            "you put new tokens along dim {dim}, the {what}: after {S} tokens your {part} have "
            "shape {shape}, expected {wanted}",
            "of (B, H, T, D) only T grows", "concatenate along dim=2 (or dim=-2)",
            at=_CAT + r"|append\( || \[.*\]\s*=(?!=)"),
    ExerciseMistake("new-before-old", 1, "torch.cat((k, self.keys), dim=2)",
            "the tokens in your cache are not in the order of the text: {order}",
            "mask and positions follow the order of the text",
            "put new tokens after the stored ones, the first of them first",
            at=_CAT + r"|insert\( || reversed || \[.*\]\s*=(?!=)|append\("),
    ExerciseMistake("values-not-stored", 1, "only self.keys is concatenated",
            "your values are not those of all {S} tokens (shape {shape}), although your keys are",
            "each key needs the value of its token", "treat the values exactly as the keys",
            at=r"last:self\.\w*v\w*\s*=(?!=) || last:, *self\.\w+\s*=(?!=) || " + _CAT),
    ExerciseMistake("keys-not-stored", 1, "only self.values is concatenated",
            "your keys are not those of all {S} tokens (shape {shape}), although your values are",
            "each value needs the key of its token", "treat the keys exactly as the values",
            at=r"last:self\.\w*k\w*\s*=(?!=) || last:self\.\w*k\w*,.*=(?!=) || " + _CAT),
    ExerciseMistake("keys-for-values", 1, "torch.cat((self.keys, v)), or self.values = self.keys",
            "your {one} of {S} tokens contain {other}",
            "keys say where to look, values what is passed on",
            "use self.keys with k, and self.values with v", at=(
                r"k\w*\.append\(v|v\w*\.append\(k || "
                r"v\w*\s*=.*\bk(eys?)?\b || k\w*\s*=.*\bv(alues?)?\b || " + _CAT + " || " + _KEPT)),
    ExerciseMistake("tokens-lost", 1, "self.keys[:, :, self.n] = k[:, :, 0]",
            "of {S} tokens that were appended, {lost} not in your cache",
            "an append can bring one token or several", "store all T tokens, after the others",
            at=r"\[.*\]\s*=(?!=) || " + _CAT + " || " + _KEPT),
    ExerciseMistake("other-dtype", 1, "k.float(), or torch.zeros(...) without dtype",
            "for keys in {given} your cache returns {got}",
            "a network can compute in bfloat16, and its queries do not match other keys",
            "leave the dtype alone; new tensors need dtype=k.dtype",
            at=(
                r"float|double|half|numpy || dtype || zeros|empty|full|tensor\(")),
    ExerciseMistake("other-device", 1, "torch.zeros(...) without device, .cpu(), .numpy()",
            "your append would not work with keys on a GPU: {why}",
        "on a GPU, keys and queries have to be on the GPU",
            "leave the device alone; new tensors need device=k.device",
            at=r"cpu\(|numpy|tolist|zeros|empty|full|tensor\("),
    ExerciseMistake("queries-stored", 1, "cache.append(q, k)",
            "your forward puts queries into the cache",
            "the queries of earlier tokens are never needed again: each token asks once",
            "store keys and values: k, v = cache.append(k, v)", (
                _form(keys="query"), _form(values="query"), _form(keys="query", values="key"),
                _form(keys="query", values="query")),
            at=_CALL),
    ExerciseMistake("not-stored", 1, "forward concatenates, but stores nothing",
            "after a forward over {T} tokens your cache has {found}",
            "the next token has to find them", "call cache.append in forward",
            at=_CALL + " || " + _CAT),
    ExerciseMistake("returns-nothing", 2, "no return",
            "your append returns {got}, not the keys and the values of all {S} tokens",
            "forward takes two tensors from it", "end append with return self.keys, self.values",
            at=_RETURN + r" || def (append|update|extend|add|store)"),
    ExerciseMistake("returns-new-only", 2, "return k, v",
            "your append stores {S} tokens, but returns only the newest {found}",
            "the new query has to be compared with the keys of all tokens",
            "return what is stored", at=_RETURN),
    ExerciseMistake("returns-old", 2, "old = self.keys; ...; return old",
            "your append returns what was stored before, without the {new} new tokens",
            "a token looks at itself, too", "return the tensors after the new ones were added",
            at=_RETURN),
    ExerciseMistake("swapped", 2, "return self.values, self.keys",
            "your append returns values first, then keys ({S} tokens)",
            "forward takes the keys first", "return self.keys, self.values", at=_RETURN),
    ExerciseMistake("whole-buffer", 2, "return self.keys (a buffer of block_size tokens)",
            "your append returns {found} tokens, but only {S} were appended",
            "empty places would get a part of the attention",
            "return only the filled part: self.keys[:, :, :n]", at=_RETURN),
    ExerciseMistake("cache-not-read", 2, "cache.append(k, v) without an assignment",
            "your forward computes with the new keys and values only",
            "the cache returns those of all tokens, and forward has to use them",
            "write k, v = cache.append(k, v)", (
                _form(reads="new"), _form(reads="new", mask=_everything)), at=_CALL),
    ExerciseMistake("half-read", 2, "k, _ = cache.append(k, v)",
            "your forward takes the {one} of all {S} tokens from the cache, but the {other} of the "
            "{T} new ones alone", "each key needs the value of its token",
            "write k, v = cache.append(k, v)",
            at=_CALL),
    ExerciseMistake("new-not-read", 2, "keys read before append",
            "your forward computes with the stored keys and values only, without the new "
            "ones", "a token looks at itself, too",
            "append first, and use what append returns", (
                _form(reads="old", mask=_alone), _form(reads="old"),
                _form(reads="old", mask=_everything)),
            at=r"cache\.(keys|values|k|v)\b || " + _CALL),
    ExerciseMistake("swapped-in-forward", 2, "v, k = cache.append(k, v)",
            "your forward takes the keys for values and the values for keys",
            "append takes and returns keys first", "write k, v = cache.append(k, v)", (
                _form(keys="value", values="key"),), at=_CALL),
    ExerciseMistake("appended-twice", 2, "cache.append(k, v); k, v = cache.append(k, v)",
            "your forward appends the same tokens twice: after {T} tokens the cache has {found}",
            "each call of append stores the tokens again", "call append once, and keep its result",
            at=_CALL),
    ExerciseMistake("length-always-zero", 3, "return 0",
            "your length is 0 after {S} tokens: positions would begin at 0 with every token",
            "the next token has the position of the number of tokens before it",
            "return the size of the stored keys along time", at=_LENGTH),
    ExerciseMistake("length-of-another-dimension", 3, "return self.keys.shape[0]",
            "your length is {got} after {S} tokens: it is the number of {what}",
            "keys are (B, H, S, D)", "take shape[2]", at=r"shape|size\( || last:return"),
    ExerciseMistake("length-counts-calls", 3, "self.length += 1",
            "your length is {got} after {S} tokens: it counts the calls of append",
            "one call can bring many tokens", "add the number of new tokens, k.shape[2]",
            at=r"\+= || \+ *1 || len\( || last:return"),
    ExerciseMistake("length-of-newest", 3, "self.length = k.shape[2]",
            "your length is {got} after {S} tokens: it is the number of the newest ones",
            "the earlier ones count, too", "add to the length, or take the size of what is stored",
            at=r"self\.\w+\s*=(?!=).*(shape|size\(|\bT\b|len\() || last:return"),
    ExerciseMistake("length-off-by-one", 3, "return self.keys.shape[2] - 1",
            "your length is {got} after {S} tokens",
            "positions begin at 0, so after S tokens the next position is S",
            "return the number of tokens itself", at=r"last:[-+] *1\b || last:return || \+="),
    ExerciseMistake("length-of-nothing", 3, "return self.keys.shape[2]",
            "of an empty cache your length {problem}",
            "the first token has position 0", "return 0 while nothing is stored",
            at=r"shape|size\( || last:return"),
    ExerciseMistake("fits-off-by-one", 4, "self.length + T < self.block_size",
            "with {length} tokens stored and a block_size of {W}, your fits({T}) is {got}",
            "block_size tokens have the positions 0 to block_size - 1: all of them can be used",
            "compare with <=", (
                lambda n, T, W: n + T < W, lambda n, T, W: n + T <= W + 1,
                lambda n, T, W: n + T - 1 < W - 1, lambda n, T, W: n + T + 1 < W),
            at=r"last:[<>] || last:return"),
    ExerciseMistake("fits-ignores-new", 4, "self.length < self.block_size",
            "with {length} tokens stored and a block_size of {W}, your fits({T}) is {got}: it does "
            "not count the new tokens", "T tokens come at once",
            "compare length + T with block_size", (
                lambda n, T, W: n < W,),
            at=r"last:[<>] || last:return"),
    ExerciseMistake("fits-ignores-stored", 4, "T <= self.block_size",
            "with {length} tokens stored and a block_size of {W}, your fits({T}) is {got}: it does "
            "not count the stored tokens", "they take positions, too",
            "compare length + T with block_size", (
                lambda n, T, W: T <= W, lambda n, T, W: T < W), at=r"last:[<>] || last:return"),
    ExerciseMistake("fits-inverted", 4, "self.length + T > self.block_size",
            "with {length} tokens stored and a block_size of {W}, your fits({T}) is {got}",
            "fits is True if there is room", "turn the comparison round", (
                lambda n, T, W: n + T > W, lambda n, T, W: n + T >= W),
            at=r"last:[<>] || last:return"),
    ExerciseMistake("never-full", 4, "return True, or forward that does not ask fits",
            "with a block_size of {W} your {what} takes {count} tokens",
            "the model has no position for them",
            "fits is length + T <= block_size, and forward raises ValueError if it is False", (
                lambda n, T, W: True,), at=r"fits\( || " + _CALL + " || " + _RETURN),
    ExerciseMistake("drops-the-oldest", 4, "self.keys[:, :, -self.block_size:]",
            "with a block_size of {W} your cache takes {count} tokens and keeps the newest {found}",
            "the keys contain the learned positions: if the oldest token goes, the others have to "
            "move by one, and there is no position for the new one",
            "let fits refuse, and let sampling clear the cache and read the last part again",
            at=r"\[.*-.*:\]|roll|pop\(|narrow || " + _KEPT),
    ExerciseMistake("clear-incomplete", 4, "self.keys = None, but not self.values",
            "after clear your cache {problem}",
            "the next text would see tokens of the last one",
            "clear sets back everything that append changes",
            at=(
                r"None|= *0|clear\(|\[\] || def (clear|reset|reset_cache|empty|forget)")),
    ExerciseMistake("no-mask", 5, "mask only if cache is None",
            "with a cache your forward has no mask: each new token looks at later ones, "
            "too",
            "several tokens can come at once, and then the mask is needed as before",
            "mask the scores with and without a cache", (_form(mask=_everything),),
            at=r"if .*cache\b.* (is|==) None || " + _MASK),
    ExerciseMistake("no-mask-after-stored", 5, "if T == S: mask",
            "your forward has no mask if tokens are stored: several new tokens look at each "
            "other",
            "only one new token alone needs no mask", "make a mask of T rows and S columns", (
                _form(mask=_alone),),
            at=r"if\b(?!.*fits).*(==|!=|<|>) || if .*cache.* None || " + _MASK),
    ExerciseMistake("mask-from-the-corner", 5, "torch.tril(torch.ones(T, S)), is_causal=True",
            "your mask begins at the first stored token: new token t looks at keys 0 to t only",
            "query t is token S - T + t of the text, not token t (is_causal=True counts from the "
            "corner, too)",
            "shift the diagonal by the number of stored tokens, S - T", (_form(mask=_corner),),
            at=r"is_causal=True || tri[ul]\w*[(\[] || arange\([^,()]+(, *device[^)]*)?\) || "
            r"arange.*[<>] || (mask|bias)\w*(\.\w+\(\))?\[ || arange || \[.*\]\s*=(?!=) || "
            + _MASK),
    ExerciseMistake("mask-one-too-far", 5, "triu(diagonal=S - T + 2)",
            "your mask is one too far: each new token looks at the one after it",
            "the diagonal itself is the token, the next cell is later",
            "triu(diagonal=S - T + 1) for what is shut, or tril(diagonal=S - T) for what is open",
            (_form(mask=_diagonal(1)),),
            at=r"tri[ul] || [\w\])] *[<>]=? || \[.*\]\s*=(?!=) || " + _MASK),
    ExerciseMistake("mask-hides-itself", 5, "triu(diagonal=S - T)",
            "your mask hides each new token from itself", "a token looks at itself, too",
            "triu(diagonal=S - T + 1) for what is shut, or tril(diagonal=S - T) for what is open",
            (
                _form(mask=_diagonal(-1)), _form(mask=_diagonal(-1), soft="safe")),
            at=r"tri[ul] || [\w\])] *[<>]=? || \[.*\]\s*=(?!=) || " + _MASK),
    ExerciseMistake("mask-hides-stored", 5, "mask with zeros for the stored tokens",
            "your mask hides the stored tokens: new ones look only at each other",
            "all stored tokens are earlier than all new ones",
            "the columns of the stored tokens are open in every row", (_form(mask=_new_only),),
            at=r"\[.*\]\s*=(?!=)|zeros || " + _MASK),
    ExerciseMistake("mask-hides-new", 5, "only the stored tokens and the diagonal are open",
            "your mask hides earlier new tokens from later ones",
            "among the new tokens the mask is causal as always",
            "shift the diagonal by the number of stored tokens, S - T", (_form(mask=_stored_only),),
            at=r"\[.*\]\s*=(?!=)|eye || " + _MASK),
    ExerciseMistake("another-diagonal", 5, "diagonal=T, or cache.length read after append",
            "the diagonal of your mask is not at S - T",
            "after append, length is S, the number of all tokens",
            "the diagonal is shifted by the number of tokens stored before, S - T", (
                _form(mask=_by(lambda T, S: T)), _form(mask=_by(lambda T, S: S - 1)),
                _form(mask=_by(lambda T, S: T - S)),
                *(_form(mask=_diagonal(n)) for n in (2, -2))), at=_MASK),
    ExerciseMistake("mask-inverted", 5, "masked_fill(allowed, -inf)",
            "your mask hides what should be seen",
            "masked_fill hides where the mask is True; scaled_dot_product_attention shows there",
            "turn the mask round with ~", (
                _form(mask=lambda T, S: ~causal(T, S)),
                _form(mask=lambda T, S: ~causal(T, S), soft="safe")),
            at=r"masked_fill|where\(|attn_mask || " + _MASK),
    ExerciseMistake("mask-is-square", 5, "torch.ones(T, T).tril()",
            "your mask does not fit the scores of T = {T} queries and S = {S} keys",
            "there is a row for each new query, and a column for each key",
            "make it of T rows and S columns", at=_MASK),
    ExerciseMistake("mask-not-infinite", 5, "masked_fill(future, 0)",
            "you fill masked scores with 0, not with -inf",
            "the softmax of 0 is no weight of 0", 'fill with float("-inf")', (
                _form(fill=0.0), _form(fill=-1.0), _form(fill=1.0)),
            at=r"masked_fill|where\( || " + _MASK),
    ExerciseMistake("mask-after-softmax", 5, "softmax, then masked_fill",
            "you mask after the softmax, so the weights do not sum to 1",
            "later tokens take part in the softmax", "mask the scores, before the softmax", (
                _form(soft="then masked"),),
            at=r"last:masked_fill|\* *\w*mask || last:softmax || " + _MASK),
    ExerciseMistake("another-scale", 5, "scores without / math.sqrt(D)",
            "your scores are not scaled by 1 / sqrt(D)",
            "the scale depends on the channels of a head alone, not on the number of tokens",
            "divide by math.sqrt(D), D = C // H", (
                _form(scale=lambda T, S, D: 1.0), _form(scale=lambda T, S, D: D),
                _form(scale=lambda T, S, D: math.sqrt(T)),
                _form(scale=lambda T, S, D: math.sqrt(S)),
                _form(scale=lambda T, S, D: 1 / math.sqrt(D))),
            at=r"sqrt|\*\* *-?0?\.5|scale || @ *k|matmul|einsum || softmax"),
    ExerciseMistake("softmax-over-queries", 6, "softmax(dim=-2)",
            "your softmax goes over the {T} new queries, not over the {S} keys",
            "the weights of one query sum to 1", "take dim=-1", (_form(soft="queries"),),
            at=r"softmax"),
    ExerciseMistake("no-softmax", 6, "scores @ v",
            "your scores are used as weights, without a softmax",
            "weights are positive and sum to 1", "apply a softmax over the keys", (
                _form(soft="none"),), at=r"@ *v|matmul|einsum || last:return"),
    ExerciseMistake("heads-mixed", 6, "(weights @ v).reshape(B, T, C)",
            "you put tokens and heads in the wrong order: (B, H, T, D) became (B, T, C) without "
            "transpose",
            "the heads of one token belong side by side", "transpose(1, 2) before reshape", (
                _form(merge="view"),), at=r"last:reshape|view\(|flatten || last:return"),
    ExerciseMistake("not-projected", 6, "return merged",
            "your output does not go through the output projection",
            "the projection mixes the heads", "return self.c_proj(merged)", (
                _form(merge="not projected"),), at=_RETURN),
    ExerciseMistake("kept-in-module", 6, "self.cache, or self.past in the attention",
            "your attention remembers an earlier text: {what}",
            "several texts go through one module, each with a cache of its own",
            "keep tokens only in the cache that forward gets", at=r"self\.\w+\s*=(?!=)|global"),
    ExerciseMistake("returns-more", 6, "return y, cache",
            "your forward returns {got}; the network needs the output alone",
            "the cache is changed in place, so nobody has to return it", "return the output",
            at=_RETURN),
    ExerciseMistake("output-of-all-tokens", 6, "x or q of all tokens",
            "with T = {T} new tokens your output has shape {got}, expected {wanted}",
            "forward returns the outputs of the new tokens alone",
            "T rows come in, T rows go out: (B, T, C)",
            at=r"last:reshape|view\(|flatten|cat\( || last:return"),
)
# fmt: on
