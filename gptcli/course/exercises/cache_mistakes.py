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
        "what must the cache keep of each token, and what has it stored when the second append "
        "begins?",
        "keep the keys and the values of all tokens, in the order of the text",
        "concatenate the stored and the new tokens along time, dim=2 of (B, H, T, D); at the "
        "first append nothing is stored yet",
    ),
    Step(
        "read",
        "with how many keys does one new query have to be compared?",
        "append returns the keys and the values of all tokens, and forward computes with what "
        "append returns",
        "return self.keys, self.values; in forward: k, v = cache.append(k, v)",
    ),
    Step(
        "positions",
        "if 5 tokens are stored, which position does the next one have?",
        "length is the number of tokens stored: 0 at first, later the size of the keys along time",
        "0 if self.keys is None, else self.keys.shape[2]",
    ),
    Step(
        "full window",
        "how many positions does the model have, and how many of them are taken?",
        "T more tokens fit if length + T is at most block_size; clear removes keys and values",
        "return self.length + T <= self.block_size; clear sets keys and values back to None",
    ),
    Step(
        "mask",
        "how many rows and columns does the mask have, and what does its first row allow?",
        "T rows for the new queries, S columns for all keys; query t is token S - T + t of the "
        "text, and looks at keys 0 to S - T + t",
        "torch.ones(T, S, dtype=torch.bool).triu(diagonal=S - T + 1) is True for keys that are "
        "later than the query",
    ),
    Step(
        "equality with recomputation",
        "which line gives a wrong result if forward gets a piece of the text with a cache?",
        "softmax over the keys, weights @ v, heads side by side, projection: as in week 1, but "
        "with T rows and S columns",
        "(F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, C), then c_proj",
    ),
)


def _diagonal(offset: int) -> Mask:
    """A function from T and S to the causal mask with its diagonal shifted by `offset` keys."""
    return lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(diagonal=S - T + offset)


def _everything(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool)


def _alone(T: int, S: int) -> Tensor:
    """The causal mask if nothing is stored (T == S), else no mask."""
    return causal(T, S) if T == S else _everything(T, S)


def _corner(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril()


def _new_only(T: int, S: int) -> Tensor:
    allowed = causal(T, S)
    allowed[:, : S - T] = False
    return allowed


def _stored_only(T: int, S: int) -> Tensor:
    """A mask in which each new token sees only the stored tokens and itself.

    If nothing is stored (T == S), it is the causal mask."""
    allowed = _everything(T, S)
    allowed[:, S - T :] = torch.eye(T, dtype=torch.bool)
    return allowed if T != S else causal(T, S)


def _by(at: Callable[[int, int], int]) -> Mask:
    """A function from T and S to the mask that tril makes with `diagonal=at(T, S)`."""
    return lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(diagonal=at(T, S))


def _form(**parts: object) -> partial[Tensor]:
    return partial(any_attention, **parts)  # type: ignore[arg-type]


# Patterns for the line to quote, in order of preference, divided by " || ". A pattern that begins
# with `last:` finds the last line that matches. Other patterns find the first.
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
            "a new cache begins with {found} tokens of another cache: all caches share their "
            "tensors",
            "a list or tensor in the class body, in a default argument or in a global variable "
            "exists only once, for all layers and all texts",
            "set the attribute in __init__: self.keys = None",
            at=r"^\s{2,4}\w+\s*=\s*(\[|None|\{|torch) || def __init__.*=\s*(\[\]|\{\}) || "
            r"^\w+\s*=\s*(\[|None|\{)"),
    ExerciseMistake("overwrites", 1, "self.keys, self.values = k, v",
            "your cache keeps only the newest tokens: after {S} tokens it has {found}",
            "each append replaces the stored tokens", "concatenate the stored and the new tokens",
            at=_KEPT + " || " + _CAT),
    ExerciseMistake("keeps-the-first", 1, "if self.keys is None: self.keys = k",
            "your cache keeps only the first {found} of {S} tokens",
            "the second append must add its tokens to the stored ones",
            "concatenate, and assign the result to the attribute",
            at=_CAT + " || is None || " + _KEPT),
    ExerciseMistake("wrong-dimension", 1, "torch.cat((self.keys, k), dim=1)",
            "you join new tokens along dim {dim}, the {what}: after {S} tokens your {part} have "
            "shape {shape}, expected {wanted}",
            "only dimension T of (B, H, T, D) grows", "concatenate along dim=2 (or dim=-2)",
            at=_CAT + r"|append\( || \[.*\]\s*=(?!=)"),
    ExerciseMistake("new-before-old", 1, "torch.cat((k, self.keys), dim=2)",
            "the tokens in your cache are in the order {order}, which is not the order of the text",
            "the mask and the positions rely on the order of the text",
            "put new tokens after the stored tokens, and keep the order of the new tokens",
            at=_CAT + r"|insert\( || reversed || \[.*\]\s*=(?!=)|append\("),
    ExerciseMistake("values-not-stored", 1, "only self.keys is concatenated",
            "your keys are those of all {S} tokens, but your values are not{shape}",
            "each key needs the value of its token", "treat the values in the same way as the keys",
            at=r"last:self\.\w*v\w*\s*=(?!=) || last:, *self\.\w+\s*=(?!=) || " + _CAT),
    ExerciseMistake("keys-not-stored", 1, "only self.values is concatenated",
            "your values are those of all {S} tokens, but your keys are not{shape}",
            "each value needs the key of its token", "treat the keys in the same way as the values",
            at=r"last:self\.\w*k\w*\s*=(?!=) || last:self\.\w*k\w*,.*=(?!=) || " + _CAT),
    ExerciseMistake("misplaced", 1, "self.keys[:, :, n - 1 : n - 1 + T] = k",
            "of {S} tokens, the {other} are right, but the {one} of {lost} wrong or at a wrong "
            "place",
            "a token's key and value belong at the same place, after those of the stored tokens",
            "write the new tokens at the places n to n + T - 1",
            at=r"\[.*\]\s*=(?!=)|copy_|index_copy|scatter || " + _KEPT),
    ExerciseMistake("keys-for-values", 1, "torch.cat((self.keys, v)), or self.values = self.keys",
            "your {one} of {S} tokens contain {other}",
            "keys decide which tokens a query looks at; values are what it gets from these tokens",
            "concatenate self.keys with k, and self.values with v", at=(
                r"k\w*\.append\(v|v\w*\.append\(k || "
                r"v\w*\s*=.*\bk(eys?)?\b || k\w*\s*=.*\bv(alues?)?\b || " + _CAT + " || " + _KEPT)),
    ExerciseMistake("tokens-lost", 1, "self.keys[:, :, self.n] = k[:, :, 0]",
            "of {S} tokens, {lost} missing from your keys and values",
            "several tokens can come at once", "store all T tokens, after the stored ones",
            at=r"\[.*\]\s*=(?!=) || " + _CAT + " || " + _KEPT),
    ExerciseMistake("other-dtype", 1, "k.float(), or torch.zeros(...) without dtype",
            "for {what} in {given} your cache returns {got}",
            "a network can compute in bfloat16; then queries, keys and values must be bfloat16",
            "do not change the dtype; make new tensors with dtype=k.dtype",
            at=(
                r"float|double|half|numpy || dtype || zeros|empty|full|tensor\(")),
    ExerciseMistake("other-device", 1, "torch.zeros(...) without device, .cpu(), .numpy()",
            "your append would not work with keys on a GPU: {why}",
            "queries on a GPU need their keys on the same GPU",
            "do not move tensors; make new ones with device=k.device",
            at=r"cpu\(|numpy|tolist|zeros|empty|full|tensor\("),
    ExerciseMistake("queries-stored", 1, "cache.append(q, k)",
            "your forward puts queries into the cache",
            "no later token needs the query of an earlier token",
            "store keys and values: k, v = cache.append(k, v)", (
                _form(keys="query"), _form(values="query"), _form(keys="query", values="key"),
                _form(keys="query", values="query")),
            at=_CALL),
    ExerciseMistake("not-stored", 1, "forward concatenates, but stores nothing",
            "after a forward over {T} tokens your cache has {found} tokens",
            "the next token needs the keys and values of the tokens before",
            "call cache.append in forward",
            at=_CALL + " || " + _CAT),
    ExerciseMistake("returns-nothing", 2, "no return",
            "your append returns {got}, not the keys and the values of all {S} tokens",
            "forward needs both tensors", "end append with return self.keys, self.values",
            at=_RETURN + r" || def (append|update|extend|add|store)"),
    ExerciseMistake("returns-new-only", 2, "return k, v",
            "your append stores {S} tokens, but returns only the newest {found}",
            "the new query must be compared with the keys of all tokens",
            "return all stored tokens", at=_RETURN),
    ExerciseMistake("returns-old", 2, "old = self.keys; ...; return old",
            "your append returns what was stored before, without the {new}",
            "a token also looks at itself", "add the new tokens first, then return all",
            at=_RETURN),
    ExerciseMistake("swapped", 2, "return self.values, self.keys",
            "your append returns values first, then keys ({S} tokens)",
            "forward expects the keys first", "return self.keys, self.values", at=_RETURN),
    ExerciseMistake("whole-buffer", 2, "return self.keys (a buffer of block_size tokens)",
            "your append returns {found} tokens, but only {S} were appended",
            "the empty places would get some of the attention",
            "return only the part with tokens: self.keys[:, :, :n]", at=_RETURN),
    ExerciseMistake("cache-not-read", 2, "cache.append(k, v) without an assignment",
            "your forward computes with the new keys and values only",
            "append returns the keys and values of all tokens, and forward must use them",
            "write k, v = cache.append(k, v)", (
                _form(reads="new"), _form(reads="new", mask=_everything)), at=_CALL),
    ExerciseMistake("half-read", 2, "k, _ = cache.append(k, v)",
            "your forward takes the {one} of all {S} tokens from the cache, but only the {other} "
            "of the {T}", "each key needs the value of its token",
            "write k, v = cache.append(k, v)",
            at=_CALL),
    ExerciseMistake("new-not-read", 2, "keys read before append",
            "your forward computes only with the stored keys and values, without the new ones",
            "a token also looks at itself",
            "call append first, and use its result", (
                _form(reads="old", mask=_alone), _form(reads="old"),
                _form(reads="old", mask=_everything)),
            at=r"cache\.(keys|values|k|v)\b || " + _CALL),
    ExerciseMistake("swapped-in-forward", 2, "v, k = cache.append(k, v)",
            "your forward uses the keys as values and the values as keys",
            "append takes and returns the keys first, then the values",
            "write k, v = cache.append(k, v)", (
                _form(keys="value", values="key"),), at=_CALL),
    ExerciseMistake("appended-twice", 2, "cache.append(k, v); k, v = cache.append(k, v)",
            "your forward appends the same tokens twice: after {T} tokens the cache has {found} "
            "tokens",
            "each call of append stores the tokens again", "call append once, and keep its result",
            at=_CALL),
    ExerciseMistake("length-always-zero", 3, "return 0",
            "your length is 0 after {S} tokens: the next token would get position 0",
            "the position of the next token is the number of tokens before it",
            "return the size of the stored keys along time", at=_LENGTH),
    ExerciseMistake("length-of-another-dimension", 3, "return self.keys.shape[0]",
            "your length is {got} after {S} tokens: this is the number of {what}",
            "keys are (B, H, S, D)", "take shape[2]", at=r"shape|size\( || last:return"),
    ExerciseMistake("length-counts-calls", 3, "self.length += 1",
            "your length is {got} after {S} tokens: this is the number of calls of append",
            "one call can bring several tokens", "add the number of new tokens, k.shape[2]",
            at=r"\+= || \+ *1 || len\( || last:return"),
    ExerciseMistake("length-of-newest", 3, "self.length = k.shape[2]",
            "your length is {got} after {S} tokens: this is the number of tokens in the last "
            "append",
            "the earlier tokens count, too",
            "add to the length, or return the size of the stored keys along time",
            at=r"self\.\w+\s*=(?!=).*(shape|size\(|\bT\b|len\() || last:return"),
    ExerciseMistake("length-off-by-one", 3, "return self.keys.shape[2] - 1",
            "your length is {got} after {S} tokens",
            "positions begin at 0, so the position after S tokens is S",
            "return the number of tokens, without + 1 or - 1",
            at=r"last:[-+] *1\b || last:return || \+="),
    ExerciseMistake("length-of-nothing", 3, "return self.keys.shape[2]",
            "for an empty cache, your length {problem}",
            "the first token has position 0", "return 0 while nothing is stored",
            at=r"shape|size\( || last:return"),
    ExerciseMistake("fits-off-by-one", 4, "self.length + T < self.block_size",
            "with {length} tokens stored and a block_size of {W}, your fits({T}) is {got}",
            "the model has block_size positions, 0 to block_size - 1, and tokens can use all of "
            "them",
            "return length + T <= block_size", (
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
            "not count the stored tokens", "the stored tokens take positions, too",
            "compare length + T with block_size", (
                lambda n, T, W: T <= W, lambda n, T, W: T < W), at=r"last:[<>] || last:return"),
    ExerciseMistake("fits-inverted", 4, "self.length + T > self.block_size",
            "with {length} tokens stored and a block_size of {W}, your fits({T}) is {got}",
            "fits must be True if there is room", "return length + T <= block_size", (
                lambda n, T, W: n + T > W, lambda n, T, W: n + T >= W),
            at=r"last:[<>] || last:return"),
    ExerciseMistake("never-full", 4, "fits returns True, or forward does not call fits",
            "with a block_size of {W} your {what} accepts {count} tokens",
            "the model has no positions for more tokens",
            "fits is length + T <= block_size, and forward raises ValueError if fits is False", (
                lambda n, T, W: True,), at=r"fits\( || " + _CALL + " || " + _RETURN),
    ExerciseMistake("drops-the-oldest", 4, "self.keys[:, :, -self.block_size:]",
            "with a block_size of {W} your cache takes {count} tokens and keeps the newest {found}",
            "keys contain learned positions: without the oldest token, all others would need new "
            "positions",
            "let fits return False; then sampling clears the cache and reads the last part of the "
            "text again",
            at=r"\[.*-.*:\]|roll|pop\(|narrow || " + _KEPT),
    ExerciseMistake("clear-incomplete", 4, "self.keys = None, but not self.values",
            "after clear, your cache {problem}",
            "the next text must begin with an empty cache",
            "clear must reset everything that append changes",
            at=(
                r"None|= *0|clear\(|\[\] || def (clear|reset|reset_cache|empty|forget)")),
    ExerciseMistake("no-mask", 5, "mask only if cache is None",
            "your forward has no mask{when}: each token also looks at later tokens",
            "a forward can get several tokens at once, and then the mask is needed",
            "mask the scores with and without a cache", (_form(mask=_everything),),
            at=r"if .*cache\b.* (is|==) None || " + _MASK),
    ExerciseMistake("no-mask-after-stored", 5, "if T == S: mask",
            "your forward has no mask if tokens are stored: new tokens also look at later new "
            "tokens",
            "a mask is superfluous only for a single new token",
            "make a mask of T rows and S columns", (
                _form(mask=_alone),),
            at=r"if\b(?!.*fits).*(==|!=|<|>) || if .*cache.* None || " + _MASK),
    ExerciseMistake("mask-from-the-corner", 5, "torch.tril(torch.ones(T, S)), is_causal=True",
            "your mask begins at the first stored token: new token t looks only at keys 0 to t",
            "query t is token S - T + t of the text, not token t (is_causal=True makes the same "
            "mistake)",
            "shift the diagonal by S - T, the number of stored tokens", (_form(mask=_corner),),
            at=r"is_causal=True || tri[ul]\w*[(\[] || arange\([^,()]+(, *device[^)]*)?\) || "
            r"arange.*[<>] || (mask|bias)\w*(\.\w+\(\))?\[ || arange || \[.*\]\s*=(?!=) || "
            + _MASK),
    ExerciseMistake("mask-one-too-far", 5, "triu(diagonal=S - T + 2)",
            "your mask is shifted by one: each new token also looks at the token after it",
            "the cell on the diagonal is the token itself; the cell to its right is the next token",
            "triu(diagonal=S - T + 1) for the cells to hide, or tril(diagonal=S - T) for the cells "
            "to show",
            (_form(mask=_diagonal(1)),),
            at=r"tri[ul] || [\w\])] *[<>]=? || \[.*\]\s*=(?!=) || " + _MASK),
    ExerciseMistake("mask-hides-itself", 5, "triu(diagonal=S - T)",
            "your mask hides each new token from itself", "a token also looks at itself",
            "triu(diagonal=S - T + 1) for the cells to hide, or tril(diagonal=S - T) for the cells "
            "to show",
            (
                _form(mask=_diagonal(-1)), _form(mask=_diagonal(-1), soft="safe")),
            at=r"tri[ul] || [\w\])] *[<>]=? || \[.*\]\s*=(?!=) || " + _MASK),
    ExerciseMistake("mask-hides-stored", 5, "mask with zeros for the stored tokens",
            "your mask hides the stored tokens: new tokens look only at each other",
            "all stored tokens are earlier than the new tokens",
            "show the columns of the stored tokens in every row", (_form(mask=_new_only),),
            at=r"\[.*\]\s*=(?!=)|zeros || " + _MASK),
    ExerciseMistake("mask-hides-new", 5, "only the stored tokens and the diagonal are open",
            "with your mask, a new token does not look at the new tokens before it",
            "the mask is causal among the new tokens, too",
            "shift the diagonal by S - T, the number of stored tokens", (_form(mask=_stored_only),),
            at=r"\[.*\]\s*=(?!=)|eye || " + _MASK),
    ExerciseMistake("another-diagonal", 5, "diagonal=T, or cache.length read after append",
            "your mask has its diagonal in the wrong place: it must be at S - T",
            "query t is token S - T + t of the text; S counts the new tokens, too",
            "shift the diagonal by S - T, the number of tokens before the new ones", (
                _form(mask=_by(lambda T, S: T)), _form(mask=_by(lambda T, S: S - 1)),
                _form(mask=_by(lambda T, S: T - S)),
                *(_form(mask=_diagonal(n)) for n in (2, -2))), at=_MASK),
    ExerciseMistake("mask-inverted", 5, "masked_fill(allowed, -inf)",
            "your mask hides the cells that it should show",
            "masked_fill hides the cells that are True; scaled_dot_product_attention shows them",
            "invert the mask with ~", (
                _form(mask=lambda T, S: ~causal(T, S)),
                _form(mask=lambda T, S: ~causal(T, S), soft="safe")),
            at=r"masked_fill|where\(|attn_mask || " + _MASK),
    ExerciseMistake("mask-is-square", 5, "torch.ones(T, T).tril()",
            "your mask does not fit the scores of T = {T} and S = {S} keys",
            "each new query has a row, and each key has a column",
            "make a mask of T rows and S columns", at=_MASK),
    ExerciseMistake("mask-not-infinite", 5, "masked_fill(future, 0)",
            "you fill masked scores with 0 or another small number, not with -inf",
            "softmax gives such a score a weight greater than 0", 'fill with float("-inf")', (
                _form(fill=0.0), _form(fill=-1.0), _form(fill=1.0)),
            at=r"masked_fill|where\( || " + _MASK),
    ExerciseMistake("mask-after-softmax", 5, "softmax, then masked_fill",
            "you mask after the softmax, so the weights do not sum to 1",
            "the softmax must not count later tokens", "mask the scores before the softmax", (
                _form(soft="then masked"),),
            at=r"last:masked_fill|\* *\w*mask || last:softmax || " + _MASK),
    ExerciseMistake("another-scale", 5, "scores without / math.sqrt(D)",
            "your scores are not scaled by 1 / sqrt(D)",
            "the scale depends on the channels of a head, not on the number of tokens",
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
            "no weight is negative, and the weights of a query sum to 1",
            "apply a softmax over the keys", (
                _form(soft="none"),), at=r"@ *v|matmul|einsum || last:return"),
    ExerciseMistake("heads-mixed", 6, "(weights @ v).reshape(B, T, C)",
            "you put tokens and heads in the wrong order: (B, H, T, D) became (B, T, C) without "
            "transpose",
            "the heads of one token must be side by side", "transpose(1, 2) before reshape", (
                _form(merge="view"),), at=r"last:reshape|view\(|flatten || last:return"),
    ExerciseMistake("not-projected", 6, "return merged",
            "your output does not go through the output projection",
            "the projection mixes the heads", "return self.c_proj(merged)", (
                _form(merge="not projected"),), at=_RETURN),
    ExerciseMistake("dropout-in-evaluation", 6, "F.dropout(y, 0.1)",
            "in evaluation mode, two calls of your forward with the same x and no cache differ by "
            "up to {difference}",
            "dropout must act only in training; F.dropout does not know the mode of your module",
            "use an nn.Dropout made in the constructor, or pass training=self.training",
            at=r"[dD]rop\w*\((?!.*training)|rand|bernoulli || [dD]rop\w*\("),
    ExerciseMistake("kept-in-module", 6, "self.cache, or self.past in the attention",
            "your attention keeps tokens of an earlier text: {what}",
            "several texts go through one module, and each text has its own cache",
            "keep tokens only in the cache that forward gets as an argument",
            at=r"self\.\w+\s*=(?!=)|global"),
    ExerciseMistake("returns-more", 6, "return y, cache",
            "your forward returns {got}; the network needs only the output",
            "append changes the cache itself, so forward need not return it", "return the output",
            at=_RETURN),
    ExerciseMistake("output-of-all-tokens", 6, "x or q of all tokens",
            "with T = {T} your output has shape {got}, expected {wanted}",
            "forward returns only the outputs of the new tokens",
            "T rows come in, T rows go out: (B, T, C)",
            at=r"last:reshape|view\(|flatten|cat\( || last:return"),
)
# fmt: on
