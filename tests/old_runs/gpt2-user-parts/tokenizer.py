import json


class Tokenizer:
    def __init__(self):
        self.merges = {}

    def train(self, text, num_merges):
        ids = list(text.encode("utf-8"))
        self.merges = {}
        for i in range(num_merges):
            counts = {}
            for pair in zip(ids, ids[1:]):
                counts[pair] = counts.get(pair, 0) + 1
            if not counts:
                break
            best = max(counts, key=counts.get)
            ids = self.merge(ids, best, 256 + i)
            self.merges[best] = 256 + i

    def merge(self, ids, pair, new):
        out = []
        i = 0
        while i < len(ids):
            if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
                out.append(new)
                i += 2
            else:
                out.append(ids[i])
                i += 1
        return out

    def encode(self, text):
        ids = list(text.encode("utf-8"))
        while True:
            known = [p for p in zip(ids, ids[1:]) if p in self.merges]
            if not known:
                return ids
            pair = min(known, key=self.merges.get)
            ids = self.merge(ids, pair, self.merges[pair])

    def decode(self, ids):
        table = {i: bytes([i]) for i in range(256)}
        for (a, b), new in self.merges.items():
            table[new] = table[a] + table[b]
        return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")

    def save(self, path):
        with open(path, "w") as file:
            json.dump([list(pair) for pair in self.merges], file)

    @classmethod
    def load(cls, path):
        tokenizer = cls()
        with open(path) as file:
            for i, (a, b) in enumerate(json.load(file)):
                tokenizer.merges[a, b] = 256 + i
        return tokenizer
