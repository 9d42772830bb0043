"""Wrong functions for the exercise `sampling`, with names and loops as learners write them."""

from __future__ import annotations

# An entry says in words what is wrong, and holds the slug of the mistake, the number of the wrong
# step, the name of the function, and the wrong body of this function.
WRONG: list[tuple[str, str, int, str, str]] = [
    ("softmax first", "returns-probabilities", 1, "temperature", """
    scaled = logits / t
    probs = torch.exp(scaled) / torch.exp(scaled).sum()
    return probs
"""),
    ("divides by the reciprocal", "multiplied", 1, "temperature", """
    inverse = 1.0 / t
    return logits / inverse
"""),
    ("result of div lost", "temperature-unused", 1, "temperature", """
    scaled = logits.clone()
    scaled.div(t)
    return scaled
"""),
    ("wrong end of sort", "keeps-the-smallest", 2, "top_k", """
    ordered, _ = torch.sort(logits)
    threshold = ordered[min(k, len(logits)) - 1]
    return torch.where(logits >= threshold, logits, torch.tensor(float("-inf")))
"""),
    ("less or equal in a loop", "one-too-few", 2, "top_k", """
    threshold = sorted(logits.tolist(), reverse=True)[min(k, len(logits)) - 1]
    out = logits.clone()
    for i in range(len(logits)):
        if out[i] <= threshold:
            out[i] = float("-inf")
    return out
"""),
    ("off by one in a list", "one-too-many", 2, "top_k", """
    if k >= len(logits):
        return logits
    best = logits.sort(descending=True)[0]
    return logits.masked_fill(logits < best[k], -torch.inf)
"""),
    ("multiplies by a mask", "zero-for-cut", 2, "top_k", """
    mask = torch.zeros_like(logits)
    mask[logits.topk(min(k, len(logits))).indices] = 1
    return logits * mask
"""),
    ("k not limited", "k-too-large", 2, "top_k", """
    keep = torch.argsort(logits, descending=True)[:k].tolist()
    out = torch.full((len(logits),), -1e9)
    for rank in range(k):
        out[keep[rank]] = logits[keep[rank]]
    return out
"""),
    ("loop breaks before the crossing token", "crossing-cut", 3, "top_p", """
    probs = torch.softmax(logits, -1)
    out = torch.full_like(logits, -torch.inf)
    total = 0
    for i in torch.argsort(probs, descending=True):
        total += probs[i]
        if total > p:
            break
        out[i] = logits[i]
    return out
"""),
    ("no sort in a loop", "not-sorted", 3, "top_p", """
    probs = torch.softmax(logits, -1)
    out = torch.full_like(logits, -torch.inf)
    total = 0
    for i in range(len(probs)):
        if total >= p:
            break
        out[i] = logits[i]
        total += probs[i]
    return out
"""),
    ("returns sorted logits", "order-lost", 3, "top_p", """
    ordered, ids = logits.sort(descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    ordered[before >= p] = float("-inf")
    return ordered
"""),
    ("mask by rank", "mask-in-sorted-order", 3, "top_p", """
    ordered, ids = logits.softmax(-1).sort(descending=True)
    n = int((ordered.cumsum(-1) < p).sum()) + 1
    out = logits.clone()
    out[n:] = -torch.inf
    return out
"""),
    ("argmax of reached", "p-one", 3, "top_p", """
    ordered, ids = logits.softmax(-1).sort(descending=True)
    last = int((ordered.cumsum(-1) >= p).float().argmax())
    out = torch.full_like(logits, -torch.inf)
    out[ids[: last + 1]] = logits[ids[: last + 1]]
    return out
"""),
    ("probabilities of the kept tokens", "returns-probabilities", 3, "top_p", """
    ordered, ids = logits.softmax(-1).sort(descending=True)
    ordered[ordered.cumsum(-1) - ordered >= p] = 0
    out = torch.zeros_like(logits)
    out[ids] = ordered
    return out / out.sum()
"""),
    ("fixed limit", "absolute-threshold", 4, "min_p", """
    probs = torch.softmax(logits, -1).tolist()
    values = logits.tolist()
    return torch.tensor([v if q >= p else float("-inf") for v, q in zip(values, probs)])
"""),
    ("relative to the largest logit", "threshold-of-logits", 4, "min_p", """
    best = max(logits.tolist())
    return torch.tensor([x if x > best * p else -math.inf for x in logits.tolist()])
"""),
    ("strictly above", "likeliest-cut", 4, "min_p", """
    probs = logits.softmax(0)
    keep = probs > probs.max() * p
    out = logits.clone()
    out[~keep] = -torch.inf
    return out
"""),
    ("log of zero", "p-zero", 4, "min_p", """
    limit = logits.max() + math.log(p)
    return logits.masked_fill(logits < limit, -torch.inf)
"""),
    ("divides everywhere, vectorised", "negative-divided", 5, "repetition_penalty", """
    out = logits.clone()
    out[torch.tensor(sorted(set(seen_ids)))] /= penalty
    return out
"""),
    ("counts", "each-occurrence", 5, "repetition_penalty", """
    out = logits.clone()
    counts = torch.bincount(torch.tensor(seen_ids), minlength=len(logits))
    for i, n in enumerate(counts.tolist()):
        factor = penalty ** n
        out[i] = out[i] / factor if out[i] > 0 else out[i] * factor
    return out
"""),
    ("subtracts times count", "penalty-subtracted", 5, "repetition_penalty", """
    out = logits.clone()
    for i in seen_ids:
        out[i] = out[i] - penalty
    return out
"""),
    ("abs of the logit", "wrong-result", 5, "repetition_penalty", """
    out = logits.clone()
    for i in set(seen_ids):
        out[i] = abs(out[i]) / penalty
    return out
"""),
    ("index assignment lost", "penalty-unused", 5, "repetition_penalty", """
    for i in set(seen_ids):
        value = logits[i].item()
        if value > 0:
            value /= penalty
        else:
            value *= penalty
    return logits
"""),
    ("python random", "u-ignored", 6, "draw", """
    import random
    probs = logits.softmax(-1).tolist()
    return random.choices(range(len(probs)), probs)[0]
"""),
    ("returns the rank", "drawn-in-sorted-order", 6, "draw", """
    probs = sorted(logits.softmax(-1).tolist(), reverse=True)
    total = 0
    for rank, q in enumerate(probs):
        total += q
        if u < total:
            return rank
    return 0
"""),
    ("one token too early", "one-too-early", 6, "draw", """
    probs = logits.softmax(-1).tolist()
    total = 0
    chosen = 0
    for i, q in enumerate(probs):
        if total < u:
            chosen = i
        total += q
    return max(0, chosen - 1)
"""),
    ("no normalisation", "no-softmax", 6, "draw", """
    total = 0
    for i, x in enumerate(logits.tolist()):
        total += math.exp(x)
        if total > u:
            return i
"""),
    ("first probability above u", "no-sum", 6, "draw", """
    probs = logits.softmax(-1)
    for i, q in enumerate(probs):
        if q >= u:
            return i
    return probs.argmax()
"""),
    ("divides by zero", "zero-temperature", 7, "next_token", """
    x = repetition_penalty(logits, seen_ids, penalty)
    x = temperature(x, t)
    x = min_p(top_p(top_k(x, k), p), m)
    if t == 0:
        x = x.argmax()
        return x
    return draw(x, u)
"""),
    ("filters nested the wrong way", "filters-reordered", 7, "next_token", """
    x = repetition_penalty(logits, seen_ids, penalty)
    if t == 0:
        return x.argmax()
    x = temperature(x, t)
    return draw(top_k(top_p(min_p(x, m), p), k), u)
"""),
    ("temperature last", "temperature-late", 7, "next_token", """
    x = repetition_penalty(logits, seen_ids, penalty)
    x = top_k(x, k)
    x = top_p(x, p)
    x = min_p(x, m)
    return int(x.argmax()) if t == 0 else draw(x / t, u)
"""),
    ("penalty forgotten", "left-out", 7, "next_token", """
    if t <= 0:
        return int(logits.argmax())
    return draw(min_p(top_p(top_k(logits / t, k), p), m), u)
"""),
    ("each filter from the start", "left-out", 7, "next_token", """
    base = repetition_penalty(logits, seen_ids, penalty)
    if t == 0:
        return int(base.argmax())
    base = temperature(base, t)
    out = top_k(base, k)
    out = top_p(base, p)
    out = min_p(base, m)
    return draw(out, u)
"""),
    ("one filter at most", "left-out", 7, "next_token", """
    x = repetition_penalty(logits, seen_ids, penalty)
    if t == 0:
        return x.argmax()
    x = temperature(x, t)
    if k:
        x = top_k(x, k)
    elif p < 1:
        x = top_p(x, p)
    elif m > 0:
        x = min_p(x, m)
    return draw(x, u)
"""),
    ("split keeps nothing back", "nothing-held", 8, "cut_at_stop", """
    best = text
    for stop in stops:
        part = text.split(stop)[0]
        if len(part) < len(best):
            best = part
    return best, "", best != text
"""),
    ("stops included", "stop-shown", 8, "cut_at_stop", """
    ends = [(text.index(s), len(s)) for s in stops if s in text]
    if ends:
        at, n = min(ends)
        return text[: at + n], "", True
    for n in range(max([len(s) for s in stops] or [0]), 0, -1):
        if any(s[:n] == text[-n:] for s in stops if len(s) > n):
            return text[:-n], text[-n:], False
    return text, "", False
"""),
    ("truth of find", "not-at-the-start", 8, "cut_at_stop", """
    for stop in sorted(stops, key=lambda s: text.find(s) % 10**9):
        if text.find(stop) > 0:
            return text[: text.find(stop)], "", True
    for start in range(len(text)):
        if any(s.startswith(text[start:]) for s in stops):
            return text[:start], text[start:], False
    return text, "", False
"""),
    ("first stop that fits", "order-of-the-list", 8, "cut_at_stop", """
    for stop in stops:
        before, found, after = text.partition(stop)
        if found:
            return before, "", True
    for start in range(len(text)):
        if any(s.startswith(text[start:]) for s in stops):
            return text[:start], text[start:], False
    return text, "", False
"""),
    ("always holds", "holds-too-much", 8, "cut_at_stop", """
    found = [text.find(s) for s in stops if text.find(s) != -1]
    if found:
        return text[: min(found)], "", True
    n = max((len(s) for s in stops), default=1) - 1
    if n == 0:
        return text, "", False
    return text[:-n], text[-n:], False
"""),
    ("the first start that fits", "shortest-held", 8, "cut_at_stop", """
    found = [text.find(s) for s in stops if s in text]
    if found:
        return text[: min(found)], "", True
    for stop in stops:
        for n in range(1, len(stop)):
            if text.endswith(stop[:n]):
                return text[:-n], text[-n:], False
    return text, "", False
"""),
    ("a share of the tokens", "wrong-result", 3, "top_p", """
    n = max(1, int(p * len(logits)))
    return top_k(logits, n)
"""),
    ("the closest sum", "wrong-result", 6, "draw", """
    c = torch.softmax(logits, 0).cumsum(0)
    return int((c - u).abs().argmin())
"""),
    ("the truth of a comparison", "no-id", 6, "draw", """
    c = torch.softmax(logits, 0).cumsum(0)
    return (c > u).any()
"""),
    ("letters of a stop string", "wrong-result", 8, "cut_at_stop", """
    f = [text.find(s) for s in stops if s in text]
    if f:
        return text[: min(f)], "", True
    n = 0
    while n < len(text) and any(text[-n - 1] in s for s in stops):
        n += 1
    return text[: len(text) - n], text[len(text) - n :], False
"""),
    ("the longest start of the first that fits", "one-stop-only", 8, "cut_at_stop", """
    f = [text.find(s) for s in stops if s in text]
    if f:
        return text[: min(f)], "", True
    for s in stops:
        for n in range(len(s) - 1, 0, -1):
            if text.endswith(s[:n]):
                return text[:-n], text[-n:], False
    return text, "", False
"""),
]  # fmt: skip
