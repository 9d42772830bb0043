/* Vectors of sixteen numbers on x86-64 and 64-bit ARM: f32x16, i32x16, mask16, shared functions.
 *
 * The file of the processor's vector unit defines the types and the functions on them:
 *
 *   load, store, load_first, store_first    any address; the last two: the first n lanes
 *   broadcast, add, sub, mul, divide, ...   lane by lane
 *   fmadd a b + c, fnmadd c - a b           rounded once, except with SSE2
 *   less, first_lanes, keep, blend          masks: keep is m ? x : 0, blend is m ? a : b
 *   maximum, minimum, sum_lanes, max_lane   sums always run in the same order
 *
 * The compiler's flags, which library.py sets, choose the file. */

#ifndef GPTCLI_F32X16_H
#define GPTCLI_F32X16_H

#include <math.h>

#include "basics.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "avx2.h"
#elif defined(__x86_64__)
#include "sse2.h"
#elif defined(__aarch64__)
#include "neon.h"
#else
#error "this processor has no vector unit that the library knows"
#endif

/* The vector unit that this library was compiled for. */
const char *vector_unit(void) { return VECTOR_UNIT; }

INLINE f32x16 zeros(void) { return broadcast(0.0f); }

INLINE f32x16 negate(f32x16 x) { return sub(zeros(), x); }

#define LOG2_E 1.44269504f

/* 2^x with a relative error of about 1e-7, for x from -126 to 127 or NaN. Adding 1.5 * 2^23 rounds
 * x to a whole number n, whose bits are then the lowest bits of the sum. A polynomial, fitted over
 * [-0.5, 0.5], gives 2^(x - n). Then n is added to the exponent of the polynomial's result. */
INLINE f32x16 exp2_in_range(f32x16 x) {
    const f32x16 rounding = broadcast(12582912.0f);
    const f32x16 shifted = add(x, rounding), r = sub(x, sub(shifted, rounding));
    f32x16 y = broadcast(1.5353362e-4f);
    y = fmadd(y, r, broadcast(1.3398874e-3f));
    y = fmadd(y, r, broadcast(9.6184373e-3f));
    y = fmadd(y, r, broadcast(5.5503324e-2f));
    y = fmadd(y, r, broadcast(2.4022648e-1f));
    y = fmadd(y, r, broadcast(6.9314720e-1f));
    y = fmadd(y, r, broadcast(1.0f));
    return from_bits(add_ints(bits_of(y), shift_left(bits_of(shifted), 23)));
}

/* 2^x with a relative error of about 1e-7. If x is below -126, the result is 0. If x is above 127,
 * the result is 2^127. NaN stays NaN. */
INLINE f32x16 exp2_f32(f32x16 x) {
    return blend(less(x, broadcast(-126.0f)), zeros(),
                 exp2_in_range(minimum(broadcast(127.0f), x)));
}

#endif
