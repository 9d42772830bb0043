/* Computes the gradients of the parameters from the tiles and partial sums of the backward pass.
 *
 * Dimensions as in model.h. */

#ifndef GPTCLI_GRADIENTS_H
#define GPTCLI_GRADIENTS_H

#include "passes.h"

/* The gradient of a matrix W: dW (N, K) = the transposed gradient at the layer's outputs, times the
 * layer's inputs. N need not be a multiple of 16, the rows of a tile. */
typedef struct {
    float *to;
    /* In bfloat16: A tiles and B tiles. In float32: pieces. The tiles or pieces of a row block
     * follow one another without a gap. */
    const num *outputs, *inputs;
    long output_block, input_block; /* distance between the tiles of two row blocks */
    long N, K;
} MatrixGradient;

/* The gradient of a vector (a gain or a bias). Each row block computes a part of it, and the
 * gradient is the sum of these parts. */
typedef struct {
    float *to;
    const float *partial; /* the part of the first row block */
    long width;
} VectorGradient;

/* Lists of gradients of a layer or of the whole network. */
typedef struct {
    MatrixGradient *matrices;
    VectorGradient *vectors;
    int n_matrices, n_vectors;
} Gradients;

enum { LAYER_MATRICES = 7, LAYER_VECTORS = 12 }; /* the most gradients that a layer has */

/* Computes rows n to n + rows - 1 of a matrix's gradient: a sum over `blocks` row blocks. If
 * `add_old`, adds the sum to the old values. Takes the row blocks in chunks, because tiles are read
 * several times, and the tiles of a chunk stay in the second-level cache. */
static void matrix_rows(const MatrixGradient *a, long n, long rows, long blocks, int add_old) {
    const long chunk = a->K <= 512 ? 16 : 64;
    float piece[32 * 32] __attribute__((aligned(64)));
    for (long m = 0; m < blocks; m += chunk) {
        const int steps = blocks - m < chunk ? blocks - m : chunk, more = add_old || m > 0;
        for (long k = 0; k < a->K; k += 32)
            for (long i = n; i < n + rows && i < a->N; i += 32) {
                const num *A = a->outputs + i / 16 * TILE + m * a->output_block;
                const num *B = a->inputs + k / 16 * TILE + m * a->input_block;
                const long real_rows = a->N - i < 32 ? a->N - i : 32;
                float *C = a->to + i * a->K + k;
                if (real_rows == 32) {
                    multiply_pieces(A, a->output_block, B, a->input_block, steps, C, a->K, more);
                    continue;
                }
                multiply_pieces(A, a->output_block, B, a->input_block, steps, piece, 32, 0);
                for (long r = 0; r < real_rows; r++)
                    for (int j = 0; j < 32; j++)
                        C[r * a->K + j] = piece[32 * r + j] + (more ? C[r * a->K + j] : 0.0f);
            }
    }
}

/* Computes one vector's gradient: the sum of the row blocks' parts, which are `stride` apart. */
static void vector_sum(const VectorGradient *a, long stride, long blocks, int add_old) {
    for (long c = 0; c < a->width; c += 16) {
        f32x16 sum = add_old ? load(a->to + c) : zeros();
        for (long k = 0; k < blocks; k++) sum = add(sum, load(a->partial + k * stride + c));
        store(a->to + c, sum);
    }
}

/* The number of rows of a matrix's gradient that a thread computes at once. */
static long rows_at_once(const MatrixGradient *a, int threads) {
    const long rows = round_up((a->N + 2 * threads - 1) / (2 * threads), 32);
    const long limit = a->K <= 512 ? 256 : 128;
    return rows > limit ? limit : rows;
}

/* Computes all gradients of a list. The gradients of matrices are sums over `blocks` row blocks,
 * and those of vectors are sums over `part_blocks` row blocks. All threads of a team call this.
 * Ends with a barrier. */
static void sum_gradients(Worker *w, const Gradients *g, const Model *model, long blocks,
                          long part_blocks, int add_old) {
    const int threads = model->s.threads;
    long all = 0, begin = 0;
    for (int i = 0; i < g->n_matrices; i++) {
        const long rows = rows_at_once(g->matrices + i, threads);
        all += (g->matrices[i].N + rows - 1) / rows;
    }
    int i = 0;
    SHARED_FOR(w, round, all) { /* in a thread, `round` only grows, so i never goes back */
        long rows = rows_at_once(g->matrices + i, threads);
        while (round >= begin + (g->matrices[i].N + rows - 1) / rows) {
            begin += (g->matrices[i++].N + rows - 1) / rows;
            rows = rows_at_once(g->matrices + i, threads);
        }
        matrix_rows(g->matrices + i, (round - begin) * rows, rows, blocks, add_old);
    }
    SHARED_FOR(w, k, g->n_vectors)
    vector_sum(g->vectors + k, model->partial_width, part_blocks, add_old);
    team_barrier(w);
}

/* A factor of a gradient: tiles in bfloat16; in float32 an array of the passes, in pieces, in which
 * the backward pass has left this factor (see norm_backward, keeps_slopes, layer_dqkv). */
static const num *factor_of(const num *tiles, const num *pieces) {
    return BFLOAT16 ? tiles : pieces;
}

/* Adds the gradients of layer l to a list. `grads` has the same offsets as the weights. */
static void list_layer(const Pass *p, int l, float *grads, Gradients *list) {
    Model *g = p->g;
    const Layer *layer = saved_layer(p, l);
    const Tiles *t = g->tiles + l;
    const int64_t *offset = layer_offsets(g, l);
    const long C = g->s.C, F = g->s.F, Q = g->Q, QKV = g->QKV, KV = (QKV - Q) / 2;
    MatrixGradient *m = list->matrices + list->n_matrices;
    *m++ = (MatrixGradient){grads + offset[DOWN],
                            t->d_down,
                            factor_of(t->act_tiles, layer->hidden),
                            32 * C,
                            32 * (BFLOAT16 ? F : g->F1),
                            C,
                            F};
    const num *up = t->d_up;
    if (g->s.modern) {
        *m++ = (MatrixGradient){
            grads + offset[GATE], up, factor_of(layer->in2, layer->hat2), 32 * g->F1, 32 * C, F, C};
        up += F / 16 * TILE;
    }
    *m++ = (MatrixGradient){
        grads + offset[UP], up, factor_of(layer->in2, layer->hat2), 32 * g->F1, 32 * C, F, C};
    const long begin[3] = {0, Q, Q + KV}, width[3] = {Q, KV, KV};
    for (int i = 0; i < 3; i++)
        *m++ = (MatrixGradient){grads + offset[QUERY + i],
                                factor_of(t->d_qkv, layer->qkv) + begin[i] / 16 * TILE,
                                factor_of(layer->in1, layer->hat1),
                                32 * QKV,
                                32 * C,
                                width[i],
                                C};
    *m++ = (MatrixGradient){grads + offset[OUT],
                            t->d_out,
                            factor_of(t->mixed_tiles, layer->mixed),
                            32 * C,
                            32 * Q,
                            C,
                            Q};
    list->n_matrices = m - list->matrices;
    const Partials partial = partials_at(g, l, 0);
    const struct {
        int64_t offset;
        const float *partial;
        long width;
    } all[] = {
        {offset[LN1], partial.ln1, C},
        {offset[LN1_BIAS], partial.ln1_bias, C},
        {offset[LN2], partial.ln2, C},
        {offset[LN2_BIAS], partial.ln2_bias, C},
        {offset[QUERY_BIAS], partial.qkv, Q},
        {offset[KEY_BIAS], partial.qkv + Q, KV},
        {offset[VALUE_BIAS], partial.qkv + Q + KV, KV},
        {offset[OUT_BIAS], partial.out, C},
        {offset[UP_BIAS], partial.up, F},
        {offset[DOWN_BIAS], partial.down, C},
        {offset[Q_NORM], partial.q_norm, g->s.D},
        {offset[K_NORM], partial.k_norm, g->s.D},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].offset >= 0)
            list->vectors[list->n_vectors++] =
                (VectorGradient){grads + all[i].offset, all[i].partial, all[i].width};
}

/* Adds the gradients of the last norm to a list. */
static void list_last_norm(const Pass *p, float *grads, Gradients *list) {
    const Model *g = p->g;
    const float *partial = g->tiles[g->s.L].partials;
    const long C = g->s.C;
    list->vectors[list->n_vectors++] = (VectorGradient){grads + g->offset[LNF], partial, C};
    if (g->offset[LNF_BIAS] >= 0)
        list->vectors[list->n_vectors++] =
            (VectorGradient){grads + g->offset[LNF_BIAS], partial + C, C};
}

/* The gradient of the head's matrix, for the row blocks from m0 on. */
static MatrixGradient head_gradient(const Pass *p, float *grads, long m0) {
    const Model *g = p->g;
    const long C = g->s.C;
    return (MatrixGradient){grads + g->offset[HEAD],
                            g->d_head,
                            factor_of(g->in, g->hat) + m0 * 32 * C,
                            32 * g->packed[PACKED_PER_LAYER * g->s.L].N,
                            32 * C,
                            g->s.V,
                            C};
}

/* Computes the gradients of token and position embeddings. Each thread computes some of the
 * columns. So one thread adds up all rows of a column, in their order. */
static void embedding_gradients(const Pass *p, float *grads, int add_old, Worker *w) {
    Model *g = p->g;
    const int C = g->s.C;
    const Dropout d = dropout_for(p, DROP_EMBEDDING);
    float *tokens = grads + g->offset[WTE],
          *positions = g->offset[WPE] < 0 ? NULL : grads + g->offset[WPE];
    SHARED_FOR(w, part, C / 16) {
        const long c = 16 * part;
        if (!add_old && !g->s.tied)
            for (long v = 0; v < g->s.V; v++) store(tokens + v * C + c, zeros());
        if (!add_old && positions)
            for (long t = 0; t < g->s.T; t++) store(positions + t * C + c, zeros());
        for (long r = 0; r < p->M; r++) {
            f32x16 y = apply_dropout(d, (uint32_t)(r * C + c), load(g->dx + r * C + c));
            float *to = tokens + p->idx[r] * C + c;
            store(to, add(load(to), y));
            if (!positions) continue;
            to = positions + r % p->T * C + c;
            store(to, add(load(to), y));
        }
    }
}

#endif
