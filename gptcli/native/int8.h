/* Weights of eight bits, and their products with rows of numbers, in whole numbers.
 *
 * A weight is (u - 128) s: u a byte, s the scale of the output's 32 inputs around it, the nearest
 * bfloat16 that lets the largest of them be 127 or less. A number of a row is a t: t the row's
 * scale, a = 128 high + low a whole number of 15 bits, high and low a byte each. The products of 32
 * inputs are summed exactly, so that neither the processor nor what stands beside a row changes a
 * sum. Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.1,
 * for scales of blocks; Intel's manual, VPDPBUSD.
 *
 * A panel: for each four inputs the four bytes of its 16 outputs in turn, 64 bytes; then for each
 * 32 inputs the 16 outputs' scales. A row: for each 32 inputs their high bytes, then their low
 * ones; then for each 32 inputs minus the sum of a, which takes the 128 out again; then the scale.
 */

#ifndef GPTCLI_BYTES_H
#define GPTCLI_BYTES_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "lanes.h"

enum { GROUP = 32, OUTPUTS = 16, MOST_OF_WEIGHT = 127, MOST_OF_ROW = 127 * 128 + 63 };

enum { TILED = 6 }; /* rows from which tiles are quicker, by a trial */

static long byte_panel_bytes(long K) { return up_to(OUTPUTS * (K + K / GROUP * 2), 64); }

static long byte_row_bytes(long K) { return up_to(2 * K + K / GROUP * 4 + 4, 64); }

/* 32 inputs of a panel's outputs. */
static void pack_group(float inputs[OUTPUTS][GROUP], uint8_t *weights, bf16 *scales) {
    for (int i = 0; i < OUTPUTS; i++) {
        float most = 0.0f;
        for (int k = 0; k < GROUP; k++) most = fmaxf(most, fabsf(inputs[i][k]));
        bf16 rounded = half_of(most / MOST_OF_WEIGHT);
        if (float_of(rounded) * MOST_OF_WEIGHT < most) rounded++;
        if (most < 1e-30f) rounded = 0;
        scales[i] = rounded;
        const float over = rounded ? 1.0f / float_of(rounded) : 0.0f;
        for (int k = 0; k < GROUP; k++)
            weights[k / 4 * 64 + 4 * i + k % 4] = 128 + lrintf(inputs[i][k] * over);
    }
}

/* A row of K numbers, a multiple of 32, as products read it; one that is not finite gives NaN. */
static void to_bytes(const float *row, long K, char *out) {
    v16 most = all(0.0f), off = all(0.0f);
    for (long k = 0; k < K; k += LANES) {
        const v16 x = load(row + k);
        most = larger(larger(x, -x), most);
        off += x - x;
    }
    if (sum_of(off) != 0.0f) {
        const float none = NAN;
        memset(out, 0, 2 * K + K / GROUP * 4);
        memcpy(out + 2 * K + K / GROUP * 4, &none, sizeof none);
        return;
    }
    const float top = largest_of(most);
    const v16 scale = all(top > 1e-30f ? MOST_OF_ROW / top : 0.0f);
    const v16 shift = all(12582912.0f); /* 1.5 x 2^23: adding it rounds to a whole number */
    int32_t *start = (int32_t *)(out + 2 * K);
    for (long k = 0; k < K; k += GROUP, start++) {
        i16 sum = {0};
        for (int i = 0; i < GROUP; i += LANES) {
            const i16 a = (i16)(load(row + k + i) * scale + shift) - (i16)shift;
            const i16 high = (a + 64) >> 7;
            store_bytes(out + 2 * k + i, high);
            store_bytes(out + 2 * k + GROUP + i, a - high * 128);
            sum += a;
        }
        int32_t total = 0;
        for (int i = 0; i < LANES; i++) total += sum[i];
        *start = -total;
    }
    const float back = top > 1e-30f ? top / MOST_OF_ROW : 0.0f;
    memcpy(start, &back, sizeof back);
}

/* Whole numbers, as many as a register takes. */
#if defined(__AVX512BW__)
enum { WIDE = 64 };
#elif defined(__AVX2__)
enum { WIDE = 32 };
#else
enum { WIDE = 16 };
#endif
typedef int32_t wide __attribute__((vector_size(WIDE)));
typedef int16_t narrow __attribute__((vector_size(WIDE)));

/* Numbers of 16 bits times others, the products of two that lie side by side added. */
INLINE wide add_pairs(wide a, wide b) {
#if defined(__AVX512BW__)
    return (wide)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (wide)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (wide)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* sum + for each four weights, bytes without a sign, their products with these four with one. */
INLINE wide add_fours(wide sum, wide weights, int32_t four) {
    const wide fours = four - (wide){0};
#if defined(__AVX512VNNI__)
    return (wide)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)fours);
#elif defined(__AVXVNNI__)
    return (wide)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, (__m256i)fours);
#else
    /* The first and third as numbers of 16 bits, then the second and fourth. */
    const narrow bytes = (narrow)fours;
    const wide even = (wide)(bytes << 8 >> 8), odd = (wide)(bytes >> 8);
    const int32_t low = 0x00ff00ff;
    return sum + add_pairs(weights & low, even) + add_pairs(weights >> 8 & low, odd);
#endif
}

/* out (nr, 16 nb) = rows times nb panels, which begin at `panels`. */
INLINE void few_byte_rows(const int nr, const int nb, long K, const char *panels, const char *rows,
                          float *out, long out_row) {
    enum { PARTS = 64 / WIDE };
    const long panel = byte_panel_bytes(K), row = byte_row_bytes(K);
    const char *w = panels, *scales = panels + OUTPUTS * K, *starts = rows + 2 * K;
    v16 sum[4][4];
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++) sum[r][j] = all(0.0f);
    for (long at = 0; at < K; at += GROUP) {
        const char *high = rows + 2 * at, *low = high + GROUP;
        wide highs[4][4][PARTS], lows[4][4][PARTS];
        for (int r = 0; r < nr; r++)
            for (int j = 0; j < nb; j++)
                for (int i = 0; i < PARTS; i++) {
                    highs[r][j][i] = int_at(starts + r * row) - (wide){0};
                    lows[r][j][i] = (wide){0};
                }
#pragma GCC unroll 2
        for (int k = 0; k < GROUP; k += 4, w += 4 * OUTPUTS)
            for (int j = 0; j < nb; j++)
                for (int i = 0; i < PARTS; i++) {
                    wide b;
                    memcpy(&b, w + j * panel + i * WIDE, sizeof b);
                    for (int r = 0; r < nr; r++) {
                        highs[r][j][i] = add_fours(highs[r][j][i], b, int_at(high + r * row + k));
                        lows[r][j][i] = add_fours(lows[r][j][i], b, int_at(low + r * row + k));
                    }
                }
        for (int j = 0; j < nb; j++) {
            const v16 scale = load_half((const bf16 *)(scales + j * panel));
            for (int r = 0; r < nr; r++) {
                i16 whole;
                for (int i = 0; i < PARTS; i++) {
                    const wide both = (highs[r][j][i] << 7) + lows[r][j][i];
                    memcpy((char *)&whole + i * WIDE, &both, sizeof both);
                }
                sum[r][j] += __builtin_convertvector(whole, v16) * scale;
            }
        }
        scales += OUTPUTS * sizeof(bf16), starts += sizeof(int32_t);
    }
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++)
            store(out + r * out_row + OUTPUTS * j, sum[r][j] * all(float_at(starts + r * row)));
}

#if HAS_TILES && defined(__AMX_INT8__)
#define HAS_BYTE_TILES 1

/* Tiles 0 to 3 take 16 x 16 sums, 4 and 5 bytes of up to 16 rows, 6 and 7 a panel's. */
static void byte_tiles_begin(int rows) {
    TileShape shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = i == 4 || i == 5 ? GROUP : 64;
        shape.rows[i] = i < 6 ? rows : GROUP / 4;
    }
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shape);
}

typedef int32_t Sums[4][16][OUTPUTS]; /* of a group: high and low bytes, for two panels each */

INLINE void tile_group(const char *w, long panel, const char *bytes, long row, Sums sums) {
    __asm__ volatile("" ::: "memory"); /* gcc does not know that tiles are read from memory */
    _tile_loadd(4, bytes, row);
    _tile_loadd(5, bytes + GROUP, row);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + panel, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 5, 6);
    _tile_dpbsud(2, 4, 7);
    _tile_dpbsud(3, 5, 7);
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

/* out (n, 32) = n rows, at most 16, times two panels: the same as few_byte_rows. */
static void tiled_byte_rows(int n, long K, const char *panels, const char *rows, float *out,
                            long out_row) {
    const long panel = byte_panel_bytes(K), row = byte_row_bytes(K), groups = K / GROUP;
    const char *scales = panels + OUTPUTS * K, *starts = rows + 2 * K;
    Sums sums[2] __attribute__((aligned(64)));
    for (int r = 0; r < n; r++)
        for (int j = 0; j < 2; j++) store(out + r * out_row + OUTPUTS * j, all(0.0f));
    tile_group(panels, panel, rows, row, sums[0]);
    for (long g = 0; g < groups; g++) {
        /* The next, so that what a tile was stored to is not read before it has got there. */
        if (g + 1 < groups)
            tile_group(panels + (g + 1) * GROUP * OUTPUTS, panel, rows + 2 * (g + 1) * GROUP, row,
                       sums[(g + 1) % 2]);
        for (int j = 0; j < 2; j++) {
            const int32_t (*high)[OUTPUTS] = sums[g % 2][2 * j];
            const int32_t (*low)[OUTPUTS] = sums[g % 2][2 * j + 1];
            const v16 scale = load_half((const bf16 *)(scales + j * panel) + g * OUTPUTS);
            for (int r = 0; r < n; r++) {
                const i16 start = every(int_at(starts + r * row + g * 4));
                const i16 whole = ((load_whole(high[r]) + start) << 7) + load_whole(low[r]);
                float *to = out + r * out_row + OUTPUTS * j;
                store(to, load(to) + __builtin_convertvector(whole, v16) * scale);
            }
        }
    }
    for (int r = 0; r < n; r++) {
        const float scale = float_at(starts + r * row + groups * 4);
        for (int j = 0; j < 2; j++) {
            float *to = out + r * out_row + OUTPUTS * j;
            store(to, load(to) * all(scale));
        }
    }
}

#else
#define HAS_BYTE_TILES 0
#endif

/* out (n, 16 panels) = n rows, at most 32, times an even number of panels. */
static void times_bytes(long K, const char *panels, const char *rows, int n, int count, float *out,
                        long out_row) {
    const long panel = byte_panel_bytes(K), row = byte_row_bytes(K);
    int j = 0;
#if defined(__AVX512F__) /* else there are too few registers */
    for (; n == 1 && j + 4 <= count; j += 4)
        few_byte_rows(1, 4, K, panels + j * panel, rows, out + j * OUTPUTS, out_row);
#endif
    for (; j < count; j += 2) {
        const char *w = panels + j * panel;
        float *to = out + j * OUTPUTS;
        int r = 0;
#if HAS_BYTE_TILES
        for (; r < n && n >= TILED; r += 16)
            tiled_byte_rows(n - r < 16 ? n - r : 16, K, w, rows + r * row, to + r * out_row,
                            out_row);
#endif
#if defined(__AVX512F__)
        for (; r + 4 <= n; r += 4)
            few_byte_rows(4, 2, K, w, rows + r * row, to + r * out_row, out_row);
#endif
        for (; r < n; r++) few_byte_rows(1, 2, K, w, rows + r * row, to + r * out_row, out_row);
    }
}

#endif
