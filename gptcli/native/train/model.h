/* The shape of a GPT in training, its packed weights, and the memory of a training step.
 *
 * B sequences of T tokens, M = B T rows in MB blocks of 32, L layers, C channels, H heads of
 * queries, K heads of keys and values (each serves H / K heads of queries), D the width of a head,
 * Q = H D, QKV = (H + 2 K) D, F the feed-forward's hidden width, F1 the width of its first product
 * (2 F with a gate), V vocabulary. Vp is V rounded up to a multiple of 32. Weights and gradients
 * are float32, in two arrays with the same offsets. Matrices are (outputs, inputs), as in
 * torch.nn.Linear. "modern" and "gpt2" are the two archs. */

#ifndef GPTCLI_MODEL_H
#define GPTCLI_MODEL_H

#include <stdlib.h>
#include <sys/mman.h>

#include "attention.h"
#include "../constants.h"
#include "../parameters.h"
#include "../threads.h"

/* The shape that Python passes. Shape in library.py mirrors this struct. T is the length of the
 * longest sequence. */
typedef struct {
    int32_t modern, qk_norm, tied, L, H, K, D, C, F, V, T, threads;
    float dropout, norm_eps;
    int64_t most_tokens;
    double rope_theta;
} Shape;

/* library.py compares this size with that of Shape. */
int shape_bytes(void) { return sizeof(Shape); }

/* One linear layer's weights, packed twice as B tiles: `forward` (K, N) for the outputs,
 * `backward` (N, K) for the gradient at the inputs. */
typedef struct {
    long N, K; /* N: outputs, rounded up to a multiple of 32; K: inputs */
    num *forward, *backward;
} Packed;

/* The packed matrices of a layer. QKV: query, key and value together. OUT: the output projection of
 * attention. UP: the first matrix of the feed-forward, and the gate's matrix if there is a gate.
 * DOWN: the second matrix of the feed-forward. */
enum { PACKED_QKV, PACKED_OUT, PACKED_UP, PACKED_DOWN, PACKED_PER_LAYER };

/* Arrays that a layer keeps for the backward pass. They are stored in rows, except the arrays
 * marked "in pieces" (numbers.h) or "B tiles". In float32, pieces serve as B tiles. */
typedef struct {
    num *hat1, *hat2; /* (M, C), in pieces: the norms' inputs, normalised (see norm_backward) */
    num *in1, *in2;   /* (M, C), B tiles, only in bfloat16: outputs of the norms */
    num *qkv;         /* (M, QKV), in pieces: queries, keys, values */
    num *qk_hat;      /* (M, (H + K) D), with QK-norm: normalised queries and keys */
    num *mixed;       /* (M, Q), in pieces: the heads' outputs */
    num *hidden;      /* (M, F1), in pieces: inputs or results of the activation (keeps_slopes) */
    float *scale1, *scale2; /* (M): the norms' scales */
    float *qk_scale;        /* (M, H + K): the scales of QK-norm */
    float *log2_sum_exp;    /* (B, H, T): see attention.h */
} Layer;

/* The arrays from which the gradients of a layer's weights are computed. In float32, they are
 * stored in pieces, and those marked "bfloat16" do not exist (see factor_of in gradients.h). */
typedef struct {
    num *d_out, *d_up, *d_down;   /* gradients at outputs, transposed, as A tiles */
    num *d_qkv;                   /* bfloat16: the same for qkv */
    num *mixed_tiles, *act_tiles; /* bfloat16: inputs of out and down, as B tiles */
    float *partials; /* for each row block, its part of the vectors' gradients (passes.h) */
} Tiles;

/* A thread's scratch for a group of rows. */
typedef struct {
    AttentionScratch attention;
    float *logits;  /* (rows, Vp) */
    float *d_norm;  /* (rows, C): the gradient at a norm's output */
    num *rows_c;    /* (rows, C), in pieces */
    num *rows_f;    /* (rows, F), in pieces */
    num *rows_wide; /* (rows, F1 or Vp), in pieces */
} ThreadScratch;

enum {
    /* Each layer has its own Tiles only if the Tiles of all layers but one have together at most
     * these bytes. */
    MOST_TILES = 256 << 20,
    /* If the weights of a layer have more bytes than this, a group can have several row blocks. */
    LARGE_WEIGHTS = BFLOAT16 ? 1 << 20 : 256 << 10,
};

/* A GPT in training. */
typedef struct {
    Shape s;
    int Q, QKV, F1;  /* F1: F, or 2 F with a gate */
    int group;       /* blocks of 32 rows that a thread takes at once */
    long blocks;     /* blocks of 32 rows for which the arrays have room */
    int64_t *offset; /* where a parameter begins in weights and gradients (parameters.h), or -1 */
    Packed *packed;  /* PACKED_PER_LAYER per layer, then the head */
    Layer *layers;
    float *cos, *sin;       /* (T, D / 2) */
    float *x, *dx, *losses; /* (M, C) residual stream, (M, C) its gradient, (M) */
    num *hat, *in;
    float *scale;     /* hat, in and scale of the last norm */
    num *dqkv;        /* (M, QKV), in pieces; only in bfloat16: in float32 it replaces layer->qkv */
    num *dmixed;      /* (M, Q) */
    num *d_head;      /* gradients at the logits, transposed, as A tiles */
    long head_blocks; /* number of row blocks whose gradients at the logits fit into d_head */
    int keeps_tiles;  /* whether each layer has its own Tiles; if not, all use tiles[0] */
    Tiles *tiles;     /* one for each layer; then one with the last norm's partials */
    long partial_width;
    ThreadScratch *scratch;
    char *memory;
    size_t bytes;
} Model;

/* The offsets of layer l's parameters. */
static int64_t *layer_offsets(Model *g, int l) { return g->offset + GLOBALS + (long)l * PER_LAYER; }

/* Returns the number of bytes of all arrays. If `start` is not NULL, also places the arrays in the
 * memory at `start`. */
static size_t lay_out(Model *g, char *start) {
    const Shape s = g->s;
    const long rows = 32 * (g->blocks + 1), C = s.C, MB = g->blocks, Vp = round_up(s.V, 32);
    const long Q = g->Q, QKV = g->QKV;
    const long group = 32L * g->group;
    size_t used = 0;
#define TAKE(to, n)                                                                                \
    ((to) = (void *)(start ? start + used : NULL), used += round_up((n) * sizeof *(to), ALIGNMENT))
    for (int l = 0; l < s.L; l++) {
        Packed *p = g->packed + PACKED_PER_LAYER * l;
        const long N[PACKED_PER_LAYER] = {QKV, C, g->F1, C}, K[PACKED_PER_LAYER] = {C, Q, C, s.F};
        for (int i = 0; i < PACKED_PER_LAYER; i++) {
            p[i].N = N[i], p[i].K = K[i];
            TAKE(p[i].forward, N[i] * K[i]);
            TAKE(p[i].backward, N[i] * K[i]);
        }
        Layer *layer = g->layers + l;
        TAKE(layer->hat1, rows * C);
        if (BFLOAT16) TAKE(layer->in1, MB * 32 * C);
        TAKE(layer->scale1, rows);
        if (s.qk_norm) {
            TAKE(layer->qk_hat, rows * (s.H + s.K) * s.D);
            TAKE(layer->qk_scale, rows * (s.H + s.K));
        }
        TAKE(layer->qkv, rows * QKV);
        TAKE(layer->log2_sum_exp, rows * s.H);
        TAKE(layer->mixed, rows * Q);
        TAKE(layer->hat2, rows * C);
        if (BFLOAT16) TAKE(layer->in2, MB * 32 * C);
        TAKE(layer->scale2, rows);
        TAKE(layer->hidden, rows * g->F1);
    }
    Packed *last = g->packed + PACKED_PER_LAYER * s.L;
    last->N = Vp, last->K = C;
    TAKE(last->forward, Vp * C);
    TAKE(last->backward, Vp * C);
    TAKE(g->cos, (long)s.T * s.D / 2);
    TAKE(g->sin, (long)s.T * s.D / 2);
    TAKE(g->x, rows * C);
    TAKE(g->dx, rows * C);
    TAKE(g->losses, rows);
    TAKE(g->hat, rows * C);
    if (BFLOAT16) TAKE(g->in, MB * 32 * C);
    TAKE(g->scale, rows);
    if (BFLOAT16) TAKE(g->dqkv, rows * QKV);
    TAKE(g->dmixed, rows * Q);
    TAKE(g->d_head, g->head_blocks * 32 * Vp);
    g->partial_width = QKV + 6 * C + g->F1 + 2 * s.D; /* the fields of Partials, passes.h */
    for (int l = 0; l <= s.L; l++) {
        Tiles *t = g->tiles + l;
        if (l > 0 && !g->keeps_tiles) {
            *t = g->tiles[0];
            continue;
        }
        TAKE(t->partials, MB * g->partial_width);
        if (l == s.L) continue;
        TAKE(t->d_out, MB * 32 * C);
        TAKE(t->d_up, MB * 32 * g->F1);
        TAKE(t->d_down, MB * 32 * C);
        if (!BFLOAT16) continue;
        TAKE(t->d_qkv, MB * 32 * QKV);
        TAKE(t->mixed_tiles, MB * 32 * Q);
        TAKE(t->act_tiles, MB * 32 * s.F);
    }
    for (int i = 0; i < s.threads; i++) {
        ThreadScratch *t = g->scratch + i;
        TAKE(t->logits, group * Vp);
        TAKE(t->rows_c, group * C);
        TAKE(t->rows_f, group * s.F);
        TAKE(t->rows_wide, group * (Vp > g->F1 ? Vp : g->F1));
        TAKE(t->d_norm, group * C);
        char *from = start ? start + used : NULL;
        used += attention_scratch(&t->attention, from, s.T, s.D);
    }
#undef TAKE
    return used;
}

/* ---- packing weights ------------------------------------------------------------------------- */

/* Packs rows n to n + 31 of W (N, K). `backward` can hold several matrices, one below the other.
 * Together they have `steps` row blocks, and the row blocks of W begin at number `from`. */
static void pack_matrix_rows(const float *W, long N, long K, long n, num *forward, num *backward,
                             long steps, long from) {
    num copy[32 * 32] __attribute__((aligned(64)));
    for (long k = 0; k < K; k += 32) {
        const num *piece = copy;
        long row = 32;
        if (!BFLOAT16 && n + 32 <= N)
            piece = (const num *)(W + n * K + k), row = K;
        else
            for (int i = 0; i < 32; i++)
                for (int j = 0; j < 32; j += 16)
                    store_num(copy + 32 * i + j,
                              n + i < N ? load(W + (n + i) * K + k + j) : zeros());
        for (int i = 0; i < 2; i++)
            pack_b16_transposed(piece + 16 * i * row, row, 32,
                                forward + ((n / 16 + i) * (K / 32) + k / 32) * TILE);
        pack_b32(piece, row, 32, backward + (k / 16 * steps + from + n / 32) * TILE, steps * TILE);
    }
}

/* A matrix W of the network. Its row blocks begin at row block `from` of `packed`. */
typedef struct {
    int64_t offset;
    long N, from;
    Packed *packed;
} WeightBlock;

/* Lists all matrices of the network in `out`: at most 7 per layer, and the head. Returns their
 * number. */
static int weight_blocks(Model *g, WeightBlock *out) {
    const long C = g->s.C, F = g->s.F;
    int n = 0;
    for (int l = 0; l < g->s.L; l++) {
        const int64_t *offset = layer_offsets(g, l);
        Packed *p = g->packed + PACKED_PER_LAYER * l;
        const long Q = g->Q, KV = (g->QKV - Q) / 2;
        out[n++] = (WeightBlock){offset[QUERY], Q, 0, p + PACKED_QKV};
        out[n++] = (WeightBlock){offset[KEY], KV, Q / 32, p + PACKED_QKV};
        out[n++] = (WeightBlock){offset[VALUE], KV, (Q + KV) / 32, p + PACKED_QKV};
        out[n++] = (WeightBlock){offset[OUT], C, 0, p + PACKED_OUT};
        if (g->s.modern) out[n++] = (WeightBlock){offset[GATE], F, 0, p + PACKED_UP};
        out[n++] = (WeightBlock){offset[UP], F, g->s.modern ? F / 32 : 0, p + PACKED_UP};
        out[n++] = (WeightBlock){offset[DOWN], C, 0, p + PACKED_DOWN};
    }
    out[n++] = (WeightBlock){g->offset[HEAD], g->s.V, 0, g->packed + PACKED_PER_LAYER * g->s.L};
    return n;
}

/* What gpt_pack passes to its threads. */
typedef struct {
    const float *weights;
    const WeightBlock *blocks;
    int n;
} Packing;

static void pack_blocks(void *argument, Worker *w) {
    const Packing *p = argument;
    long all = 0;
    for (int i = 0; i < p->n; i++) all += (p->blocks[i].N + 31) / 32;
    long begin = 0;
    int i = 0;
    SHARED_FOR(w, round, all) { /* in a thread, `round` only grows, so i never goes back */
        while (round >= begin + (p->blocks[i].N + 31) / 32) begin += (p->blocks[i++].N + 31) / 32;
        const WeightBlock a = p->blocks[i];
        const long K = a.packed->K;
        pack_matrix_rows(p->weights + a.offset, a.N, K, 32 * (round - begin),
                         a.packed->forward + a.from * 32 * K, a.packed->backward, a.packed->N / 32,
                         a.from);
    }
}

/* Packs the float32 weights into tiles. The bfloat16 library also rounds them. Call this after
 * every change of the weights. */
void gpt_pack(Model *g, const float *weights) {
    WeightBlock blocks[7 * g->s.L + 1];
    Packing packing = {weights, blocks, weight_blocks(g, blocks)};
    team_run(g->s.threads, pack_blocks, &packing);
}

/* ---- allocation ------------------------------------------------------------------------------ */

/* Frees a model. NULL is allowed. */
void gpt_free(Model *g) {
    if (!g) return;
    free(g->memory), free(g->offset), free(g->packed), free(g->layers), free(g->scratch);
    free(g->tiles), free(g);
}

/* A model of this shape whose large arrays have no memory yet, or NULL if there is not enough
 * memory. */
static Model *new_without_memory(const Shape *shape) {
    Model *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    const Shape s = g->s = *shape;
    g->Q = s.H * s.D;
    g->QKV = (s.H + 2 * s.K) * s.D;
    g->F1 = s.modern ? 2 * s.F : s.F;
    g->blocks = (s.most_tokens + 31) / 32;
    const long Vp = round_up(s.V, 32), budget = 64L << 20;
    /* If a layer's weights are too large for the second-level cache, each group reads them from
     * memory again. Then groups are larger, as long as there are enough groups for all threads. */
    const long weights = (long)(g->QKV + g->Q + g->F1 + s.F) * s.C * sizeof(num);
    const long most = weights > LARGE_WEIGHTS ? g->blocks / (4 * s.threads) : 1;
    g->group = most >= 3 ? 4 : most >= 2 ? 2 : 1;
    g->head_blocks = budget / (64 * Vp) / 4 * 4;
    if (g->head_blocks > g->blocks) g->head_blocks = g->blocks;
    if (g->head_blocks < 4) g->head_blocks = 4;
    const long tiles = (long)(g->QKV + 2 * s.C + g->F1 + g->Q + s.F) * sizeof(num);
    g->keeps_tiles =
        (s.L - 1) * 32 * g->blocks * tiles <= MOST_TILES && g->head_blocks >= g->blocks;
    g->offset = malloc((GLOBALS + (size_t)s.L * PER_LAYER) * sizeof *g->offset);
    g->packed = calloc(PACKED_PER_LAYER * s.L + 1, sizeof *g->packed);
    g->layers = calloc(s.L, sizeof *g->layers);
    g->scratch = calloc(s.threads, sizeof *g->scratch);
    g->tiles = calloc(s.L + 1, sizeof *g->tiles);
    if (!g->offset || !g->packed || !g->layers || !g->scratch || !g->tiles) {
        gpt_free(g);
        return NULL;
    }
    g->bytes = lay_out(g, NULL);
    return g;
}

/* The number of bytes that a model of this shape takes, or 0 if there is too little memory even to
 * count them. */
size_t gpt_bytes(const Shape *shape) {
    Model *g = new_without_memory(shape);
    const size_t bytes = g ? g->bytes : 0;
    gpt_free(g);
    return bytes;
}

/* A model of this shape, with memory for batches of up to most_tokens tokens (B T), or NULL if
 * there is not enough memory. offsets: where each parameter begins (parameters.h). They are copied.
 * The caller has checked the sizes: C, F, H D and K D are multiples of 32, and D is a multiple of
 * 16 up to 512. */
Model *gpt_new(const Shape *shape, const int64_t *offsets) {
    Model *g = new_without_memory(shape);
    if (g) {
        const Shape s = g->s;
        memcpy(g->offset, offsets, (GLOBALS + (size_t)s.L * PER_LAYER) * sizeof *g->offset);
        g->memory = aligned_alloc(HUGE_PAGE, round_up(g->bytes, HUGE_PAGE));
#ifdef MADV_HUGEPAGE
        /* Tiles are far apart in memory. With small pages, the processor would spend most of its
         * time on translating addresses. */
        if (g->memory) madvise(g->memory, round_up(g->bytes, HUGE_PAGE), MADV_HUGEPAGE);
#endif
    }
    if (!g || !g->memory) {
        gpt_free(g);
        return NULL;
    }
    const Shape s = g->s;
    memset(g->memory, 0, g->bytes);
    lay_out(g, g->memory);
    for (int t = 0; t < s.T; t++)
        for (int j = 0; j < s.D / 2; j++) {
            const double angle = t * pow(s.rope_theta, -2.0 * j / s.D);
            g->cos[t * (s.D / 2) + j] = cos(angle);
            g->sin[t * (s.D / 2) + j] = sin(angle);
        }
    return g;
}

#endif
