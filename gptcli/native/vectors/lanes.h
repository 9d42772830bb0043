/* Vectors of sixteen numbers for any processor, with gcc's vector extensions.
 *
 * The compiler turns a v16 into one AVX-512 register, two of AVX2, or four of SSE2 or NEON.
 * Intrinsics are used only if gcc's own code for an operation is much slower. */

#ifndef GPTCLI_LANES_H
#define GPTCLI_LANES_H

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <math.h>

#include "../constants.h"
#include "basics.h"

/* Vectors of sixteen numbers. */
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint16_t v16bf16 __attribute__((vector_size(32)));

/* A part of a v16 that fills one register. A v16 has REGISTERS parts. If a variable needs
 * several registers, gcc keeps it in memory. So loops that hold many sums use parts. */
#if defined(__AVX512F__)
#define REGISTERS 1
#elif defined(__AVX2__)
#define REGISTERS 2
#else
#define REGISTERS 4
#endif
enum { LANES_OF_PART = 16 / REGISTERS };
typedef float part __attribute__((vector_size(64 / REGISTERS)));
typedef int32_t int_part __attribute__((vector_size(64 / REGISTERS)));

/* Lane i holds i. */
static const v16i LANE_INDEX = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* x in every lane. For `x - vector`, gcc first copies x into every lane. */
INLINE v16 broadcast(float x) { return x - (v16){0}; }

INLINE v16i broadcast_int(int32_t x) { return x - (v16i){0}; }

/* The functions that load or store take any address, also one that is not aligned. */
INLINE int32_t read_int(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE float read_float(const void *p) {
    float x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE v16 load(const float *p) {
    v16 x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(float *p, v16 x) { memcpy(p, &x, sizeof x); }

INLINE part load_part(const void *p) {
    part x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_part(float *p, part x) { memcpy(p, &x, sizeof x); }

/* Sixteen bfloat16 as float32. A bfloat16 has the upper half of the bits of a float32. */
INLINE v16 load_from_bf16(const bf16 *p) {
    v16bf16 x;
    memcpy(&x, p, sizeof x);
#if defined(__AVX512F__) /* older versions of gcc do not choose this instruction */
    return (v16)((v16i)_mm512_cvtepu16_epi32((__m256i)x) << 16);
#else
    return (v16)(__builtin_convertvector(x, v16i) << 16);
#endif
}

/* Sixteen int32. */
INLINE v16i load_ints(const void *p) {
    v16i x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* The first or the second number of each pair of bfloat16 in a part, as float32. */
INLINE part firsts(part pairs) { return (part)((int_part)pairs << 16); }

INLINE part seconds(part pairs) { return (part)((int_part)pairs & (int32_t)0xffff0000); }

/* Stores x at p, rounded to the nearest bfloat16, ties to even. NaN is not handled. */
INLINE void store_as_bf16(bf16 *p, v16 x) {
    const v16i bits = (v16i)x, odd = (bits >> 16) & 1;
#if defined(__AVX512F__)
    const v16bf16 y = (v16bf16)_mm512_cvtepi32_epi16((__m512i)((bits + odd + 0x7fff) >> 16));
#else
    const v16bf16 y = __builtin_convertvector((bits + odd + 0x7fff) >> 16, v16bf16);
#endif
    memcpy(p, &y, sizeof y);
}

/* One number, rounded as by store_as_bf16. */
INLINE bf16 round_to_bf16(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bf16)((bits + (bits >> 16 & 1) + 0x7fff) >> 16);
}

INLINE float bf16_to_float(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* Stores the lowest byte of each lane. */
INLINE void store_low_bytes(char *p, v16i x) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x));
#else
    for (int i = 0; i < LANES; i++) p[i] = (char)x[i];
#endif
}

/* mask ? a : b. A lane of the mask has all bits set or none. */
INLINE v16 blend(v16i mask, v16 a, v16 b) { return (v16)((mask & (v16i)a) | (~mask & (v16i)b)); }

/* The larger number of each lane; b if one of the two is NaN. */
INLINE v16 lanewise_max(v16 a, v16 b) { return blend(a > b, a, b); }

/* The sum of the lanes, always added in the same order. */
INLINE float sum_lanes(v16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
#endif
}

/* The largest lane. */
INLINE float max_lane(v16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] = x[i] > x[i + n] ? x[i] : x[i + n];
    return x[0];
#endif
}

/* Stores a[0], b[0], a[1], b[1], ...: 32 numbers. */
INLINE void store_interleaved(float *p, v16 a, v16 b) {
#if defined(__AVX512F__)
    const v16i low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    store(p, (v16)_mm512_permutex2var_ps((__m512)a, (__m512i)low, (__m512)b));
    store(p + LANES, (v16)_mm512_permutex2var_ps((__m512)a, (__m512i)(low + 8), (__m512)b));
#else
    for (int i = 0; i < LANES; i++) p[2 * i] = a[i], p[2 * i + 1] = b[i];
#endif
}

/* e^x with a relative error of about 1e-7 for x from -87 to 88. If x is smaller or NaN, the result
 * is 0. If x is larger, the result is e^88. x = n ln 2 + r, so e^x = 2^n e^r. The Taylor series
 * gives e^r. Adding n to the exponent bits of e^r multiplies it by 2^n. */
INLINE v16 v16_exp(v16 x) {
    const v16 bound = blend(x > broadcast(88.0f), broadcast(88.0f), x);
    const v16 shift = broadcast(12582912.0f); /* adding 1.5 * 2^23 rounds to a whole number */
    const v16 n = (bound * 1.44269504f + shift) - shift;
    const v16 r = (bound - n * 0.693359375f) + n * 2.12194440e-4f;
    v16 y = broadcast(1.0f / 5040);
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const v16i bits = (v16i)y + (__builtin_convertvector(n, v16i) << 23);
    return (v16)(bits & (x > broadcast(-87.0f)));
}

INLINE v16 v16_sigmoid(v16 x) { return 1.0f / (1.0f + v16_exp(-x)); }

INLINE v16 silu(v16 x) { return x * v16_sigmoid(x); }

/* GELU in its tanh form; see constants.h. */
INLINE v16 gelu(v16 x) { return x * v16_sigmoid(GELU_SCALE * (x + GELU_CUBIC * x * x * x)); }

#endif
