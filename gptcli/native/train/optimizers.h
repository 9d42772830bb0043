/* AdamW and Muon on float32 arrays, with the formulas of gptcli/training/optimizers.py. */

#ifndef GPTCLI_OPTIMIZERS_H
#define GPTCLI_OPTIMIZERS_H

#include "../constants.h"
#include "model.h"

/* One step of AdamW for n arrays, each with its own weight decay. `step` counts from 1. */
void gpt_adamw(int threads, int n, float **weights, float **grads, float **mean, float **square,
               const int64_t *sizes, const float *decay, float rate, float beta1, float beta2,
               float eps, int64_t step) {
    const float over1 = 1.0f / (1.0 - pow(beta1, step)),
                over2 = 1.0f / sqrt(1.0 - pow(beta2, step));
#pragma omp parallel num_threads(threads)
    for (int a = 0; a < n; a++) {
        float *w = weights[a], *m = mean[a], *v = square[a];
        const float *g = grads[a], shrink = 1.0f - rate * decay[a];
#pragma omp for simd schedule(static) nowait
        for (int64_t i = 0; i < sizes[a]; i++) {
            m[i] += (1.0f - beta1) * (g[i] - m[i]);
            v[i] = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
            w[i] = w[i] * shrink - rate * over1 * m[i] / (sqrtf(v[i]) * over2 + eps);
        }
    }
}

/* ---- Muon ------------------------------------------------------------------------------------ */

/* x (r, c) and gram (r, r), each also as tiles. wide (32, c) and square (r, r) hold sums. */
typedef struct {
    bf16 *x, *tiles, *gram, *gram_tiles;
    float *wide, *square;
} MuonScratch;

/* Returns the bytes of the scratch for an (R, C) matrix, R at most C. If `start` is not NULL, also
 * sets the pointers in s. */
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

/* Makes X (r, c) almost the orthogonal matrix nearest to it, by Newton-Schulz iterations
 * (constants.h). r and c are multiples of 32. Source: Jordan et al. 2024, "Muon". */
static void orthogonalise(MuonScratch *s, long r, long c, int iterations) {
    bf16 *X = s->x;
    for (int it = 0; it < iterations; it++) {
        for (long i = 0; i < r; i += 16)
            pack_b16_transposed(X + i * c, c, c, s->tiles + i / 16 * (c / 32) * TILE);
        for (long i = 0; i < r; i += 32) { /* Y = X X^T */
            product(X + i * c, c, 32, s->tiles, c / 32 * TILE, c / 32, r / 16, s->square + i * r,
                    r);
            for (long j = 0; j < 32 * r; j += 16)
                store_bf16(s->gram + i * r + j, _mm512_loadu_ps(s->square + i * r + j));
        }
        for (long i = 0; i < r; i += 16) /* Y is symmetric: its rows are its columns */
            pack_b16_transposed(s->gram + i * r, r, r, s->gram_tiles + i / 16 * (r / 32) * TILE);
        for (long i = 0; i < r; i += 32) { /* Y becomes B Y + C Y Y, row block by row block */
            product(s->gram + i * r, r, 32, s->gram_tiles, r / 32 * TILE, r / 32, r / 16, s->wide,
                    r);
            for (long j = 0; j < 32 * r; j += 16) {
                __m512 a = _mm512_mul_ps(load_bf16(s->gram + i * r + j), _mm512_set1_ps(MUON_B));
                __m512 y = _mm512_fmadd_ps(_mm512_loadu_ps(s->wide + j), _mm512_set1_ps(MUON_C), a);
                store_bf16(s->gram + i * r + j, y);
            }
        }
        for (long i = 0; i < r; i += 32) /* tiles that sum over the rows of X */
            pack_b32(X + i * c, c, c, s->tiles + i / 32 * TILE, r / 32 * TILE);
        for (long i = 0; i < r; i += 32) { /* X becomes A X + Y X */
            product(s->gram + i * r, r, 32, s->tiles, r / 32 * TILE, r / 32, c / 16, s->wide, c);
            for (long j = 0; j < 32 * c; j += 16) {
                __m512 a = load_bf16(X + i * c + j);
                __m512 y = _mm512_fmadd_ps(a, _mm512_set1_ps(MUON_A), _mm512_loadu_ps(s->wide + j));
                store_bf16(X + i * c + j, y);
            }
        }
    }
}

/* One step of Muon for a matrix w (R, C) with gradient g and momentum m: updates w by the Nesterov
 * momentum, orthogonalised. A tall matrix is transposed first, because this makes X X^T smaller. */
static void muon_matrix(MuonScratch *s, float *w, const float *g, float *m, long R, long C,
                        float rate, float beta, float decay, int iterations) {
    const int tall = R > C;
    const long r = round_up(tall ? C : R, 32), c = round_up(tall ? R : C, 32);
    double square = 0.0;
    for (long i = 0; i < R; i++) {
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (long j = 0; j < C; j++) {
            const float now = beta * m[i * C + j] + g[i * C + j],
                        nesterov = g[i * C + j] + beta * now;
            m[i * C + j] = now;
            part += nesterov * nesterov;
        }
        square += part;
    }
    const float inverse_norm = 1.0f / (sqrt(square) + MUON_EPS);
    memset(s->x, 0, r * c * sizeof(bf16));
    for (long i = 0; i < R; i += 16)
        for (long j = 0; j < C; j += 16) {
            __m512i piece[16];
            for (int k = 0; k < 16; k++) {
                const __mmask16 mask = i + k < R ? first_lanes(C - j) : 0;
                const __m512 now = _mm512_maskz_loadu_ps(mask, m + (i + k) * C + j);
                const __m512 grad = _mm512_maskz_loadu_ps(mask, g + (i + k) * C + j);
                const __m512 nesterov = _mm512_fmadd_ps(now, _mm512_set1_ps(beta), grad);
                piece[k] =
                    _mm512_castps_si512(_mm512_mul_ps(nesterov, _mm512_set1_ps(inverse_norm)));
            }
            if (tall) transpose16(piece);
            for (int k = 0; k < 16; k++)
                store_bf16(tall ? s->x + (j + k) * c + i : s->x + (i + k) * c + j,
                           _mm512_castsi512_ps(piece[k]));
        }
    orthogonalise(s, r, c, iterations);
    const float shrink = 1.0f - rate * decay, step = -rate * (tall ? sqrtf((float)R / C) : 1.0f);
    for (long i = 0; i < R; i += 16)
        for (long j = 0; j < C; j += 16) {
            __m512i piece[16];
            for (int k = 0; k < 16; k++)
                piece[k] = _mm512_castps_si512(
                    load_bf16(tall ? s->x + (j + k) * c + i : s->x + (i + k) * c + j));
            if (tall) transpose16(piece);
            for (int k = 0; k < 16 && i + k < R; k++) {
                float *to = w + (i + k) * C + j;
                const __mmask16 mask = first_lanes(C - j);
                __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, to), _mm512_set1_ps(shrink));
                y = _mm512_fmadd_ps(_mm512_castsi512_ps(piece[k]), _mm512_set1_ps(step), y);
                _mm512_mask_storeu_ps(to, mask, y);
            }
        }
}

/* One step of Muon for n matrices (rows, columns) and their momenta. Returns 0 if there is not
 * enough memory for the step, else 1. */
int gpt_muon(int threads, int n, float **weights, float **grads, float **momenta,
             const int64_t *rows, const int64_t *columns, float rate, float beta, float decay,
             int iterations) {
    size_t most = 0;
    MuonScratch s;
    for (int i = 0; i < n; i++) {
        const int tall = rows[i] > columns[i];
        const size_t need =
            muon_scratch(&s, NULL, tall ? columns[i] : rows[i], tall ? rows[i] : columns[i]);
        most = need > most ? need : most;
    }
    char *memory = aligned_alloc(ALIGNMENT, threads * most);
    if (!memory) return 0;
#pragma omp parallel num_threads(threads) private(s)
    {
        char *thread_memory = memory + omp_get_thread_num() * most;
        tiles_begin();
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n; i++) {
            const int tall = rows[i] > columns[i];
            muon_scratch(&s, thread_memory, tall ? columns[i] : rows[i],
                         tall ? rows[i] : columns[i]);
            muon_matrix(&s, weights[i], grads[i], momenta[i], rows[i], columns[i], rate, beta,
                        decay, iterations);
        }
        tiles_end();
    }
    free(memory);
    return 1;
}

#endif
