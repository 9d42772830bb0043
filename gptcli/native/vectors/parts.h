/* Sixteen numbers as two or four registers, for vector units with registers of 16 or 32 bytes.
 *
 * The header of each vector unit defines PARTS, the types f32part and i32part, and a few operations
 * on a part. This file makes f32x16 and i32x16 of them. On these processors, gcc would keep its own
 * vectors of 64 bytes in memory, which is several times as slow. */

#ifndef GPTCLI_PARTS_H
#define GPTCLI_PARTS_H

enum { PART = 16 / PARTS }; /* lanes of a part */

typedef uint32_t u32part __attribute__((vector_size(4 * PART)));
typedef uint16_t u16part __attribute__((vector_size(2 * PART)));
typedef struct {
    f32part v[PARTS];
} f32x16;
typedef struct {
    i32part v[PARTS];
} i32x16;
typedef i32x16 mask16; /* a lane has all bits set, or none */

#define EACH_PART UNROLL(4) for (int i = 0; i < PARTS; i++)

INLINE f32x16 broadcast(float x) {
    f32x16 r;
    EACH_PART r.v[i] = x - (f32part){0};
    return r;
}

INLINE i32x16 broadcast_int(int32_t x) {
    i32x16 r;
    EACH_PART r.v[i] = x - (i32part){0};
    return r;
}

INLINE f32x16 load(const float *p) {
    f32x16 r;
    EACH_PART memcpy(&r.v[i], p + PART * i, sizeof r.v[i]);
    return r;
}

INLINE void store(float *p, f32x16 x) { EACH_PART memcpy(p + PART * i, &x.v[i], sizeof x.v[i]); }

INLINE i32x16 load_ints(const void *p) {
    i32x16 r;
    EACH_PART memcpy(&r.v[i], (const char *)p + 4 * PART * i, sizeof r.v[i]);
    return r;
}

INLINE f32x16 add(f32x16 a, f32x16 b) {
    EACH_PART a.v[i] += b.v[i];
    return a;
}

INLINE f32x16 sub(f32x16 a, f32x16 b) {
    EACH_PART a.v[i] -= b.v[i];
    return a;
}

INLINE f32x16 mul(f32x16 a, f32x16 b) {
    EACH_PART a.v[i] *= b.v[i];
    return a;
}

INLINE f32x16 divide(f32x16 a, f32x16 b) {
    EACH_PART a.v[i] /= b.v[i];
    return a;
}

INLINE f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) {
    EACH_PART c.v[i] = part_fmadd(a.v[i], b.v[i], c.v[i]);
    return c;
}

INLINE f32x16 fnmadd(f32x16 a, f32x16 b, f32x16 c) {
    EACH_PART c.v[i] = part_fmadd(-a.v[i], b.v[i], c.v[i]);
    return c;
}

INLINE f32x16 maximum(f32x16 a, f32x16 b) {
    EACH_PART a.v[i] = part_max(a.v[i], b.v[i]);
    return a;
}

INLINE f32x16 minimum(f32x16 a, f32x16 b) {
    EACH_PART a.v[i] = part_min(a.v[i], b.v[i]);
    return a;
}

INLINE f32x16 square_root(f32x16 x) {
    EACH_PART x.v[i] = part_sqrt(x.v[i]);
    return x;
}

INLINE mask16 less(f32x16 a, f32x16 b) {
    mask16 m;
    EACH_PART m.v[i] = (i32part)(a.v[i] < b.v[i]);
    return m;
}

INLINE mask16 first_lanes(long n) {
    mask16 m;
    const i32part all = (int32_t)(n < 16 ? n : 16) - (i32part){0};
    EACH_PART m.v[i] = PART_INDEX + PART * i < all;
    return m;
}

INLINE f32x16 keep(mask16 m, f32x16 x) {
    EACH_PART x.v[i] = (f32part)(m.v[i] & (i32part)x.v[i]);
    return x;
}

INLINE f32x16 blend(mask16 m, f32x16 a, f32x16 b) {
    EACH_PART a.v[i] = (f32part)((m.v[i] & (i32part)a.v[i]) | (~m.v[i] & (i32part)b.v[i]));
    return a;
}

INLINE f32x16 load_first(const float *p, long n) {
    if (n >= 16) return load(p);
    float some[16] = {0};
    if (n == 8) /* the size is constant, so gcc copies without calling memcpy, which is slow */
        memcpy(some, p, 8 * sizeof *p);
    else if (n > 0)
        memcpy(some, p, n * sizeof *p);
    return load(some);
}

INLINE void store_first(float *p, long n, f32x16 x) {
    float all[16];
    if (n >= 16) {
        store(p, x);
        return;
    }
    store(all, x);
    if (n == 8)
        memcpy(p, all, 8 * sizeof *p);
    else if (n > 0)
        memcpy(p, all, n * sizeof *p);
}

INLINE float sum_lanes(f32x16 x) {
    f32part s = x.v[0];
    for (int i = 1; i < PARTS; i++) s += x.v[i];
    for (int n = PART / 2; n; n /= 2)
        for (int i = 0; i < n; i++) s[i] += s[i + n];
    return s[0];
}

INLINE float max_lane(f32x16 x) {
    f32part s = x.v[0];
    for (int i = 1; i < PARTS; i++) s = part_max(s, x.v[i]);
    for (int n = PART / 2; n; n /= 2)
        for (int i = 0; i < n; i++) s[i] = s[i] > s[i + n] ? s[i] : s[i + n];
    return s[0];
}

/* ---- integers -------------------------------------------------------------------------------- */

INLINE i32x16 bits_of(f32x16 x) {
    i32x16 r;
    EACH_PART r.v[i] = (i32part)x.v[i];
    return r;
}

INLINE f32x16 from_bits(i32x16 x) {
    f32x16 r;
    EACH_PART r.v[i] = (f32part)x.v[i];
    return r;
}

INLINE f32x16 to_float(i32x16 x) {
    f32x16 r;
    EACH_PART r.v[i] = __builtin_convertvector(x.v[i], f32part);
    return r;
}

INLINE i32x16 lane_index(void) {
    i32x16 r;
    EACH_PART r.v[i] = PART_INDEX + PART * i;
    return r;
}

INLINE i32x16 add_ints(i32x16 a, i32x16 b) {
    EACH_PART a.v[i] = (i32part)((u32part)a.v[i] + (u32part)b.v[i]);
    return a;
}

INLINE i32x16 sub_ints(i32x16 a, i32x16 b) {
    EACH_PART a.v[i] = (i32part)((u32part)a.v[i] - (u32part)b.v[i]);
    return a;
}

INLINE i32x16 mul_ints(i32x16 a, i32x16 b) {
    EACH_PART a.v[i] = (i32part)((u32part)a.v[i] * (u32part)b.v[i]);
    return a;
}

INLINE i32x16 xor_ints(i32x16 a, i32x16 b) {
    EACH_PART a.v[i] ^= b.v[i];
    return a;
}

INLINE i32x16 and_ints(i32x16 a, i32x16 b) {
    EACH_PART a.v[i] &= b.v[i];
    return a;
}

INLINE i32x16 shift_left(i32x16 a, int n) {
    EACH_PART a.v[i] <<= n;
    return a;
}

/* Shifts right, and copies the sign into the highest bits. */
INLINE i32x16 shift_right(i32x16 a, int n) {
    EACH_PART a.v[i] >>= n;
    return a;
}

/* Shifts right, and puts zeros into the highest bits. */
INLINE i32x16 shift_right_unsigned(i32x16 a, int n) {
    EACH_PART a.v[i] = (i32part)((u32part)a.v[i] >> n);
    return a;
}

INLINE mask16 at_least_unsigned(i32x16 a, i32x16 b) {
    EACH_PART a.v[i] = (i32part)((u32part)a.v[i] >= (u32part)b.v[i]);
    return a;
}

/* ---- bfloat16 and other shapes --------------------------------------------------------------- */

INLINE f32x16 load_bf16(const bf16 *p) {
    f32x16 r;
    EACH_PART {
        u16part x;
        memcpy(&x, p + PART * i, sizeof x);
        r.v[i] = (f32part)(__builtin_convertvector(x, i32part) << 16);
    }
    return r;
}

INLINE void store_bf16(bf16 *p, f32x16 x) {
    EACH_PART {
        const i32part bits = (i32part)x.v[i], odd = (bits >> 16) & 1;
        const u16part y = __builtin_convertvector((bits + odd + 0x7fff) >> 16, u16part);
        memcpy(p + PART * i, &y, sizeof y);
    }
}

INLINE void store_low_bytes(char *p, i32x16 x) {
    EACH_PART for (int j = 0; j < PART; j++) p[PART * i + j] = (char)x.v[i][j];
}

/* to (16, 16) = the transpose of `from` (16, 16), whose rows are `row` apart. Takes PART x PART
 * numbers at a time, because 16 x 16 do not fit into the registers. */
INLINE void store_transposed16(const float *from, long row, float *to) {
    for (int i = 0; i < 16; i += PART)
        for (int j = 0; j < 16; j += PART) {
            f32part square[PART];
            UNROLL(8)
            for (int k = 0; k < PART; k++)
                memcpy(&square[k], from + (i + k) * row + j, sizeof square[k]);
            transpose_part(square);
            UNROLL(8)
            for (int k = 0; k < PART; k++)
                memcpy(to + 16 * (j + k) + i, &square[k], sizeof square[k]);
        }
}

/* Transposes 16 x 16 numbers, PART x PART at a time. */
INLINE void transpose16(f32x16 r[16]) {
    f32x16 t[16];
    UNROLL(4)
    for (int i = 0; i < PARTS; i++) UNROLL(4)
    for (int j = 0; j < PARTS; j++) {
        f32part square[PART];
        UNROLL(8)
        for (int k = 0; k < PART; k++) square[k] = r[PART * i + k].v[j];
        transpose_part(square);
        UNROLL(8)
        for (int k = 0; k < PART; k++) t[PART * j + k].v[i] = square[k];
    }
    UNROLL(16)
    for (int k = 0; k < 16; k++) r[k] = t[k];
}

#endif
