/* The next token of many streams on a CPU, for gptcli.native.decoder: one translation unit.
 *
 * A step takes rows, each a token of a stream at a position: one of each stream while they write,
 * a piece of a prompt before that. Threads share either the streams, each with all of the network,
 * or the outputs of each product; no sum is divided between them. */

#include "amx_permission.h"
#include "decoder.h"

/* A thread's part of a step. */
typedef struct {
    Decoder *d;
    Own *own;
    int part, parts; /* of the outputs; 1 where the thread works alone */
    int n;           /* rows */
    long base;       /* where they begin */
    const int32_t *stream, *position, *token;
    const uint8_t *asked;  /* whether a row's logits are; NULL: all are */
    const int32_t *places; /* where those go; NULL: to the rows' streams */
} Step;

static void wait_for_others(const Step *s) {
    if (s->parts == 1) return;
    Decoder *d = s->d;
    const int32_t phase = __atomic_load_n(&d->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&d->arrived, 1, __ATOMIC_ACQ_REL) == s->parts) {
        __atomic_store_n(&d->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&d->phase, phase + 1, __ATOMIC_RELEASE);
        return;
    }
    for (long i = 0; __atomic_load_n(&d->phase, __ATOMIC_ACQUIRE) == phase; i++)
        if (i > 20000) sched_yield();
}

/* The thread's share of n things: from, and up to. */
static void share(const Step *s, long n, long *from, long *to) {
    *from = n * s->part / s->parts, *to = n * (s->part + 1) / s->parts;
}

INLINE void put(int half, char *to, long i, v16 x) {
    if (half)
        store_half((bf16 *)to + i, x);
    else
        store((float *)to + i, x);
}

INLINE v16 get(int half, const char *from, long i) {
    return half ? load_half((const bf16 *)from + i) : load((const float *)from + i);
}

/* ---- rows ---------------------------------------------------------------------------------------
 */

static void embed(const Step *s) {
    const Decoder *d = s->d;
    const int C = d->s.C, half = d->D / 2;
    for (int r = s->part; r < s->n; r += s->parts) {
        float *x = d->x + (s->base + r) * d->Cp;
        const float *token = d->wte + (long)s->token[r] * C;
        memcpy(x, token, C * sizeof(float));
        memset(x + C, 0, (d->Cp - C) * sizeof(float));
        if (d->wpe) {
            const float *place = d->wpe + (long)s->position[r] * C;
            for (int c = 0; c < C; c++) x[c] += place[c];
            continue;
        }
        /* cos and sin of a sum of two angles, both from a table. */
        float *turns = d->turns + (s->base + r) * d->D;
        const long far = s->position[r] / NEAR;
        const double *b = d->near_turns + s->position[r] % NEAR * d->D;
        for (int j = 0; j < half; j++) {
            double cos_a, sin_a;
            if (far < FAR) {
                cos_a = d->far_turns[far * d->D + j], sin_a = d->far_turns[far * d->D + half + j];
            } else {
                const double angle = (double)far * NEAR * pow(10000.0, -2.0 * j / d->D);
                cos_a = cos(angle), sin_a = sin(angle);
            }
            turns[j] = cos_a * b[j] - sin_a * b[half + j];
            turns[half + j] = sin_a * b[j] + cos_a * b[half + j];
        }
    }
}

/* One row, RMSNorm or LayerNorm; what is padded stays 0. */
static void norm(const Decoder *d, const float *x, const float *gain, const float *bias,
                 char *out) {
    const int C = d->s.C, half = of_input(d) == 2;
    v16 sum[2] = {all(0.0f), all(0.0f)}, square[2] = {all(0.0f), all(0.0f)};
    v16 mean = all(0.0f);
    if (!d->s.modern) {
        for (long c = 0; c < d->Cp; c += 2 * LANES)
            for (int i = 0; i < 2; i++) sum[i] += load(x + c + i * LANES);
        mean = all(sum_of(sum[0] + sum[1]) / C);
    }
    for (long c = 0; c < d->Cp; c += 2 * LANES)
        for (int i = 0; i < 2; i++) {
            const long at = c + i * LANES;
            const v16 y = either(LANE + (int)at < C, load(x + at) - mean, all(0.0f));
            square[i] += y * y;
        }
    const float eps = d->s.modern ? 1e-6f : 1e-5f;
    const v16 scale = all(1.0f / sqrtf(sum_of(square[0] + square[1]) / C + eps));
    for (long c = 0; c < d->Cp; c += LANES)
        put(half, out, c, (load(x + c) - mean) * scale * load(gain + c) + load(bias + c));
}

/* Whether a thread of a team makes all rows of a product for itself rather than wait for others. */
static int are_few(const Step *s) { return s->parts > 1 && s->n <= 4; }

/* All rows normalised, for all threads of the team. */
static const char *normed(const Step *s, const float *gain, const float *bias) {
    Decoder *d = s->d;
    const size_t row = d->Cp * of_input(d);
    const int few = are_few(s);
    char *out = few ? s->own->in : d->in + s->base * row;
    for (int r = few ? 0 : s->part; r < s->n; r += few ? 1 : s->parts)
        norm(d, d->x + (s->base + r) * d->Cp, gain, bias, out + r * row);
    if (!few) wait_for_others(s);
    return out;
}

/* Rows as products with p read them, for all threads of the team. */
static const char *readable(const Step *s, const Packed *p, const char *rows) {
    if (p->kind != INT8) return rows;
    const int few = are_few(s);
    char *out = few ? s->own->as_bytes : s->d->as_bytes + s->base * s->d->widest_row;
    for (int r = few ? 0 : s->part; r < s->n; r += few ? 1 : s->parts)
        to_bytes((const float *)rows + r * p->K, p->K, out + r * row_bytes(p));
    if (!few) wait_for_others(s);
    return out;
}

/* ---- attention ----------------------------------------------------------------------------------
 */

/* x (D) = rotated(x / rms(x) * gain). */
static void norm_rotate(const Decoder *d, float *x, const float *gain, const float *turns) {
    const int D = d->D, half = D / 2;
    v16 squares = all(0.0f); /* of P numbers: 0 beyond D */
    for (int j = 0; j < d->P; j += LANES) squares += load(x + j) * load(x + j);
    const float scale = 1.0f / sqrtf(sum_of(squares) / D + 1e-6f);
    int j = 0;
    for (; j + LANES <= half; j += LANES) {
        const v16 a = load(x + j) * scale * load(gain + j);
        const v16 b = load(x + half + j) * scale * load(gain + half + j);
        const v16 cosine = load(turns + j), sine = load(turns + half + j);
        store(x + j, a * cosine - b * sine);
        store(x + half + j, b * cosine + a * sine);
    }
    for (; j < half; j++) {
        const float a = x[j] * scale * gain[j], b = x[half + j] * scale * gain[half + j];
        x[j] = a * turns[j] - b * turns[half + j];
        x[half + j] = b * turns[j] + a * turns[half + j];
    }
}

static void remember(const Decoder *d, char *keys, int slot, const float *k, const float *v) {
    char *values = values_of(d, keys);
    const long group = slot / LANES * (long)d->E * LANES, place = slot % LANES;
    const int half = of_cache(d) == 2;
    for (int j = 0; j < d->P; j += LANES) put(half, values, (long)slot * d->P + j, load(v + j));
    for (int j0 = 0; j0 < d->E; j0 += LANES) {
        const int n = d->E - j0 < LANES ? d->E - j0 : LANES;
        if (half) {
            bf16 rounded[LANES];
            store_half(rounded, load(k + j0));
            for (int j = 0; j < n; j += 2)
                memcpy((bf16 *)keys + group + (j0 + j) * LANES + 2 * place, rounded + j, 4);
        } else {
            for (int j = 0; j < n; j++)
                ((float *)keys)[group + (j0 + j) * LANES + place] = k[j0 + j];
        }
    }
}

/* The scores of n groups of 16 slots from `slot` on, scaled. Meanwhile what will be read next is
 * asked for: as many keys from `ahead`, and values from `beside`; nothing where that is NULL. */
INLINE void score(const int half, const int n, const Decoder *d, const float *q, const char *keys,
                  int slot, const char *ahead, const char *beside, float *scores) {
    const long E = d->E, group = E * LANES, at = slot * E, wide = LANES * (half ? 4 : 8);
    const v16 scale = all(1.0f / sqrtf(d->D));
    v16 even[4], odd[4];
    for (int i = 0; i < n; i++) even[i] = odd[i] = all(0.0f);
    for (long j = 0; j < E; j += 2)
        for (int i = 0; i < n; i++) {
            const long from = i * group + j * LANES, bytes = from * (half ? 2 : 4);
            if (ahead) {
                fetch_soon(ahead + bytes, wide);
                fetch_soon(beside + bytes, wide);
            }
            if (half) {
                const i16 pairs = load_pairs((const bf16 *)keys + at + from);
                even[i] += all(q[j]) * firsts(pairs);
                odd[i] += all(q[j + 1]) * seconds(pairs);
            } else {
                even[i] += all(q[j]) * load((const float *)keys + at + from);
                odd[i] += all(q[j + 1]) * load((const float *)keys + at + from + LANES);
            }
        }
    for (int i = 0; i < n; i++) store(scores + slot + i * LANES, (even[i] + odd[i]) * scale);
}

/* out (wide) = the sum of weights times values of slots, wide numbers of each: 16, or 32 or 64. */
INLINE void mix(const int half, const int wide, const char *values, long P, const float *weights,
                const int stretch[4], float *out) {
    const int n = wide / LANES;
    v16 sum[2][4];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < n; j++) sum[i][j] = all(0.0f);
    for (int part = 0; part < 4; part += 2)
        for (int s = stretch[part]; s < stretch[part + 1]; s += 2)
            for (int i = 0; i < 2 && s + i < stretch[part + 1]; i++) {
                const v16 weight = all(weights[s + i]);
                if (half && n > 1)
                    for (int j = 0; j < n; j += 2) {
                        const i16 pairs =
                            load_pairs((const bf16 *)values + (s + i) * P + j * LANES);
                        sum[i][j] += weight * firsts(pairs);
                        sum[i][j + 1] += weight * seconds(pairs);
                    }
                else
                    for (int j = 0; j < n; j++)
                        sum[i][j] += weight * get(half, values, (s + i) * P + j * LANES);
            }
    for (int j = 0; j < n; j++) sum[0][j] += sum[1][j];
    if (half && n > 1) {
        for (int j = 0; j < n; j += 2) store_in_turn(out + j * LANES, sum[0][j], sum[0][j + 1]);
        return;
    }
    for (int j = 0; j < n; j++) store(out + j * LANES, sum[0][j]);
}

/* q (E) at a position over the last W tokens: the scores, softmax, and the values' sum, P numbers,
 * into out. `next` is what will be read after this, NULL where it has just been read. */
INLINE void attend(const int half, const Decoder *d, const float *q, const char *keys, int position,
                   float *scores, char *out, const char *next) {
    const int R = d->R, P = d->P, slot = position % R;
    const int seen = position < d->s.W ? position + 1 : d->s.W;
    /* What counts is one stretch of the ring up to `slot`, or two; they share no group of 16. */
    const int from = slot + 1 - seen;
    const int stretch[4] = {from < 0 ? from + R : 0, from < 0 ? R : 0, from < 0 ? 0 : from,
                            slot + 1};
    const long key = d->E * of_cache(d), value = P * of_cache(d);
    const char *values = values_of(d, (char *)keys);
    v16 most = all(-INFINITY), total = all(0.0f);
    for (int part = 0; part < 4; part += 2) {
        const int a = stretch[part], b = stretch[part + 1];
        for (int s = a & -LANES; s < b;) {
            const int left = up_to(b - s, LANES) / LANES, n = left < 4 ? left : 4;
            const int end = s + n * LANES;
            const char *ahead = end < b ? keys + end * key : part ? next : keys;
            if (!next) ahead = NULL;
            const char *beside = values + s * value;
            if (n == 4)
                score(half, 4, d, q, keys, s, ahead, beside, scores);
            else if (n == 3)
                score(half, 3, d, q, keys, s, ahead, beside, scores);
            else if (n == 2)
                score(half, 2, d, q, keys, s, ahead, beside, scores);
            else
                score(half, 1, d, q, keys, s, ahead, beside, scores);
            for (; s < end; s += LANES) {
                const i16 at = LANE + s;
                const v16 y = either((at >= a) & (at < b), load(scores + s), all(-INFINITY));
                store(scores + s, y);
                most = larger(y, most);
            }
        }
    }
    const v16 top = all(largest_of(most));
    for (int part = 0; part < 4; part += 2)
        for (int s = stretch[part] & -LANES; s < stretch[part + 1]; s += LANES) {
            const v16 e = exp_of(load(scores + s) - top);
            store(scores + s, e);
            total += e;
        }
    const v16 over = all(1.0f / sum_of(total));
    const int rounded = of_input(d) == 2;
    float mixed[64];
    for (int c = 0; c < P;) {
        const int wide = P - c >= 64 ? 64 : P - c >= 32 ? 32 : 16;
        const char *of = values + c * of_cache(d);
        if (wide == 64)
            mix(half, 64, of, P, scores, stretch, mixed);
        else if (wide == 32)
            mix(half, 32, of, P, scores, stretch, mixed);
        else
            mix(half, 16, of, P, scores, stretch, mixed);
        for (int i = 0; i < wide; i += LANES) put(rounded, out, c + i, load(mixed + i) * over);
        c += wide;
    }
}

/* The thread's heads of all rows: queries, keys and values, then what each token looks at; with
 * `asked` of those rows alone, side by side. */
static void heads(const Step *s, int l, const char *in, const uint8_t *asked) {
    const Decoder *d = s->d;
    const Layer *y = d->layers + l;
    const int P = d->P, panels = up_to(3 * P / PANEL, 2);
    const long width = panels * PANEL, row = row_bytes(&y->qkv);
    long from, to;
    in = readable(s, &y->qkv, in);
    share(s, d->s.H, &from, &to);
    for (long h = from; h < to; h++) {
        for (int r0 = 0; r0 < s->n; r0 += ROWS_AT_ONCE) {
            const int n = s->n - r0 < ROWS_AT_ONCE ? s->n - r0 : ROWS_AT_ONCE;
            /* A head's outputs may begin in the middle of 32: an odd panel more is computed. */
            times(&y->qkv, in + r0 * row, n, h * 3 * P / PANEL, panels, s->own->piece, width);
            for (int r = 0; r < n; r++) {
                const int at = r0 + r;
                float *q = s->own->piece + r * width;
                const float *bias = y->qkv.bias + h * 3 * P;
                for (int j = 0; j < 3 * P; j++) q[j] += bias[j];
                if (d->s.modern) {
                    const float *turns = d->turns + (s->base + at) * d->D;
                    norm_rotate(d, q, y->q_norm, turns);
                    norm_rotate(d, q + P, y->k_norm, turns);
                }
                memcpy(d->q + (s->base + at) * d->HP + h * P, q, P * sizeof(float));
                remember(d, keys_of(d, s->stream[at], l, h), s->position[at] % d->R, q + P,
                         q + 2 * P);
            }
        }
        for (int r = 0, to = 0; r < s->n; r++) {
            if (asked && !asked[r]) continue;
            const int p = s->position[r];
            const char *keys = keys_of(d, s->stream[r], l, h);
            const float *q = d->q + (s->base + r) * d->HP + h * P;
            char *out = d->mixed + ((s->base + to++) * d->HP + h * P) * of_input(d);
            /* Rows of one stream find its keys in the cache. */
            const char *next = r + 1 < s->n && s->stream[r + 1] == s->stream[r] ? NULL
                               : r + 1 < s->n ? keys_of(d, s->stream[r + 1], l, h)
                                              : keys;
            if (of_cache(d) == 2)
                attend(1, d, q, keys, p, s->own->scores, out, next);
            else
                attend(0, d, q, keys, p, s->own->scores, out, next);
        }
    }
}

/* ---- products of all rows, 64 outputs at a time -------------------------------------------------
 */

/* x += rows of `in` times the weights. */
static void add_branch(const Step *s, const Packed *p, const char *in) {
    const Decoder *d = s->d;
    const long row = row_bytes(p);
    long from, to;
    in = readable(s, p, in);
    share(s, p->N / 32, &from, &to);
    for (long c = 32 * from; c < 32 * to; c += 64) {
        const int wide = 32 * to - c < 64 ? 32 : 64;
        for (int r0 = 0; r0 < s->n; r0 += ROWS_AT_ONCE) {
            const int n = s->n - r0 < ROWS_AT_ONCE ? s->n - r0 : ROWS_AT_ONCE;
            times(p, in + r0 * row, n, c / PANEL, wide / PANEL, s->own->piece, wide);
            for (int r = 0; r < n; r++)
                for (int j = 0; j < wide; j += LANES) {
                    float *x = d->x + (s->base + r0 + r) * d->Cp + c + j;
                    store(x,
                          load(x) + (load(s->own->piece + r * wide + j) + load(p->bias + c + j)));
                }
        }
    }
}

static void feed_forward(const Step *s, const Layer *y, const char *in) {
    const Decoder *d = s->d;
    const int modern = d->s.modern, half = of_input(d) == 2;
    const long row = row_bytes(&y->up);
    long from, to;
    in = readable(s, &y->up, in);
    share(s, y->up.N / 32, &from, &to);
    for (long c = 32 * from; c < 32 * to; c += 64) {
        const int wide = 32 * to - c < 64 ? 32 : 64;
        for (int r0 = 0; r0 < s->n; r0 += ROWS_AT_ONCE) {
            const int n = s->n - r0 < ROWS_AT_ONCE ? s->n - r0 : ROWS_AT_ONCE;
            times(&y->up, in + r0 * row, n, c / PANEL, wide / PANEL, s->own->piece, wide);
            for (int r = 0; r < n; r++) {
                char *out = d->mid + (s->base + r0 + r) * d->Fp * of_input(d);
                const float *z = s->own->piece + r * wide;
                if (modern)
                    for (int j = 0; j < wide; j += 32)
                        put(half, out, (c + j) / 2, silu(load(z + j)) * load(z + j + LANES));
                else
                    for (int j = 0; j < wide; j += LANES)
                        put(half, out, c + j, gelu(load(z + j) + load(y->up.bias + c + j)));
            }
        }
    }
}

/* Logits of rows, each into its place. */
static void to_logits(const Step *s, const char *in, int rows, const int32_t *place) {
    const Decoder *d = s->d;
    const long row = row_bytes(&d->head);
    long from, to;
    in = readable(s, &d->head, in);
    share(s, d->Vp / 32, &from, &to);
    for (long c = 32 * from; c < 32 * to; c += 64) {
        const int wide = 32 * to - c < 64 ? 32 : 64;
        for (int r0 = 0; r0 < rows; r0 += ROWS_AT_ONCE) {
            const int n = rows - r0 < ROWS_AT_ONCE ? rows - r0 : ROWS_AT_ONCE;
            times(&d->head, in + r0 * row, n, c / PANEL, wide / PANEL, s->own->piece, wide);
            for (int r = 0; r < n; r++)
                memcpy(d->logits + place[r0 + r] * d->Vp + c, s->own->piece + r * wide,
                       wide * sizeof(float));
        }
    }
}

/* ---- steps --------------------------------------------------------------------------------------
 */

/* Lets only the rows stay that are asked for, side by side; their streams into `stream`. */
static void gather(Step *s, int32_t *stream) {
    const Decoder *d = s->d;
    int count = 0;
    for (int r = 0; r < s->n; r++) {
        if (!s->asked[r]) continue;
        float *to = d->x + (s->base + count) * d->Cp;
        if (s->part == 0 && count < r)
            memcpy(to, d->x + (s->base + r) * d->Cp, d->Cp * sizeof(float));
        stream[count++] = s->stream[r];
    }
    s->n = count, s->stream = stream;
}

/* All layers, and the logits of what follows the rows that are asked for. */
static void step(Step s) {
    Decoder *d = s.d;
    int32_t asked[s.n];
    products_begin(d->s.kind, s.n);
    embed(&s);
    wait_for_others(&s);
    for (int l = 0; l < d->s.L && s.n; l++) {
        const Layer *y = d->layers + l;
        const uint8_t *some = l == d->s.L - 1 ? s.asked : NULL; /* the others are only looked at */
        heads(&s, l, normed(&s, y->ln1, y->ln1_bias), some);
        wait_for_others(&s);
        if (some) {
            gather(&s, asked);
            wait_for_others(&s);
        }
        add_branch(&s, &y->out, d->mixed + s.base * d->HP * of_input(d));
        wait_for_others(&s);
        feed_forward(&s, y, normed(&s, y->ln2, y->ln2_bias));
        wait_for_others(&s);
        add_branch(&s, &y->down, d->mid + s.base * d->Fp * of_input(d));
        wait_for_others(&s);
    }
    to_logits(&s, normed(&s, d->lnf, d->lnf_bias), s.n, s.places ? s.places : s.stream);
    products_end(d->s.kind);
    wait_for_others(&s);
}

/* The first row from `r` on that begins another stream. */
static int next_stream(const int32_t *stream, int n, int r) {
    while (r > 0 && r < n && stream[r] == stream[r - 1]) r++;
    return r;
}

/* n rows, those of a stream side by side, in order, and no more than dec_piece. Where last[r], what
 * follows row r is in the logits of its stream afterwards. alone: threads share streams, not
 * outputs. */
void dec_feed(Decoder *d, int n, const int32_t *stream, const int32_t *position,
              const int32_t *token, const uint8_t *last, int threads, int alone) {
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        int from = 0, to = n;
        if (alone) {
            from = next_stream(stream, n, (long)n * thread / team);
            to = next_stream(stream, n, (long)n * (thread + 1) / team);
        }
        const Step s = {d,
                        d->own + thread,
                        alone ? 0 : thread,
                        alone ? 1 : team,
                        to - from,
                        alone ? up_to(from, 16) + 16 * thread : 0,
                        stream + from,
                        position + from,
                        token + from,
                        last + from};
        if (s.n) step(s);
    }
}

/* As dec_feed for n tokens of stream 0 in a row, at most dec_scored; what follows each goes into
 * out (n, V). */
void dec_score(Decoder *d, int n, int position, const int32_t *token, float *out, int threads) {
    int32_t stream[ROWS_AT_ONCE] = {0}, positions[ROWS_AT_ONCE], places[ROWS_AT_ONCE];
    for (int r = 0; r < n; r++) positions[r] = position + r, places[r] = r;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        step(
            (Step){d, d->own + thread, thread, team, n, 0, stream, positions, token, NULL, places});
    }
    for (int r = 0; r < n; r++)
        memcpy(out + (long)r * d->s.V, d->logits + r * d->Vp, d->s.V * sizeof(float));
}

/* Tokens that dec_score takes at once. */
int dec_scored(const Decoder *d) { return d->piece < ROWS_AT_ONCE ? d->piece : ROWS_AT_ONCE; }

/* Whether rows of numbers are rounded to bfloat16 where the weights are. */
int dec_rounds_rows(void) { return HALF_ROWS; }

/* Tokens of one stream that dec_feed takes at once, and rows in all. */
int dec_piece(const Decoder *d) { return d->piece; }
int dec_rows(const Decoder *d) { return d->rows - 32 * d->s.threads; }

/* Let stream `to` stand where stream `from` stands, which has seen `count` tokens. */
void dec_copy(Decoder *d, int from, int to, int count) {
    const long slots = count < d->R ? up_to(count, LANES) : d->R;
    for (int l = 0; l < d->s.L; l++)
        for (int h = 0; h < d->s.H; h++) {
            char *a = keys_of(d, from, l, h), *b = keys_of(d, to, l, h);
            memcpy(b, a, slots * d->E * of_cache(d));
            memcpy(values_of(d, b), values_of(d, a), slots * d->P * of_cache(d));
        }
    memcpy(d->logits + to * d->Vp, d->logits + from * d->Vp, d->Vp * sizeof(float));
}

/* The logits of what follows in a stream: V numbers. */
const float *dec_logits(const Decoder *d, int stream) { return d->logits + stream * d->Vp; }

/* `steps` tokens of each of n different streams: chosen from their logits into out (steps, n), and
 * all but the last of a stream fed. positions: of the first token each; uniform (n, steps); seen: V
 * bytes for each of all streams, or NULL. alone: threads share streams, not outputs. */
void dec_run(Decoder *d, int n, const int32_t *streams, const int32_t *positions, int steps,
             const double *uniform, const How *how, uint8_t *seen, int32_t *out, int threads,
             int alone) {
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        long from = 0, to = n;
        if (alone) from = (long)n * thread / team, to = (long)n * (thread + 1) / team;
        const int count = to - from;
        int32_t position[count + 1];
        for (int i = 0; i < count; i++) position[i] = positions[from + i];
        Step s = {d,
                  d->own + thread,
                  alone ? 0 : thread,
                  alone ? 1 : team,
                  count,
                  alone ? up_to(from, 16) + 16 * thread : 0,
                  streams + from,
                  position,
                  NULL,
                  NULL};
        for (int at = 0; at < steps && count; at++) {
            int32_t *token = out + (long)at * n + from;
            for (int i = s.part; i < count; i += s.parts) {
                const int stream = s.stream[i];
                uint8_t *known = seen ? seen + (long)stream * d->s.V : NULL;
                token[i] = choose(dec_logits(d, stream), d->s.V, how,
                                  uniform[(from + i) * steps + at], known, &s.own->choosing);
                if (known) known[token[i]] = 1;
            }
            wait_for_others(&s);
            if (at == steps - 1) break;
            s.token = token;
            step(s);
            for (int i = 0; i < count; i++) position[i]++;
        }
    }
}

/* The choice alone, for its tests: -1 where there is no memory. */
int dec_choose(const float *logits, int V, const How *how, double uniform, const uint8_t *seen) {
    const long Vp = up_to(V, 32);
    float *numbers = calloc(3 * Vp, sizeof *numbers);
    Candidate *candidates = malloc(Vp * sizeof *candidates);
    int token = -1;
    if (numbers && candidates) {
        const Choosing c = {numbers, numbers + Vp, candidates};
        memcpy(numbers + 2 * Vp, logits, V * sizeof *logits);
        token = choose(numbers + 2 * Vp, V, how, uniform, seen, &c);
    }
    free(numbers), free(candidates);
    return token;
}
