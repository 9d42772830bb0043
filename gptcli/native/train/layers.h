/* LayerNorm, RMSNorm, rotary positions, GELU, SwiGLU and dropout on rows, forward and backward.
 *
 * Dimensions: C channels, D numbers of a head. C is a multiple of 32, D of 16. Sums are in float32,
 * and their order is always the same. `hat` is a norm's normalised input, before gain and bias. A
 * gradient's name begins with d. */

#ifndef GPTCLI_LAYERS_H
#define GPTCLI_LAYERS_H

#include <math.h>

#include "../constants.h"
#include "numbers.h"

/* ---- dropout --------------------------------------------------------------------------------- */

/* A hash of (key, i) decides whether number i of a site is kept. A site is a place in the network
 * that has dropout. The forward and the backward pass compute the same hash, so no mask is stored.
 * Source of the mixing constants: Ellis 2018, "hash-prospector" (lowbias32), public domain. */

typedef struct {
    uint32_t key;
    uint32_t dropped; /* a number is kept if its hash is at least this */
    float scale;      /* 1 / (1 - p); 1 without dropout */
} Dropout;

/* A hash of x, with 32 bits. */
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
    if (p > 1 - 0x1p-24f) p = 1 - 0x1p-24f; /* largest float below 1: 1 / (1 - p) is finite */
    if (p > 0) {
        d.key = mix_bits(mix_bits((uint32_t)seed ^ mix_bits((uint32_t)(seed >> 32) + 0x9e3779b9u)) +
                         site);
        d.dropped = (uint32_t)((double)p * 4294967296.0);
        d.scale = 1.0f / (1.0f - p);
    }
    return d;
}

/* Dropout of numbers i to i + 15 of a site: each is multiplied by scale or becomes 0. */
INLINE f32x16 apply_dropout(const Dropout d, uint32_t i, f32x16 x) {
    if (!d.dropped) return x;
    /* (i + lane) * factor as i * factor + lane * factor. So a loop that calls this function
     * computes the second product only once. */
    const uint32_t factor = 0x9e3779b1u;
    i32x16 h = mul_ints(lane_index(), broadcast_int((int)factor));
    h = xor_ints(add_ints(h, broadcast_int((int)(i * factor))), broadcast_int((int)d.key));
    h = xor_ints(h, shift_right_unsigned(h, 16));
    h = mul_ints(h, broadcast_int(0x7feb352d));
    h = xor_ints(h, shift_right_unsigned(h, 15));
    h = mul_ints(h, broadcast_int((int)0x846ca68bu));
    h = xor_ints(h, shift_right_unsigned(h, 16));
    return keep(at_least_unsigned(h, broadcast_int((int)d.dropped)), mul(x, broadcast(d.scale)));
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* RMSNorm, or LayerNorm if `centred`. hat = (x - mean) * scale; out = hat * gain + bias. hat and
 * out are stored in pieces (numbers.h). */

typedef struct {
    const float *gain, *bias; /* bias can be NULL */
    int centred;
    float eps;
} Norm;

/* x (rows, C) -> hat (rows, C), scale (rows) and out (rows, C). */
static void norm_forward(const float *x, int rows, int C, Norm n, num *hat, float *scale,
                         num *out) {
    for (int i = 0; i < rows; i++, x += C) {
        /* Each addition to a sum waits for the addition before, so two sums are faster than one. C
         * is a multiple of 32. */
        f32x16 sum[2] = {zeros(), zeros()}, square[2] = {sum[0], sum[0]};
        float mean = 0.0f;
        if (n.centred) {
            for (int c = 0; c < C; c += 32) {
                sum[0] = add(sum[0], load(x + c));
                sum[1] = add(sum[1], load(x + c + 16));
            }
            mean = sum_lanes(add(sum[0], sum[1])) / C;
        }
        const f32x16 m = broadcast(mean);
        for (int c = 0; c < C; c += 32) {
            f32x16 y = sub(load(x + c), m);
            f32x16 z = sub(load(x + c + 16), m);
            square[0] = fmadd(y, y, square[0]);
            square[1] = fmadd(z, z, square[1]);
        }
        scale[i] = 1.0f / sqrtf(sum_lanes(add(square[0], square[1])) / C + n.eps);
        const f32x16 s = broadcast(scale[i]);
        for (int c = 0; c < C; c += 16) {
            f32x16 y = mul(sub(load(x + c), m), s);
            f32x16 b = n.bias ? load(n.bias + c) : zeros();
            store_num(hat + in_pieces(i, c, C), y);
            store_num(out + in_pieces(i, c, C), fmadd(y, load(n.gain + c), b));
        }
    }
}

/* Computes dx, the gradient at x, from dout, the gradient at `out`. If `add_old`, adds it to the
 * old dx. dgain (C) and dbias (C) get what these rows contribute to the gradients of gain and
 * bias. dbias can be NULL. In float32, replaces hat by `out`, which the gradient of the next matrix
 * needs. So the two need only one array. (In bfloat16, `out` cannot be computed from the rounded
 * hat.) */
static void norm_backward(const float *dout, int rows, int C, Norm n, num *hat, const float *scale,
                          float *dx, int add_old, float *dgain, float *dbias) {
    memset(dgain, 0, C * sizeof(float));
    if (dbias) memset(dbias, 0, C * sizeof(float));
    for (int i = 0; i < rows; i++, dout += C, dx += C) {
        f32x16 dot = zeros(), sum = zeros();
        for (int c = 0; c < C; c += 16) {
            f32x16 d = load(dout + c), h = load_num(hat + in_pieces(i, c, C));
            f32x16 inner = mul(d, load(n.gain + c));
            dot = fmadd(inner, h, dot);
            sum = add(sum, inner);
            store(dgain + c, fmadd(d, h, load(dgain + c)));
            if (dbias) store(dbias + c, add(d, load(dbias + c)));
        }
        const f32x16 a = broadcast(sum_lanes(dot) / C);
        const f32x16 m = broadcast(n.centred ? sum_lanes(sum) / C : 0.0f);
        const f32x16 s = broadcast(scale[i]);
        for (int c = 0; c < C; c += 16) {
            num *const at = hat + in_pieces(i, c, C);
            f32x16 h = load_num(at), gain = load(n.gain + c);
            f32x16 y = sub(fnmadd(h, a, mul(load(dout + c), gain)), m);
            if (!BFLOAT16) store_num(at, fmadd(h, gain, n.bias ? load(n.bias + c) : zeros()));
            f32x16 old = add_old ? load(dx + c) : zeros();
            store(dx + c, fmadd(y, s, old));
        }
    }
}

/* ---- QK-norm and rotary positions ------------------------------------------------------------ */

/* For the D numbers of one head of one token, these functions compute out = rotate(x * scale *
 * gain), and its gradients. Numbers j and j + D / 2 rotate as a pair. D is a multiple of 16, so the
 * last vector of D / 2 numbers can be half full. Callers pass D as a constant if they can, so that
 * the compiler unrolls the loops. */

INLINE void norm_rotate_sized(const int D, const float *x, const float *gain, float eps,
                              const float *cos, const float *sin, num *hat, float *scale,
                              num *out) {
    const int half_dim = D / 2;
    f32x16 square = zeros();
    for (int j = 0; j < D; j += 16) {
        f32x16 y = load(x + j);
        square = fmadd(y, y, square);
    }
    *scale = 1.0f / sqrtf(sum_lanes(square) / D + eps);
    const f32x16 s = broadcast(*scale);
    for (int j = 0; j < half_dim; j += 16) {
        const long n = half_dim - j;
        f32x16 a = mul(load_first(x + j, n), s);
        f32x16 b = mul(load_first(x + half_dim + j, n), s);
        f32x16 c = load_first(cos + j, n), z = load_first(sin + j, n);
        f32x16 ga = mul(a, load_first(gain + j, n));
        f32x16 gb = mul(b, load_first(gain + half_dim + j, n));
        store_first_num(hat + j, n, a);
        store_first_num(hat + half_dim + j, n, b);
        store_first_num(out + j, n, fnmadd(gb, z, mul(ga, c)));
        store_first_num(out + half_dim + j, n, fmadd(ga, z, mul(gb, c)));
    }
}

/* Computes dx (D) from dout (D). dx and dout can be the same array. The gradient of the gain is
 * added to dgain (D). */
INLINE void norm_rotate_backward_sized(const int D, const num *dout, const float *gain,
                                       const float *cos, const float *sin, const num *hat,
                                       float scale, num *dx, float *dgain) {
    const int half_dim = D / 2;
    float inner[512] __attribute__((aligned(64)));
    f32x16 dot = zeros();
    for (int j = 0; j < half_dim; j += 16) {
        const long n = half_dim - j;
        f32x16 a = load_first_num(dout + j, n), b = load_first_num(dout + half_dim + j, n);
        f32x16 c = load_first(cos + j, n), z = load_first(sin + j, n);
        f32x16 rotated_back[2] = {fmadd(b, z, mul(a, c)), fnmadd(a, z, mul(b, c))};
        for (int i = 0; i < 2; i++) {
            const int at = i * half_dim + j;
            f32x16 h = load_first_num(hat + at, n);
            f32x16 sum = load_first(dgain + at, n);
            store_first(dgain + at, n, fmadd(rotated_back[i], h, sum));
            f32x16 y = mul(rotated_back[i], load_first(gain + at, n));
            dot = fmadd(y, h, dot);
            store_first(inner + at, n, y);
        }
    }
    const f32x16 a = broadcast(sum_lanes(dot) / D), s = broadcast(scale);
    for (int j = 0; j < D; j += 16) {
        f32x16 y = fnmadd(load_num(hat + j), a, load(inner + j));
        store_num(dx + j, mul(y, s));
    }
}

/* out = rotate(x), for one head of one token without QK-norm. */
static void rotate(const float *x, int D, const float *cos, const float *sin, num *out) {
    const int half_dim = D / 2;
    for (int j = 0; j < half_dim; j += 16) {
        const long n = half_dim - j;
        const f32x16 a = load_first(x + j, n), b = load_first(x + half_dim + j, n);
        const f32x16 c = load_first(cos + j, n), z = load_first(sin + j, n);
        store_first_num(out + j, n, fnmadd(b, z, mul(a, c)));
        store_first_num(out + half_dim + j, n, fmadd(a, z, mul(b, c)));
    }
}

/* Replaces d, the gradient at rotate(x), by the gradient at x. */
static void rotate_back(num *d, int D, const float *cos, const float *sin) {
    const int half_dim = D / 2;
    for (int j = 0; j < half_dim; j += 16) {
        const long n = half_dim - j;
        const f32x16 a = load_first_num(d + j, n), b = load_first_num(d + half_dim + j, n);
        const f32x16 c = load_first(cos + j, n), z = load_first(sin + j, n);
        store_first_num(d + j, n, fmadd(b, z, mul(a, c)));
        store_first_num(d + half_dim + j, n, fnmadd(a, z, mul(b, c)));
    }
}

/* Calls norm_rotate_sized, with the usual values of D as constants. */
static void norm_rotate(const float *x, int D, const float *gain, float eps, const float *cos,
                        const float *sin, num *hat, float *scale, num *out) {
    if (D == 32)
        norm_rotate_sized(32, x, gain, eps, cos, sin, hat, scale, out);
    else if (D == 64)
        norm_rotate_sized(64, x, gain, eps, cos, sin, hat, scale, out);
    else
        norm_rotate_sized(D, x, gain, eps, cos, sin, hat, scale, out);
}

static void norm_rotate_backward(const num *dout, int D, const float *gain, const float *cos,
                                 const float *sin, const num *hat, float scale, num *dx,
                                 float *dgain) {
    if (D == 32)
        norm_rotate_backward_sized(32, dout, gain, cos, sin, hat, scale, dx, dgain);
    else if (D == 64)
        norm_rotate_backward_sized(64, dout, gain, cos, sin, hat, scale, dx, dgain);
    else
        norm_rotate_backward_sized(D, dout, gain, cos, sin, hat, scale, dx, dgain);
}

/* ---- activations ----------------------------------------------------------------------------- */

/* The activation functions take sixteen numbers at a time. */

/* act = silu(g) * u. The gradient d at act becomes d * silu at u, and d * u * slope at g. */
INLINE void swiglu(f32x16 g, f32x16 u, f32x16 *act, f32x16 *silu, f32x16 *slope) {
    const f32x16 one = broadcast(1.0f), s = sigmoid(g);
    *silu = mul(g, s);
    *slope = fmadd(*silu, sub(one, s), s);
    *act = mul(*silu, u);
}

/* x * gelu_gate(x) is GELU in its tanh form; see constants.h. The factor -LOG2_E turns the power
 * e^-y of the sigmoid into a power of 2. */
INLINE f32x16 gelu_gate(f32x16 x) {
    const f32x16 a = broadcast(-GELU_CUBIC * GELU_SCALE * LOG2_E);
    const f32x16 b = broadcast(-GELU_SCALE * LOG2_E);
    return inverse_of_1_plus_exp2(mul(x, fmadd(mul(x, x), a, b)));
}

/* act = GELU(x). The gradient d at act becomes d * slope at x. */
INLINE void gelu(f32x16 x, f32x16 *act, f32x16 *slope) {
    const f32x16 s = gelu_gate(x), y = mul(x, s);
    f32x16 inner = fmadd(mul(x, x), broadcast(3 * GELU_CUBIC * GELU_SCALE), broadcast(GELU_SCALE));
    *slope = fmadd(fnmadd(y, s, y), inner, s);
    *act = y;
}

/* out (C) = the sums of the columns of X (rows, C). X is stored in pieces. */
static void column_sums(const num *X, int rows, int C, float *out) {
    for (int c = 0; c < C; c += 16) {
        f32x16 sum = zeros();
        for (int i = 0; i < rows; i++) sum = add(sum, load_num(X + in_pieces(i, c, C)));
        store(out + c, sum);
    }
}

#endif
