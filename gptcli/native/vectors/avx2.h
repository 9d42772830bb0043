/* Sixteen numbers in two AVX2 registers, with fused multiply-add. */

#ifndef GPTCLI_AVX2_H
#define GPTCLI_AVX2_H

#include <immintrin.h>

#define PARTS 2
#define VECTOR_UNIT "avx2"

typedef float f32part __attribute__((vector_size(32)));
typedef int32_t i32part __attribute__((vector_size(32)));

#define PART_INDEX ((i32part){0, 1, 2, 3, 4, 5, 6, 7})

INLINE f32part part_fmadd(f32part a, f32part b, f32part c) {
    return (f32part)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

/* The result is b if one of the two is NaN. */
INLINE f32part part_max(f32part a, f32part b) {
    return (f32part)_mm256_max_ps((__m256)a, (__m256)b);
}

INLINE f32part part_min(f32part a, f32part b) {
    return (f32part)_mm256_min_ps((__m256)a, (__m256)b);
}

INLINE f32part part_sqrt(f32part x) { return (f32part)_mm256_sqrt_ps((__m256)x); }

/* Transposes 8 x 8 numbers. */
INLINE void transpose_part(f32part r[8]) {
    __m256 t[8], u[8];
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps((__m256)r[2 * i], (__m256)r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps((__m256)r[2 * i], (__m256)r[2 * i + 1]);
    }
    UNROLL(2)
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        r[i] = (f32part)_mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
        r[4 + i] = (f32part)_mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
}

/* How many rows, and how many panels of 16 columns, are computed at once. The sums of these rows
 * and columns take 12 of the 16 registers. */
enum { ROWS_AT_ONCE = 6, PANELS_AT_ONCE = 1 };

#include "parts.h"

#endif
