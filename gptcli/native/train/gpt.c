/* Training on a CPU: loss, gradients, AdamW, Muon.
 *
 * This file is compiled into two libraries, one for bfloat16 and one for float32.
 * gptcli/native/engine.py and loss.py call them. Dimensions as in model.h. README.md gives a
 * reading order. */

#include "../vectors/amx_permission.h"
#include "gradients.h"
#include "optimizers.h"

/* Sets the numbers of `mixed` after the last real row to 0, and those of `dmixed` after the last
 * row block. Products take whole blocks of 32 rows, so they read these numbers, too. The products
 * give them weight 0, but they must be finite, because 0 times infinity is NaN. */
static void clear_past_end(const Pass *p) {
    Model *g = p->g;
    const long Q = g->Q, end = 32 * p->MB;
    for (int l = 0; l < (p->training ? g->s.L : 1); l++)
        clear_rows(g->layers[l].mixed, p->M, end, Q);
    memset(g->dmixed + end * Q, 0, 32 * Q * sizeof(num));
}

/* What gpt_loss passes to its threads. */
typedef struct {
    Pass pass;
    float *gradients;
    float scale;
    int add_old;
    long span; /* see sequences_at_once */
} LossCall;

/* The part of a training step that needs only the rows of the sequences b to end - 1. No group
 * may hold both some of these rows and rows of other sequences. */
static void some_sequences(const LossCall *call, long b, long end, ThreadScratch *s) {
    const Pass *p = &call->pass;
    Model *g = p->g;
    const int L = g->s.L, H = g->s.H, K = g->s.K;
    const long first = b * p->T / (32 * g->group), rows = 32L * g->group;
    const long last = (end * p->T + rows - 1) / rows;
    for (int l = 0; l < L; l++) {
        for (long k = first; k < last; k++) {
            if (l == 0)
                embed(p, group_start(p, k), group_rows(p, k));
            else
                after_attention(p, l - 1, group_start(p, k), group_rows(p, k), s);
            before_attention(p, l, group_start(p, k), group_rows(p, k), s);
        }
        for (long h = b * H; h < end * H; h++) attend_head(p, l, h, s);
    }
    for (long k = first; k < last; k++) {
        after_attention(p, L - 1, group_start(p, k), group_rows(p, k), s);
        head_and_loss(p, group_start(p, k), group_rows(p, k), 0, call->scale, s);
    }
    if (!p->training) return;
    for (int l = L - 1; l >= 0; l--) {
        for (long k = first; k < last; k++)
            after_attention_backward(p, l, group_start(p, k), group_rows(p, k), s);
        for (long h = b * K; h < end * K; h++) attend_heads_backward(p, l, h, s);
        for (long k = first; k < last; k++)
            before_attention_backward(p, l, group_start(p, k), group_rows(p, k), s);
    }
}

/* What one thread computes if each thread takes whole sequences: its part of a training step, or of
 * the loss alone if there are no gradients to compute. */
static void loss_by_sequences(const LossCall *call, Worker *w) {
    const Pass *p = &call->pass;
    const Model *g = p->g;
    const int L = g->s.L;
    SHARED_FOR(w, task, (p->B + call->span - 1) / call->span) {
        const long b = task * call->span, end = b + call->span;
        some_sequences(call, b, end < p->B ? end : p->B, g->scratch + w->number);
    }
    team_barrier(w);
    if (!call->gradients) return;
    MatrixGradient matrices[LAYER_MATRICES * L + 1];
    VectorGradient vectors[LAYER_VECTORS * L + 2];
    Gradients list = {matrices, vectors, 0, 0};
    for (int l = L - 1; l >= 0; l--) list_layer(p, l, call->gradients, &list);
    list_last_norm(p, call->gradients, &list);
    matrices[list.n_matrices++] = head_gradient(p, call->gradients, 0);
    sum_gradients(w, &list, g, p->MB, p->MB, call->add_old);
    embedding_gradients(p, call->gradients, call->add_old, w);
}

/* What one thread computes if each thread takes some rows of each layer: its part of a training
 * step, or of the loss alone if there are no gradients to compute. A loop over the groups computes
 * the end of layer l - 1 and the beginning of layer l, while a group's rows are in the cache. */
static void loss_by_layers(const LossCall *call, Worker *w) {
    const Pass *p = &call->pass;
    Model *g = p->g;
    float *gradients = call->gradients;
    const int L = g->s.L, add_old = call->add_old;
    const long MB = p->MB, groups = (MB + g->group - 1) / g->group;
    const long heads = (long)p->B * g->s.H;
    const long shared = (long)p->B * g->s.K; /* KV heads of all sequences */
    ThreadScratch *s = g->scratch + w->number;
    MatrixGradient matrices[LAYER_MATRICES];
    VectorGradient vectors[LAYER_VECTORS];
    for (int l = 0; l < L; l++) {
        SHARED_FOR(w, k, groups) {
            if (l == 0)
                embed(p, group_start(p, k), group_rows(p, k));
            else
                after_attention(p, l - 1, group_start(p, k), group_rows(p, k), s);
            before_attention(p, l, group_start(p, k), group_rows(p, k), s);
        }
        team_barrier(w);
        SHARED_FOR(w, h, heads) attend_head(p, l, h, s);
        team_barrier(w);
    }
    SHARED_FOR(w, k, groups) after_attention(p, L - 1, group_start(p, k), group_rows(p, k), s);
    team_barrier(w);
    /* head_and_loss stores partial sums of the last norm's gradients in `partials`. If all layers
     * share one Tiles, the layers overwrite `partials`, but only after these sums are added up. */
    for (long m0 = 0; m0 < MB; m0 += g->head_blocks) {
        const long end = MB - m0 < g->head_blocks ? MB : m0 + g->head_blocks;
        const long first = m0 / g->group, parts = (end + g->group - 1) / g->group - first;
        SHARED_FOR(w, i, parts) {
            const long k = first + i;
            head_and_loss(p, group_start(p, k), group_rows(p, k), 32 * m0, call->scale, s);
        }
        team_barrier(w);
        if (gradients) {
            Gradients list = {matrices, vectors, 1, 0};
            matrices[0] = head_gradient(p, gradients, m0);
            sum_gradients(w, &list, g, end - m0, MB, add_old || m0 > 0);
        }
    }
    if (!gradients) return;
    Gradients last_norm = {matrices, vectors, 0, 0};
    list_last_norm(p, gradients, &last_norm);
    sum_gradients(w, &last_norm, g, MB, MB, add_old);
    for (int l = L - 1; l >= 0; l--) {
        SHARED_FOR(w, k, groups)
        after_attention_backward(p, l, group_start(p, k), group_rows(p, k), s);
        team_barrier(w);
        SHARED_FOR(w, h, shared) attend_heads_backward(p, l, h, s);
        team_barrier(w);
        SHARED_FOR(w, k, groups)
        before_attention_backward(p, l, group_start(p, k), group_rows(p, k), s);
        team_barrier(w);
        Gradients list = {matrices, vectors, 0, 0};
        list_layer(p, l, gradients, &list);
        sum_gradients(w, &list, g, MB, MB, add_old);
    }
    embedding_gradients(p, gradients, add_old, w);
}

static void loss_thread(void *argument, Worker *w) {
    const LossCall *call = argument;
    tiles_begin();
    if (call->span)
        loss_by_sequences(call, w);
    else
        loss_by_layers(call, w);
    tiles_end();
}

/* The number of sequences that a thread takes at once, or 0 if threads take rows of a layer instead
 * of sequences.
 *
 * If threads take sequences, a step has only three barriers in all, so a thread that loses its
 * processor delays the others less. Otherwise a step has six barriers for each layer, and some
 * more. But threads can take sequences only if there are enough sequences for all threads, and in
 * training only if each layer has its own Tiles. Both ways give the same results to the last bit,
 * because no sum depends on groups. */
static long sequences_at_once(const Pass *p) {
    const Model *g = p->g;
    const long rows = 32L * g->group;
    long a = p->T, b = rows;
    while (b) { /* a becomes the greatest common divisor */
        const long rest = a % b;
        a = b, b = rest;
    }
    const long span = rows / a, tasks = (p->B + span - 1) / span;
    if (p->training && !g->keeps_tiles) return 0;
    return g->s.threads == 1 || tasks >= 3L * g->s.threads ? span : 0;
}

/* The sum of the losses of B sequences of T tokens, in nats. B T is at most most_tokens.
 *
 * weights: the float32 parameters that the most recent call of gpt_pack packed. gradients: the
 * array for `scale` times the gradients of this sum. If `add_old`, they are added to the numbers
 * that this array already has. If `gradients` is NULL, only the loss is computed. Dropout depends
 * on `seed`. idx and targets: (B, T). */
double gpt_loss(Model *g, const float *weights, float *gradients, const int64_t *idx,
                const int64_t *targets, int B, int T, uint64_t seed, float scale, int add_old) {
    LossCall call = {{g, weights, idx, targets, B, T, gradients != NULL, (long)B * T, 0, seed},
                     gradients,
                     scale,
                     add_old,
                     0};
    call.pass.MB = (call.pass.M + 31) / 32;
    call.span = sequences_at_once(&call.pass);
    clear_past_end(&call.pass);
    team_run(g->s.threads, loss_thread, &call);
    double sum = 0.0;
    for (long r = 0; r < call.pass.M; r++) sum += g->losses[r];
    return sum;
}
