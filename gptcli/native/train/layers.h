/* LayerNorm, RMSNorm, rotary positions, GELU, SwiGLU and dropout on rows, forward and backward.
 *
 * Dimensions: C channels, D numbers of a head. C is a multiple of 32, D of 16. Sums are in float32
 * and always run in the same order. `hat` is a norm's normalised input, before gain and bias. A
 * gradient's name begins with d. */

#ifndef GPTCLI_LAYERS_H
#define GPTCLI_LAYERS_H

#include <math.h>

#include "../constants.h"
#include "../vectors/tiles_bf16.h"

/* 2^x with a relative error of about 3e-6; 0 or infinity beyond float32's range. A polynomial gives
 * 2^r for the fraction r of x; it was fitted for the least relative error over [0, 1). The whole
 * part of x becomes the exponent. */
INLINE __m512 vexp2(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_set1_ps(0.0135341384f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.0520115159f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.2414427251f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.6930038333f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0000026226f));
    return _mm512_scalef_ps(y, x);
}

#define LOG2_E 1.44269504f

/* e^x with vexp2's accuracy. */
INLINE __m512 vexp(__m512 x) { return vexp2(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E))); }

/* ln x for x > 0 with an error of about 1e-7. x = m 2^e, and ln m is a series in t with
 * m = (1 + t) / (1 - t). */
INLINE __m512 vlog(__m512 x) {
    __m512 e = _mm512_getexp_ps(x), m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    __mmask16 high = _mm512_cmp_ps_mask(m, _mm512_set1_ps(1.41421356f), _CMP_GT_OQ);
    m = _mm512_mask_mul_ps(m, high, m, _mm512_set1_ps(0.5f));
    e = _mm512_mask_add_ps(e, high, e, _mm512_set1_ps(1.0f));
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), q = _mm512_mul_ps(t, t);
    __m512 y = _mm512_set1_ps(2.0f / 9);
    y = _mm512_fmadd_ps(y, q, _mm512_set1_ps(2.0f / 7));
    y = _mm512_fmadd_ps(y, q, _mm512_set1_ps(2.0f / 5));
    y = _mm512_fmadd_ps(y, q, _mm512_set1_ps(2.0f / 3));
    y = _mm512_fmadd_ps(y, q, _mm512_set1_ps(2.0f));
    return _mm512_fmadd_ps(e, _mm512_set1_ps(0.69314718f), _mm512_mul_ps(y, t));
}

/* 1 / (1 + 2^-x) with an error of about 6e-5: much smaller than bfloat16's rounding error. */
INLINE __m512 sigmoid2(__m512 x) {
    __m512 e = vexp2(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_rcp14_ps(_mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

/* 1 / (1 + e^-x) with sigmoid2's accuracy. */
INLINE __m512 sigmoid(__m512 x) { return sigmoid2(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E))); }

/* A mask of the first `left` of 16 lanes. */
INLINE __mmask16 first_lanes(long left) {
    return left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
}

/* ---- dropout --------------------------------------------------------------------------------- */

/* A hash of (key, i) decides whether number i of a site is kept. A site is one place in the network
 * that has dropout. The forward and the backward pass compute the same hash, so no mask is stored.
 * Source of the mixing constants: Ellis 2018, "hash-prospector" (lowbias32), public domain. */

typedef struct {
    uint32_t key;
    uint32_t dropped; /* a number is kept if its hash is at least this */
    float scale;      /* 1 / (1 - p); 1 without dropout */
} Dropout;

/* A hash of 32 bits. */
static uint32_t mix_bits(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

/* Dropout with probability p at a site, for a step's seed. */
static Dropout dropout_at(float p, uint64_t seed, uint32_t site) {
    Dropout d = {0, 0, 1.0f};
    if (p > 1 - 0x1p-24f) p = 1 - 0x1p-24f; /* the largest below 1, so that 1 / (1 - p) is finite */
    if (p > 0) {
        d.key = mix_bits(mix_bits((uint32_t)seed ^ mix_bits((uint32_t)(seed >> 32) + 0x9e3779b9u)) +
                         site);
        d.dropped = (uint32_t)((double)p * 4294967296.0);
        d.scale = 1.0f / (1.0f - p);
    }
    return d;
}

/* Dropout of numbers i to i + 15 of a site: each is multiplied by scale or becomes 0. */
INLINE __m512 apply_dropout(const Dropout d, uint32_t i, __m512 x) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (!d.dropped) return x;
    __m512i h = _mm512_add_epi32(_mm512_set1_epi32((int)i), lanes);
    h = _mm512_xor_si512(_mm512_mullo_epi32(h, _mm512_set1_epi32((int)0x9e3779b1u)),
                         _mm512_set1_epi32((int)d.key));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32(0x7feb352d));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 15));
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32((int)0x846ca68bu));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
    __mmask16 kept = _mm512_cmpge_epu32_mask(h, _mm512_set1_epi32((int)d.dropped));
    return _mm512_maskz_mul_ps(kept, x, _mm512_set1_ps(d.scale));
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* RMSNorm, or LayerNorm if `centred`. hat = (x - mean) * scale; out = hat * gain + bias. hat is
 * stored in rows, out in pieces (tiles.h). */

typedef struct {
    const float *gain, *bias; /* bias can be NULL */
    int centred;
    float eps;
} Norm;

/* x (rows, C) -> hat (rows, C), scale (rows) and out (rows, C). */
static void norm_forward(const float *x, int rows, int C, Norm n, bf16 *hat, float *scale,
                         bf16 *out) {
    for (int i = 0; i < rows; i++, x += C, hat += C) {
        /* Each addition to a sum waits for the one before it. So two sums are faster than one. C is
         * a multiple of 32. */
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, square[2] = {sum[0], sum[0]};
        float mean = 0.0f;
        if (n.centred) {
            for (int c = 0; c < C; c += 32) {
                sum[0] = _mm512_add_ps(sum[0], _mm512_loadu_ps(x + c));
                sum[1] = _mm512_add_ps(sum[1], _mm512_loadu_ps(x + c + 16));
            }
            mean = _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1])) / C;
        }
        const __m512 m = _mm512_set1_ps(mean);
        for (int c = 0; c < C; c += 32) {
            __m512 y = _mm512_sub_ps(_mm512_loadu_ps(x + c), m);
            __m512 z = _mm512_sub_ps(_mm512_loadu_ps(x + c + 16), m);
            square[0] = _mm512_fmadd_ps(y, y, square[0]);
            square[1] = _mm512_fmadd_ps(z, z, square[1]);
        }
        scale[i] =
            1.0f / sqrtf(_mm512_reduce_add_ps(_mm512_add_ps(square[0], square[1])) / C + n.eps);
        const __m512 s = _mm512_set1_ps(scale[i]);
        for (int c = 0; c < C; c += 16) {
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), m), s);
            __m512 b = n.bias ? _mm512_loadu_ps(n.bias + c) : _mm512_setzero_ps();
            store_bf16(hat + c, y);
            store_bf16(out + in_pieces(i, c, C),
                       _mm512_fmadd_ps(y, _mm512_loadu_ps(n.gain + c), b));
        }
    }
}

/* Computes dx, the gradient at x, from dout, the gradient at `out`. If `add`, adds it to the old
 * dx. dgain (C) and dbias (C) get what these rows contribute to the gradients of gain and bias.
 * dbias can be NULL. */
static void norm_backward(const float *dout, int rows, int C, Norm n, const bf16 *hat,
                          const float *scale, float *dx, int add, float *dgain, float *dbias) {
    memset(dgain, 0, C * sizeof(float));
    if (dbias) memset(dbias, 0, C * sizeof(float));
    for (int i = 0; i < rows; i++, dout += C, hat += C, dx += C) {
        __m512 dot = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
        for (int c = 0; c < C; c += 16) {
            __m512 d = _mm512_loadu_ps(dout + c), h = load_bf16(hat + c);
            __m512 inner = _mm512_mul_ps(d, _mm512_loadu_ps(n.gain + c));
            dot = _mm512_fmadd_ps(inner, h, dot);
            sum = _mm512_add_ps(sum, inner);
            _mm512_storeu_ps(dgain + c, _mm512_fmadd_ps(d, h, _mm512_loadu_ps(dgain + c)));
            if (dbias) _mm512_storeu_ps(dbias + c, _mm512_add_ps(d, _mm512_loadu_ps(dbias + c)));
        }
        const __m512 a = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / C);
        const __m512 m = _mm512_set1_ps(n.centred ? _mm512_reduce_add_ps(sum) / C : 0.0f);
        const __m512 s = _mm512_set1_ps(scale[i]);
        for (int c = 0; c < C; c += 16) {
            __m512 inner = _mm512_mul_ps(_mm512_loadu_ps(dout + c), _mm512_loadu_ps(n.gain + c));
            __m512 y = _mm512_sub_ps(_mm512_fnmadd_ps(load_bf16(hat + c), a, inner), m);
            __m512 old = add ? _mm512_loadu_ps(dx + c) : _mm512_setzero_ps();
            _mm512_storeu_ps(dx + c, _mm512_fmadd_ps(y, s, old));
        }
    }
}

/* ---- QK-norm and rotary positions ------------------------------------------------------------ */

/* For one head of one token, D numbers: out = rotated(x * scale * gain). Numbers j and j + D / 2
 * rotate as a pair. D is a multiple of 16, so the last vector of D / 2 numbers can be half full.
 * Callers pass D as a constant if they can, so that the compiler unrolls the loops. */

INLINE void norm_rotate_sized(const int D, const float *x, const float *gain, const float *cos,
                              const float *sin, bf16 *hat, float *scale, bf16 *out) {
    const int half_dim = D / 2;
    __m512 square = _mm512_setzero_ps();
    for (int j = 0; j < D; j += 16) {
        __m512 y = _mm512_loadu_ps(x + j);
        square = _mm512_fmadd_ps(y, y, square);
    }
    *scale = 1.0f / sqrtf(_mm512_reduce_add_ps(square) / D + RMS_NORM_EPS);
    const __m512 s = _mm512_set1_ps(*scale);
    for (int j = 0; j < half_dim; j += 16) {
        const __mmask16 mask = first_lanes(half_dim - j);
        __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + j), s);
        __m512 b = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + half_dim + j), s);
        __m512 c = _mm512_maskz_loadu_ps(mask, cos + j), z = _mm512_maskz_loadu_ps(mask, sin + j);
        __m512 ga = _mm512_mul_ps(a, _mm512_maskz_loadu_ps(mask, gain + j));
        __m512 gb = _mm512_mul_ps(b, _mm512_maskz_loadu_ps(mask, gain + half_dim + j));
        mask_store_bf16(hat + j, mask, a);
        mask_store_bf16(hat + half_dim + j, mask, b);
        mask_store_bf16(out + j, mask, _mm512_fnmadd_ps(gb, z, _mm512_mul_ps(ga, c)));
        mask_store_bf16(out + half_dim + j, mask, _mm512_fmadd_ps(ga, z, _mm512_mul_ps(gb, c)));
    }
}

/* Computes dx (D) from dout (D), which can be the same array. The gradient of the gain is added to
 * dgain (D). */
INLINE void norm_rotate_backward_sized(const int D, const bf16 *dout, const float *gain,
                                       const float *cos, const float *sin, const bf16 *hat,
                                       float scale, bf16 *dx, float *dgain) {
    const int half_dim = D / 2;
    float inner[512] __attribute__((aligned(64)));
    __m512 dot = _mm512_setzero_ps();
    for (int j = 0; j < half_dim; j += 16) {
        const __mmask16 mask = first_lanes(half_dim - j);
        __m512 a = mask_load_bf16(dout + j, mask), b = mask_load_bf16(dout + half_dim + j, mask);
        __m512 c = _mm512_maskz_loadu_ps(mask, cos + j), z = _mm512_maskz_loadu_ps(mask, sin + j);
        __m512 rotated_back[2] = {_mm512_fmadd_ps(b, z, _mm512_mul_ps(a, c)),
                                  _mm512_fnmadd_ps(a, z, _mm512_mul_ps(b, c))};
        for (int i = 0; i < 2; i++) {
            const int at = i * half_dim + j;
            __m512 h = mask_load_bf16(hat + at, mask);
            __m512 sum = _mm512_maskz_loadu_ps(mask, dgain + at);
            _mm512_mask_storeu_ps(dgain + at, mask, _mm512_fmadd_ps(rotated_back[i], h, sum));
            __m512 y = _mm512_mul_ps(rotated_back[i], _mm512_maskz_loadu_ps(mask, gain + at));
            dot = _mm512_fmadd_ps(y, h, dot);
            _mm512_mask_storeu_ps(inner + at, mask, y);
        }
    }
    const __m512 a = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / D), s = _mm512_set1_ps(scale);
    for (int j = 0; j < D; j += 16) {
        __m512 y = _mm512_fnmadd_ps(load_bf16(hat + j), a, _mm512_loadu_ps(inner + j));
        store_bf16(dx + j, _mm512_mul_ps(y, s));
    }
}

/* Calls norm_rotate_sized, with the usual values of D as constants. */
static void norm_rotate(const float *x, int D, const float *gain, const float *cos,
                        const float *sin, bf16 *hat, float *scale, bf16 *out) {
    if (D == 32)
        norm_rotate_sized(32, x, gain, cos, sin, hat, scale, out);
    else if (D == 64)
        norm_rotate_sized(64, x, gain, cos, sin, hat, scale, out);
    else
        norm_rotate_sized(D, x, gain, cos, sin, hat, scale, out);
}

static void norm_rotate_backward(const bf16 *dout, int D, const float *gain, const float *cos,
                                 const float *sin, const bf16 *hat, float scale, bf16 *dx,
                                 float *dgain) {
    if (D == 32)
        norm_rotate_backward_sized(32, dout, gain, cos, sin, hat, scale, dx, dgain);
    else if (D == 64)
        norm_rotate_backward_sized(64, dout, gain, cos, sin, hat, scale, dx, dgain);
    else
        norm_rotate_backward_sized(D, dout, gain, cos, sin, hat, scale, dx, dgain);
}

/* ---- activations ----------------------------------------------------------------------------- */

/* Sixteen numbers at a time. */

/* out = silu(g) * u. */
INLINE void swiglu(__m512 g, __m512 u, bf16 *out) {
    store_bf16(out, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u));
}

/* Computes dgate and dup, the gradients at gate and up, from d, the gradient at silu(gate) * up.
 * Also computes this product again, into `out`: storing it in the forward pass would cost more. */
INLINE void swiglu_backward(__m512 d, const bf16 *gate, const bf16 *up, bf16 *out, bf16 *dgate,
                            bf16 *dup) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 g = load_bf16(gate), u = load_bf16(up), s = sigmoid(g), silu = _mm512_mul_ps(g, s);
    __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
    store_bf16(out, _mm512_mul_ps(silu, u));
    store_bf16(dgate, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
    store_bf16(dup, _mm512_mul_ps(d, silu));
}

/* x * gelu_gate(x) is GELU in its tanh form; see constants.h. LOG2_E is a factor, because sigmoid2
 * has powers of 2. */
INLINE __m512 gelu_gate(__m512 x) {
    const __m512 a = _mm512_set1_ps(GELU_CUBIC * GELU_SCALE * LOG2_E);
    const __m512 b = _mm512_set1_ps(GELU_SCALE * LOG2_E);
    return sigmoid2(_mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), a, b)));
}

/* Computes din, the gradient at `in`, from d, the gradient at GELU(in). Also computes GELU(in)
 * again, into `out`. */
INLINE void gelu_backward(__m512 d, const bf16 *in, bf16 *out, bf16 *din) {
    __m512 x = load_bf16(in), s = gelu_gate(x), y = _mm512_mul_ps(x, s);
    __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(3 * GELU_CUBIC * GELU_SCALE),
                                   _mm512_set1_ps(GELU_SCALE));
    slope = _mm512_fmadd_ps(_mm512_fnmadd_ps(y, s, y), slope, s);
    store_bf16(out, y);
    store_bf16(din, _mm512_mul_ps(d, slope));
}

/* out (C) = the sums of the columns of X (rows, C). X is stored in pieces. */
static void column_sums(const bf16 *X, int rows, int C, float *out) {
    for (int c = 0; c < C; c += 16) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < rows; i++) sum = _mm512_add_ps(sum, load_bf16(X + in_pieces(i, c, C)));
        _mm512_storeu_ps(out + c, sum);
    }
}

#endif
