/* AVX-512, AVX512-BF16 and AMX in plain C, for tests of the bfloat16 code on any processor.
 *
 * This file defines the intrinsics that gptcli/native uses, as Intel's Intrinsics Guide describes
 * them. Tests compile the library with this folder first in the include path, and with the macros
 * of the processor's features. The emulation is slow, and its sums can differ from a processor's in
 * the last bit. */

#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef long long __m128i __attribute__((vector_size(16), may_alias));
typedef short __m512bh __attribute__((vector_size(64), may_alias));
typedef short __m256bh __attribute__((vector_size(32), may_alias));
typedef uint16_t __mmask16;

typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef uint32_t Unsigned __attribute__((vector_size(64), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), may_alias));

#define EMULATE static inline __attribute__((always_inline))
#define EACH_LANE for (int i = 0; i < 16; i++)

enum { _CMP_LT_OQ = 17, _MM_FROUND_TO_NEG_INF = 1, _MM_FROUND_NO_EXC = 8 };

/* ---- memory ---------------------------------------------------------------------------------- */

EMULATE __m512 _mm512_loadu_ps(const void *p) {
    __m512 r;
    memcpy(&r, p, sizeof r);
    return r;
}
EMULATE __m512i _mm512_loadu_si512(const void *p) {
    __m512i r;
    memcpy(&r, p, sizeof r);
    return r;
}
EMULATE __m256i _mm256_loadu_si256(const __m256i *p) {
    __m256i r;
    memcpy(&r, p, sizeof r);
    return r;
}
EMULATE void _mm512_storeu_ps(void *p, __m512 x) { memcpy(p, &x, sizeof x); }
EMULATE void _mm512_storeu_si512(void *p, __m512i x) { memcpy(p, &x, sizeof x); }
EMULATE void _mm256_storeu_si256(__m256i *p, __m256i x) { memcpy(p, &x, sizeof x); }
EMULATE void _mm_storeu_si128(__m128i *p, __m128i x) { memcpy(p, &x, sizeof x); }
EMULATE __m512 _mm512_maskz_loadu_ps(__mmask16 m, const void *p) {
    __m512 r;
    EACH_LANE r[i] = m >> i & 1 ? ((const float *)p)[i] : 0.0f;
    return r;
}
EMULATE __m512i _mm512_maskz_loadu_epi32(__mmask16 m, const void *p) {
    Ints r;
    EACH_LANE {
        r[i] = 0;
        if (m >> i & 1) memcpy((char *)&r + 4 * i, (const char *)p + 4 * i, 4);
    }
    return (__m512i)r;
}
EMULATE __m256i _mm256_maskz_loadu_epi16(__mmask16 m, const void *p) {
    Halves r;
    EACH_LANE r[i] = m >> i & 1 ? ((const uint16_t *)p)[i] : 0;
    return (__m256i)r;
}
EMULATE void _mm512_mask_storeu_ps(void *p, __mmask16 m, __m512 x) {
    EACH_LANE if (m >> i & 1)((float *)p)[i] = x[i];
}
EMULATE void _mm256_mask_storeu_epi16(void *p, __mmask16 m, __m256i x) {
    EACH_LANE if (m >> i & 1)((uint16_t *)p)[i] = ((Halves)x)[i];
}

/* ---- float32 --------------------------------------------------------------------------------- */

EMULATE __m512 _mm512_set1_ps(float x) { return x - (__m512){0}; }
EMULATE __m512 _mm512_setzero_ps(void) { return (__m512){0}; }
EMULATE __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
EMULATE __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
EMULATE __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
EMULATE __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
EMULATE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return a * b + c; }
EMULATE __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return c - a * b; }
EMULATE __m512 _mm512_max_ps(__m512 a, __m512 b) {
    EACH_LANE a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
EMULATE __m512 _mm512_min_ps(__m512 a, __m512 b) {
    EACH_LANE a[i] = a[i] < b[i] ? a[i] : b[i];
    return a;
}
EMULATE __m512 _mm512_sqrt_ps(__m512 a) {
    EACH_LANE a[i] = sqrtf(a[i]);
    return a;
}
EMULATE __m512 _mm512_rcp14_ps(__m512 a) { return 1.0f / a; }
EMULATE __m512 _mm512_reduce_ps(__m512 a, int how) { /* x - floor(x) */
    (void)how;
    EACH_LANE a[i] = isinf(a[i]) ? 0.0f : a[i] - floorf(a[i]);
    return a;
}
EMULATE __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
    EACH_LANE {
        const float whole = b[i] > 1000.0f ? 1000.0f : b[i] < -1000.0f ? -1000.0f : floorf(b[i]);
        a[i] = isnan(b[i]) ? b[i] : ldexpf(a[i], (int)whole);
    }
    return a;
}
EMULATE __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
    (void)how; /* only _CMP_LT_OQ is used */
    __mmask16 m = 0;
    EACH_LANE m |= (__mmask16)((a[i] < b[i]) << i);
    return m;
}
EMULATE __m512 _mm512_maskz_mov_ps(__mmask16 m, __m512 a) {
    EACH_LANE a[i] = m >> i & 1 ? a[i] : 0.0f;
    return a;
}
EMULATE __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 a, __m512 b) {
    EACH_LANE a[i] = m >> i & 1 ? b[i] : a[i];
    return a;
}
EMULATE float _mm512_reduce_add_ps(__m512 x) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] += x[i + n];
    return x[0];
}
EMULATE float _mm512_reduce_max_ps(__m512 x) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) x[i] = x[i] > x[i + n] ? x[i] : x[i + n];
    return x[0];
}

/* ---- integers -------------------------------------------------------------------------------- */

EMULATE __m512i _mm512_castps_si512(__m512 x) { return (__m512i)x; }
EMULATE __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }
EMULATE __m512i _mm512_set1_epi32(int x) { return (__m512i)(x - (Ints){0}); }
EMULATE __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i,
                                  int j, int k, int l, int m, int n, int o, int p) {
    return (__m512i)(Ints){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
EMULATE __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    return (__m512i)((Unsigned)a + (Unsigned)b);
}
EMULATE __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
    return (__m512i)((Unsigned)a - (Unsigned)b);
}
EMULATE __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
    return (__m512i)((Unsigned)a * (Unsigned)b);
}
EMULATE __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
EMULATE __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
EMULATE __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
EMULATE __m512i _mm512_slli_epi32(__m512i a, int n) { return (__m512i)((Unsigned)a << n); }
EMULATE __m512i _mm512_srli_epi32(__m512i a, int n) { return (__m512i)((Unsigned)a >> n); }
EMULATE __m512i _mm512_srai_epi32(__m512i a, int n) { return (__m512i)((Ints)a >> n); }
EMULATE __mmask16 _mm512_cmpge_epu32_mask(__m512i a, __m512i b) {
    __mmask16 m = 0;
    EACH_LANE m |= (__mmask16)((((Unsigned)a)[i] >= ((Unsigned)b)[i]) << i);
    return m;
}
EMULATE __m512 _mm512_cvtepi32_ps(__m512i a) {
    __m512 r;
    EACH_LANE r[i] = (float)((Ints)a)[i];
    return r;
}
EMULATE __m512i _mm512_cvtepu16_epi32(__m256i a) {
    Unsigned r;
    EACH_LANE r[i] = ((Halves)a)[i];
    return (__m512i)r;
}
EMULATE __m256i _mm512_cvtepi32_epi16(__m512i a) {
    Halves r;
    EACH_LANE r[i] = (uint16_t)((Ints)a)[i];
    return (__m256i)r;
}
EMULATE __m128i _mm512_cvtepi32_epi8(__m512i a) {
    __m128i r;
    EACH_LANE((char *)&r)[i] = (char)((Ints)a)[i];
    return r;
}

/* ---- shuffles: within groups of 128 bits, and of whole groups -------------------------------- */

EMULATE __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
    Ints r;
    for (int k = 0; k < 16; k += 4)
        for (int i = 0; i < 2; i++)
            r[k + 2 * i] = ((Ints)a)[k + i], r[k + 2 * i + 1] = ((Ints)b)[k + i];
    return (__m512i)r;
}
EMULATE __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
    Ints r;
    for (int k = 0; k < 16; k += 4)
        for (int i = 0; i < 2; i++)
            r[k + 2 * i] = ((Ints)a)[k + 2 + i], r[k + 2 * i + 1] = ((Ints)b)[k + 2 + i];
    return (__m512i)r;
}
EMULATE __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
    __m512i r;
    for (int k = 0; k < 8; k += 2) r[k] = a[k], r[k + 1] = b[k];
    return r;
}
EMULATE __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
    __m512i r;
    for (int k = 0; k < 8; k += 2) r[k] = a[k + 1], r[k + 1] = b[k + 1];
    return r;
}
EMULATE __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int which) {
    __m512i r;
    for (int k = 0; k < 4; k++) {
        const int from = 2 * (which >> 2 * k & 3);
        for (int i = 0; i < 2; i++) r[2 * k + i] = k < 2 ? a[from + i] : b[from + i];
    }
    return r;
}

/* ---- AVX512-BF16 ----------------------------------------------------------------------------- */

EMULATE uint16_t emulated_round(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + (bits >> 16 & 1) + 0x7fff) >> 16);
}
EMULATE float emulated_float(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}
EMULATE __m256bh _mm512_cvtneps_pbh(__m512 x) {
    Halves r;
    EACH_LANE r[i] = emulated_round(x[i]);
    return (__m256bh)r;
}
EMULATE __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    const __m512 a0 = (__m512)((Unsigned)a << 16), a1 = (__m512)((Unsigned)a & 0xffff0000u);
    const __m512 b0 = (__m512)((Unsigned)b << 16), b1 = (__m512)((Unsigned)b & 0xffff0000u);
    return sum + a1 * b1 + a0 * b0;
}

/* ---- AMX ------------------------------------------------------------------------------------- */

#if defined(__AMX_BF16__)

static _Thread_local struct {
    uint8_t rows[8], configured;
    uint32_t numbers[8][16][16];
} emulated_tiles;

EMULATE void _tile_loadconfig(const void *p) {
    const uint8_t *bytes = p;
    memset(&emulated_tiles, 0, sizeof emulated_tiles);
    emulated_tiles.configured = bytes[0] == 1;
    memcpy(emulated_tiles.rows, bytes + 48, 8);
}
EMULATE void _tile_release(void) { memset(&emulated_tiles, 0, sizeof emulated_tiles); }
EMULATE void _tile_zero(int t) {
    memset(emulated_tiles.numbers[t], 0, sizeof emulated_tiles.numbers[t]);
}
EMULATE void _tile_loadd(int t, const void *p, long stride) {
    _tile_zero(t);
    for (int r = 0; r < emulated_tiles.rows[t]; r++)
        memcpy(emulated_tiles.numbers[t][r], (const char *)p + r * stride, 64);
}
EMULATE void _tile_stored(int t, void *p, long stride) {
    if (!emulated_tiles.configured) __builtin_trap(); /* a processor would also stop the program */
    for (int r = 0; r < emulated_tiles.rows[t]; r++)
        memcpy((char *)p + r * stride, emulated_tiles.numbers[t][r], 64);
}
EMULATE void _tile_dpbf16ps(int c, int a, int b) {
    for (int r = 0; r < emulated_tiles.rows[a]; r++) {
        __m512 sum;
        memcpy(&sum, emulated_tiles.numbers[c][r], sizeof sum);
        for (int k = 0; k < emulated_tiles.rows[b]; k++) {
            Unsigned pair = emulated_tiles.numbers[a][r][k] - (Unsigned){0}, weights;
            memcpy(&weights, emulated_tiles.numbers[b][k], sizeof weights);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)pair, (__m512bh)weights);
        }
        memcpy(emulated_tiles.numbers[c][r], &sum, sizeof sum);
    }
}

#endif

#endif
