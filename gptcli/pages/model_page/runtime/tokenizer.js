/* Encodes and decodes text as gptcli does: characters, bytes and byte-level BPE (also GPT-2's). */

// GPT-2's pattern, but with \p{White_Space} in place of \s, because \s matches other characters in
// JavaScript than in GPT-2's tokenizer.
const SPLIT = new RegExp(
  "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
    "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
  "gu",
);

/** A string with one character for each byte, as a key of a Map. */
function byteString(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

class Tokenizer {
  /** `described` is the entry `tokenizer` of the payload's header, and `merges` is the payload's
      section of this name. */
  constructor(described, merges) {
    this.kind = described.kind;
    this.start = described.start; // the ids with which a text begins if there is no prompt
    this.eot = described.eot; // the id of end-of-text, or null
    this.pieces =
      this.kind === "char"
        ? Array.from(described.chars, (char) => new TextEncoder().encode(char))
        : this.kind === "byte"
          ? bytePieces(described.special)
          : mergedPieces(described, merges);
    this.special = new Set(Object.keys(described.special).map(Number));
    this.ids = new Map();
    this.pieces.forEach((piece, id) => {
      if (!this.special.has(id)) this.ids.set(byteString(piece), id);
    });
    this.states = this.kind === "char" ? null : utf8States(this.pieces);
  }

  get size() {
    return this.pieces.length;
  }

  /** {ids, unknown}: the token ids of a text, and the characters of the text that the tokenizer
      does not know. */
  encode(text) {
    if (this.kind !== "char") {
      const bytes = (part) => new TextEncoder().encode(part);
      if (this.kind === "byte") return { ids: Array.from(bytes(text)), unknown: [] };
      const ids = [];
      for (const [part] of text.matchAll(SPLIT)) this.merge(bytes(part), ids);
      return { ids, unknown: [] };
    }
    const ids = [];
    const unknown = new Set();
    for (const char of text) {
      const id = this.ids.get(byteString(new TextEncoder().encode(char)));
      if (id === undefined) unknown.add(char);
      else ids.push(id);
    }
    return { ids, unknown: [...unknown] };
  }

  /** Appends the token ids of `bytes` to `ids`. Merges the two neighbours whose merge has
      the lowest rank, until no neighbours can be merged. */
  merge(bytes, ids) {
    const parts = Array.from(bytes, (byte) => String.fromCharCode(byte));
    const whole = this.ids.get(parts.join(""));
    if (whole !== undefined) {
      ids.push(whole);
      return;
    }
    for (;;) {
      let lowest = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ids.get(parts[i] + parts[i + 1]);
        if (rank !== undefined && rank < lowest) [lowest, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    for (const part of parts) ids.push(this.ids.get(part));
  }

  /** A decoder for ids that arrive one by one. push(id) returns the characters that this id
      completes. flush() returns the characters that remain at the end. */
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      push: (id) => decoder.decode(this.pieces[id], { stream: true }),
      flush: () => decoder.decode(),
    };
  }

  /** The text that these ids decode to. */
  decode(ids) {
    const stream = this.stream();
    return ids.map((id) => stream.push(id)).join("") + stream.flush();
  }
}

function bytePieces(special) {
  const pieces = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
  for (const [id, name] of Object.entries(special)) pieces[id] = new TextEncoder().encode(name);
  return pieces;
}

/** The bytes of each token. A token is special, a single byte, or the merge of two earlier tokens.
    `merges` holds a left id and a right id of 32 bits for each merge. First come the lowest bytes
    of all left ids, then their second, third and highest bytes. The bytes of the right ids follow
    in the same order. */
function mergedPieces({ size, special, bytes }, merges) {
  const count = merges.length / 8;
  const number = (i, first) =>
    merges[first * count + i] |
    (merges[(first + 1) * count + i] << 8) |
    (merges[(first + 2) * count + i] << 16) |
    (merges[(first + 3) * count + i] << 24);
  const pieces = [];
  const single = new Map(bytes.map((id, byte) => [id, byte]));
  for (let id = 0, merge = 0; id < size; id++) {
    if (id in special) pieces.push(new TextEncoder().encode(special[id]));
    else if (single.has(id)) pieces.push(Uint8Array.of(single.get(id)));
    else {
      const [left, right] = [pieces[number(merge, 0)], pieces[number(merge, 4)]];
      const piece = new Uint8Array(left.length + right.length);
      piece.set(left);
      piece.set(right, left.length);
      pieces.push(piece);
      merge++;
    }
  }
  return pieces;
}

// ---- which tokens keep a text valid UTF-8: gptcli/tokenization/utf8_states.py -------------------

const INVALID = 255;
// For each state: the lowest and the highest byte that can follow, and the state after this byte.
const CONTINUED = {
  1: [0x80, 0xbf, 0],
  2: [0x80, 0xbf, 1],
  3: [0x80, 0xbf, 2],
  4: [0xa0, 0xbf, 1],
  5: [0x80, 0x9f, 1],
  6: [0x90, 0xbf, 2],
  7: [0x80, 0x8f, 2],
};

function stateAfterByte(state, byte) {
  if (state) {
    const [low, high, after] = CONTINUED[state];
    return low <= byte && byte <= high ? after : INVALID;
  }
  if (byte < 0x80) return 0;
  if (byte === 0xe0) return 4;
  if (byte === 0xed) return 5;
  if (byte === 0xf0) return 6;
  if (byte === 0xf4) return 7;
  if (byte >= 0xc2 && byte <= 0xdf) return 1;
  if (byte >= 0xe1 && byte <= 0xef) return 2;
  return byte >= 0xf1 && byte <= 0xf3 ? 3 : INVALID;
}

/** A table: [state before a token][token id] -> state after the token. There are eight states, and
    a Uint8Array for each. */
function utf8States(pieces) {
  return Array.from({ length: 8 }, (_, first) =>
    Uint8Array.from(pieces, (piece) => {
      let state = first;
      for (const byte of piece) {
        state = stateAfterByte(state, byte);
        if (state === INVALID) break;
      }
      return state;
    }),
  );
}

/** The state after a text. Reads only the last four tokens. The first of them can begin inside a
    character, so all states are possible before it. After an invalid byte, the state is 0 again. */
function utf8StateAfter(states, ids) {
  let possible = ids.length > 4 ? [...states.keys()] : [0];
  for (const id of ids.slice(-4)) {
    const valid = (from) => from.map((state) => states[state][id]).filter((after) => after !== INVALID);
    const after = valid(possible);
    possible = after.length ? after : [...valid([0]), 0].slice(0, 1);
  }
  return Math.min(...possible);
}
