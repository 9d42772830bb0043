/* Sixteen numbers in four NEON registers, which every aarch64 processor has. */

#ifndef GPTCLI_NEON_H
#define GPTCLI_NEON_H

#include <arm_neon.h>

#define PARTS 4
#define VECTOR_UNIT "neon"

typedef float32x4_t f32part;
typedef int32x4_t i32part;

#define PART_INDEX ((i32part){0, 1, 2, 3})

INLINE f32part part_fmadd(f32part a, f32part b, f32part c) { return vfmaq_f32(c, a, b); }

/* The result is NaN if one of the two is NaN. */
INLINE f32part part_max(f32part a, f32part b) { return vmaxq_f32(a, b); }

INLINE f32part part_min(f32part a, f32part b) { return vminq_f32(a, b); }

INLINE f32part part_sqrt(f32part x) { return vsqrtq_f32(x); }

/* Transposes 4 x 4 numbers. */
INLINE void transpose_part(f32part r[4]) {
    const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

/* How many rows, and how many panels of 16 columns, are computed at once. Their sums take 16 of the
 * 32 registers. */
enum { ROWS_AT_ONCE = 4, PANELS_AT_ONCE = 1 };

#include "parts.h"

#endif
