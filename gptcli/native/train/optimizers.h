/* AdamW and Muon on float32 arrays, with the formulas of gptcli/training/optimizers.py. */

#ifndef GPTCLI_OPTIMIZERS_H
#define GPTCLI_OPTIMIZERS_H

#include "../constants.h"
#include "model.h"

/* What gpt_adamw passes to its threads: the arrays and the numbers of the formula. */
typedef struct {
    int n;
    float **weights, **grads, **mean, **square;
    const int64_t *sizes;
    const float *decay;
    float rate, beta1, beta2, eps, over1, over2;
} Adamw;

enum { ADAMW_PART = 1 << 14 }; /* how many weights a thread takes at once */

/* Updates `left` weights, at most 16. */
INLINE void adamw_16(const Adamw *a, float shrink, float *w, const float *g, float *m, float *v,
                     long left) {
    const f32x16 grad = load_first(g, left), old = load_first(m, left);
    const f32x16 mean = fmadd(broadcast(1.0f - a->beta1), sub(grad, old), old);
    const f32x16 square = fmadd(broadcast(a->beta2), load_first(v, left),
                                mul(mul(broadcast(1.0f - a->beta2), grad), grad));
    const f32x16 size = fmadd(square_root(square), broadcast(a->over2), broadcast(a->eps));
    const f32x16 step = divide(mul(broadcast(a->rate * a->over1), mean), size);
    store_first(m, left, mean);
    store_first(v, left, square);
    store_first(w, left, sub(mul(load_first(w, left), broadcast(shrink)), step));
}

static void adamw_thread(void *argument, Worker *worker) {
    const Adamw *a = argument;
    long all = 0, begin = 0;
    for (int i = 0; i < a->n; i++) all += (a->sizes[i] + ADAMW_PART - 1) / ADAMW_PART;
    int i = 0;
    SHARED_FOR(worker, round, all) { /* a thread's `round` only grows, and so does i */
        while (round >= begin + (a->sizes[i] + ADAMW_PART - 1) / ADAMW_PART)
            begin += (a->sizes[i++] + ADAMW_PART - 1) / ADAMW_PART;
        const long from = (round - begin) * ADAMW_PART, left = a->sizes[i] - from;
        const long size = left < ADAMW_PART ? left : ADAMW_PART;
        const float shrink = 1.0f - a->rate * a->decay[i];
        float *w = a->weights[i] + from, *m = a->mean[i] + from, *v = a->square[i] + from;
        const float *g = a->grads[i] + from;
        long k = 0;
        for (; k + 16 <= size; k += 16) adamw_16(a, shrink, w + k, g + k, m + k, v + k, 16);
        if (k < size) adamw_16(a, shrink, w + k, g + k, m + k, v + k, size - k);
    }
}

/* One step of AdamW for n arrays, each with its own weight decay. `step` is counted from 1. */
void gpt_adamw(int threads, int n, float **weights, float **grads, float **mean, float **square,
               const int64_t *sizes, const float *decay, float rate, float beta1, float beta2,
               float eps, int64_t step) {
    Adamw a = {n,
               weights,
               grads,
               mean,
               square,
               sizes,
               decay,
               rate,
               beta1,
               beta2,
               eps,
               1.0f / (1.0 - pow(beta1, step)),
               1.0f / sqrt(1.0 - pow(beta2, step))};
    team_run(threads, adamw_thread, &a);
}

/* ---- Muon ------------------------------------------------------------------------------------ */

/* The matrices x (r, c) and gram (r, r). tiles and gram_tiles hold the same matrices as B tiles.
 * wide (32, c) and square (r, r) hold the results of products in float32. */
typedef struct {
    num *x, *tiles, *gram, *gram_tiles;
    float *wide, *square;
} MuonScratch;

/* Returns the number of bytes of the scratch for an (R, C) matrix, R at most C. If `start` is not
 * NULL, also sets the pointers in s. */
static size_t muon_scratch(MuonScratch *s, char *start, long R, long C) {
    const long r = round_up(R, 32), c = round_up(C, 32);
    size_t used = 0;
#define TAKE(to, n)                                                                                \
    ((to) = (void *)(start ? start + used : NULL), used += round_up((n) * sizeof *(to), ALIGNMENT))
    TAKE(s->x, r * c);
    TAKE(s->tiles, r * c);
    TAKE(s->gram, r * r);
    TAKE(s->gram_tiles, r * r);
    TAKE(s->wide, 32 * c);
    TAKE(s->square, r * r);
#undef TAKE
    return used;
}

/* square = X X^T (r, r). `x` holds the matrix X (r, n), and `tiles` holds its transpose, packed as
 * B tiles. r and n are multiples of 32. Computes only the blocks up to the diagonal, and mirrors
 * them to the other side. This changes no bit, because "row i times row j" sums the same numbers in
 * the same order as "row j times row i". */
static void product_with_own_transpose(const num *x, const num *tiles, long r, long n,
                                       float *square) {
    for (long i = 0; i < r; i += 32)
        product(x + i * n, n, 32, tiles, n / 32 * TILE, n / 32, (i + 32) / 16, square + i * r, r);
    for (long i = 32; i < r; i += 16)
        for (long j = 0; j < i / 32 * 32; j += 16) {
            f32x16 block[16];
            UNROLL(16)
            for (int k = 0; k < 16; k++) block[k] = load(square + (i + k) * r + j);
            transpose16(block);
            UNROLL(16)
            for (int k = 0; k < 16; k++) store(square + (j + k) * r + i, block[k]);
        }
}

/* Moves X (r, c) close to the orthogonal matrix nearest to X, by Newton-Schulz iterations
 * (constants.h). r and c are multiples of 32. Source: Jordan et al. 2024, "Muon". */
static void orthogonalise(MuonScratch *s, long r, long c, int iterations) {
    num *X = s->x;
    for (int it = 0; it < iterations; it++) {
        for (long i = 0; i < r; i += 16)
            pack_b16_transposed(X + i * c, c, c, s->tiles + i / 16 * (c / 32) * TILE);
        product_with_own_transpose(X, s->tiles, r, c, s->square); /* Y = X X^T */
        for (long i = 0; i < r * r; i += 16) store_num(s->gram + i, load(s->square + i));
        for (long i = 0; i < r; i += 16) /* Y is symmetric, so its rows are its columns */
            pack_b16_transposed(s->gram + i * r, r, r, s->gram_tiles + i / 16 * (r / 32) * TILE);
        product_with_own_transpose(s->gram, s->gram_tiles, r, r, s->square);
        for (long i = 0; i < r * r; i += 16) { /* Y becomes B Y + C Y Y */
            const f32x16 a = mul(load_num(s->gram + i), broadcast(MUON_B));
            store_num(s->gram + i, fmadd(load(s->square + i), broadcast(MUON_C), a));
        }
        for (long i = 0; i < r; i += 32) /* tiles for sums over the rows of X */
            pack_b32(X + i * c, c, c, s->tiles + i / 32 * TILE, r / 32 * TILE);
        for (long i = 0; i < r; i += 32) { /* X becomes A X + Y X */
            product(s->gram + i * r, r, 32, s->tiles, r / 32 * TILE, r / 32, c / 16, s->wide, c);
            for (long j = 0; j < 32 * c; j += 16) {
                f32x16 a = load_num(X + i * c + j);
                f32x16 y = fmadd(a, broadcast(MUON_A), load(s->wide + j));
                store_num(X + i * c + j, y);
            }
        }
    }
}

/* One step of Muon for a matrix w (R, C) with gradient g and momentum m: updates m, shrinks w by
 * the weight decay, and moves w against the orthogonalised Nesterov momentum. A tall matrix is
 * transposed first, because this makes X X^T smaller. */
static void muon_matrix(MuonScratch *s, float *w, const float *g, float *m, long R, long C,
                        float rate, float beta, float decay, int iterations) {
    const int tall = R > C;
    const long r = round_up(tall ? C : R, 32), c = round_up(tall ? R : C, 32);
    double square = 0.0;
    for (long i = 0; i < R; i++) {
        f32x16 part = zeros();
        for (long j = 0; j < C; j += 16) {
            float *momentum = m + i * C + j;
            const f32x16 grad = load_first(g + i * C + j, C - j);
            const f32x16 now = fmadd(broadcast(beta), load_first(momentum, C - j), grad);
            const f32x16 nesterov = fmadd(broadcast(beta), now, grad);
            store_first(momentum, C - j, now);
            part = fmadd(nesterov, nesterov, part);
        }
        square += sum_lanes(part);
    }
    const float inverse_norm = 1.0f / (sqrt(square) + MUON_EPS);
    memset(s->x, 0, r * c * sizeof(num));
    for (long i = 0; i < R; i += 16)
        for (long j = 0; j < C; j += 16) {
            f32x16 piece[16];
            for (int k = 0; k < 16; k++) {
                const long n = i + k < R ? C - j : 0;
                const f32x16 now = load_first(m + (i + k) * C + j, n);
                const f32x16 grad = load_first(g + (i + k) * C + j, n);
                const f32x16 nesterov = fmadd(now, broadcast(beta), grad);
                piece[k] = mul(nesterov, broadcast(inverse_norm));
            }
            if (tall) transpose16(piece);
            for (int k = 0; k < 16; k++)
                store_num(tall ? s->x + (j + k) * c + i : s->x + (i + k) * c + j, piece[k]);
        }
    orthogonalise(s, r, c, iterations);
    const float shrink = 1.0f - rate * decay, step = -rate * (tall ? sqrtf((float)R / C) : 1.0f);
    for (long i = 0; i < R; i += 16)
        for (long j = 0; j < C; j += 16) {
            f32x16 piece[16];
            for (int k = 0; k < 16; k++)
                piece[k] = load_num(tall ? s->x + (j + k) * c + i : s->x + (i + k) * c + j);
            if (tall) transpose16(piece);
            for (int k = 0; k < 16 && i + k < R; k++) {
                float *to = w + (i + k) * C + j;
                const long n = C - j;
                f32x16 y = mul(load_first(to, n), broadcast(shrink));
                y = fmadd(piece[k], broadcast(step), y);
                store_first(to, n, y);
            }
        }
}

/* What gpt_muon passes to its threads. */
typedef struct {
    int n;
    float **weights, **grads, **momenta;
    const int64_t *rows, *columns;
    float rate, beta, decay;
    int iterations;
    size_t most; /* bytes of a thread's scratch */
    char *memory;
} Muons;

static void muon_thread(void *argument, Worker *w) {
    const Muons *a = argument;
    MuonScratch s;
    tiles_begin();
    SHARED_FOR(w, i, a->n) {
        const long R = a->rows[i], C = a->columns[i];
        muon_scratch(&s, a->memory + w->number * a->most, R > C ? C : R, R > C ? R : C);
        muon_matrix(&s, a->weights[i], a->grads[i], a->momenta[i], R, C, a->rate, a->beta, a->decay,
                    a->iterations);
    }
    tiles_end();
}

/* One step of Muon for n matrices and their momenta. Matrix i is (rows[i], columns[i]). Returns 0
 * if there is not enough memory for the step, else 1. */
int gpt_muon(int threads, int n, float **weights, float **grads, float **momenta,
             const int64_t *rows, const int64_t *columns, float rate, float beta, float decay,
             int iterations) {
    Muons a = {n, weights, grads, momenta, rows, columns, rate, beta, decay, iterations, 0, NULL};
    for (int i = 0; i < n; i++) {
        MuonScratch s;
        const int tall = rows[i] > columns[i];
        const size_t need =
            muon_scratch(&s, NULL, tall ? columns[i] : rows[i], tall ? rows[i] : columns[i]);
        a.most = need > a.most ? need : a.most;
    }
    a.memory = aligned_alloc(ALIGNMENT, threads * a.most);
    if (!a.memory) return 0;
    team_run(threads, muon_thread, &a);
    free(a.memory);
    return 1;
}

#endif
