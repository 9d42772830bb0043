/* The library for sampling: computes the next tokens of many streams on a CPU, with a KV cache.
 *
 * gptcli/native/decoder.py calls this library. Dimensions as in decoder.h. README.md gives a
 * reading order.
 *
 * A step computes rows. Each row is a token of a stream at a position. While texts are generated, a
 * step has one row of each running stream. Prompts are fed in chunks: a step that feeds a chunk has
 * many rows of a stream, and can have rows of several streams.
 * There are two ways to use threads. Either threads share the streams: each thread computes the
 * whole network for its streams. Or threads share the outputs of each product. No sum is divided
 * between threads, so no bit of the result depends on the number of threads. */

#include "../vectors/amx_permission.h"
#include "../constants.h"
#include "../threads.h"
#include "decoder.h"

/* A thread's part of a step: its rows, and its share of the outputs of each product. */
typedef struct {
    Decoder *d;
    ThreadScratch *scratch;
    Worker *worker;
    /* The number of this part, counted from 0, and the number of parts. They are 0 and 1 if threads
     * share the streams. */
    int part, parts;
    int n;          /* rows */
    long first_row; /* number of the first row in the decoder's arrays */
    const int32_t *stream, *position, *token;
    const uint8_t *wants_logits; /* per row: whether its logits are computed; NULL: all */
    /* The logits of row r become row logits_rows[r] of d->logits; NULL: row stream[r]. */
    const int32_t *logits_rows;
} Step;

/* Waits until all threads of this step have called step_barrier. */
static void step_barrier(const Step *s) {
    if (s->parts > 1) team_barrier(s->worker);
}

/* This thread's share of n items: numbers `from` to `to` - 1. A thread has the same share in every
 * step, so its share of the weights stays in its core's cache. */
static void thread_range(const Step *s, long n, long *from, long *to) {
    *from = n * s->part / s->parts, *to = n * (s->part + 1) / s->parts;
}

/* Stores sixteen numbers as bfloat16 or float32, beginning at index i. */
INLINE void store_number(int is_bf16, char *to, long i, v16 x) {
    if (is_bf16)
        store_as_bf16((bf16 *)to + i, x);
    else
        store((float *)to + i, x);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* x = token embedding + position embedding. With rotary positions, x is the token embedding, and
 * the cosines and sines of each row's angles are computed. */
static void embed(const Step *s) {
    const Decoder *d = s->d;
    const int C = d->s.C, half_dim = d->D / 2;
    for (int r = s->part; r < s->n; r += s->parts) {
        float *x = d->x + (s->first_row + r) * d->Cp;
        const float *token = d->wte + (long)s->token[r] * C;
        memcpy(x, token, C * sizeof(float));
        memset(x + C, 0, (d->Cp - C) * sizeof(float));
        if (d->wpe) {
            const float *row = d->wpe + (long)s->position[r] * C;
            for (int c = 0; c < C; c++) x[c] += row[c];
            continue;
        }
        /* The angle is a + b. The coarse table has cos(a) and sin(a), except for very large
         * positions. The fine table has cos(b) and sin(b). The last two lines of the loop compute
         * cos(a + b) and sin(a + b) from these. */
        float *rotation = d->rotation + (s->first_row + r) * d->D;
        const long coarse = s->position[r] / FINE_STEPS;
        const double *fine = d->fine_rotation + s->position[r] % FINE_STEPS * d->D;
        for (int j = 0; j < half_dim; j++) {
            double cos_a, sin_a;
            if (coarse < COARSE_STEPS) {
                cos_a = d->coarse_rotation[coarse * d->D + j],
                sin_a = d->coarse_rotation[coarse * d->D + half_dim + j];
            } else {
                const double angle =
                    (double)coarse * FINE_STEPS * pow(d->s.rope_theta, -2.0 * j / d->D);
                cos_a = cos(angle), sin_a = sin(angle);
            }
            rotation[j] = cos_a * fine[j] - sin_a * fine[half_dim + j];
            rotation[half_dim + j] = sin_a * fine[j] + cos_a * fine[half_dim + j];
        }
    }
}

/* out = RMSNorm or LayerNorm of a row x. The padding beyond C stays 0. */
static void norm(const Decoder *d, const float *x, const float *gain, const float *bias,
                 char *out) {
    const int C = d->s.C, is_bf16 = input_bytes(d) == 2;
    v16 sum[2] = {broadcast(0.0f), broadcast(0.0f)}, square[2] = {broadcast(0.0f), broadcast(0.0f)};
    v16 mean = broadcast(0.0f);
    if (!d->s.modern) {
        for (long c = 0; c < d->Cp; c += 2 * LANES)
            for (int i = 0; i < 2; i++) sum[i] += load(x + c + i * LANES);
        mean = broadcast(sum_lanes(sum[0] + sum[1]) / C);
    }
    for (long c = 0; c < d->Cp; c += 2 * LANES)
        for (int i = 0; i < 2; i++) {
            const long at = c + i * LANES;
            const v16 y = blend(LANE_INDEX + (int)at < C, load(x + at) - mean, broadcast(0.0f));
            square[i] += y * y;
        }
    const float mean_square = sum_lanes(square[0] + square[1]) / C;
    const v16 scale = broadcast(1.0f / sqrtf(mean_square + d->s.norm_eps));
    for (long c = 0; c < d->Cp; c += LANES)
        store_number(is_bf16, out, c,
                     (load(x + c) - mean) * scale * load(gain + c) + load(bias + c));
}

/* Whether every thread of a team does a cheap computation for all rows. If there are few rows, this
 * repeated work takes less time than a barrier. */
static int each_thread_alone(const Step *s) { return s->parts > 1 && s->n <= 4; }

/* Returns all rows, normalised. The calling thread can read all rows without waiting. */
static const char *normalise_rows(const Step *s, const float *gain, const float *bias) {
    Decoder *d = s->d;
    const size_t row = d->Cp * input_bytes(d);
    const int repeat = each_thread_alone(s);
    char *out = repeat ? s->scratch->in : d->in + s->first_row * row;
    for (int r = repeat ? 0 : s->part; r < s->n; r += repeat ? 1 : s->parts)
        norm(d, d->x + (s->first_row + r) * d->Cp, gain, bias, out + r * row);
    if (!repeat) step_barrier(s);
    return out;
}

/* Returns all rows in the format that multiply_panels needs for p: quantized if p is int8. The
 * calling thread can read all rows without waiting. */
static const char *quantize_if_int8(const Step *s, const Packed *p, const char *rows) {
    if (p->kind != INT8) return rows;
    const int repeat = each_thread_alone(s);
    char *out =
        repeat ? s->scratch->quantized : s->d->quantized + s->first_row * s->d->quantized_row;
    for (int r = repeat ? 0 : s->part; r < s->n; r += repeat ? 1 : s->parts)
        quantize_row((const float *)rows + r * p->K, p->K, out + r * row_bytes(p));
    if (!repeat) step_barrier(s);
    return out;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* x (D) becomes rotate(x / rms(x) * gain): QK-norm and rotary positions. Without QK-norm, x is only
 * rotated, and the gain is 1. */
static void norm_rotate(const Decoder *d, float *x, const float *gain, const float *rotation) {
    const int D = d->D, half_dim = D / 2;
    float scale = 1.0f;
    if (d->s.qk_norm) {
        v16 squares = broadcast(0.0f); /* x has P numbers; those after the first D are 0 */
        for (int j = 0; j < d->P; j += LANES) squares += load(x + j) * load(x + j);
        scale = 1.0f / sqrtf(sum_lanes(squares) / D + d->s.norm_eps);
    }
    int j = 0;
    for (; j + LANES <= half_dim; j += LANES) {
        const v16 a = load(x + j) * scale * load(gain + j);
        const v16 b = load(x + half_dim + j) * scale * load(gain + half_dim + j);
        const v16 cosine = load(rotation + j), sine = load(rotation + half_dim + j);
        store(x + j, a * cosine - b * sine);
        store(x + half_dim + j, b * cosine + a * sine);
    }
    for (; j < half_dim; j++) {
        const float a = x[j] * scale * gain[j], b = x[half_dim + j] * scale * gain[half_dim + j];
        x[j] = a * rotation[j] - b * rotation[half_dim + j];
        x[half_dim + j] = b * rotation[j] + a * rotation[half_dim + j];
    }
}

/* Writes a key k (E) and a value v (P) into a slot of the ring buffer. */
static void store_key_and_value(const Decoder *d, char *keys, int slot, const float *k,
                                const float *v) {
    char *values = values_of(d, keys);
    const long group = slot / LANES * (long)d->E * LANES, lane = slot % LANES;
    const int is_bf16 = cache_bytes(d) == 2;
    for (int j = 0; j < d->P; j += LANES)
        store_number(is_bf16, values, (long)slot * d->P + j, load(v + j));
    for (int j0 = 0; j0 < d->E; j0 += LANES) {
        const int n = d->E - j0 < LANES ? d->E - j0 : LANES;
        if (is_bf16) {
            bf16 rounded[LANES];
            store_as_bf16(rounded, load(k + j0));
            for (int j = 0; j < n; j += 2)
                memcpy((bf16 *)keys + group + (j0 + j) * LANES + 2 * lane, rounded + j, 4);
        } else {
            for (int j = 0; j < n; j++)
                ((float *)keys)[group + (j0 + j) * LANES + lane] = k[j0 + j];
        }
    }
}

/* score_keys takes at most GROUPS groups of 16 keys, and sum_values at most WIDEST numbers of each
 * value. With these limits, all sums fit into registers. */
enum { GROUPS = 4 / REGISTERS, WIDEST = 64 / REGISTERS };

/* scores = q k / sqrt(D) for n groups of 16 slots, from `slot` on. Also prefetches what is read
 * next: the size of n groups of keys at next_keys, and the same size at next_values. Prefetches
 * nothing if next_keys is NULL. */
INLINE void score_keys(const int is_bf16, const int n, const Decoder *d, const float *q,
                       const char *keys, int slot, const char *next_keys, const char *next_values,
                       float *scores) {
    const long E = d->E, group = E * LANES, at = slot * E, wide = LANES * (is_bf16 ? 4 : 8);
    const float scale = 1.0f / sqrtf(d->D);
    part even[4 * REGISTERS], odd[4 * REGISTERS];
    for (int i = 0; i < n * REGISTERS; i++) even[i] = odd[i] = (part){0};
    for (long j = 0; j < E; j += 2)
        for (int i = 0; i < n * REGISTERS; i++) {
            const long from = i / REGISTERS * group + j * LANES, bytes = from * (is_bf16 ? 2 : 4);
            const long lane = i % REGISTERS * LANES_OF_PART;
            if (next_keys && i % REGISTERS == 0) {
                prefetch(next_keys + bytes, wide);
                prefetch(next_values + bytes, wide);
            }
            if (is_bf16) {
                const part pairs = load_part((const bf16 *)keys + at + from + 2 * lane);
                even[i] += q[j] * firsts(pairs);
                odd[i] += q[j + 1] * seconds(pairs);
            } else {
                const float *key = (const float *)keys + at + from + lane;
                even[i] += q[j] * load_part(key);
                odd[i] += q[j + 1] * load_part(key + LANES);
            }
        }
    for (int i = 0; i < n * REGISTERS; i++)
        store_part(scores + slot + i * LANES_OF_PART, (even[i] + odd[i]) * scale);
}

/* out (wide) = the sum of weights times values over the slots in `ranges`. Takes `wide` numbers
 * (16, 32 or 64) of each slot's value vector. */
INLINE void sum_values(const int is_bf16, const int wide, const char *values, long P,
                       const float *weights, const int ranges[4], float *out) {
    const int n = wide / LANES * REGISTERS;
    part sum[2][4 * REGISTERS];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < n; j++) sum[i][j] = (part){0};
    for (int range = 0; range < 4; range += 2)
        for (int s = ranges[range]; s < ranges[range + 1]; s += 2)
            for (int i = 0; i < 2 && s + i < ranges[range + 1]; i++) {
                const float weight = weights[s + i];
                if (is_bf16 && n > 1)
                    for (int j = 0; j < n / 2; j++) {
                        const part pairs =
                            load_part((const bf16 *)values + (s + i) * P + j * 2 * LANES_OF_PART);
                        sum[i][j] += weight * firsts(pairs);
                        sum[i][n / 2 + j] += weight * seconds(pairs);
                    }
                else if (is_bf16) { /* one part holds all 16 numbers */
                    const v16 numbers = load_from_bf16((const bf16 *)values + (s + i) * P);
                    sum[i][0] += weight * load_part(&numbers);
                } else
                    for (int j = 0; j < n; j++)
                        sum[i][j] += weight * load_part((const float *)values + (s + i) * P +
                                                        j * LANES_OF_PART);
            }
    float total[64];
    for (int j = 0; j < n; j++) store_part(total + j * LANES_OF_PART, sum[0][j] + sum[1][j]);
    if (is_bf16 && n > 1 && wide > LANES)
        for (int j = 0; j < wide / 2; j += LANES)
            store_interleaved(out + 2 * j, load(total + j), load(total + wide / 2 + j));
    else if (is_bf16 && n > 1)
        for (int i = 0; i < wide; i++) out[i] = total[i / 2 + i % 2 * (wide / 2)];
    else
        memcpy(out, total, wide * sizeof(float));
}

/* Attention of one head for one row: q (E) at `position` sees the last W tokens. Computes scores,
 * softmax, and the weighted sum of values into out (P). next_stream_keys: the keys that the next
 * call reads. This call prefetches these keys, and also its own keys and values shortly before it
 * reads them. If next_stream_keys is NULL, this call prefetches nothing. */
INLINE void attend(const int is_bf16, const Decoder *d, const float *q, const char *keys,
                   int position, float *scores, char *out, const char *next_stream_keys) {
    const int R = d->R, P = d->P, slot = position % R;
    const int seen = position < d->s.W ? position + 1 : d->s.W;
    /* The visible slots are one range of the ring, from `from` to `slot`. If `from` is below 0, the
     * range wraps around and makes two ranges. No group of 16 slots is in both. */
    const int from = slot + 1 - seen;
    const int ranges[4] = {from < 0 ? from + R : 0, from < 0 ? R : 0, from < 0 ? 0 : from,
                           slot + 1};
    const long key = d->E * cache_bytes(d), value = P * cache_bytes(d);
    const char *values = values_of(d, (char *)keys);
    v16 largest = broadcast(-INFINITY), total = broadcast(0.0f);
    for (int part = 0; part < 4; part += 2) {
        const int a = ranges[part], b = ranges[part + 1];
        for (int s = a & -LANES; s < b;) {
            const int left = round_up(b - s, LANES) / LANES, n = left < GROUPS ? left : GROUPS;
            const int end = s + n * LANES;
            const char *next_keys = end < b ? keys + end * key : part ? next_stream_keys : keys;
            if (!next_stream_keys) next_keys = NULL;
            const char *next_values = values + s * value;
            if (n == 4)
                score_keys(is_bf16, 4, d, q, keys, s, next_keys, next_values, scores);
            else if (n == 3)
                score_keys(is_bf16, 3, d, q, keys, s, next_keys, next_values, scores);
            else if (n == 2)
                score_keys(is_bf16, 2, d, q, keys, s, next_keys, next_values, scores);
            else
                score_keys(is_bf16, 1, d, q, keys, s, next_keys, next_values, scores);
            for (; s < end; s += LANES) {
                const v16i at = LANE_INDEX + s;
                const v16 y = blend((at >= a) & (at < b), load(scores + s), broadcast(-INFINITY));
                store(scores + s, y);
                largest = lanewise_max(y, largest);
            }
        }
    }
    const v16 top = broadcast(max_lane(largest));
    for (int part = 0; part < 4; part += 2)
        for (int s = ranges[part] & -LANES; s < ranges[part + 1]; s += LANES) {
            const v16 e = v16_exp(load(scores + s) - top);
            store(scores + s, e);
            total += e;
        }
    const v16 inverse = broadcast(1.0f / sum_lanes(total));
    const int out_is_bf16 = input_bytes(d) == 2;
    float mixed[64];
    for (int c = 0; c < P;) {
        const int left = P - c, wide = left >= 64 && WIDEST >= 64   ? 64
                                       : left >= 32 && WIDEST >= 32 ? 32
                                                                    : 16;
        const char *columns = values + c * cache_bytes(d);
        if (wide == 64)
            sum_values(is_bf16, 64, columns, P, scores, ranges, mixed);
        else if (wide == 32)
            sum_values(is_bf16, 32, columns, P, scores, ranges, mixed);
        else
            sum_values(is_bf16, 16, columns, P, scores, ranges, mixed);
        for (int i = 0; i < wide; i += LANES)
            store_number(out_is_bf16, out, c + i, load(mixed + i) * inverse);
        c += wide;
    }
}

/* Attention of this thread's KV heads, each with its G query heads. First computes queries, keys
 * and values of all rows from `in`, and writes keys and values into the cache. Then computes the
 * outputs of the rows that wants_logits marks (NULL: of all rows), and stores them without gaps. */
static void attention_heads(const Step *s, int l, const char *in, const uint8_t *wants_logits) {
    const Decoder *d = s->d;
    const Layer *layer = d->layers + l;
    const int G = d->G, P = d->P, panels = round_up((G + 2) * P / PANEL, 2);
    const long width = panels * PANEL, row = row_bytes(&layer->qkv);
    long from, to;
    in = quantize_if_int8(s, &layer->qkv, in);
    thread_range(s, d->s.K, &from, &to);
    for (long k = from; k < to; k++) {
        for (int r0 = 0; r0 < s->n; r0 += MAX_ROWS) {
            const int n = s->n - r0 < MAX_ROWS ? s->n - r0 : MAX_ROWS;
            /* multiply_panels takes an even number of panels. If the heads fill an odd number of
             * panels, one more panel is computed, and its outputs are not used. */
            multiply_panels(&layer->qkv, in + r0 * row, n, k * (G + 2) * P / PANEL, panels,
                            s->scratch->products, width);
            for (int r = 0; r < n; r++) {
                const int at = r0 + r;
                float *q = s->scratch->products + r * width, *key = q + G * P;
                const float *bias = layer->qkv.bias + k * (G + 2) * P;
                for (int j = 0; j < (G + 2) * P; j++) q[j] += bias[j];
                if (d->s.modern) {
                    const float *rotation = d->rotation + (s->first_row + at) * d->D;
                    for (int i = 0; i < G; i++) norm_rotate(d, q + i * P, layer->q_norm, rotation);
                    norm_rotate(d, key, layer->k_norm, rotation);
                }
                memcpy(d->q + (s->first_row + at) * d->HP + k * G * P, q, G * P * sizeof(float));
                store_key_and_value(d, keys_of(d, s->stream[at], l, k), s->position[at] % d->R, key,
                                    key + P);
            }
        }
        for (int r = 0, to = 0; r < s->n; r++) {
            if (wants_logits && !wants_logits[r]) continue;
            const int p = s->position[r];
            const char *keys = keys_of(d, s->stream[r], l, k);
            const float *q = d->q + (s->first_row + r) * d->HP + k * G * P;
            char *out = d->mixed + ((s->first_row + to++) * d->HP + k * G * P) * input_bytes(d);
            /* If the next row is of the same stream, its keys are already in the processor's
             * cache. */
            const char *next_stream_keys = r + 1 < s->n && s->stream[r + 1] == s->stream[r] ? NULL
                                           : r + 1 < s->n ? keys_of(d, s->stream[r + 1], l, k)
                                                          : keys;
            for (int i = 0; i < G; i++, q += P, out += P * input_bytes(d)) {
                const char *next = i + 1 < G ? NULL : next_stream_keys; /* NULL: the same keys */
                if (cache_bytes(d) == 2)
                    attend(1, d, q, keys, p, s->scratch->scores, out, next);
                else
                    attend(0, d, q, keys, p, s->scratch->scores, out, next);
            }
        }
    }
}

/* ---- products of all rows, 64 outputs at a time ---------------------------------------------- */

/* x += rows W^T + bias. */
static void add_branch(const Step *s, const Packed *p, const char *in) {
    const Decoder *d = s->d;
    const long row = row_bytes(p);
    long from, to;
    in = quantize_if_int8(s, p, in);
    thread_range(s, p->N / 32, &from, &to);
    for (long c = 32 * from; c < 32 * to; c += 64) {
        const int wide = 32 * to - c < 64 ? 32 : 64;
        for (int r0 = 0; r0 < s->n; r0 += MAX_ROWS) {
            const int n = s->n - r0 < MAX_ROWS ? s->n - r0 : MAX_ROWS;
            multiply_panels(p, in + r0 * row, n, c / PANEL, wide / PANEL, s->scratch->products,
                            wide);
            for (int r = 0; r < n; r++)
                for (int j = 0; j < wide; j += LANES) {
                    float *x = d->x + (s->first_row + r0 + r) * d->Cp + c + j;
                    store(x, load(x) + (load(s->scratch->products + r * wide + j) +
                                        load(p->bias + c + j)));
                }
        }
    }
}

/* hidden = gelu(rows W^T + bias); if modern, hidden = silu(gate) * up. */
static void feed_forward(const Step *s, const Layer *layer, const char *in) {
    const Decoder *d = s->d;
    const int modern = d->s.modern, is_bf16 = input_bytes(d) == 2;
    const long row = row_bytes(&layer->up);
    long from, to;
    in = quantize_if_int8(s, &layer->up, in);
    thread_range(s, layer->up.N / 32, &from, &to);
    for (long c = 32 * from; c < 32 * to; c += 64) {
        const int wide = 32 * to - c < 64 ? 32 : 64;
        for (int r0 = 0; r0 < s->n; r0 += MAX_ROWS) {
            const int n = s->n - r0 < MAX_ROWS ? s->n - r0 : MAX_ROWS;
            multiply_panels(&layer->up, in + r0 * row, n, c / PANEL, wide / PANEL,
                            s->scratch->products, wide);
            for (int r = 0; r < n; r++) {
                char *out = d->hidden + (s->first_row + r0 + r) * d->Fp * input_bytes(d);
                const float *z = s->scratch->products + r * wide;
                if (modern)
                    for (int j = 0; j < wide; j += 32)
                        store_number(is_bf16, out, (c + j) / 2,
                                     silu(load(z + j)) * load(z + j + LANES));
                else
                    for (int j = 0; j < wide; j += LANES)
                        store_number(is_bf16, out, c + j,
                                     gelu(load(z + j) + load(layer->up.bias + c + j)));
            }
        }
    }
}

/* Computes the logits of the rows `in` (rows, Cp). Those of row r go to row logits_row[r] of
 * d->logits. */
static void to_logits(const Step *s, const char *in, int rows, const int32_t *logits_row) {
    const Decoder *d = s->d;
    const long row = row_bytes(&d->head);
    long from, to;
    in = quantize_if_int8(s, &d->head, in);
    thread_range(s, d->Vp / 32, &from, &to);
    for (long c = 32 * from; c < 32 * to; c += 64) {
        const int wide = 32 * to - c < 64 ? 32 : 64;
        for (int r0 = 0; r0 < rows; r0 += MAX_ROWS) {
            const int n = rows - r0 < MAX_ROWS ? rows - r0 : MAX_ROWS;
            multiply_panels(&d->head, in + r0 * row, n, c / PANEL, wide / PANEL,
                            s->scratch->products, wide);
            for (int r = 0; r < n; r++)
                memcpy(d->logits + logits_row[r0 + r] * d->Vp + c, s->scratch->products + r * wide,
                       wide * sizeof(float));
        }
    }
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* Keeps only the rows whose logits are wanted, without gaps between them. stream[i] becomes the
 * stream of the i-th remaining row. */
static void keep_wanted_rows(Step *s, int32_t *stream) {
    const Decoder *d = s->d;
    int count = 0;
    for (int r = 0; r < s->n; r++) {
        if (!s->wants_logits[r]) continue;
        float *to = d->x + (s->first_row + count) * d->Cp;
        if (s->part == 0 && count < r)
            memcpy(to, d->x + (s->first_row + r) * d->Cp, d->Cp * sizeof(float));
        stream[count++] = s->stream[r];
    }
    s->n = count, s->stream = stream;
}

/* One step: all layers, then the logits of the rows that wants_logits marks (of all rows if it is
 * NULL). */
static void run_step(Step s) {
    Decoder *d = s.d;
    int32_t kept_streams[s.n];
    products_begin(d->s.kind, s.n);
    embed(&s);
    step_barrier(&s);
    for (int l = 0; l < d->s.L && s.n; l++) {
        const Layer *layer = d->layers + l;
        /* In the last layer, a row whose logits are not wanted stores only its keys and values. */
        const uint8_t *wanted = l == d->s.L - 1 ? s.wants_logits : NULL;
        attention_heads(&s, l, normalise_rows(&s, layer->ln1, layer->ln1_bias), wanted);
        step_barrier(&s);
        if (wanted) {
            keep_wanted_rows(&s, kept_streams);
            step_barrier(&s);
        }
        add_branch(&s, &layer->out, d->mixed + s.first_row * d->HP * input_bytes(d));
        step_barrier(&s);
        feed_forward(&s, layer, normalise_rows(&s, layer->ln2, layer->ln2_bias));
        step_barrier(&s);
        add_branch(&s, &layer->down, d->hidden + s.first_row * d->Fp * input_bytes(d));
        step_barrier(&s);
    }
    to_logits(&s, normalise_rows(&s, d->lnf, d->lnf_bias), s.n,
              s.logits_rows ? s.logits_rows : s.stream);
    products_end(d->s.kind);
    step_barrier(&s);
}

/* The first row >= r that begins a stream, as row 0 does. Returns n if there is no such row. */
static int skip_to_next_stream(const int32_t *stream, int n, int r) {
    while (r > 0 && r < n && stream[r] == stream[r - 1]) r++;
    return r;
}

/* The arguments of dec_feed, for its threads. */
typedef struct {
    Decoder *d;
    int n;
    const int32_t *stream, *position, *token;
    const uint8_t *last;
    int share_streams;
} FeedCall;

/* A thread's part of dec_feed. */
static void feed_thread(void *argument, Worker *w) {
    const FeedCall *c = argument;
    const int alone = c->share_streams;
    int from = 0, to = c->n;
    if (alone) {
        from = skip_to_next_stream(c->stream, c->n, (long)c->n * w->number / w->count);
        to = skip_to_next_stream(c->stream, c->n, (long)c->n * (w->number + 1) / w->count);
    }
    const Step s = {c->d,
                    c->d->scratch + w->number,
                    w,
                    alone ? 0 : w->number,
                    alone ? 1 : w->count,
                    to - from,
                    alone ? round_up(from, 16) + 16 * w->number : 0,
                    c->stream + from,
                    c->position + from,
                    c->token + from,
                    c->last + from,
                    NULL};
    if (s.n) run_step(s);
}

/* Feeds n tokens: row r is token[r] of stream[r] at position[r]. The rows of a stream, at most
 * dec_max_chunk, follow each other in order. If last[r], stream[r] gets the logits after row r. If
 * share_streams, each thread computes some of the streams. Otherwise each thread computes some
 * outputs of every product. */
void dec_feed(Decoder *d, int n, const int32_t *stream, const int32_t *position,
              const int32_t *token, const uint8_t *last, int threads, int share_streams) {
    FeedCall call = {d, n, stream, position, token, last, share_streams};
    team_run(threads, feed_thread, &call);
}

/* A thread's part of dec_score. The argument is a Step whose scratch, worker, part and parts are
 * not set yet. */
static void score_thread(void *argument, Worker *w) {
    Step s = *(const Step *)argument;
    s.scratch = s.d->scratch + w->number, s.worker = w, s.part = w->number, s.parts = w->count;
    run_step(s);
}

/* Feeds n tokens (at most dec_max_scored) to stream 0. The first token is at `position`. out (n, V)
 * gets the logits after each token. */
void dec_score(Decoder *d, int n, int position, const int32_t *token, float *out, int threads) {
    int32_t stream[MAX_ROWS] = {0}, positions[MAX_ROWS], logits_rows[MAX_ROWS];
    for (int r = 0; r < n; r++) positions[r] = position + r, logits_rows[r] = r;
    Step s = {.d = d,
              .n = n,
              .stream = stream,
              .position = positions,
              .token = token,
              .logits_rows = logits_rows};
    team_run(threads, score_thread, &s);
    for (int r = 0; r < n; r++)
        memcpy(out + (long)r * d->s.V, d->logits + r * d->Vp, d->s.V * sizeof(float));
}

/* The most tokens that dec_score takes. */
int dec_max_scored(const Decoder *d) { return d->chunk < MAX_ROWS ? d->chunk : MAX_ROWS; }

/* 1 if activations are rounded to bfloat16 for products with bfloat16 weights. */
int dec_rounds_rows(void) { return BF16_ROWS; }

/* The most tokens that dec_feed takes in a call: of one stream, and of all streams together. */
int dec_max_chunk(const Decoder *d) { return d->chunk; }
int dec_max_rows(const Decoder *d) { return d->rows - 32 * d->s.threads; }

/* Copies the KV cache and the logits of stream `from` to stream `to`. The KV cache of `from` holds
 * `count` tokens. */
void dec_copy(Decoder *d, int from, int to, int count) {
    const long slots = count < d->R ? round_up(count, LANES) : d->R;
    for (int l = 0; l < d->s.L; l++)
        for (int h = 0; h < d->s.K; h++) {
            char *a = keys_of(d, from, l, h), *b = keys_of(d, to, l, h);
            memcpy(b, a, slots * d->E * cache_bytes(d));
            memcpy(values_of(d, b), values_of(d, a), slots * d->P * cache_bytes(d));
        }
    memcpy(d->logits + to * d->Vp, d->logits + from * d->Vp, d->Vp * sizeof(float));
}

/* The V logits of the next token of a stream. */
const float *dec_logits(const Decoder *d, int stream) { return d->logits + stream * d->Vp; }

/* The arguments of dec_run, for its threads. */
typedef struct {
    Decoder *d;
    int n;
    const int32_t *streams, *positions;
    int steps;
    const double *uniform;
    const SamplingParams *params;
    uint8_t *seen;
    const uint8_t *next_states;
    uint8_t *states;
    int32_t *out;
    int share_streams;
} RunCall;

/* Chooses the next token of stream s->stream[i] at step `at`. Among the streams of the call, this
 * stream has the index from + i. */
static int32_t choose_for_stream(const RunCall *c, const Step *s, int from, int i, int at) {
    const int stream = s->stream[i], V = c->d->s.V;
    const SamplingParams *how = c->params + from + i;
    uint8_t *known = how->penalty != 1.0 ? c->seen + (long)stream * V : NULL;
    const uint8_t *after = c->next_states ? c->next_states + (long)c->states[stream] * V : NULL;
    const int token = choose_valid_token(dec_logits(c->d, stream), V, how,
                                         c->uniform[(long)(from + i) * c->steps + at], known, after,
                                         &s->scratch->choice);
    if (after) c->states[stream] = after[token] == NOT_UTF8 ? 0 : after[token];
    if (known) known[token] = 1;
    return token;
}

/* A thread's part of dec_run. */
static void run_thread(void *argument, Worker *w) {
    const RunCall *c = argument;
    const int alone = c->share_streams;
    const int from = alone ? (long)c->n * w->number / w->count : 0;
    const int to = alone ? (long)c->n * (w->number + 1) / w->count : c->n;
    const int count = to - from;
    int32_t position[count + 1];
    for (int i = 0; i < count; i++) position[i] = c->positions[from + i];
    Step s = {c->d,
              c->d->scratch + w->number,
              w,
              alone ? 0 : w->number,
              alone ? 1 : w->count,
              count,
              alone ? round_up(from, 16) + 16 * w->number : 0,
              c->streams + from,
              position,
              NULL,
              NULL,
              NULL};
    for (int at = 0; at < c->steps && count; at++) {
        int32_t *token = c->out + (long)at * c->n + from;
        /* No barrier: in embed, each thread takes the rows whose tokens it chose itself. */
        for (int i = s.part; i < count; i += s.parts)
            token[i] = choose_for_stream(c, &s, from, i, at);
        if (at == c->steps - 1) break;
        s.token = token;
        run_step(s);
        for (int i = 0; i < count; i++) position[i]++;
    }
}

/* Generates `steps` tokens for each of n different streams, into out (steps, n). Each token is
 * chosen from its stream's logits. Each token but the last is then fed. positions[i] is the
 * position of the first token chosen for streams[i]. uniform (n, steps): numbers in [0, 1).
 * params[i]: the sampling parameters of streams[i]. seen: V bytes for each stream of the decoder,
 * which are read and updated if there is a penalty. next_states (8, V): entry (s, v) is the UTF-8
 * state of a text in state s after token v; NULL if texts need not be valid UTF-8. states: the
 * UTF-8 state of each stream of the decoder, which is updated. share_streams: as in dec_feed. */
void dec_run(Decoder *d, int n, const int32_t *streams, const int32_t *positions, int steps,
             const double *uniform, const SamplingParams *params, uint8_t *seen,
             const uint8_t *next_states, uint8_t *states, int32_t *out, int threads,
             int share_streams) {
    RunCall call = {d,      n,    streams,     positions, steps, uniform,
                    params, seen, next_states, states,    out,   share_streams};
    team_run(threads, run_thread, &call);
}

/* choose_valid_token for tests; -1 if there is not enough memory. */
int dec_choose(const float *logits, int V, const SamplingParams *params, double uniform,
               const uint8_t *seen, const uint8_t *after) {
    const long Vp = round_up(V, 32);
    float *numbers = calloc(3 * Vp, sizeof *numbers);
    Candidate *candidates = malloc(Vp * sizeof *candidates);
    int token = -1;
    if (numbers && candidates) {
        const ChoiceScratch c = {numbers, numbers + Vp, candidates};
        memcpy(numbers + 2 * Vp, logits, V * sizeof *logits);
        token = choose_valid_token(numbers + 2 * Vp, V, params, uniform, seen, after, &c);
    }
    free(numbers), free(candidates);
    return token;
}
