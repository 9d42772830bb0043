/* Causal attention of one head of one sequence, forward and backward.
 *
 * T tokens, D the width of the head (a multiple of 16). q, k, v, their gradients and the outputs
 * are parts of arrays in pieces. The gradients can take the place of q, k and v. Scores are
 * computed for QUERIES queries at a time, so that they stay in the cache. The backward pass
 * computes the scores again. From the scores and log2_sum_exp it computes the attention weights, as
 * in FlashAttention. Source: Dao et al. 2022, "FlashAttention", section 3.1.
 *
 * The causal mask is `first_lanes(seen - j)`: query t sees the keys 0 to t, so seen = t + 1. The
 * number of keys is padded to a multiple of QUERIES. The padding gets weight 0, but its numbers
 * must be finite (README.md).
 */

#ifndef GPTCLI_ATTENTION_H
#define GPTCLI_ATTENTION_H

#include "layers.h"

/* The part of an array in pieces (numbers.h) that belongs to a head of a sequence: rows from `row`
 * on, columns from `column` on, of an array that has `columns` columns. */
typedef struct {
    num *array;
    long row, column, columns;
} HeadPart;

/* The address of numbers (t, c) to (t, c + 15) of a head's part; c is a multiple of 16. */
INLINE num *part_at(HeadPart h, int t, int c) {
    return h.array + in_pieces(h.row + t, h.column + c, h.columns);
}

typedef struct {
    num *by_d[2]; /* B tiles for sums over D: keys, values */
    /* B tiles for sums over T. Forward: values in by_t[0]. Backward: keys, dmixed, queries. */
    num *by_t[3];
    float *scores, *dweights; /* (32, T) */
    num *weights, *dscores;   /* (32, T): in the type num, for products */
    num *transposed[2]; /* weights and dscores of all queries: A tiles for sums over queries */
    float *out;         /* (32, D) */
    num *copy;          /* (32, D) */
    float *sums[2]; /* (T, D): gradients at values and keys, summed over heads that share them */
} AttentionScratch;

/* Returns the number of bytes of the scratch. If `start` is not NULL, also places the arrays of s
 * in the memory at `start`. */
static size_t attention_scratch(AttentionScratch *s, char *start, int T, int D) {
    const long t = round_up(T, 32), d = round_up(D, 32);
    const size_t head = t * d * sizeof(num), line = 32 * t * sizeof(num);
    size_t used = 0;
#define TAKE(to, bytes)                                                                            \
    ((to) = (void *)(start ? start + used : NULL), used += round_up(bytes, ALIGNMENT))
    TAKE(s->by_d[0], head);
    TAKE(s->by_t[0], head);
    TAKE(s->scores, 2 * line);
    TAKE(s->weights, line);
    TAKE(s->out, 32 * d * sizeof(float));
    TAKE(s->copy, 32 * d * sizeof(num));
    TAKE(s->by_d[1], head);
    TAKE(s->by_t[1], head);
    TAKE(s->by_t[2], head);
    TAKE(s->dweights, 2 * line);
    TAKE(s->dscores, line);
    TAKE(s->transposed[0], t * t * sizeof(num));
    TAKE(s->transposed[1], t * t * sizeof(num));
    TAKE(s->sums[0], t * d * sizeof(float));
    TAKE(s->sums[1], t * d * sizeof(float));
#undef TAKE
    return used;
}

/* Some rows of a head, which are `row` numbers apart. */
typedef struct {
    const num *at;
    long row;
} Rows;

/* Rows t to t + n - 1 of a head; n is QUERIES or 32. Rows from T on are 0. If the rows are not in
 * one piece, they are copied to `copy` (n, D). */
static Rows rows_of(HeadPart h, int t, int n, int T, int D, num *copy) {
    if (t + n <= T && 32 % D == 0 && (h.row + t) % n == 0) return (Rows){part_at(h, t, 0), 32};
    for (int i = 0; i < n; i++)
        for (int c = 0; c < D; c += 16)
            store_num(copy + i * D + c, t + i < T ? load_num(part_at(h, t + i, c)) : zeros());
    return (Rows){copy, D};
}

/* Packs 32 rows as B tiles for products that sum over D. */
static void pack_by_d(Rows x, int D, num *out) {
    const long panel = round_up(D, 32) / 32 * TILE;
    pack_b16_transposed(x.at, x.row, D, out);
    pack_b16_transposed(x.at + 16 * x.row, x.row, D, out + panel);
}

/* mixed (T, D) = softmax(q k^T / sqrt(D), causal) v. Also computes log2_sum_exp (T), the base-2
 * logarithm of each query's sum of exponentials. drop: the dropout of this head's attention
 * weights. */
static void attention_forward(HeadPart q, HeadPart k, HeadPart v, int T, int D, HeadPart mixed,
                              float *log2_sum_exp, Dropout drop, AttentionScratch *s) {
    const int T32 = round_up(T, 32), inputs = round_up(D, QUERIES);
    const long panel = 16L * T32, panel_by_d = 16 * round_up(D, 32);
    const float scale2 = LOG2_E / sqrtf(D); /* for exponentials to base 2, not e */
    for (int t = 0; t < T; t += 32) {
        pack_by_d(rows_of(k, t, 32, T, D, s->copy), D, s->by_d[0] + t / 16 * panel_by_d);
        const Rows values = rows_of(v, t, 32, T, D, s->copy);
        pack_b32(values.at, values.row, D, s->by_t[0] + 16 * t, panel);
    }
    for (int t0 = 0; t0 < T; t0 += QUERIES) {
        const int keys = t0 + QUERIES, rows = T - t0 < QUERIES ? T - t0 : QUERIES;
        const Rows queries = rows_of(q, t0, QUERIES, T, D, s->copy);
        multiply_queries(queries.at, queries.row, s->by_d[0], panel_by_d, inputs, keys / 16,
                         s->scores, T32);
        float inverse[QUERIES], tops[QUERIES], totals[QUERIES];
        for (int i = 0; i < QUERIES; i++) {
            const int seen = t0 + i + 1;
            float *score = s->scores + i * T32;
            num *weight = s->weights + i * T32;
            f32x16 largest = broadcast(-INFINITY), sum = zeros();
            for (int j = 0; j < seen; j += 16)
                largest = maximum(largest, blend(first_lanes(seen - j), load(score + j), largest));
            const float top = max_lane(largest);
            const f32x16 shift = broadcast(-top * scale2), factor = broadcast(scale2);
            for (int j = 0; j < keys; j += 16) {
                f32x16 e = vexp2(fmadd(load(score + j), factor, shift));
                e = keep(first_lanes(seen - j), e);
                sum = add(sum, e);
                store_num(weight + j, apply_dropout(drop, (uint32_t)((t0 + i) * T + j), e));
            }
            tops[i] = top * scale2;
            totals[i] = sum_lanes(sum);
        }
        for (int i = 0; i < QUERIES; i += 16) {
            f32x16 total = load(totals + i);
            store(inverse + i, divide(broadcast(1.0f), total));
            store_first(log2_sum_exp + t0 + i, rows - i,
                        fmadd(vlog(total), broadcast(LOG2_E), load(tops + i)));
        }
        multiply_queries(s->weights, T32, s->by_t[0], panel, keys, D / 16, s->out, D);
        for (int i = 0; i < rows; i++)
            for (int c = 0; c < D; c += 16)
                store_num(part_at(mixed, t0 + i, c),
                          mul(load(s->out + i * D + c), broadcast(inverse[i])));
    }
}

/* The address of QUERIES rows and 16 columns of a part, from (t, c) on, for a product that stores
 * its result there. NULL if there are fewer rows, if these rows are not in one piece, or if a
 * product would have to round. */
static float *place_of_product(HeadPart h, int t, int c, int rows) {
    const int fits = !BFLOAT16 && rows == QUERIES && (h.row + t) % QUERIES == 0;
    return fits ? (float *)part_at(h, t, c) : NULL;
}

/* Computes dq, dk and dv (T, D) from dmixed, the gradient at `mixed`. Rows of dmixed are dmixed_row
 * apart. Heads that share keys and values are computed one after the other. If `add_old`, adds this
 * head's sums to those of the earlier heads. If `last`, this is the last of these heads, so dk and
 * dv are complete and are stored.
 *
 * P are the attention weights, dP is the gradient at them, dS the gradient at the scores:
 *
 *   delta = sum of P dP over a query's keys = sum of mixed dmixed over D
 *   dS = P (dP - delta)
 *   dq = dS k, dk = dS^T q, dv = P^T dmixed */
static void attention_backward(HeadPart q, HeadPart k, HeadPart v, int T, int D, HeadPart mixed,
                               const num *dmixed, long dmixed_row, const float *log2_sum_exp,
                               Dropout drop, HeadPart dq, HeadPart dk, HeadPart dv, int add_old,
                               int last, AttentionScratch *s) {
    const int T32 = round_up(T, 32), inputs = round_up(D, QUERIES);
    const long panel = 16L * T32, panel_by_d = 16 * round_up(D, 32);
    const float scale = 1.0f / sqrtf(D), scale2 = LOG2_E * scale;
    num *const keys_by_t = s->by_t[0], *const dmixed_by_t = s->by_t[1],
               *const queries_by_t = s->by_t[2];
    for (int t = 0; t < T; t += 32) {
        const Rows keys = rows_of(k, t, 32, T, D, s->copy);
        pack_by_d(keys, D, s->by_d[0] + t / 16 * panel_by_d);
        pack_b32(keys.at, keys.row, D, keys_by_t + 16 * t, panel);
        pack_by_d(rows_of(v, t, 32, T, D, s->copy), D, s->by_d[1] + t / 16 * panel_by_d);
        const Rows queries = rows_of(q, t, 32, T, D, s->copy);
        pack_b32(queries.at, queries.row, D, queries_by_t + 16 * t, panel);
        pack_b32(dmixed + t * dmixed_row, dmixed_row, D, dmixed_by_t + 16 * t, panel);
    }
    for (int t0 = 0; t0 < T; t0 += QUERIES) {
        const int keys = t0 + QUERIES, rows = T - t0 < QUERIES ? T - t0 : QUERIES;
        const Rows queries = rows_of(q, t0, QUERIES, T, D, s->copy);
        multiply_queries(queries.at, queries.row, s->by_d[0], panel_by_d, inputs, keys / 16,
                         s->scores, T32);
        multiply_queries(dmixed + t0 * dmixed_row, dmixed_row, s->by_d[1], panel_by_d, inputs,
                         keys / 16, s->dweights, T32);
        for (int i = 0; i < QUERIES; i++) {
            const int seen = i < rows ? t0 + i + 1 : 0;
            const float *score = s->scores + i * T32, *dweight = s->dweights + i * T32;
            f32x16 dot = zeros();
            if (i < rows)
                for (int c = 0; c < D; c += 16)
                    dot = fmadd(load_num(part_at(mixed, t0 + i, c)),
                                load_num(dmixed + (t0 + i) * dmixed_row + c), dot);
            const f32x16 delta = broadcast(sum_lanes(dot));
            const f32x16 shift = broadcast(i < rows ? -log2_sum_exp[t0 + i] : 0.0f);
            const f32x16 factor = broadcast(scale), factor2 = broadcast(scale2);
            for (int j = 0; j < keys; j += 16) {
                const uint32_t number = (uint32_t)((t0 + i) * T + j);
                f32x16 p = vexp2(fmadd(load(score + j), factor2, shift));
                p = keep(first_lanes(seen - j), p);
                f32x16 d = sub(apply_dropout(drop, number, load(dweight + j)), delta);
                d = mul(mul(p, d), factor);
                store_num(s->weights + i * T32 + j, apply_dropout(drop, number, p));
                store_num(s->dscores + i * T32 + j, keep(first_lanes(seen - j), d));
            }
        }
        pack_queries(s->weights, T32, keys, s->transposed[0] + 16 * t0, panel);
        pack_queries(s->dscores, T32, keys, s->transposed[1] + 16 * t0, panel);
        for (int c = 0; c < D; c += 16) {
            float *place = place_of_product(dq, t0, c, rows);
            multiply_queries(s->dscores, T32, keys_by_t + c / 16 * panel, panel, keys, 1,
                             place ? place : s->out, 32);
            for (int i = 0; i < (place ? 0 : rows); i++)
                store_num(part_at(dq, t0 + i, c), load(s->out + i * 32));
        }
    }
    for (int s0 = 0; s0 < T; s0 += QUERIES) {
        const int rows = T - s0 < QUERIES ? T - s0 : QUERIES, left = round_up(T, QUERIES) - s0;
        for (int which = 0; which < 2; which++) {
            /* Only the queries from s0 on see these keys. */
            const num *A = s->transposed[which] + s0 / 16 * panel + 16 * s0;
            const num *B = (which ? queries_by_t : dmixed_by_t) + 16 * s0;
            const HeadPart to = which ? dk : dv;
            for (int c = 0; c < D; c += 16) {
                float *sum = s->sums[which] + s0 * D + c;
                float *place = last && !add_old ? place_of_product(to, s0, c, rows) : NULL;
                sum_over_queries(A, panel, B + c / 16 * panel, left, place ? place : sum,
                                 place ? 32 : D, add_old);
                for (int i = 0; i < (last && !place ? rows : 0); i++)
                    store_num(part_at(to, s0 + i, c), load(sum + i * D));
            }
        }
    }
}

#endif
