/* Packed weights of linear layers for sampling, and their products with up to 32 rows.
 *
 * A layer has N outputs and K inputs. N and K are padded with zeros to multiples of 32. A panel
 * holds the weights of 16 outputs. In float32 it has 16 numbers for each input. In bfloat16 it has
 * 16 pairs for each two inputs, which is also the layout of AMX's B tiles. int8.h describes panels
 * of int8 weights. README.md has drawings.
 *
 * The products of a row are added in the same order for any number of rows. So a stream's text does
 * not depend on the other streams. */

#ifndef GPTCLI_PACKED_H
#define GPTCLI_PACKED_H

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__)
#define HAS_BF16_TILES 1
#include "../vectors/tiles_bf16.h"
#else
#define HAS_BF16_TILES 0
#endif

#if defined(__AVX512BF16__)
#define BF16_ROWS 1 /* with bfloat16 weights, activations are rounded to bfloat16 */
#include <immintrin.h>
#else
#define BF16_ROWS 0
#endif

#include "int8.h"

enum { PANEL = 16, MAX_ROWS = 32 };

/* The type of the weights: DecoderShape.kind in library.py. */
typedef enum { FLOAT32, BFLOAT16, INT8 } Kind;

typedef struct {
    long N, K;
    Kind kind;
    char *weights;
    float *bias; /* N numbers, zeros if the layer has no bias */
} Packed;

/* Bytes of a panel. */
static long panel_bytes(const Packed *p) {
    return p->kind == INT8 ? int8_panel_bytes(p->K) : PANEL * p->K * (p->kind == BFLOAT16 ? 2 : 4);
}

/* Bytes of all panels. */
static size_t packed_bytes(const Packed *p) { return p->N / PANEL * panel_bytes(p); }

/* Bytes of a row of K activations in the format that products read. */
static long row_bytes(const Packed *p) {
    return p->kind == INT8 ? int8_row_bytes(p->K)
                           : p->K * (p->kind == BFLOAT16 && BF16_ROWS ? 2 : 4);
}

/* Packs outputs n to n + 15. rows: the weights of the 16 outputs; NULL for zeros. Input k comes
 * from column columns[k], or is zero if columns[k] is -1. If `columns` is NULL, input k comes from
 * column k, or is zero if k >= count. */
static void pack_panel(const Packed *p, long n, const float *const rows[PANEL], const int *columns,
                       long count) {
    char *to = p->weights + n / PANEL * panel_bytes(p);
    float group[PANEL][SCALE_GROUP];
    for (long k = 0; k < p->K; k++) {
        const long from = columns ? columns[k] : k < count ? k : -1;
        for (int i = 0; i < PANEL; i++) {
            const float x = rows[i] && from >= 0 ? rows[i][from] : 0.0f;
            if (p->kind == INT8)
                group[i][k % SCALE_GROUP] = x;
            else if (p->kind == BFLOAT16)
                ((bf16 *)to)[k / 2 * 32 + 2 * i + k % 2] = round_to_bf16(x);
            else
                ((float *)to)[k * PANEL + i] = x;
        }
        if (p->kind == INT8 && k % SCALE_GROUP == SCALE_GROUP - 1)
            quantize_group(group, (uint8_t *)to + (k - k % SCALE_GROUP) * PANEL,
                           (bf16 *)(to + PANEL * p->K) + k / SCALE_GROUP * PANEL);
    }
}

/* ---- products with float32 and bfloat16 panels ----------------------------------------------- */

/* out (nr, 16 nb) = nr rows (nr, K) times nb panels. All sums stay in registers. */
INLINE void few_rows(const int nr, const int nb, const Packed *p, const char *rows, long panel,
                     float *out, long out_row) {
    const long bytes = panel_bytes(p), row = p->K;
    const char *w = p->weights + panel * bytes;
    part sum[6][4 * REGISTERS];
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb * REGISTERS; j++) sum[r][j] = (part){0};
    if (p->kind == FLOAT32) {
        const float *a = (const float *)rows;
        for (long k = 0; k < p->K; k++, w += 64) {
            part b[4 * REGISTERS];
            for (int j = 0; j < nb * REGISTERS; j++)
                b[j] = load_part(w + j / REGISTERS * bytes + j % REGISTERS * sizeof(part));
            for (int r = 0; r < nr; r++)
                for (int j = 0; j < nb * REGISTERS; j++) sum[r][j] += a[r * row + k] * b[j];
        }
    } else {
        for (long k = 0; k < p->K; k += 2, w += 64) {
#if BF16_ROWS
            const bf16 *a = (const bf16 *)rows;
            __m512bh b[4];
            for (int j = 0; j < nb; j++) b[j] = (__m512bh)_mm512_loadu_si512(w + j * bytes);
            for (int r = 0; r < nr; r++) {
                int pair;
                memcpy(&pair, a + r * row + k, sizeof pair);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                for (int j = 0; j < nb; j++)
                    sum[r][j] = (part)_mm512_dpbf16_ps((__m512)sum[r][j], both, b[j]);
            }
#else
            const float *a = (const float *)rows;
            for (int j = 0; j < nb * REGISTERS; j++) {
                const part pairs =
                    load_part(w + j / REGISTERS * bytes + j % REGISTERS * sizeof(part));
                const part even = firsts(pairs), odd = seconds(pairs);
                for (int r = 0; r < nr; r++) {
                    sum[r][j] += a[r * row + k] * even;
                    sum[r][j] += a[r * row + k + 1] * odd;
                }
            }
#endif
        }
    }
    for (int r = 0; r < nr; r++)
        for (int j = 0; j < nb * REGISTERS; j++)
            store_part(out + r * out_row + j * LANES_OF_PART, sum[r][j]);
}

/* few_rows for any number n of rows. */
INLINE void all_rows(const int nb, const Packed *p, const char *rows, int n, long panel, float *out,
                     long out_row) {
    const long row = row_bytes(p);
#if REGISTERS == 1 /* 24 of 32 registers hold sums */
    int r = 0;
    for (; r + 6 <= n; r += 6)
        few_rows(6, nb, p, rows + r * row, panel, out + r * out_row, out_row);
    for (; r + 3 <= n; r += 3)
        few_rows(3, nb, p, rows + r * row, panel, out + r * out_row, out_row);
    for (; r + 2 <= n; r += 2)
        few_rows(2, nb, p, rows + r * row, panel, out + r * out_row, out_row);
    for (; r < n; r++) few_rows(1, nb, p, rows + r * row, panel, out + r * out_row, out_row);
#else /* AVX2: sums of 6 rows take 12 of 16 registers. Groups of rows have almost equal sizes. */
    for (int groups = (n + 5) / 6; groups; groups--) {
        const int take = (n + groups - 1) / groups;
        for (int j = 0; j < nb; j++) {
            float *to = out + j * PANEL;
            if (take == 6)
                few_rows(6, 1, p, rows, panel + j, to, out_row);
            else if (take == 5)
                few_rows(5, 1, p, rows, panel + j, to, out_row);
            else if (take == 4)
                few_rows(4, 1, p, rows, panel + j, to, out_row);
            else if (take == 3)
                few_rows(3, 1, p, rows, panel + j, to, out_row);
            else if (take == 2)
                few_rows(2, 1, p, rows, panel + j, to, out_row);
            else
                few_rows(1, 1, p, rows, panel + j, to, out_row);
        }
        rows += take * row, out += take * out_row, n -= take;
    }
#endif
}

/* out (n, 16 * panels) = rows (n, K) times `panels` panels. `panel` is the number of the first
 * panel. `panels` is even, and n is at most 32. `rows` and `out` need room for 16 rows, or for 32
 * if n is over 16, because AMX may read and write more than n rows. */
static void multiply_panels(const Packed *p, const char *rows, int n, long panel, int panels,
                            float *out, long out_row) {
    if (p->kind == INT8) {
        const char *w = p->weights + panel * panel_bytes(p);
        times_int8(p->K, w, rows, n, panels, out, out_row);
        return;
    }
#if HAS_BF16_TILES
    if (p->kind == BFLOAT16) {
        const int steps = p->K / 32;
        const long bytes = PANEL * p->K;
        const bf16 *w = (const bf16 *)p->weights + panel * bytes, *a = (const bf16 *)rows;
        for (int j = 0; j < panels; j += 2, w += 2 * bytes, out += 2 * PANEL)
            if (n <= 16)
                multiply_tiles(1, 2, a, 0, p->K, 32, w, bytes, TILE, steps, out, out_row, 0);
            else
                multiply_tiles(2, 2, a, 16 * p->K, p->K, 32, w, bytes, TILE, steps, out, out_row,
                               0);
        return;
    }
#endif
    int j = 0;
    for (; j + 4 <= panels; j += 4) all_rows(4, p, rows, n, panel + j, out + j * PANEL, out_row);
    for (; j < panels; j += 2) all_rows(2, p, rows, n, panel + j, out + j * PANEL, out_row);
}

/* Each thread calls products_begin before its products of n rows, and products_end after them. */
static void products_begin(Kind kind, int n) {
#if HAS_BF16_TILES
    if (kind == BFLOAT16) tiles_begin_rows(n < 16 ? n : 16);
#endif
#if HAS_INT8_TILES
    if (kind == INT8) int8_tiles_begin(n < 16 ? n : 16);
#endif
    (void)kind, (void)n;
}

static void products_end(Kind kind) {
#if HAS_BF16_TILES
    if (kind != FLOAT32) tiles_end();
#endif
    (void)kind;
}

#endif
