/* A GPT's training step on a CPU in bfloat16: loss and gradients, in one translation unit.
 *
 * gptcli/native/engine.py calls it. Dimensions as in model.h. README.md gives a reading order. */

#include "../vectors/amx_permission.h"
#include "gradients.h"
#include "optimizers.h"

/* Clears the values after the last real row. They are read, because rows come in blocks of 32. They
 * get weight 0 but must be finite, because 0 times infinity is NaN. */
static void clear_past_end(const Pass *p) {
    Model *g = p->g;
    const long C = g->s.C, end = 32 * p->MB;
    for (int l = 0; l < (p->training ? g->s.L : 1); l++) {
        memset(g->layers[l].qkv + end * 3 * C, 0, 32 * 3 * C * sizeof(bf16));
        memset(g->layers[l].mixed + p->M * C, 0, (end - p->M) * C * sizeof(bf16));
    }
    memset(g->dqkv + p->M * 3 * C, 0, (end - p->M) * 3 * C * sizeof(bf16));
    memset(g->dmixed + end * C, 0, 32 * C * sizeof(bf16));
}

/* The sum of the losses of B sequences of T tokens, in nats. B T is at most most_tokens.
 *
 * weights: the float32 parameters that gpt_pack packed last. gradients: where the gradients of the
 * sum go, times `scale`; they are added to the old numbers if `add`. NULL for a loss only. Dropout
 * depends on `seed`. idx and targets: (B, T). */
double gpt_loss(Model *g, const float *weights, float *gradients, const int64_t *idx,
                const int64_t *targets, int B, int T, uint64_t seed, float scale, int add) {
    Pass pass = {g, weights, idx, targets, B, T, gradients != NULL, (long)B * T, 0, seed};
    const Pass *p = &pass;
    const long M = pass.M, MB = pass.MB = (M + 31) / 32;
    const long groups = (MB + g->group - 1) / g->group;
    const int L = g->s.L, C = g->s.C;
    const long heads = (long)B * g->s.H;
    clear_past_end(p);
#pragma omp parallel num_threads(g->s.threads)
    {
        ThreadScratch *s = g->scratch + omp_get_thread_num();
        tiles_begin();
        /* Forward. One loop over the groups ends a layer and begins the next one, while a group's
         * rows are still in the cache. */
        for (int l = 0; l < L; l++) {
#pragma omp for schedule(dynamic)
            for (long k = 0; k < groups; k++) {
                const long r0 = group_start(p, k);
                const int rows = group_rows(p, k);
                if (l == 0)
                    embed(p, r0, rows);
                else
                    after_attention(p, l - 1, r0, rows, s);
                before_attention(p, l, r0, rows, s);
            }
#pragma omp for schedule(dynamic)
            for (long h = 0; h < heads; h++) attend_head(p, l, h, s);
        }
#pragma omp for schedule(dynamic)
        for (long k = 0; k < groups; k++)
            after_attention(p, L - 1, group_start(p, k), group_rows(p, k), s);
        /* The layers need `partials` only later. Until then, each group's part of the gradients of
         * the last norm is in it. */
        for (long m0 = 0; m0 < MB; m0 += g->head_blocks) {
            const long end = MB - m0 < g->head_blocks ? MB : m0 + g->head_blocks;
#pragma omp for schedule(dynamic)
            for (long k = m0 / g->group; k < (end + g->group - 1) / g->group; k++)
                head_and_loss(p, group_start(p, k), group_rows(p, k), 32 * m0, scale, s,
                              g->partials + k * g->partial_width);
            if (gradients) {
                const MatrixGradient a = {gradients + g->offset[HEAD],
                                          g->d_head,
                                          g->in + m0 * 32 * C,
                                          32 * g->packed[PACKED_PER_LAYER * L].N,
                                          32 * C,
                                          g->s.V,
                                          C};
                sum_matrix_gradients(&a, 1, end - m0, add || m0 > 0, g->s.threads);
#pragma omp barrier
            }
        }
        /* Backward. */
        if (gradients) {
            const VectorGradient v[2] = {{gradients + g->offset[LNF], g->partials, C},
                                         {gradients + g->offset[LNF_BIAS], g->partials + C, C}};
            sum_vector_gradients(v, g->offset[LNF_BIAS] < 0 ? 1 : 2, g->partial_width, groups, add);
            for (int l = L - 1; l >= 0; l--) {
#pragma omp for schedule(dynamic)
                for (long k = 0; k < groups; k++)
                    after_attention_backward(p, l, group_start(p, k), group_rows(p, k),
                                             group_partials(g, k), s);
#pragma omp for schedule(dynamic)
                for (long h = 0; h < heads; h++) attend_head_backward(p, l, h, s);
#pragma omp for schedule(dynamic)
                for (long k = 0; k < groups; k++)
                    before_attention_backward(p, l, group_start(p, k), group_rows(p, k),
                                              group_partials(g, k), s);
                layer_gradients(p, l, gradients, groups, add);
            }
            embedding_gradients(p, gradients, add);
        }
        tiles_end();
    }
    double sum = 0.0;
    for (long r = 0; r < M; r++) sum += g->losses[r];
    return sum;
}
