/* A decoder's shape, its packed weights, the KV cache of its streams, and the memory of a step.
 *
 * C channels, H query heads, K heads of keys and values, G = H / K query heads for each head of
 * keys and values, head width D, F the feed-forward's hidden width, V vocabulary, W the context
 * length. P is D rounded up to a multiple of 16, and E is D rounded up to a multiple of 2. Cp, Fp,
 * Vp are C, F, V rounded up to multiples of 32. A stream is one text that is being generated.
 *
 * KV cache: each stream has a ring buffer of R slots for each layer and KV head. The token at
 * position p is in slot p mod R. R is at least W. With rotary positions, R is at least W plus one
 * chunk of a prompt. Keys are in groups of 16 slots: (R / 16, E, 16) in float32, (R / 16, E / 2,
 * 16, 2) in bfloat16. The P numbers of a slot's value are together: (R, P). So attention reads
 * keys and values in the order in which they are stored. README.md has a drawing. */

#ifndef GPTCLI_DECODER_H
#define GPTCLI_DECODER_H

#include <sys/mman.h>

#include "../constants.h"
#include "next_token.h"
#include "packed.h"
#include "../parameters.h"
#include "../threads.h"

/* The shape that Python passes. DecoderShape in library.py mirrors this struct. The values of
 * `kind` (the type of the weights) are in packed.h. */
typedef struct {
    int32_t modern, qk_norm, kind, L, H, K, D, C, F, V, W, streams, threads;
    float norm_eps;
    double rope_theta;
} Shape;

/* library.py compares this size with that of DecoderShape. */
int shape_bytes(void) { return sizeof(Shape); }

/* The packed weights of a layer. */
typedef struct {
    /* The outputs of qkv for each KV head: G * P numbers of queries, then P numbers of the key,
     * then P numbers of the value. 1 or 2 panels of zeros follow the last head. */
    Packed qkv;
    Packed out; /* the inputs of out: P numbers of each head */
    Packed up;  /* with a gate: 16 outputs of the gate and 16 of up take turns */
    Packed down;
    float *ln1, *ln1_bias, *ln2, *ln2_bias, *q_norm, *k_norm;
} Layer;

/* A thread's scratch. */
typedef struct {
    char *in;        /* (32, Cp): normalised rows */
    char *quantized; /* (32, quantized_row): rows for int8 weights */
    float *products; /* (32, (G + 2) P + 64): outputs of a product */
    float *scores;   /* (R) */
    ChoiceScratch choice;
} ThreadScratch;

/* A network, its streams, and the memory of a step. */
typedef struct {
    Shape s;
    int G, D, E, P, R;
    long Cp, Fp, Vp, HP; /* C, F, V and H P, rounded up to multiples of 32 */
    long rows;           /* rows for which the arrays of a step have room */
    int chunk;           /* the most tokens of one stream in a step */
    const float *wte, *wpe;
    Layer *layers;
    Packed head;
    float *lnf, *lnf_bias;
    /* x: residual stream (rows, Cp). q: queries (rows, HP). rotation: cos, sin (rows, D). */
    float *x, *q, *rotation;
    char *in, *mixed, *hidden;
    char *quantized; /* (rows, quantized_row) */
    long quantized_row;
    float *logits;           /* (streams, Vp), for at least 32 streams */
    double *coarse_rotation; /* (COARSE_STEPS, D) */
    double *fine_rotation;   /* (FINE_STEPS, D): cos, then sin */
    ThreadScratch *scratch;
    char *cache;
    size_t stream_bytes; /* bytes of a stream in the cache */
    char *memory;
    size_t bytes;
} Decoder;

/* A position is q * FINE_STEPS + r. Each of its rotary angles is a sum: the coarse table has the
 * angle of q * FINE_STEPS, and the fine table has the angle of r. A chunk is the tokens of one
 * prompt that a step takes, at most MAX_CHUNK. */
enum { FINE_STEPS = 1024, COARSE_STEPS = 256, MAX_CHUNK = 128 };

/* Bytes of a number in the inputs of products. With int8 weights: in the inputs of quantize_row. */
static size_t input_bytes(const Decoder *d) { return d->s.kind == BFLOAT16 && BF16_ROWS ? 2 : 4; }

/* Bytes of a number in the KV cache. */
static size_t cache_bytes(const Decoder *d) { return d->s.kind == FLOAT32 ? 4 : 2; }

/* The address of the keys of KV head h in the cache. The head's values follow its keys. */
static char *keys_of(const Decoder *d, int stream, int l, int h) {
    const size_t head = (size_t)d->R * (d->E + d->P) * cache_bytes(d);
    return d->cache + stream * d->stream_bytes + ((size_t)l * d->s.K + h) * head;
}

/* The address of the values that follow a head's keys. */
static char *values_of(const Decoder *d, char *keys) {
    return keys + (size_t)d->R * d->E * cache_bytes(d);
}

/* Returns the number of bytes of all arrays. Also places the arrays at the address `at`, if it is
 * not NULL. */
static size_t lay_out(Decoder *d, char *at) {
    const Shape s = d->s;
    size_t used = 0;
#define TAKE_BYTES(to, n) ((to) = (void *)(at ? at + used : NULL), used += round_up(n, ALIGNMENT))
#define TAKE(to, n) TAKE_BYTES(to, (n) * sizeof *(to))
#define TAKE_PACKED(m, n, k)                                                                       \
    ((m).N = (n), (m).K = (k), (m).kind = s.kind, TAKE_BYTES((m).weights, packed_bytes(&(m))),     \
     TAKE((m).bias, (m).N))
    for (int l = 0; l < s.L; l++) {
        Layer *layer = d->layers + l;
        TAKE_PACKED(layer->qkv, round_up((d->G + 2L) * s.K * d->P + PANEL, 32), d->Cp);
        TAKE_PACKED(layer->out, d->Cp, d->HP);
        TAKE_PACKED(layer->up, d->Fp * (s.modern ? 2 : 1), d->Cp);
        TAKE_PACKED(layer->down, d->Cp, d->Fp);
        TAKE(layer->ln1, d->Cp);
        TAKE(layer->ln1_bias, d->Cp);
        TAKE(layer->ln2, d->Cp);
        TAKE(layer->ln2_bias, d->Cp);
        TAKE(layer->q_norm, d->P);
        TAKE(layer->k_norm, d->P);
    }
    TAKE_PACKED(d->head, d->Vp, d->Cp);
    TAKE(d->lnf, d->Cp);
    TAKE(d->lnf_bias, d->Cp);
    const long rows = d->rows;
    TAKE(d->x, rows * d->Cp);
    TAKE(d->q, rows * d->HP);
    TAKE(d->rotation, rows * d->D);
    TAKE_BYTES(d->in, rows * d->Cp * 4);
    TAKE_BYTES(d->mixed, rows * d->HP * 4);
    TAKE_BYTES(d->hidden, rows * d->Fp * 4);
    long widest = d->Cp > d->Fp ? d->Cp : d->Fp;
    if (d->HP > widest) widest = d->HP;
    d->quantized_row = s.kind == INT8 ? int8_row_bytes(widest) : 0;
    TAKE_BYTES(d->quantized, rows * d->quantized_row);
    TAKE(d->logits, (s.streams > MAX_ROWS ? s.streams : MAX_ROWS) * d->Vp);
    TAKE(d->fine_rotation, (long)FINE_STEPS * d->D);
    TAKE(d->coarse_rotation, (long)COARSE_STEPS * d->D);
    for (int t = 0; t < s.threads; t++) {
        ThreadScratch *o = d->scratch + t;
        TAKE_BYTES(o->in, MAX_ROWS * d->Cp * 4);
        TAKE_BYTES(o->quantized, MAX_ROWS * d->quantized_row);
        TAKE(o->products, MAX_ROWS * ((d->G + 2L) * d->P + 64));
        TAKE(o->scores, d->R);
        TAKE(o->choice.logits, d->Vp);
        TAKE(o->choice.weights, d->Vp);
        TAKE(o->choice.candidates, d->Vp);
    }
    used = round_up(used, 4096);
    TAKE_BYTES(d->cache, s.streams * d->stream_bytes);
    return used;
}

/* ---- packing weights ------------------------------------------------------------------------- */

/* Copies n numbers if `from` is not NULL. */
static void copy_if_present(float *to, const float *from, long n) {
    if (from) memcpy(to, from, n * sizeof(float));
}

/* A panel of W (N, K): rows[i] becomes row n + i, or NULL if W has no such row. */
static void matrix_panel_rows(const float *W, long N, long K, long n, const float **rows) {
    for (int i = 0; i < PANEL; i++) rows[i] = n + i < N ? W + (n + i) * K : NULL;
}

/* The weights of a panel of qkv: rows[i] becomes the row of output n + i, or NULL for padding. W
 * holds the matrices of queries, keys and values. The queries of KV head k begin at output
 * (G + 2) k P of qkv. Each head is padded from D to P numbers. */
static void qkv_panel_rows(const Decoder *d, const float *const *W, long n, const float **rows) {
    const long C = d->s.C, G = d->G;
    for (int i = 0; i < PANEL; i++) {
        const long k = (n + i) / ((G + 2) * d->P), part = (n + i) / d->P % (G + 2);
        const long c = (n + i) % d->P;
        const long which = part < G ? 0 : part - G + 1, h = part < G ? k * G + part : k;
        rows[i] = k < d->s.K && c < d->D ? W[which] + (h * d->D + c) * C : NULL;
    }
}

/* Packs W (N, K). pack_panel explains `columns`, and gets K as `count`. */
static void pack(Worker *w, const Packed *p, const float *W, long N, long K, const int *columns) {
    SHARED_FOR(w, panel, p->N / PANEL) {
        const float *rows[PANEL];
        matrix_panel_rows(W, N, K, panel * PANEL, rows);
        pack_panel(p, panel * PANEL, rows, columns, K);
    }
}

/* Packs the weights of a layer. `weights` has their addresses in the order of parameters.h.
 * `head_columns` (HP) is pack_panel's `columns` for the output projection, with -1 for padding. */
static void pack_layer(const Decoder *d, Worker *w, Layer *layer, const float *const *weights,
                       const int *head_columns) {
    const Shape s = d->s;
    if (w->number == 0) {
        copy_if_present(layer->ln1, weights[LN1], s.C);
        copy_if_present(layer->ln1_bias, weights[LN1_BIAS], s.C);
        copy_if_present(layer->ln2, weights[LN2], s.C);
        copy_if_present(layer->ln2_bias, weights[LN2_BIAS], s.C);
        for (int c = 0; c < d->D; c++) layer->q_norm[c] = layer->k_norm[c] = 1.0f;
        copy_if_present(layer->q_norm, weights[Q_NORM], d->D);
        copy_if_present(layer->k_norm, weights[K_NORM], d->D);
        copy_if_present(layer->out.bias, weights[OUT_BIAS], s.C);
        copy_if_present(layer->up.bias, weights[UP_BIAS], s.F);
        copy_if_present(layer->down.bias, weights[DOWN_BIAS], s.C);
        for (int h = 0; h < s.H; h++) /* only GPT-2 has biases, and there G = 1 */
            for (int i = 0; i < 3; i++)
                if (weights[QUERY_BIAS + i])
                    copy_if_present(layer->qkv.bias + (3 * h + i) * d->P,
                                    weights[QUERY_BIAS + i] + h * d->D, d->D);
    }
    SHARED_FOR(w, panel, layer->qkv.N / PANEL) {
        const float *rows[PANEL];
        qkv_panel_rows(d, weights + QUERY, panel * PANEL, rows);
        pack_panel(&layer->qkv, panel * PANEL, rows, NULL, s.C);
    }
    pack(w, &layer->out, weights[OUT], s.C, (long)s.H * d->D, head_columns);
    pack(w, &layer->down, weights[DOWN], s.C, s.F, NULL);
    if (!s.modern) {
        pack(w, &layer->up, weights[UP], s.F, s.C, NULL);
        return;
    }
    SHARED_FOR(w, panel, layer->up.N / PANEL) {
        const float *rows[PANEL];
        matrix_panel_rows(weights[panel % 2 ? UP : GATE], s.F, s.C, panel / 2 * PANEL, rows);
        pack_panel(&layer->up, panel * PANEL, rows, NULL, s.C);
    }
}

/* A decoder and the addresses of its weights, in the order of parameters.h. */
typedef struct {
    Decoder *d;
    const float *const *parameters;
} Packing;

/* A thread's part of packing all weights. The embeddings wte and wpe are not copied: the decoder
 * reads the caller's arrays. */
static void pack_weights(void *argument, Worker *w) {
    Decoder *d = ((Packing *)argument)->d;
    const float *const *parameters = ((Packing *)argument)->parameters;
    const Shape s = d->s;
    int head_columns[d->HP];
    for (long k = 0; k < d->HP; k++) {
        const long h = k / d->P, c = k % d->P;
        head_columns[k] = h < s.H && c < d->D ? h * d->D + c : -1;
    }
    if (w->number == 0) {
        d->wte = parameters[WTE], d->wpe = parameters[WPE];
        copy_if_present(d->lnf, parameters[LNF], s.C);
        copy_if_present(d->lnf_bias, parameters[LNF_BIAS], s.C);
    }
    pack(w, &d->head, parameters[HEAD], s.V, s.C, NULL);
    for (int l = 0; l < s.L; l++) {
        pack_layer(d, w, d->layers + l, parameters + GLOBALS + (long)l * PER_LAYER, head_columns);
        team_barrier(w); /* a team allows at most OPEN_LOOPS loops between barriers */
    }
}

/* ---- allocation ------------------------------------------------------------------------------ */

/* Frees a decoder. NULL is allowed. */
void dec_free(Decoder *d) {
    if (!d) return;
    if (d->memory) munmap(d->memory, d->bytes);
    free(d->layers), free(d->scratch), free(d);
}

/* A decoder whose arrays have no memory yet, or NULL if there is not enough memory. */
static Decoder *new_without_memory(const Shape *shape) {
    Decoder *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    const Shape s = d->s = *shape;
    d->G = s.H / s.K;
    d->D = s.D;
    d->E = round_up(d->D, 2);
    d->P = round_up(d->D, LANES);
    d->Cp = round_up(s.C, 32), d->Fp = round_up(s.F, 32), d->Vp = round_up(s.V, 32);
    d->HP = round_up((long)s.H * d->P, 32);
    d->chunk = s.W < 2 * MAX_CHUNK ? round_up((s.W + 1) / 2, LANES) : MAX_CHUNK;
    if (!s.modern && d->chunk > s.W) d->chunk = s.W;
    d->R = round_up(s.W + (s.modern ? d->chunk : 0), 64);
    /* Up to 32 more rows for each thread: its rows begin at a multiple of 16, and a product reads
     * groups of 16 rows. */
    d->rows = round_up(s.streams > 2 * MAX_CHUNK ? s.streams : 2 * MAX_CHUNK, 32) + 32L * s.threads;
    d->stream_bytes = round_up((size_t)s.L * s.K * d->R * (d->E + d->P) * cache_bytes(d), 64);
    d->layers = calloc(s.L, sizeof *d->layers);
    d->scratch = calloc(s.threads, sizeof *d->scratch);
    if (!d->layers || !d->scratch) {
        dec_free(d);
        return NULL;
    }
    d->bytes = round_up(lay_out(d, NULL), HUGE_PAGE);
    return d;
}

/* Bytes that a decoder of this shape takes, or 0 if they cannot be counted. */
size_t dec_bytes(const Shape *shape) {
    Decoder *d = new_without_memory(shape);
    const size_t bytes = d ? d->bytes : 0;
    if (d) d->memory = NULL;
    dec_free(d);
    return bytes;
}

/* A decoder of this shape, or NULL if there is not enough memory. parameters: addresses of float32
 * arrays in the order of parameters.h, NULL if absent. The arrays of wte and wpe must outlive the
 * decoder. */
Decoder *dec_new(const Shape *shape, const float *const *parameters) {
    Decoder *d = new_without_memory(shape);
    if (!d) return NULL;
    /* mmap gives zeros, and the system provides memory only for pages that are written to. */
    d->memory = mmap(NULL, d->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (d->memory == MAP_FAILED) {
        d->memory = NULL;
        dec_free(d);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(d->memory, d->bytes, MADV_HUGEPAGE);
#endif
    lay_out(d, d->memory);
    Packing packing = {d, parameters};
    team_run(d->s.threads, pack_weights, &packing);
    for (int t = 0; t < FINE_STEPS + COARSE_STEPS; t++) {
        double *to = t < FINE_STEPS ? d->fine_rotation + t * d->D
                                    : d->coarse_rotation + (t - FINE_STEPS) * d->D;
        const double at = t < FINE_STEPS ? t : (double)(t - FINE_STEPS) * FINE_STEPS;
        for (int j = 0; j < d->D / 2 && d->s.modern; j++) {
            const double angle = at * pow(d->s.rope_theta, -2.0 * j / d->D);
            to[j] = cos(angle), to[d->D / 2 + j] = sin(angle);
        }
    }
    return d;
}

#endif
