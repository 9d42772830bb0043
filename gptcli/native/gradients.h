/* Gradients of the parameters, from the tiles that the backward pass leaves behind. */

#ifndef GPTCLI_GRADIENTS_H
#define GPTCLI_GRADIENTS_H

#include "passes.h"

/* dW (N, K) = turned gradients at the outputs times the inputs. N may end within a tile. */
typedef struct {
    float *to;
    const bf16 *outputs, *inputs;   /* A tiles and B tiles, those of a row block side by side */
    long output_block, input_block; /* from one row block to the next */
    long N, K;
} Matrix;

/* The sum over groups of rows of their shares of a vector's gradient. */
typedef struct {
    float *to;
    const float *part; /* the first group's */
    long width;
} Vector;

/* Rows n on of a matrix's gradient over `blocks` row blocks; added to what is there where `add`. So
 * many blocks at once that what is read again and again stays in the second cache. */
static void matrix_rows(const Matrix *a, long n, long rows, long blocks, int add) {
    const long chunk = a->K <= 512 ? 16 : 64;
    float piece[32 * 32] __attribute__((aligned(64)));
    for (long m = 0; m < blocks; m += chunk) {
        const int steps = blocks - m < chunk ? blocks - m : chunk, more = add || m > 0;
        for (long k = 0; k < a->K; k += 32)
            for (long i = n; i < n + rows && i < a->N; i += 32) {
                const bf16 *A = a->outputs + i / 16 * TILE + m * a->output_block;
                const bf16 *B = a->inputs + k / 16 * TILE + m * a->input_block;
                const long there = a->N - i < 32 ? a->N - i : 32;
                float *C = a->to + i * a->K + k;
                if (there == 32) {
                    block(2, 2, A, TILE, 32, a->output_block, B, TILE, a->input_block, steps, C,
                          a->K, more);
                    continue;
                }
                block(2, 2, A, TILE, 32, a->output_block, B, TILE, a->input_block, steps, piece, 32,
                      0);
                for (long r = 0; r < there; r++)
                    for (int j = 0; j < 32; j++)
                        C[r * a->K + j] = piece[32 * r + j] + (more ? C[r * a->K + j] : 0.0f);
            }
    }
}

static void vector_sum(const Vector *a, long stride, long groups, int add) {
    for (long c = 0; c < a->width; c += 16) {
        __m512 sum = add ? _mm512_loadu_ps(a->to + c) : _mm512_setzero_ps();
        for (long k = 0; k < groups; k++)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(a->part + k * stride + c));
        _mm512_storeu_ps(a->to + c, sum);
    }
}

/* To be called by all threads of a team, which go on without waiting: a barrier has to follow. */
static void matrices(const Matrix *all, int n, long blocks, int add, int threads) {
    for (int i = 0; i < n; i++) {
        long rows = up_to((all[i].N + 2 * threads - 1) / (2 * threads), 32);
        const long most = all[i].K <= 512 ? 256 : 128;
        rows = rows > most ? most : rows;
#pragma omp for schedule(dynamic) nowait
        for (long r = 0; r < all[i].N; r += rows) matrix_rows(all + i, r, rows, blocks, add);
    }
}

/* To be called by all threads of a team; ends with a barrier. */
static void vectors(const Vector *all, int n, long stride, long groups, int add) {
#pragma omp for schedule(dynamic)
    for (int i = 0; i < n; i++) vector_sum(all + i, stride, groups, add);
}

static void layer_gradients(const Pass *p, int l, float *grads, long groups, int add) {
    Model *g = p->g;
    const Layer *y = saved(p, l);
    const int64_t *at = of_layer(g, l);
    const long C = g->s.C, F = g->s.F;
    Matrix m[7];
    Vector v[12];
    int nm = 0, nv = 0;
    m[nm++] = (Matrix){grads + at[DOWN], g->d_down, g->act_tiles, 32 * C, 32 * F, C, F};
    const bf16 *up = g->d_up;
    if (g->s.modern) {
        m[nm++] = (Matrix){grads + at[GATE], up, y->in2, 32 * g->F1, 32 * C, F, C};
        up += F / 16 * TILE;
    }
    m[nm++] = (Matrix){grads + at[UP], up, y->in2, 32 * g->F1, 32 * C, F, C};
    for (int i = 0; i < 3; i++)
        m[nm++] = (Matrix){
            grads + at[QUERY + i], g->d_qkv + i * C / 16 * TILE, y->in1, 96 * C, 32 * C, C, C};
    m[nm++] = (Matrix){grads + at[OUT], g->d_out, g->mixed_tiles, 32 * C, 32 * C, C, C};
    const Part part = part_of(g, 0);
    const struct {
        int64_t at;
        const float *part;
        long width;
    } of[] = {
        {at[LN1], part.ln1, C},
        {at[LN1_BIAS], part.ln1_bias, C},
        {at[LN2], part.ln2, C},
        {at[LN2_BIAS], part.ln2_bias, C},
        {at[QUERY_BIAS], part.qkv, C},
        {at[KEY_BIAS], part.qkv + C, C},
        {at[VALUE_BIAS], part.qkv + 2 * C, C},
        {at[OUT_BIAS], part.out, C},
        {at[UP_BIAS], part.up, F},
        {at[DOWN_BIAS], part.down, C},
        {at[Q_NORM], part.q_norm, g->D},
        {at[K_NORM], part.k_norm, g->D},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        if (of[i].at >= 0) v[nv++] = (Vector){grads + of[i].at, of[i].part, of[i].width};
    matrices(m, nm, p->MB, add, g->s.threads);
    vectors(v, nv, g->part_width, groups, add);
}

/* Token and position embeddings: by columns, so that each number's sum runs over the rows in order.
 */
static void embedding_gradients(const Pass *p, float *grads, int add) {
    Model *g = p->g;
    const int C = g->s.C;
    const Dropout d = drop_at(p, DROP_EMBEDDING);
    float *tokens = grads + g->at[WTE], *places = g->at[WPE] < 0 ? NULL : grads + g->at[WPE];
#pragma omp for schedule(static)
    for (int c = 0; c < C; c += 16) {
        if (!add && !g->s.tied)
            for (long v = 0; v < g->s.V; v++)
                _mm512_storeu_ps(tokens + v * C + c, _mm512_setzero_ps());
        if (!add && places)
            for (long t = 0; t < g->s.T; t++)
                _mm512_storeu_ps(places + t * C + c, _mm512_setzero_ps());
        for (long r = 0; r < p->M; r++) {
            __m512 y = keep(d, (uint32_t)(r * C + c), _mm512_loadu_ps(g->dx + r * C + c));
            float *to = tokens + p->idx[r] * C + c;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), y));
            if (!places) continue;
            to = places + r % p->T * C + c;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), y));
        }
    }
}

#endif
