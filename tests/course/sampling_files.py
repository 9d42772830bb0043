"""Right and wrong files for the exercise `sampling`, most of them made from one template."""

from __future__ import annotations

from typing import Any

BASE = """import torch


def temperature(logits, t):
    return logits / t


def top_k(logits, k):
    values, ids = torch.topk(logits, min(k, logits.size(-1)))
    out = torch.full_like(logits, float("-inf"))
    out[ids] = values
    return out


def top_p(logits, p):
    if p >= 1:
        return logits
    probs, order = torch.sort(torch.softmax(logits, dim=-1), descending=True)
    sums = torch.cumsum(probs, dim=-1)
    cut = sums > p
    cut[1:] = cut[:-1].clone()
    cut[0] = False
    mask = torch.zeros_like(cut)
    mask[order] = cut
    return logits.masked_fill(mask, float("-inf"))


def min_p(logits, p):
    probs = torch.softmax(logits, dim=-1)
    limit = p * probs.max()
    return torch.where(probs >= limit, logits, float("-inf"))


def repetition_penalty(logits, seen_ids, penalty):
    out = logits.clone()
    for i in set(seen_ids):
        if out[i] > 0:
            out[i] = out[i] / penalty
        else:
            out[i] = out[i] * penalty
    return out


def draw(logits, u):
    probs = torch.softmax(logits, dim=-1)
    total = 0.0
    for i in range(len(probs)):
        total += probs[i].item()
        if total > u:
            return i
    return int((probs > 0).nonzero()[-1])


def next_token(logits, seen_ids, u, t, k, p, m, penalty):
    logits = repetition_penalty(logits, seen_ids, penalty)
    if t == 0:
        return logits.argmax().item()
    logits = temperature(logits, t)
    logits = top_k(logits, k)
    logits = top_p(logits, p)
    logits = min_p(logits, m)
    return draw(logits, u)


def cut_at_stop(text, stops):
    first = -1
    for stop in stops:
        at = text.find(stop)
        if at >= 0 and (first < 0 or at < first):
            first = at
    if first >= 0:
        return text[:first], "", True
    longest = 0
    for stop in stops:
        for n in range(1, len(stop)):
            if text.endswith(stop[:n]):
                longest = max(longest, n)
    cut = len(text) - longest
    return text[:cut], text[cut:], False
"""

# Bodies for some functions of the template BASE, by the name of the function. LISTS, NANOGPT,
# HUGGING_FACE, NUMPY and ONE_LINERS imitate the style of other people's code.
LISTS = {
    "top_k": """
    limit = sorted(logits.tolist(), reverse=True)[:k][-1]
    return torch.tensor([x if x >= limit else -math.inf for x in logits.tolist()])
""",
    "top_p": """
    probs = torch.softmax(logits, 0).tolist()
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    kept, total = set(), 0.0
    for i in order:
        kept.add(i)
        total += probs[i]
        if total >= p:
            break
    return torch.tensor([x if i in kept else -math.inf for i, x in enumerate(logits.tolist())])
""",
    "min_p": """
    weights = [math.exp(x - max(logits.tolist())) for x in logits.tolist()]
    return torch.tensor([x if w >= p else -math.inf for x, w in zip(logits.tolist(), weights)])
""",
    "repetition_penalty": """
    values = logits.tolist()
    done = []
    for i in seen_ids:
        if i in done:
            continue
        done.append(i)
        values[i] = values[i] / penalty if values[i] > 0 else values[i] * penalty
    return torch.tensor(values)
""",
    "draw": """
    weights = torch.exp(logits - logits.max()).tolist()
    rest = u * sum(weights)
    for i, weight in enumerate(weights):
        if rest < weight:
            return i
        rest -= weight
    return max(range(len(weights)), key=weights.__getitem__)
""",
    "cut_at_stop": """
    for start in range(len(text)):
        tail = text[start:]
        for stop in stops:
            if tail.startswith(stop):
                return text[:start], "", True
    for start in range(len(text)):
        tail = text[start:]
        for stop in stops:
            if stop.startswith(tail):
                return text[:start], tail, False
    return text, "", False
""",
}
NANOGPT = {
    "top_k": """
    v, _ = torch.topk(logits, min(k, logits.size(-1)))
    logits[logits < v[-1]] = -float('Inf')
    return logits
""",
    "repetition_penalty": """
    for i in torch.unique(torch.tensor(seen_ids)):
        logits[i] = torch.where(logits[i] < 0, logits[i] * penalty, logits[i] / penalty)
    return logits
""",
    "next_token": """
    logits = repetition_penalty(logits, seen_ids, penalty)
    logits = logits / max(t, 1e-8)
    return draw(min_p(top_p(top_k(logits, k), p), m), u)
""",
}
HUGGING_FACE = {
    "temperature": "\n    return logits * (1 / t)\n",
    "top_k": """
    k = min(k, logits.shape[-1])
    indices_to_remove = logits < torch.topk(logits, k)[0][..., -1, None]
    return logits.masked_fill(indices_to_remove, torch.finfo(logits.dtype).min)
""",
    "top_p": """
    sorted_logits, sorted_indices = torch.sort(logits, descending=False)
    cumulative_probs = sorted_logits.softmax(dim=-1).cumsum(dim=-1)
    sorted_indices_to_remove = cumulative_probs <= (1 - p)
    sorted_indices_to_remove[-1:] = 0
    indices_to_remove = sorted_indices_to_remove.scatter(0, sorted_indices,
                                                         sorted_indices_to_remove)
    return logits.masked_fill(indices_to_remove, -float("inf"))
""",
    "min_p": """
    probs = logits.softmax(-1)
    top_probs, _ = probs.max(dim=-1, keepdim=True)
    tokens_to_remove = probs < p * top_probs
    sorted_indices = torch.argsort(logits, descending=True)
    sorted_remove = torch.gather(tokens_to_remove, 0, sorted_indices)
    sorted_remove[:1] = False
    remove = sorted_remove.scatter(0, sorted_indices, sorted_remove)
    return logits.masked_fill(remove, -1e10)
""",
    "repetition_penalty": """
    ids = torch.tensor(seen_ids)
    score = torch.gather(logits, 0, ids)
    score = torch.where(score < 0, score * penalty, score / penalty)
    return logits.scatter(0, ids, score)
""",
    "draw": "\n    return torch.searchsorted(logits.softmax(-1).cumsum(-1), u, right=True)\n",
}
NUMPY = {
    "top_k": """
    x = logits.numpy().copy()
    if k < len(x):
        x[np.argsort(-x)[k:]] = -np.inf
    return torch.from_numpy(x)
""",
    "top_p": """
    x = logits.numpy().copy()
    q = np.exp(x - x.max()); q /= q.sum()
    order = np.argsort(-q)
    n = int(np.searchsorted(np.cumsum(q[order]), p)) + 1
    x[order[n:]] = -np.inf
    return torch.from_numpy(x)
""",
    "min_p": """
    if p == 0:
        return logits
    return torch.where(logits < logits.max() + math.log(p), -math.inf, logits)
""",
    "draw": """
    q = np.exp(logits.numpy() - logits.max().item())
    q = q / q.sum()
    return min(int(np.sum(np.cumsum(q) <= u)), int(np.flatnonzero(q)[-1]))
""",
    "cut_at_stop": """
    found = [text.index(s) for s in stops if s in text]
    if found:
        return [text[:min(found)], None, 1]
    hold = ""
    for s in stops:
        for n in range(len(s) - 1, 0, -1):
            if text.endswith(s[:n]):
                if n > len(hold):
                    hold = s[:n]
                break
    return [text.removesuffix(hold), hold, 0]
""",
}
ONE_LINERS = {
    "temperature": "\n    return torch.log_softmax(logits / t, -1)\n",
    "top_k": """
    return logits.masked_fill(logits.argsort().argsort() < len(logits) - k, -torch.inf)
""",
    "top_p": """
    q = logits.softmax(-1)
    likelier = q[None] > q[:, None]
    return logits.where((likelier * q).sum(-1) < p - 1e-12, torch.tensor(-torch.inf))
""",
    "min_p": """
    q = logits.softmax(-1)
    return logits + torch.log((q / q.max() >= p).to(q.dtype))
""",
    "repetition_penalty": """
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[seen_ids] = True
    either = logits / penalty, logits * penalty
    lower = torch.minimum(*either) if penalty > 1 else torch.maximum(*either)
    return torch.where(seen, lower, logits)
""",
    "draw": "\n    return (logits.softmax(-1).cumsum(-1) <= u).sum().clamp(max=len(logits) - 1)\n",
}


def with_functions(functions: dict[str, str], text: str = BASE) -> str:
    """`text` with new bodies for the functions in `functions`, and imports of math and numpy."""
    parts = text.split("\n\n\n")
    for name, body in functions.items():
        (at,) = (i for i, part in enumerate(parts) if part.startswith(f"def {name}("))
        parts[at] = parts[at].partition("\n")[0] + body.rstrip()
    return "import math\nimport numpy as np\n" + "\n\n\n".join(parts) + "\n"


RIGHT = {
    "plain": BASE,
    "reference": "from gptcli.course.exercises.sampling import *\n",
    "lists": with_functions(LISTS),
    "nanogpt": with_functions(NANOGPT),
    "hugging_face": with_functions(HUGGING_FACE),
    "numpy": with_functions(NUMPY),
    "one_liners": with_functions(ONE_LINERS),
    "float32": BASE.replace("torch.softmax(logits,", "torch.softmax(logits.float(),"),
}

CUT = 'float("-inf")'
CROSS = "    cut[1:] = cut[:-1].clone()\n    cut[0] = False\n"
SCATTER = "    mask[order] = cut\n"
LOOP = "    for i in set(seen_ids):\n"
POSITIVE = "out[i] = out[i] / penalty"
NEGATIVE = "out[i] = out[i] * penalty"
SIGN = (
    "        if out[i] > 0:\n            out[i] = out[i] / penalty\n        else:\n"
    "            out[i] = out[i] * penalty\n"
)
TOP_K = "    logits = top_k(logits, k)\n"
TOP_P = "    logits = top_p(logits, p)\n"
MIN_P = "    logits = min_p(logits, m)\n"
WARM = "    logits = temperature(logits, t)\n"
PENALTY = "    logits = repetition_penalty(logits, seen_ids, penalty)\n"
GREEDY = "    if t == 0:\n        return logits.argmax().item()\n"
LONGEST = "                longest = max(longest, n)\n"

# The mistakes. An entry holds the slug of the mistake, the step that is wrong, and then pairs: a
# text of the template, and the text that replaces it.
WRONG: list[tuple[Any, ...]] = [
    ("helper-is-no-softmax", 3,
     "def top_p(logits, p):\n    if p >= 1:\n        return logits\n    probs, order = torch.sort("
     "torch.softmax(logits, dim=-1), descending=True)\n",
     "def hand_softmax(t):\n    e = (t - t.max()).exp()\n    return e / e.max()\n\n\n"
     "def top_p(logits, p):\n    if p >= 1:\n        return logits\n    probs, order = torch.sort("
     "hand_softmax(logits), descending=True)\n"),
    ("returns-probabilities", 1, "return logits / t", "return torch.softmax(logits / t, dim=-1)"),
    ("returns-probabilities", 2, "    return out\n\n\ndef top_p",
     "    return out.softmax(-1)\n\n\ndef top_p"),
    ("multiplied", 1, "logits / t", "logits * t"),
    ("probabilities-divided", 1, "logits / t", "torch.softmax(logits, dim=-1) / t"),
    ("temperature-unused", 1, "logits / t", "logits - t"),
    ("temperature-squared", 1, "logits / t", "logits / t ** 0.5"),
    ("floor-division", 1, "logits / t", "logits // t"),
    ("order-lost", 2, "out[ids] = values", "out[:len(ids)] = values"),
    ("zero-for-cut", 2, "full_like(logits, float(\"-inf\"))", "zeros_like(logits)"),
    ("zero-for-cut", 4, "limit, logits, float(\"-inf\"))", "limit, logits, 0.0)"),
    ("one-too-few", 2, "min(k, logits.size(-1))", "min(max(1, k - 1), logits.size(-1))"),
    ("one-too-many", 2, "min(k, logits.size(-1))", "min(k + 1, logits.size(-1))"),
    ("keeps-the-smallest", 2, "min(k, logits.size(-1)))",
     "min(k, logits.size(-1)), largest=False)"),
    ("by-size-without-sign", 2, "torch.topk(logits,", "torch.topk(logits.abs(),",
     "out[ids] = values", "out[ids] = logits[ids]"),
    ("only-the-kept", 2, "    out[ids] = values\n    return out\n", "    return values\n"),
    ("k-too-large", 2, "min(k, logits.size(-1))", "k"),
    ("crossing-cut", 3, CROSS, ""),
    ("all-cut", 3, CROSS, "    cut = sums >= 0.0\n"),
    ("one-after-crossing", 3, CROSS, CROSS + CROSS.replace("cut[0]", "cut[1]")),
    ("not-sorted", 3, "torch.sort(torch.softmax(logits, dim=-1), descending=True)",
     "torch.softmax(logits, dim=-1), torch.arange(len(logits))"),
    ("least-likely-first", 3, ", descending=True)", ")"),
    ("mask-in-sorted-order", 3, SCATTER, "    mask = cut\n"),
    ("each-alone", 3, "    cut = sums > p\n" + CROSS,
     "    cut = probs < p\n    cut[0] = probs[0] < p\n"),
    ("sum-of-logits", 3, "torch.sort(torch.softmax(logits, dim=-1), descending",
     "torch.sort(logits, descending"),
    ("shares-of-logits", 3, "probs, order = torch.sort(torch.softmax(logits, dim=-1), "
     "descending=True)\n", "probs, order = torch.sort(logits, descending=True)\n"
     "    probs = probs / probs.sum()\n", "sums > p", "sums >= p"),
    ("remembers", 5, "def repetition_penalty(logits, seen_ids, penalty):\n",
     "def repetition_penalty(logits, seen_ids, penalty, memory=[]):\n    memory.extend(seen_ids)\n",
     "set(seen_ids)", "set(memory)"),
    ("holds-too-little", 8, "range(1, len(stop))", "range(1, len(stop) - 1)"),
    ("one-minus-p", 3, "sums > p", "sums > 1 - p"),
    ("p-one", 3, "    if p >= 1:\n        return logits\n", "", "    cut = sums > p\n" + CROSS,
     "    cut = torch.arange(len(sums)) > (sums >= p).int().argmax()\n"),
    ("absolute-threshold", 4, "p * probs.max()", "p"),
    ("threshold-of-logits", 4, "probs = torch.softmax(logits, dim=-1)\n    limit",
     "probs = logits\n    limit"),
    ("not-the-largest", 4, "probs.max()", "probs.mean()"),
    ("keeps-the-unlikely", 4, ">= limit", "< limit"),
    ("likeliest-cut", 4, ">= limit", "> limit"),
    ("p-zero", 4, "probs >= limit", "logits >= logits.max() + math.log(p)",
     "import torch\n", "import math\nimport torch\n"),
    ("negative-divided", 5, SIGN, "        out[i] /= penalty\n"),
    ("signs-swapped", 5, "out[i] > 0", "out[i] < 0"),
    ("penalty-subtracted", 5, SIGN, "        out[i] -= penalty\n"),
    ("each-occurrence", 5, "set(seen_ids)", "seen_ids"),
    ("all-tokens", 5, "set(seen_ids)", "range(len(logits))"),
    ("other-tokens", 5, "set(seen_ids)", "set(range(len(logits))) - set(seen_ids)"),
    ("some-of-the-text", 5, "set(seen_ids)", "seen_ids[-1:]"),
    ("some-of-the-text", 5, "        if out[i] > 0:", "        if not i:\n            continue\n"
     "        if out[i] > 0:"),
    ("one-sign-only", 5, "        else:\n            out[i] = out[i] * penalty\n", ""),
    ("penalty-unused", 5, SIGN, "        x = out[i].item()\n        x = x / penalty if x > 0 else "
     "x * penalty\n"),
    ("u-ignored", 6, "    total = 0.0\n", "    return torch.multinomial(probs, 1).item()\n"),
    ("u-ignored", 7, "    return draw(logits, u)",
     "    return torch.multinomial(logits.softmax(0), 1)"),
    ("always-the-likeliest", 6, "    total = 0.0\n", "    return probs.argmax()\n"),
    ("drawn-in-sorted-order", 6, "    total = 0.0\n",
     "    probs, ids = probs.sort(descending=True)\n    total = 0.0\n",
     "            return i\n", "            return ids[i]\n"),
    ("no-softmax", 6, "probs = torch.softmax(logits, dim=-1)\n    total", "probs = logits.exp()\n"
     "    total"),
    ("one-too-far", 6, "            return i\n", "            return min(i + 1, len(probs) - 1)\n"),
    ("one-too-early", 6, "            return i\n", "            return max(i - 1, 0)\n"),
    ("u-mirrored", 6, "total > u", "total > 1 - u"),
    ("no-sum", 6, "total += ", "total = "),
    ("equally-likely", 6, "    total = 0.0\n", "    return int(u * len(probs))\n"),
    ("last-or-first", 6, "total > u", "total > 0"),
    ("comparison-reversed", 6, "total > u", "total < u"),
    ("zero-temperature", 7, GREEDY, ""),
    ("greedy-without-penalty", 7, PENALTY + GREEDY, GREEDY + PENALTY),
    ("always-greedy", 7, "return draw(logits, u)", "return logits.argmax()"),
    ("left-out", 7, MIN_P, ""),
    ("left-out", 7, "logits = top_k(", "top_k("),
    ("penalty-late", 7, PENALTY, "    if t == 0:\n        return repetition_penalty(logits, "
     "seen_ids, penalty).argmax()\n", TOP_K, TOP_K + PENALTY),
    ("temperature-late", 7, WARM, "", MIN_P, MIN_P + WARM),
    ("filters-reordered", 7, TOP_P + MIN_P, MIN_P + TOP_P),
    ("softmax-twice", 7, "return draw(logits, u)", "return draw(logits.softmax(-1), u)"),
    ("values-swapped", 7, TOP_P + MIN_P, TOP_P.replace("p)", "m)") + MIN_P.replace("m)", "p)")),
    ("stop-shown", 8, "return text[:first], \"\", True",
     "return text[: first + min(len(s) for s in stops if text.startswith(s, first))], \"\", True"),
    ("rest-held", 8, "return text[:first], \"\", True", "return text[:first], text[first:], True"),
    ("only-at-the-end", 8, "at = text.find(stop)",
     "at = len(text) - len(stop) if text.endswith(stop) else -1"),
    ("not-at-the-start", 8, "at >= 0 and", "at > 0 and"),
    ("order-of-the-list", 8, "(first < 0 or at < first)", "first < 0"),
    ("last-occurrence", 8, "text.find(stop)", "text.rfind(stop)"),
    ("nothing-held", 8, LONGEST, "                pass\n"),
    ("not-stopped", 8, "\"\", True", "\"\", False"),
    ("minus-zero", 8, "text[:cut], text[cut:]", "text[:-longest], text[-longest:]"),
    ("holds-too-much", 8, "            if text.endswith(stop[:n]):\n",
     "            if n <= len(text):\n"),
    ("shortest-held", 8, LONGEST, "                longest = min(longest or n, n)\n"),
    ("one-stop-only", 8, "    first = -1\n", "    stops = stops[:1]\n    first = -1\n"),
    ("not-implemented", 3, "    sums =", "    raise NotImplementedError\n    sums ="),
    ("not-implemented", 8, "    first = -1\n",
     "    raise NotImplementedError(\"step 8\")\n    first = -1\n"),
    ("time-limit", 3, "    sums =", "    while p < 1:\n        pass\n    sums ="),
    ("missing", 4, "def min_p(", "def minimum_p("),
    ("raises", 2, "out[ids] = values", "out[0, ids] = values"),
    ("no-tensor", 5, "    return out\n\n\ndef draw", "\n\ndef draw"),
    ("shape", 1, "return logits / t", "return logits[None] / t"),
    ("no-id", 6,
     "        if total > u:\n            return i\n    return int((probs > 0).nonzero()[-1])",
     "        if total > u and i > 4:\n            return i"),
    ("not-three", 8, "return text[:cut], text[cut:], False", "return text[:cut]"),
    ("ties", 2, "    out[ids] = values\n", "    out[ids] = values\n"
     "    if (logits == values[-1]).sum() > 1 and len(ids) < len(logits):\n"
     "        out[:] = logits\n"),
]  # fmt: skip


def wrong_text(entry: tuple[Any, ...]) -> str:
    """The text of a wrong file: the template BASE after the replacements in `entry` of WRONG."""
    text = BASE
    for old, new in zip(entry[2::2], entry[3::2], strict=True):
        assert old in text, f"{entry[0]}: {old!r}"
        text = text.replace(old, new)
    return text
