/* The forward and backward pass of a GPT, as functions for a group of rows or a head of a layer.
 *
 * Dimensions as in model.h. A group is one, two or four blocks of 32 rows. A group's rows stay in
 * the cache between two products. Weights that are too large for the cache are read once for the
 * whole group. Groups, heads and rows of gradients are divided among the threads, but no sum is.
 * So no bit of the result depends on the number of threads.
 *
 * A block of the network is computed in three parts, because the middle part needs all rows of a
 * sequence: before_attention (norm, queries, keys, values), attend_head, and after_attention
 * (output projection, feed-forward). x is the residual stream, A the left factor of a product. */

#ifndef GPTCLI_PASSES_H
#define GPTCLI_PASSES_H

#include "../constants.h"
#include "model.h"

/* A pass over one batch: the model, its weights, the batch, and whether a backward pass follows. */
typedef struct {
    Model *g;
    const float *w;
    const int64_t *idx, *targets;
    int B, T, training;
    long M, MB;
    uint64_t seed;
} Pass;

/* The first row of group k. */
static long group_start(const Pass *p, long k) { return 32 * k * p->g->group; }

/* The number of rows of group k, a multiple of 32. */
static int group_rows(const Pass *p, long k) {
    const long left = 32 * p->MB - group_start(p, k), most = 32 * p->g->group;
    return left < most ? left : most;
}

/* Sites of dropout: two in each layer, one after the embedding, and one for the attention weights
 * of each head of each sequence in each layer. */
enum { DROP_OUT, DROP_DOWN, DROP_SITES, DROP_EMBEDDING = 1 << 28, DROP_WEIGHTS = 1 << 29 };

/* The dropout at a site (a place of the network that has dropout). It drops nothing if no backward
 * pass follows. */
static Dropout dropout_for(const Pass *p, uint32_t site) {
    return dropout_at(p->training ? p->g->s.dropout : 0.0f, p->seed, site);
}

/* The address of a parameter, or NULL if the arch does not have it. */
static const float *vector_at(const Pass *p, int64_t offset) {
    return offset < 0 ? NULL : p->w + offset;
}

/* A norm with these parameters: RMSNorm if modern, else LayerNorm. */
static Norm norm_at(const Pass *p, int64_t gain, int64_t bias) {
    return (Norm){p->w + gain, vector_at(p, bias), !p->g->s.modern, p->g->s.norm_eps};
}

/* The saved arrays of layer l. If no backward pass follows, all layers use the arrays of the
 * first layer. */
static Layer *saved_layer(const Pass *p, int l) { return p->g->layers + (p->training ? l : 0); }

/* Where to compute an array that the gradient of a matrix needs. In float32, this is its final
 * place, `packed`. In bfloat16, it is `scratch`, and the array is packed into `packed` later. If no
 * backward pass follows, it is `scratch`, and nothing is packed. */
INLINE num *before_packing(const Pass *p, num *scratch, num *packed) {
    return BFLOAT16 || !p->training ? scratch : packed;
}

/* The panels of a product, and those that the next product reads. */
typedef struct {
    const num *now, *next;
    long next_numbers;
} Panels;

/* out (32, 16 panels) = A (32, 32 steps) times w.now. A is a row block in pieces; it begins with
 * row r of a group of `rows` rows. Rows of `out` are out_row apart. Meanwhile, loads a share of
 * w.next into the cache: together, the row blocks of a group load all of it. */
NOINLINE void piece_of_product(const num *A, int r, int rows, Panels w, int steps, int panels,
                               float *out, long out_row) {
    const long share = w.next_numbers * 32 / rows;
    product_and_prefetch(A, 32, PIECE, w.now, (long)steps * TILE, steps, panels, out, out_row,
                         w.next + r / 32 * share, share);
}

/* out (32, width) = a linear layer's outputs c to c + width - 1 for row block r of a group's A
 * (rows, K). width is a multiple of 32. The row block begins with row r, at A + r * a_width. Rows
 * of `out` are out_row apart. The forward pass uses the matrices in the order of g->packed. */
INLINE void forward_piece(const num *A, long a_width, int r, int rows, const Packed *w, long c,
                          int width, float *out, long out_row) {
    const num *now = w->forward + c * w->K;
    const Panels panels = c + width < w->N ? (Panels){now, now + width * w->K, width * w->K}
                                           : (Panels){now, w[1].forward, 32 * w[1].K};
    piece_of_product(A + r * a_width, r, rows, panels, w->K / 32, width / 16, out, out_row);
}

/* out (32, 32) = the gradient at a linear layer's inputs c to c + 31. A (rows, N) is the gradient
 * at its outputs, of which the product takes row block r. Rows of `out` are out_row apart. The
 * backward pass uses the matrices of g->packed from the last to the first. */
INLINE void backward_piece(const Model *g, const num *A, int r, int rows, const Packed *w, long c,
                           float *out, long out_row) {
    const num *now = w->backward + c * w->N;
    Panels panels = {now, now, 0};
    if (c + 32 < w->K)
        panels = (Panels){now, now + 32 * w->N, 32 * w->N};
    else if (w > g->packed)
        panels = (Panels){now, w[-1].backward, 32 * w[-1].N};
    piece_of_product(A + r * w->N, r, rows, panels, w->N / 32, 2, out, out_row);
}

/* out (rows, K) = the gradient at a linear layer's inputs. A is the gradient at its outputs. */
static void times_backward(const Model *g, const num *A, int rows, const Packed *w, float *out) {
    for (long c = 0; c < w->K; c += 32)
        for (int r = 0; r < rows; r += 32)
            backward_piece(g, A, r, rows, w, c, out + r * w->K + c, w->K);
}

/* x (rows, C) += dropout(A W^T + bias). Dropout needs r0: row 0 of x is row r0 of the batch. */
static void add_branch(float *x, const num *A, long a_width, const Packed *w, const float *bias,
                       int rows, Dropout d, long r0) {
    const long C = w->N;
    float piece[32 * 32] __attribute__((aligned(64)));
    for (long c = 0; c < C; c += 32)
        for (int r = 0; r < rows; r += 32) {
            forward_piece(A, a_width, r, rows, w, c, 32, piece, 32);
            for (int i = 0; i < 32; i++)
                for (int j = 0; j < 32; j += 16) {
                    float *to = x + (r + i) * C + c + j;
                    f32x16 y = load(piece + 32 * i + j);
                    if (bias) y = add(y, load(bias + c + j));
                    y = apply_dropout(d, (uint32_t)((r0 + r + i) * C + c + j), y);
                    store(to, add(load(to), y));
                }
        }
}

/* x = dropout(token embedding + position embedding), for `rows` rows from r0 on. Padding rows
 * become 0. */
static void embed(const Pass *p, long r0, int rows) {
    Model *g = p->g;
    const int C = g->s.C;
    const Dropout d = dropout_for(p, DROP_EMBEDDING);
    for (long r = r0; r < r0 + rows; r++) {
        float *x = g->x + r * C;
        if (r >= p->M) {
            memset(x, 0, C * sizeof(float));
            continue;
        }
        const float *token = p->w + g->offset[WTE] + p->idx[r] * C;
        const float *position = g->offset[WPE] < 0 ? NULL : p->w + g->offset[WPE] + r % p->T * C;
        for (int c = 0; c < C; c += 16) {
            f32x16 y = load(token + c);
            if (position) y = add(y, load(position + c));
            store(x + c, apply_dropout(d, (uint32_t)(r * C + c), y));
        }
    }
}

/* A part of qkv. `which` is 0 for queries, 1 for keys and 2 for values. `begin` is the part's first
 * column. */
typedef struct {
    int which, begin;
} Columns;

/* The part of qkv that contains column c. */
static Columns columns_at(const Model *g, int c) {
    const int Q = g->Q, KV = (g->QKV - Q) / 2;
    return c < Q ? (Columns){0, 0} : c < Q + KV ? (Columns){1, Q} : (Columns){2, Q + KV};
}

/* Computes queries, keys and values from norm(x), into layer->qkv, for `rows` rows from r0 on. */
static void before_attention(const Pass *p, int l, long r0, int rows, ThreadScratch *s) {
    Model *g = p->g;
    Layer *layer = saved_layer(p, l);
    const int64_t *offset = layer_offsets(g, l);
    const int C = g->s.C, D = g->s.D, Q = g->Q, QKV = g->QKV, heads = g->s.H + g->s.K;
    num *const in = s->rows_c;
    norm_forward(g->x + r0 * C, rows, C, norm_at(p, offset[LN1], offset[LN1_BIAS]),
                 layer->hat1 + r0 * C, layer->scale1 + r0, in);
    if (BFLOAT16 && p->training) pack_b_pieces(in, (long)rows * C, layer->in1 + r0 * C);
    const Packed *w = g->packed + PACKED_PER_LAYER * l;
    /* A rotation works on whole heads and a product on 32 columns, so the width is a common
     * multiple of D and 32. */
    const int width = !g->s.modern || 32 % D == 0 ? 32 : D % 32 == 0 ? D : 2 * D;
    float piece[32 * 1024] __attribute__((aligned(64)));
    for (int c = 0; c < QKV; c += width)
        for (int r = 0; r < rows; r += 32) {
            const Columns part = columns_at(g, c);
            const float *bias = vector_at(p, offset[QUERY_BIAS + part.which]);
            /* In float32, outputs without a bias or a rotation are stored at once. */
            const int final = !BFLOAT16 && !g->s.modern && !bias;
            float *product = final ? (float *)(layer->qkv + in_pieces(r0 + r, c, QKV)) : piece;
            forward_piece(in, C, r, rows, w + PACKED_QKV, c, width, product, width);
            if (final) continue;
            for (int i = 0; i < 32; i++) {
                const long row = r0 + r + i;
                const float *out = piece + i * width;
                if (g->s.modern && c < heads * D) {
                    const long t = row % p->T * (D / 2);
                    for (int h = 0; h < width; h += D) {
                        num copy[512] __attribute__((aligned(64)));
                        num *to = 32 % D == 0 ? layer->qkv + in_pieces(row, c + h, QKV) : copy;
                        if (g->s.qk_norm)
                            norm_rotate(out + h, D, p->w + offset[c < Q ? Q_NORM : K_NORM],
                                        g->s.norm_eps, g->cos + t, g->sin + t,
                                        layer->qk_hat + row * heads * D + c + h,
                                        layer->qk_scale + row * heads + (c + h) / D, to);
                        else
                            rotate(out + h, D, g->cos + t, g->sin + t, to);
                        for (int j = 0; j < (to == copy ? D : 0); j += 16)
                            store_num(layer->qkv + in_pieces(row, c + h + j, QKV),
                                      load_num(copy + j));
                    }
                    continue;
                }
                for (int j = 0; j < width; j += 16) {
                    f32x16 v = load(out + j);
                    if (bias) v = add(v, load(bias + c - part.begin + j));
                    store_num(layer->qkv + in_pieces(row, c + j, QKV), v);
                }
            }
        }
}

/* The dropout of a head's attention weights. */
static Dropout dropout_for_weights(const Pass *p, int l, long head) {
    return dropout_for(p, DROP_WEIGHTS + (uint32_t)(((long)l * p->B) * p->g->s.H + head));
}

/* The part of qkv, or of its gradient, that belongs to a head of the sequence of row r. h counts
 * the heads of queries, k those of keys and values. */
static HeadPart queries_of(const Model *g, num *qkv, long r, int h) {
    return (HeadPart){qkv, r, h * g->s.D, g->QKV};
}

static HeadPart keys_of(const Model *g, num *qkv, long r, int k) {
    return (HeadPart){qkv, r, g->Q + k * g->s.D, g->QKV};
}

static HeadPart values_of(const Model *g, num *qkv, long r, int k) {
    return keys_of(g, qkv, r, g->s.K + k);
}

/* Computes layer->mixed from layer->qkv, for one head of one sequence (head = b H + h). */
static void attend_head(const Pass *p, int l, long head, ThreadScratch *s) {
    Model *g = p->g;
    Layer *layer = saved_layer(p, l);
    const int H = g->s.H, D = g->s.D, h = head % H, group = H / g->s.K;
    const long r0 = head / H * p->T;
    attention_forward(queries_of(g, layer->qkv, r0, h), keys_of(g, layer->qkv, r0, h / group),
                      values_of(g, layer->qkv, r0, h / group), p->T, D,
                      (HeadPart){layer->mixed, r0, h * D, g->Q}, layer->log2_sum_exp + head * p->T,
                      dropout_for_weights(p, l, head), &s->attention);
}

/* Whether the forward pass keeps what the backward pass needs of the activation function: its
 * results in `hidden`, and its slopes in `d_up`, where the gradients will be. Otherwise the forward
 * pass keeps the inputs in `hidden`, and the backward pass computes results and slopes again. In
 * bfloat16, kept slopes would be rounded. */
static int keeps_slopes(const Pass *p) { return !BFLOAT16 && p->training && p->g->keeps_tiles; }

/* x += output projection of layer->mixed; then x += feed-forward(norm(x)). Both for `rows` rows
 * from r0 on. */
static void after_attention(const Pass *p, int l, long r0, int rows, ThreadScratch *s) {
    Model *g = p->g;
    Layer *layer = saved_layer(p, l);
    const int64_t *offset = layer_offsets(g, l);
    const Packed *w = g->packed + PACKED_PER_LAYER * l;
    const int C = g->s.C, F = g->s.F, F1 = g->F1, Q = g->Q;
    float *x = g->x + r0 * C;
    prefetch_l2(layer->mixed + r0 * Q, rows * Q * sizeof(num));
    add_branch(x, layer->mixed + r0 * Q, Q, w + PACKED_OUT, vector_at(p, offset[OUT_BIAS]), rows,
               dropout_for(p, l * DROP_SITES + DROP_OUT), r0);
    num *const in = s->rows_c;
    norm_forward(x, rows, C, norm_at(p, offset[LN2], offset[LN2_BIAS]), layer->hat2 + r0 * C,
                 layer->scale2 + r0, in);
    if (BFLOAT16 && p->training) pack_b_pieces(in, (long)rows * C, layer->in2 + r0 * C);
    const float *bias = vector_at(p, offset[UP_BIAS]);
    const int keep = keeps_slopes(p);
    float z[32 * 32] __attribute__((aligned(64))), u[32 * 32] __attribute__((aligned(64)));
    for (int f = 0; f < F; f += 32)
        for (int r = 0; r < rows; r += 32) {
            forward_piece(in, C, r, rows, w + PACKED_UP, f, 32, z, 32);
            if (g->s.modern) forward_piece(in, C, r, rows, w + PACKED_UP, F + f, 32, u, 32);
            const long begin = (r0 + r) * F1 + f * 32;
            num *const kept = layer->hidden + begin, *const slopes = g->tiles[l].d_up + begin;
            for (int i = 0; i < PIECE; i += 16) {
                f32x16 in1 = load(z + i), in2 = zeros(), act, silu = zeros(), slope;
                if (g->s.modern) {
                    in2 = load(u + i);
                    swiglu(in1, in2, &act, &silu, &slope);
                } else {
                    if (bias) in1 = add(in1, load(bias + f + i % 32));
                    gelu(in1, &act, &slope);
                }
                store_num(kept + i, keep ? act : in1);
                if (g->s.modern) store_num(kept + 32 * F + i, in2);
                if (!keep) {
                    store_num(s->rows_f + r * F + f * 32 + i, act);
                    continue;
                }
                store_num(slopes + i, slope);
                if (g->s.modern) store_num(slopes + 32 * F + i, silu);
            }
        }
    add_branch(x, keep ? layer->hidden + r0 * F1 : s->rows_f, keep ? F1 : F, w + PACKED_DOWN,
               vector_at(p, offset[DOWN_BIAS]), rows, dropout_for(p, l * DROP_SITES + DROP_DOWN),
               r0);
}

/* Computes the last norm, the logits, and the loss of each row (into g->losses), for `rows` rows
 * from r0 on. In training it also computes three gradients, each times `scale`:
 *
 *   g->d_head       at the logits, transposed; it begins with row `from` of the batch
 *   g->dx           at the residual stream
 *   partials        of the last norm's parameters: for each row block, C numbers for the gain, and
 *                   C for the bias if there is one */
static void head_and_loss(const Pass *p, long r0, int rows, long from, float scale,
                          ThreadScratch *s) {
    Model *g = p->g;
    const Packed *w = g->packed + PACKED_PER_LAYER * g->s.L;
    const int C = g->s.C, V = g->s.V;
    const long Vp = w->N;
    const Norm n = norm_at(p, g->offset[LNF], g->offset[LNF_BIAS]);
    num *const in = s->rows_c;
    num *const d = before_packing(p, s->rows_wide, g->d_head + (r0 - from) * Vp);
    norm_forward(g->x + r0 * C, rows, C, n, g->hat + r0 * C, g->scale + r0, in);
    for (long v = 0; v < Vp; v += 32)
        for (int r = 0; r < rows; r += 32)
            product(in + r * C, 32, PIECE, w->forward + v / 16 * (C / 32 * TILE), C / 32 * TILE,
                    C / 32, 2, s->logits + r * Vp + v, Vp);
    if (BFLOAT16 && p->training) pack_b_pieces(in, (long)rows * C, g->in + r0 * C);
    for (int i = 0; i < rows; i++) {
        const float *z = s->logits + i * Vp;
        const long r = r0 + i;
        if (r >= p->M) {
            for (long v = 0; v < Vp; v += 16) store_num(d + in_pieces(i, v, Vp), zeros());
            continue;
        }
        f32x16 largest = broadcast(-INFINITY), sum = zeros();
        for (int v = 0; v < V; v += 16)
            largest = maximum(largest, blend(first_lanes(V - v), load(z + v), largest));
        const float top = max_lane(largest);
        const f32x16 shift = broadcast(top);
        for (int v = 0; v < V; v += 16)
            sum = add(sum, keep(first_lanes(V - v), vexp(sub(load(z + v), shift))));
        const float total = sum_lanes(sum), target_logit = z[p->targets[r]];
        g->losses[r] = logf(total) + top - target_logit;
        if (!p->training) continue;
        /* The gradient at the logits is softmax(z), minus 1 at the target. */
        const f32x16 factor = broadcast(scale / total);
        for (int v = 0; v < Vp; v += 16) {
            f32x16 e = vexp(sub(load(z + v), shift));
            store_num(d + in_pieces(i, v, Vp), keep(first_lanes(V - v), mul(e, factor)));
        }
        const float hit = (expf(target_logit - top) / total - 1.0f) * scale;
        store_first_num(d + in_pieces(i, p->targets[r], Vp), 1, broadcast(hit));
    }
    if (!p->training) return;
    pack_a_pieces_transposed(d, (long)rows * Vp, g->d_head + (r0 - from) * Vp);
    times_backward(g, d, rows, w, s->d_norm);
    for (int r = 0; r < rows; r += 32) {
        const long row = r0 + r;
        float *partial = g->tiles[g->s.L].partials + row / 32 * g->partial_width;
        norm_backward(s->d_norm + r * C, 32, C, n, g->hat + row * C, g->scale + row,
                      g->dx + row * C, 0, partial, n.bias ? partial + C : NULL);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Computes the gradient at the output of a branch before its dropout. dx is the gradient after the
 * dropout. Returns the result in pieces, in `scratch` or in `packed` (see before_packing). `packed`
 * gets its transpose as A tiles. */
static const num *branch_gradient(const Pass *p, const float *dx, int rows, Dropout d, long r0,
                                  num *scratch, num *packed) {
    const int C = p->g->s.C;
    num *out = before_packing(p, scratch, packed);
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < C; c += 16)
            store_num(out + in_pieces(i, c, C),
                      apply_dropout(d, (uint32_t)((r0 + i) * C + c), load(dx + i * C + c)));
    pack_a_pieces_transposed(out, (long)rows * C, packed);
    return out;
}

/* Where a row block stores what it contributes to the gradients of a layer's vectors. */
typedef struct {
    float *qkv, *up, *out, *down, *ln1, *ln1_bias, *ln2, *ln2_bias, *q_norm, *k_norm;
} Partials;

/* The Partials of layer l for the row block of row r. They lie at the same place for every size of
 * groups. */
static Partials partials_at(const Model *g, int l, long r) {
    const int C = g->s.C;
    float *start = g->tiles[l].partials + r / 32 * g->partial_width;
    Partials a;
    a.qkv = start, a.up = a.qkv + g->QKV, a.out = a.up + g->F1, a.down = a.out + C;
    a.ln1 = a.down + C, a.ln1_bias = a.ln1 + C, a.ln2 = a.ln1_bias + C, a.ln2_bias = a.ln2 + C;
    a.q_norm = a.ln2_bias + C, a.k_norm = a.q_norm + g->s.D;
    return a;
}

/* The backward pass of after_attention: computes dmixed from dx, adds the feed-forward's gradient
 * to dx, and packs tiles for the gradients of weights. */
static void after_attention_backward(const Pass *p, int l, long r0, int rows, ThreadScratch *s) {
    Model *g = p->g;
    Layer *layer = saved_layer(p, l);
    const int64_t *offset = layer_offsets(g, l);
    const Packed *w = g->packed + PACKED_PER_LAYER * l;
    const int C = g->s.C, F = g->s.F, F1 = g->F1, Q = g->Q;
    float *dx = g->dx + r0 * C;
    if (BFLOAT16) prefetch_l2(layer->mixed + r0 * Q, rows * Q * sizeof(num));
    const num *d_down = branch_gradient(p, dx, rows, dropout_for(p, l * DROP_SITES + DROP_DOWN), r0,
                                        s->rows_c, g->tiles[l].d_down + r0 * C);
    if (offset[DOWN_BIAS] >= 0)
        for (int r = 0; r < rows; r += 32)
            column_sums(d_down + r * C, 32, C, partials_at(g, l, r0 + r).down);
    float piece[32 * 32] __attribute__((aligned(64)));
    num *d = before_packing(p, s->rows_wide, g->tiles[l].d_up + r0 * F1);
    const int keep = keeps_slopes(p);
    for (int f = 0; f < F; f += 32)
        for (int r = 0; r < rows; r += 32) {
            backward_piece(g, d_down, r, rows, w + PACKED_DOWN, f, piece, 32);
            num *const kept = layer->hidden + (r0 + r) * F1 + f * 32;
            num *const acts = BFLOAT16 ? s->rows_f + r * F + f * 32 : kept;
            num *const to = d + (long)r * F1 + f * 32;
            for (int i = 0; i < PIECE; i += 16) {
                const f32x16 da = load(piece + i);
                f32x16 act = zeros(), silu = act, u = act, slope;
                if (g->s.modern) u = load_num(kept + 32 * F + i);
                if (keep) {
                    slope = load_num(to + i);
                    if (g->s.modern) silu = load_num(to + 32 * F + i);
                } else {
                    if (g->s.modern)
                        swiglu(load_num(kept + i), u, &act, &silu, &slope);
                    else
                        gelu(load_num(kept + i), &act, &slope);
                    store_num(acts + i, act);
                }
                store_num(to + i, mul(g->s.modern ? mul(da, u) : da, slope));
                if (g->s.modern) store_num(to + 32 * F + i, mul(da, silu));
            }
        }
    if (BFLOAT16) /* in float32, the activations have replaced `hidden` */
        pack_b_pieces(s->rows_f, (long)rows * F, g->tiles[l].act_tiles + r0 * F);
    pack_a_pieces_transposed(d, (long)rows * F1, g->tiles[l].d_up + r0 * F1);
    times_backward(g, d, rows, w + PACKED_UP, s->d_norm);
    for (int r = 0; r < rows; r += 32) {
        const Partials partial = partials_at(g, l, r0 + r);
        if (offset[UP_BIAS] >= 0) column_sums(d + (long)r * F1, 32, F1, partial.up);
        norm_backward(s->d_norm + r * C, 32, C, norm_at(p, offset[LN2], offset[LN2_BIAS]),
                      layer->hat2 + (r0 + r) * C, layer->scale2 + r0 + r, dx + r * C, 1,
                      partial.ln2, offset[LN2_BIAS] >= 0 ? partial.ln2_bias : NULL);
    }
    const num *d_out = branch_gradient(p, dx, rows, dropout_for(p, l * DROP_SITES + DROP_OUT), r0,
                                       s->rows_c, g->tiles[l].d_out + r0 * C);
    if (offset[OUT_BIAS] >= 0)
        for (int r = 0; r < rows; r += 32)
            column_sums(d_out + r * C, 32, C, partials_at(g, l, r0 + r).out);
    if (BFLOAT16) /* in float32, the gradients read `mixed` itself */
        pack_b_pieces(layer->mixed + r0 * Q, (long)rows * Q, g->tiles[l].mixed_tiles + r0 * Q);
    for (int c = 0; c < Q; c += 32)
        for (int r = 0; r < rows; r += 32) {
            num *to = g->dmixed + (r0 + r) * Q + c;
            if (!BFLOAT16) {
                backward_piece(g, d_out, r, rows, w + PACKED_OUT, c, (float *)to, Q);
                continue;
            }
            backward_piece(g, d_out, r, rows, w + PACKED_OUT, c, piece, 32);
            for (int i = 0; i < 32; i++)
                for (int j = 0; j < 32; j += 16)
                    store_num(to + i * Q + j, load(piece + 32 * i + j));
        }
}

/* The gradient at layer->qkv, in pieces. In bfloat16, all layers use the same array. In float32,
 * the gradient replaces layer->qkv. */
static num *layer_dqkv(const Pass *p, int l) {
    return BFLOAT16 ? p->g->dqkv : saved_layer(p, l)->qkv;
}

/* The backward pass of attend_head for all heads that share keys and values. Computes dqkv of
 * these heads from dmixed. shared = b K + k. */
static void attend_heads_backward(const Pass *p, int l, long shared, ThreadScratch *s) {
    Model *g = p->g;
    Layer *layer = saved_layer(p, l);
    const int K = g->s.K, k = shared % K, group = g->s.H / K;
    const long r0 = shared / K * p->T;
    num *const d = layer_dqkv(p, l);
    for (int i = 0; i < group; i++) {
        const int h = k * group + i;
        const long head = shared / K * g->s.H + h, first = h * g->s.D;
        attention_backward(queries_of(g, layer->qkv, r0, h), keys_of(g, layer->qkv, r0, k),
                           values_of(g, layer->qkv, r0, k), p->T, g->s.D,
                           (HeadPart){layer->mixed, r0, first, g->Q}, g->dmixed + r0 * g->Q + first,
                           g->Q, layer->log2_sum_exp + head * p->T, dropout_for_weights(p, l, head),
                           queries_of(g, d, r0, h), keys_of(g, d, r0, k), values_of(g, d, r0, k),
                           i > 0, i == group - 1, &s->attention);
    }
}

/* The backward pass of before_attention: adds to dx the gradient that comes from dqkv, and packs
 * tiles for the gradients of weights. */
static void before_attention_backward(const Pass *p, int l, long r0, int rows, ThreadScratch *s) {
    Model *g = p->g;
    Layer *layer = saved_layer(p, l);
    const int64_t *offset = layer_offsets(g, l);
    const int C = g->s.C, D = g->s.D, Q = g->Q, QKV = g->QKV, heads = g->s.H + g->s.K;
    num *d = layer_dqkv(p, l) + r0 * QKV;
    prefetch_l2(d, rows * QKV * sizeof(num));
    clear_rows(d, p->M - r0, rows, QKV);
    if (g->s.modern) {
        Partials partial = partials_at(g, l, r0);
        for (int i = 0; i < rows; i++) {
            if (i % 32 == 0) {
                partial = partials_at(g, l, r0 + i);
                memset(partial.q_norm, 0, 2 * D * sizeof(float));
            }
            const long t = (r0 + i) % p->T * (D / 2);
            for (int c = 0; c < heads * D; c += D) {
                num copy[512] __attribute__((aligned(64)));
                num *head = 32 % D == 0 ? d + in_pieces(i, c, QKV) : copy;
                if (head == copy)
                    for (int j = 0; j < D; j += 16)
                        store_num(copy + j, load_num(d + in_pieces(i, c + j, QKV)));
                if (g->s.qk_norm)
                    norm_rotate_backward(head, D, p->w + offset[c < Q ? Q_NORM : K_NORM],
                                         g->cos + t, g->sin + t,
                                         layer->qk_hat + (r0 + i) * heads * D + c,
                                         layer->qk_scale[(r0 + i) * heads + c / D], head,
                                         c < Q ? partial.q_norm : partial.k_norm);
                else
                    rotate_back(head, D, g->cos + t, g->sin + t);
                if (head == copy)
                    for (int j = 0; j < D; j += 16)
                        store_num(d + in_pieces(i, c + j, QKV), load_num(copy + j));
            }
        }
    }
    if (BFLOAT16) pack_a_pieces_transposed(d, (long)rows * QKV, g->tiles[l].d_qkv + r0 * QKV);
    times_backward(g, d, rows, g->packed + PACKED_PER_LAYER * l + PACKED_QKV, s->d_norm);
    for (int r = 0; r < rows; r += 32) {
        const Partials partial = partials_at(g, l, r0 + r);
        if (offset[QUERY_BIAS] >= 0) column_sums(d + (long)r * QKV, 32, QKV, partial.qkv);
        norm_backward(s->d_norm + r * C, 32, C, norm_at(p, offset[LN1], offset[LN1_BIAS]),
                      layer->hat1 + (r0 + r) * C, layer->scale1 + r0 + r, g->dx + (r0 + r) * C, 1,
                      partial.ln1, offset[LN1_BIAS] >= 0 ? partial.ln1_bias : NULL);
    }
}

#endif
