/* Sixteen numbers in four SSE2 registers, which every x86-64 processor has. */

#ifndef GPTCLI_SSE2_H
#define GPTCLI_SSE2_H

#include <emmintrin.h>

#define PARTS 4
#define VECTOR_UNIT "sse2"

typedef float f32part __attribute__((vector_size(16)));
typedef int32_t i32part __attribute__((vector_size(16)));

#define PART_INDEX ((i32part){0, 1, 2, 3})

INLINE f32part part_fmadd(f32part a, f32part b, f32part c) { return a * b + c; }

/* The result is b if one of the two is NaN. */
INLINE f32part part_max(f32part a, f32part b) { return (f32part)_mm_max_ps((__m128)a, (__m128)b); }

INLINE f32part part_min(f32part a, f32part b) { return (f32part)_mm_min_ps((__m128)a, (__m128)b); }

INLINE f32part part_sqrt(f32part x) { return (f32part)_mm_sqrt_ps((__m128)x); }

/* Transposes 4 x 4 numbers. */
INLINE void transpose_part(f32part r[4]) {
    const __m128 a = _mm_unpacklo_ps((__m128)r[0], (__m128)r[1]),
                 b = _mm_unpackhi_ps((__m128)r[0], (__m128)r[1]),
                 c = _mm_unpacklo_ps((__m128)r[2], (__m128)r[3]),
                 d = _mm_unpackhi_ps((__m128)r[2], (__m128)r[3]);
    r[0] = (f32part)_mm_movelh_ps(a, c);
    r[1] = (f32part)_mm_movehl_ps(c, a);
    r[2] = (f32part)_mm_movelh_ps(b, d);
    r[3] = (f32part)_mm_movehl_ps(d, b);
}

/* How many rows, and how many panels of 16 columns, are computed at once. Their sums take 8 of the
 * 16 registers. */
enum { ROWS_AT_ONCE = 2, PANELS_AT_ONCE = 1 };

#include "parts.h"

#endif
