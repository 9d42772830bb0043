/* int8 weights with a scale for every 32 inputs, and their products with rows of activations.
 *
 * A linear layer has K inputs; K % 32 is 0. An int8 weight w is stored as the byte w + 128.
 * Each output has a scale for every 32 of its inputs. A scale is the smallest bfloat16 number for
 * which the 32 weights, divided by the scale, are between -127 and 127. If all 32 weights are
 * between -1e-30 and 1e-30, the scale is 0.
 *
 * Each row of activations has one scale t. An activation is stored as an integer `a` of 15 bits:
 * its value is `a` times t. The products of 32 inputs are summed exactly, in int32, on all
 * processors. The float32 sums have a fixed order. So the result does not depend on the number of
 * rows. A processor that multiplies bytes (VNNI, AMX) reads each `a` as a high and a low byte: `a`
 * = 128 high + low. Other processors read each `a` as an int16. Sources: Dettmers et al. 2022,
 * "8-bit Optimizers via Block-wise Quantization", section 2.1, for scales of blocks; Intel's
 * manual, VPDPBUSD and PMADDWD.
 *
 * Layout in bytes:
 *
 *   panel  for every 4 inputs: the 4 weights of output 0, of output 1, ... of output 15 (64 bytes)
 *          then for every 32 inputs: the scales of the 16 outputs (bfloat16)
 *   row    for every 32 inputs: 32 high bytes, then 32 low bytes; or for every 4 inputs: inputs
 *          0 and 2, then 1 and 3, as int16
 *          then for every 32 inputs: minus the sum of `a` (int32), to correct for w + 128
 *          then t (float32) */

#ifndef GPTCLI_INT8_H
#define GPTCLI_INT8_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../vectors/lanes.h"

/* Inputs that share a scale, outputs of a panel, the largest weight and the largest activation. */
enum { SCALE_GROUP = 32, OUTPUTS = 16, MAX_WEIGHT = 127, MAX_ACTIVATION = 127 * 128 + 63 };

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define MULTIPLIES_BYTES 1
#else
#define MULTIPLIES_BYTES 0
#endif

enum { MIN_TILE_ROWS = 6 }; /* for fewer rows, few_int8_rows was faster than AMX tiles */

/* Bytes of a panel. */
static long int8_panel_bytes(long K) { return round_up(OUTPUTS * (K + K / SCALE_GROUP * 2), 64); }

/* Bytes of a row. */
static long int8_row_bytes(long K) { return round_up(2 * K + K / SCALE_GROUP * 4 + 4, 64); }

/* Rounds 16 x 32 weights (outputs, inputs) of a panel to int8, and sets a scale for each output. */
static void quantize_group(float inputs[OUTPUTS][SCALE_GROUP], uint8_t *weights, bf16 *scales) {
    for (int i = 0; i < OUTPUTS; i++) {
        float largest = 0.0f;
        for (int k = 0; k < SCALE_GROUP; k++) largest = fmaxf(largest, fabsf(inputs[i][k]));
        bf16 rounded = round_to_bf16(largest / MAX_WEIGHT);
        if (bf16_to_float(rounded) * MAX_WEIGHT < largest) rounded++;
        if (largest < 1e-30f) rounded = 0;
        scales[i] = rounded;
        const float over = rounded ? 1.0f / bf16_to_float(rounded) : 0.0f;
        for (int k = 0; k < SCALE_GROUP; k++)
            weights[k / 4 * 64 + 4 * i + k % 4] = 128 + lrintf(inputs[i][k] * over);
    }
}

/* Rounds a row of K activations. If one of them is not finite, all products of the row are NaN. */
static void quantize_row(const float *row, long K, char *out) {
    v16 largest = broadcast(0.0f), non_finite = broadcast(0.0f);
    for (long k = 0; k < K; k += LANES) {
        const v16 x = load(row + k);
        largest = lanewise_max(lanewise_max(x, -x), largest);
        non_finite += x - x;
    }
    if (sum_lanes(non_finite) != 0.0f) {
        const float none = NAN;
        memset(out, 0, 2 * K + K / SCALE_GROUP * 4);
        memcpy(out + 2 * K + K / SCALE_GROUP * 4, &none, sizeof none);
        return;
    }
    const float top = max_lane(largest);
    const v16 scale = broadcast(top > 1e-30f ? MAX_ACTIVATION / top : 0.0f);
    const v16 shift = broadcast(12582912.0f); /* adding 1.5 * 2^23 rounds to a whole number */
    int32_t *correction = (int32_t *)(out + 2 * K);
    for (long k = 0; k < K; k += SCALE_GROUP, correction++) {
        v16i sum = {0};
        for (int i = 0; i < SCALE_GROUP; i += LANES) {
            const v16i a = (v16i)(load(row + k + i) * scale + shift) - (v16i)shift;
#if MULTIPLIES_BYTES
            const v16i high = (a + 64) >> 7;
            store_low_bytes(out + 2 * k + i, high);
            store_low_bytes(out + 2 * k + SCALE_GROUP + i, a - high * 128);
#else
            int16_t *to = (int16_t *)out + k + i;
            for (int j = 0; j < LANES; j++) to[j] = (int16_t)a[j - j % 4 + j % 4 / 2 + j % 2 * 2];
#endif
            sum += a;
        }
        int32_t total = 0;
        for (int i = 0; i < LANES; i++) total += sum[i];
        *correction = -total;
    }
    const float row_scale = top > 1e-30f ? top / MAX_ACTIVATION : 0.0f;
    memcpy(correction, &row_scale, sizeof row_scale);
}

/* Vectors as wide as a register, with int32 or int16 lanes. */
#if defined(__AVX512BW__)
enum { VECTOR_BYTES = 64 };
#elif defined(__AVX2__)
enum { VECTOR_BYTES = 32 };
#else
enum { VECTOR_BYTES = 16 };
#endif
typedef int32_t vint32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int16_t vint16 __attribute__((vector_size(VECTOR_BYTES)));

/* Each lane of a and b is two int16 numbers. Returns the sum of their two products. */
INLINE vint32 multiply_add_pairs(vint32 a, vint32 b) {
#if defined(__AVX512BW__)
    return (vint32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vint32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (vint32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

enum { PARTS = 64 / VECTOR_BYTES };

#if MULTIPLIES_BYTES
/* In each lane: sum + the products of four unsigned weights with four signed bytes. `four` holds
 * the four bytes, which are the same for all lanes. */
INLINE vint32 dot_fours(vint32 sum, vint32 weights, int32_t four) {
    const vint32 fours = four - (vint32){0};
#if defined(__AVX512VNNI__)
    return (vint32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)fours);
#else
    return (vint32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, (__m256i)fours);
#endif
}

/* whole = the products of nr rows with nb panels, as exact sums over 32 inputs. */
INLINE void sum_group(const int nr, const int nb, const char *w, long panel, const char *group,
                      const char *corrections, long row, vint32 whole[6][4][PARTS]) {
    const char *high = group, *low = high + SCALE_GROUP;
    vint32 highs[4][4][PARTS], lows[4][4][PARTS];
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++)
            for (int i = 0; i < PARTS; i++) {
                highs[r][j][i] = read_int(corrections + r * row) - (vint32){0};
                lows[r][j][i] = (vint32){0};
            }
#pragma GCC unroll 2
    for (int k = 0; k < SCALE_GROUP; k += 4, w += 4 * OUTPUTS)
        for (int j = 0; j < nb; j++)
            for (int i = 0; i < PARTS; i++) {
                vint32 b;
                memcpy(&b, w + j * panel + i * VECTOR_BYTES, sizeof b);
                for (int r = 0; r < nr; r++) {
                    highs[r][j][i] = dot_fours(highs[r][j][i], b, read_int(high + r * row + k));
                    lows[r][j][i] = dot_fours(lows[r][j][i], b, read_int(low + r * row + k));
                }
            }
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++)
            for (int i = 0; i < PARTS; i++) whole[r][j][i] = (highs[r][j][i] << 7) + lows[r][j][i];
}
#else
/* whole = the products of nr rows with nb panels, as exact sums over 32 inputs. The four weights
 * of an output become int16: first the weights in bytes 0 and 2, then those in bytes 1 and 3. */
INLINE void sum_group(const int nr, const int nb, const char *w, long panel, const char *group,
                      const char *corrections, long row, vint32 whole[6][4][PARTS]) {
    const int32_t low = 0x00ff00ff;
    vint32 sum[6][4][PARTS];
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++)
            for (int i = 0; i < PARTS; i++)
                sum[r][j][i] = (read_int(corrections + r * row) - (vint32){0}) << 7;
    for (int k = 0; k < SCALE_GROUP; k += 4, w += 4 * OUTPUTS)
        for (int j = 0; j < nb; j++)
            for (int i = 0; i < PARTS; i++) {
                vint32 b;
                memcpy(&b, w + j * panel + i * VECTOR_BYTES, sizeof b);
                const vint32 even = b & low, odd = b >> 8 & low;
                for (int r = 0; r < nr; r++) {
                    const char *four = group + r * row + 2 * k;
                    const vint32 evens = read_int(four) - (vint32){0};
                    const vint32 odds = read_int(four + 4) - (vint32){0};
                    sum[r][j][i] += multiply_add_pairs(even, evens);
                    sum[r][j][i] += multiply_add_pairs(odd, odds);
                }
            }
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++)
            for (int i = 0; i < PARTS; i++) whole[r][j][i] = sum[r][j][i];
}
#endif

/* out (nr, 16 nb) = nr rows times the nb panels that begin at `panels`. */
INLINE void few_int8_rows(const int nr, const int nb, long K, const char *panels, const char *rows,
                          float *out, long out_row) {
    const long panel = int8_panel_bytes(K), row = int8_row_bytes(K);
    const char *w = panels, *scales = panels + OUTPUTS * K, *corrections = rows + 2 * K;
    v16 sum[6][4];
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++) sum[r][j] = broadcast(0.0f);
    for (long at = 0; at < K; at += SCALE_GROUP, w += SCALE_GROUP * OUTPUTS) {
        vint32 whole[6][4][PARTS];
        sum_group(nr, nb, w, panel, rows + 2 * at, corrections, row, whole);
        for (int j = 0; j < nb; j++) {
            const v16 scale = load_from_bf16((const bf16 *)(scales + j * panel));
            for (int r = 0; r < nr; r++) {
                v16i all;
                memcpy(&all, whole[r][j], sizeof all);
                sum[r][j] += __builtin_convertvector(all, v16) * scale;
            }
        }
        scales += OUTPUTS * sizeof(bf16), corrections += sizeof(int32_t);
    }
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb; j++)
            store(out + r * out_row + OUTPUTS * j,
                  sum[r][j] * broadcast(read_float(corrections + r * row)));
}

#if HAS_BF16_TILES && defined(__AMX_INT8__)
#define HAS_INT8_TILES 1

/* Tiles 0 to 3 hold 16 x 16 sums. Tiles 4 and 5 hold bytes of up to 16 rows. Tiles 6 and 7 each
 * hold weights of a panel. */
static void int8_tiles_begin(int rows) {
    TileConfig shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = i == 4 || i == 5 ? SCALE_GROUP : 64;
        shape.rows[i] = i < 6 ? rows : SCALE_GROUP / 4;
    }
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shape);
}

/* Sums over 32 inputs. The first two arrays belong to one panel: sums of high bytes, then of low
 * bytes. The last two arrays belong to another panel. */
typedef int32_t GroupSums[4][16][OUTPUTS];

/* Multiplies the high bytes and the low bytes of up to 16 rows by two panels, which are `panel`
 * bytes apart. Each sum runs over 32 inputs. */
INLINE void multiply_group(const char *w, long panel, const char *bytes, long row, GroupSums sums) {
    __asm__ volatile("" ::: "memory"); /* gcc does not know that tile loads read memory */
    _tile_loadd(4, bytes, row);
    _tile_loadd(5, bytes + SCALE_GROUP, row);
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

/* out (n, 32) is n rows times two panels. n is at most 16. Gives exactly the numbers of
 * few_int8_rows. */
static void tiled_int8_rows(int n, long K, const char *panels, const char *rows, float *out,
                            long out_row) {
    const long panel = int8_panel_bytes(K), row = int8_row_bytes(K), groups = K / SCALE_GROUP;
    const char *scales = panels + OUTPUTS * K, *corrections = rows + 2 * K;
    GroupSums sums[2] __attribute__((aligned(64)));
    for (int r = 0; r < n; r++)
        for (int j = 0; j < 2; j++) store(out + r * out_row + OUTPUTS * j, broadcast(0.0f));
    multiply_group(panels, panel, rows, row, sums[0]);
    for (long g = 0; g < groups; g++) {
        /* Compute the next group first: numbers that a tile has just stored are slow to read. */
        if (g + 1 < groups)
            multiply_group(panels + (g + 1) * SCALE_GROUP * OUTPUTS, panel,
                           rows + 2 * (g + 1) * SCALE_GROUP, row, sums[(g + 1) % 2]);
        for (int j = 0; j < 2; j++) {
            const int32_t(*high)[OUTPUTS] = sums[g % 2][2 * j];
            const int32_t(*low)[OUTPUTS] = sums[g % 2][2 * j + 1];
            const v16 scale = load_from_bf16((const bf16 *)(scales + j * panel) + g * OUTPUTS);
            for (int r = 0; r < n; r++) {
                const v16i correction = broadcast_int(read_int(corrections + r * row + g * 4));
                const v16i whole = ((load_ints(high[r]) + correction) << 7) + load_ints(low[r]);
                float *to = out + r * out_row + OUTPUTS * j;
                store(to, load(to) + __builtin_convertvector(whole, v16) * scale);
            }
        }
    }
    for (int r = 0; r < n; r++) {
        const float scale = read_float(corrections + r * row + groups * 4);
        for (int j = 0; j < 2; j++) {
            float *to = out + r * out_row + OUTPUTS * j;
            store(to, load(to) * broadcast(scale));
        }
    }
}

#else
#define HAS_INT8_TILES 0
#endif

/* out (n, 16 count) is n rows times `count` panels. n is at most 32, and count is even. */
static void times_int8(long K, const char *panels, const char *rows, int n, int count, float *out,
                       long out_row) {
    const long panel = int8_panel_bytes(K), row = int8_row_bytes(K);
    int j = 0;
#if defined(__AVX512F__) /* other processors have too few registers for 4 panels */
    for (; n == 1 && j + 4 <= count; j += 4)
        few_int8_rows(1, 4, K, panels + j * panel, rows, out + j * OUTPUTS, out_row);
#endif
    for (; j < count; j += 2) {
        const char *w = panels + j * panel;
        float *to = out + j * OUTPUTS;
        int r = 0;
#if HAS_INT8_TILES
        for (; r < n && n >= MIN_TILE_ROWS; r += 16)
            tiled_int8_rows(n - r < 16 ? n - r : 16, K, w, rows + r * row, to + r * out_row,
                            out_row);
#endif
#if defined(__AVX512F__)
        for (; r + 4 <= n; r += 4)
            few_int8_rows(4, 2, K, w, rows + r * row, to + r * out_row, out_row);
#elif !MULTIPLIES_BYTES /* one panel's sums of four rows fit into 16 registers */
        for (; r + 4 <= n; r += 4)
            for (int i = 0; i < 2; i++)
                few_int8_rows(4, 1, K, w + i * panel, rows + r * row,
                              to + r * out_row + i * OUTPUTS, out_row);
#endif
        for (; r < n; r++) few_int8_rows(1, 2, K, w, rows + r * row, to + r * out_row, out_row);
    }
}

#endif
