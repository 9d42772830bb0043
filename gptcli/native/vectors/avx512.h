/* Sixteen numbers in one AVX-512 register. */

#ifndef GPTCLI_AVX512_H
#define GPTCLI_AVX512_H

#include <immintrin.h>

#define PARTS 1
#define VECTOR_UNIT "avx512"

typedef __m512 f32x16;
typedef __m512i i32x16;
typedef __mmask16 mask16;

INLINE f32x16 broadcast(float x) { return _mm512_set1_ps(x); }
INLINE i32x16 broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
INLINE f32x16 load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, f32x16 x) { _mm512_storeu_ps(p, x); }
INLINE i32x16 load_ints(const void *p) { return _mm512_loadu_si512(p); }

INLINE f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
INLINE f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
INLINE f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
INLINE f32x16 divide(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
INLINE f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE f32x16 fnmadd(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE f32x16 maximum(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
INLINE f32x16 minimum(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
INLINE f32x16 square_root(f32x16 x) { return _mm512_sqrt_ps(x); }
INLINE mask16 less(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

INLINE mask16 first_lanes(long n) { return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0; }
INLINE f32x16 keep(mask16 m, f32x16 x) { return _mm512_maskz_mov_ps(m, x); }
INLINE f32x16 blend(mask16 m, f32x16 a, f32x16 b) { return _mm512_mask_blend_ps(m, b, a); }
INLINE f32x16 load_first(const float *p, long n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
INLINE void store_first(float *p, long n, f32x16 x) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

INLINE float sum_lanes(f32x16 x) { return _mm512_reduce_add_ps(x); }
INLINE float max_lane(f32x16 x) { return _mm512_reduce_max_ps(x); }

/* ---- integers -------------------------------------------------------------------------------- */

INLINE i32x16 bits_of(f32x16 x) { return _mm512_castps_si512(x); }
INLINE f32x16 from_bits(i32x16 x) { return _mm512_castsi512_ps(x); }
INLINE f32x16 to_float(i32x16 x) { return _mm512_cvtepi32_ps(x); }
INLINE i32x16 lane_index(void) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE i32x16 add_ints(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
INLINE i32x16 sub_ints(i32x16 a, i32x16 b) { return _mm512_sub_epi32(a, b); }
INLINE i32x16 mul_ints(i32x16 a, i32x16 b) { return _mm512_mullo_epi32(a, b); }
INLINE i32x16 xor_ints(i32x16 a, i32x16 b) { return _mm512_xor_si512(a, b); }
INLINE i32x16 and_ints(i32x16 a, i32x16 b) { return _mm512_and_si512(a, b); }
INLINE i32x16 shift_left(i32x16 a, int n) { return _mm512_slli_epi32(a, n); }

/* Shifts right, and copies the sign into the highest bits. */
INLINE i32x16 shift_right(i32x16 a, int n) { return _mm512_srai_epi32(a, n); }

/* Shifts right, and puts zeros into the highest bits. */
INLINE i32x16 shift_right_unsigned(i32x16 a, int n) { return _mm512_srli_epi32(a, n); }

INLINE mask16 at_least_unsigned(i32x16 a, i32x16 b) { return _mm512_cmpge_epu32_mask(a, b); }

/* ---- bfloat16 and other shapes --------------------------------------------------------------- */

INLINE f32x16 load_bf16(const bf16 *p) {
    const __m256i bits = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

INLINE void store_bf16(bf16 *p, f32x16 x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}

/* Loads the first n lanes; the others become 0. */
INLINE f32x16 load_first_bf16(const bf16 *p, long n) {
    const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

#if defined(__AVX512BF16__)
/* Stores the first n lanes; the other numbers in memory do not change. */
INLINE void store_first_bf16(bf16 *p, long n, f32x16 x) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

INLINE void store_low_bytes(char *p, i32x16 x) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x));
}

/* Transposes 16 x 16 numbers of 32 bits. */
INLINE void transpose16_ints(__m512i r[16]) {
    __m512i t[16];
    UNROLL(8)
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    UNROLL(4)
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    }
}

INLINE void transpose16(f32x16 r[16]) {
    __m512i bits[16];
    UNROLL(16)
    for (int i = 0; i < 16; i++) bits[i] = bits_of(r[i]);
    transpose16_ints(bits);
    UNROLL(16)
    for (int i = 0; i < 16; i++) r[i] = from_bits(bits[i]);
}

/* to (16, 16) = the transpose of `from` (16, 16), whose rows are `row` apart. */
INLINE void store_transposed16(const float *from, long row, float *to) {
    f32x16 r[16];
    UNROLL(16)
    for (int i = 0; i < 16; i++) r[i] = load(from + i * row);
    transpose16(r);
    UNROLL(16)
    for (int i = 0; i < 16; i++) store(to + 16 * i, r[i]);
}

/* The rows and the panels (of 16 columns) that are computed at once. Their 8 * 2 sums take 16 of
 * the 32 registers. */
enum { ROWS_AT_ONCE = 8, PANELS_AT_ONCE = 2 };

#endif
