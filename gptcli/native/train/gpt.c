/* A GPT's training step on a CPU, in bfloat16 or float32: loss and gradients, in one translation unit.
 *
 * gptcli/native/engine.py calls it. Dimensions as in model.h. README.md gives a reading order. */

#include "../vectors/amx_permission.h"
#include "gradients.h"
#include "optimizers.h"

/* Clears the values after the last real row. They are read, because rows come in blocks of 32. They
 * get weight 0 but must be finite, because 0 times infinity is NaN. */
static void clear_past_end(const Pass *p) {
    Model *g = p->g;
    const long Q = g->Q, QKV = g->QKV, end = 32 * p->MB;
    for (int l = 0; l < (p->training ? g->s.L : 1); l++) {
        memset(g->layers[l].qkv + end * QKV, 0, 32 * QKV * sizeof(num));
        memset(g->layers[l].mixed + p->M * Q, 0, (end - p->M) * Q * sizeof(num));
    }
    memset(g->dqkv + p->M * QKV, 0, (end - p->M) * QKV * sizeof(num));
    memset(g->dmixed + end * Q, 0, 32 * Q * sizeof(num));
}

/* What gpt_loss passes to its threads. */
typedef struct {
    Pass pass;
    float *gradients;
    float scale;
    int add_old;
} LossCall;

/* A thread's part of a training step, or of a loss only. */
static void loss_thread(void *argument, Worker *w) {
    const LossCall *call = argument;
    const Pass *p = &call->pass;
    Model *g = p->g;
    float *gradients = call->gradients;
    const int L = g->s.L, C = g->s.C, add_old = call->add_old;
    const long MB = p->MB, groups = (MB + g->group - 1) / g->group, heads = (long)p->B * g->s.H;
    const long shared = (long)p->B * g->s.K; /* heads of keys and values */
    ThreadScratch *s = g->scratch + w->number;
    tiles_begin();
    /* Forward. One loop over the groups ends a layer and begins the next one, while a group's rows
     * are still in the cache. */
    for (int l = 0; l < L; l++) {
        SHARED_FOR(w, k, groups) {
            const long r0 = group_start(p, k);
            const int rows = group_rows(p, k);
            if (l == 0)
                embed(p, r0, rows);
            else
                after_attention(p, l - 1, r0, rows, s);
            before_attention(p, l, r0, rows, s);
        }
        team_barrier();
        SHARED_FOR(w, h, heads) attend_head(p, l, h, s);
        team_barrier();
    }
    SHARED_FOR(w, k, groups) after_attention(p, L - 1, group_start(p, k), group_rows(p, k), s);
    team_barrier();
    /* The layers need `partials` only later. Until then, each group's part of the gradients of the
     * last norm is in it. */
    for (long m0 = 0; m0 < MB; m0 += g->head_blocks) {
        const long end = MB - m0 < g->head_blocks ? MB : m0 + g->head_blocks;
        const long first = m0 / g->group, parts = (end + g->group - 1) / g->group - first;
        SHARED_FOR(w, i, parts) {
            const long k = first + i;
            head_and_loss(p, group_start(p, k), group_rows(p, k), 32 * m0, call->scale, s,
                          g->partials + k * g->partial_width);
        }
        team_barrier();
        if (gradients) {
            const MatrixGradient a = {gradients + g->offset[HEAD],
                                      g->d_head,
                                      g->in + m0 * 32 * C,
                                      32 * g->packed[PACKED_PER_LAYER * L].N,
                                      32 * C,
                                      g->s.V,
                                      C};
            sum_matrix_gradients(w, &a, 1, end - m0, add_old || m0 > 0, g->s.threads);
            team_barrier();
        }
    }
    /* Backward. */
    if (gradients) {
        const VectorGradient v[2] = {{gradients + g->offset[LNF], g->partials, C},
                                     {gradients + g->offset[LNF_BIAS], g->partials + C, C}};
        sum_vector_gradients(w, v, g->offset[LNF_BIAS] < 0 ? 1 : 2, g->partial_width, groups, add_old);
        for (int l = L - 1; l >= 0; l--) {
            SHARED_FOR(w, k, groups)
                after_attention_backward(p, l, group_start(p, k), group_rows(p, k),
                                         group_partials(g, k), s);
            team_barrier();
            SHARED_FOR(w, h, shared) attend_heads_backward(p, l, h, s);
            team_barrier();
            SHARED_FOR(w, k, groups)
                before_attention_backward(p, l, group_start(p, k), group_rows(p, k),
                                          group_partials(g, k), s);
            team_barrier();
            layer_gradients(p, l, gradients, groups, add_old, w);
        }
        embedding_gradients(p, gradients, add_old, w);
    }
    tiles_end();
}

/* The sum of the losses of B sequences of T tokens, in nats. B T is at most most_tokens.
 *
 * weights: the float32 parameters that gpt_pack packed last. gradients: where the gradients of the
 * sum go, times `scale`; they are added to the old numbers if `add_old`. NULL for a loss only. Dropout
 * depends on `seed`. idx and targets: (B, T). */
double gpt_loss(Model *g, const float *weights, float *gradients, const int64_t *idx,
                const int64_t *targets, int B, int T, uint64_t seed, float scale, int add_old) {
    LossCall call = {{g, weights, idx, targets, B, T, gradients != NULL, (long)B * T, 0, seed},
                     gradients,
                     scale,
                     add_old};
    call.pass.MB = (call.pass.M + 31) / 32;
    clear_past_end(&call.pass);
    team_run(g->s.threads, loss_thread, &call);
    double sum = 0.0;
    for (long r = 0; r < call.pass.M; r++) sum += g->losses[r];
    return sum;
}
