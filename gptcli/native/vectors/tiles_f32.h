/* Products of float32 matrices, with nearly the same layouts and functions as tiles_bf16.h.
 *
 * A tile has 512 numbers, as in bfloat16, so the distances between tiles are the same:
 *
 *   A  16 rows of 32 consecutive numbers; the rows can be any distance apart
 *   B  32 rows of 16 columns
 *   A transposed: half of a piece (numbers.h), or what pack_queries has made; the product reads the
 *                 columns as rows of A
 *
 * A product keeps ROWS_AT_ONCE rows of C in registers. Source: Goto and van de Geijn 2008, "Anatomy
 * of High-Performance Matrix Multiplication". Distances count numbers, not bytes. */

#ifndef GPTCLI_TILES_F32_H
#define GPTCLI_TILES_F32_H

#include "f32x16.h"

enum {
    TILE = 512,        /* numbers in a tile */
    STEPS_AT_ONCE = 8, /* steps that a product adds at once: the caches hold their tiles */
};

static void tiles_begin(void) {}
static void tiles_end(void) {}

/* Memory that a product loads into the cache while it computes. If all this memory were loaded at
 * once, the loads of A and B would wait. So the first two groups of rows load `lines` lines of 64
 * bytes before every eight products of a sum: the first group from `first` on, the second from
 * `second` on. */
typedef struct {
    const float *first, *second;
    int lines;
} Ahead;

static const Ahead NOTHING_AHEAD = {NULL, NULL, 0};

/* C (rows, 16 nb) (+)= A B, a sum over `steps` times `depth` products. In a step, number (r, k) of
 * A is at A + r * a_row + k * a_column, and row k of a panel of B is at B + k * b_row. `ahead` and
 * `lines`: see Ahead. */
INLINE void multiply_rows(const int rows, const int nb, const int depth, const float *A, long a_row,
                          long a_column, long a_step, const float *B, long b_row, long b_tile,
                          long b_step, int steps, float *C, long c_row, int add_old,
                          const float *ahead, int lines) {
    f32x16 sum[ROWS_AT_ONCE][PANELS_AT_ONCE];
    UNROLL(8)
    for (int r = 0; r < rows; r++) UNROLL(2)
    for (int j = 0; j < nb; j++) sum[r][j] = add_old ? load(C + r * c_row + 16 * j) : zeros();
    for (int s = 0; s < steps; s++, A += a_step, B += b_step)
        for (int k = 0; k < depth; k += 2) {
            if (k % 8 == 0)
                for (int i = 0; i < lines; i++, ahead += 16) __builtin_prefetch(ahead);
            UNROLL(2)
            for (int i = k; i < k + 2; i++) {
                f32x16 b[PANELS_AT_ONCE];
                UNROLL(2)
                for (int j = 0; j < nb; j++) b[j] = load(B + j * b_tile + b_row * i);
                UNROLL(8)
                for (int r = 0; r < rows; r++) {
                    const f32x16 a = broadcast(A[r * a_row + i * a_column]);
                    UNROLL(2)
                    for (int j = 0; j < nb; j++) sum[r][j] = fmadd(a, b[j], sum[r][j]);
                }
            }
        }
    UNROLL(8)
    for (int r = 0; r < rows; r++) UNROLL(2)
    for (int j = 0; j < nb; j++) {
        store(C + r * c_row + 16 * j, sum[r][j]);
    }
}

/* multiply_rows for 16 or 32 rows, ROWS_AT_ONCE at a time. */
INLINE void multiply_all_rows(const int rows, const int nb, const int depth, const float *A,
                              long a_row, long a_column, long a_step, const float *B, long b_row,
                              long b_tile, long b_step, int steps, float *C, long c_row,
                              int add_old, const Ahead ahead) {
    /* If ROWS_AT_ONCE is 6, 16 rows are split into 6 + 5 + 5, and 32 into 6 + 6 + 5 + 5 + 5 + 5.
     * Four rows at once would be slower, because each sum waits for the addition before. */
    const int fives = ROWS_AT_ONCE == 6 ? rows / 16 * 10 : 0;
    int r = 0;
    for (; r < rows - fives; r += ROWS_AT_ONCE)
        multiply_rows(ROWS_AT_ONCE, nb, depth, A + r * a_row, a_row, a_column, a_step, B, b_row,
                      b_tile, b_step, steps, C + r * c_row, c_row, add_old,
                      r ? ahead.second : ahead.first, r < 2 * ROWS_AT_ONCE ? ahead.lines : 0);
    for (; r < rows; r += 5)
        multiply_rows(5, nb, depth, A + r * a_row, a_row, a_column, a_step, B, b_row, b_tile,
                      b_step, steps, C + r * c_row, c_row, add_old, ahead.second,
                      r == 6 ? ahead.lines : 0);
}

/* C (32, 16 panels) = A (32, 32 steps) B. B consists of panels of 16 columns. Number (r, k) of A is
 * at A + r * a_row + k / 32 * a_step + k % 32. Meanwhile, loads about `numbers` numbers from
 * `next` on into the cache. */
INLINE void product_and_prefetch(const float *A, long a_row, long a_step, const float *B,
                                 long panel, int steps, int panels, float *C, long c_row,
                                 const float *next, long numbers) {
    const long chances = 8L * steps * ((panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE);
    const int lines = (numbers / 16 + chances - 1) / chances;
    for (int s = 0; s < steps; s += STEPS_AT_ONCE) {
        const int now = steps - s < STEPS_AT_ONCE ? steps - s : STEPS_AT_ONCE;
        const long loaded = 64L * now * lines; /* by one group of rows */
        for (int p = 0; p < panels; p += PANELS_AT_ONCE) {
            const int nb = p + PANELS_AT_ONCE <= panels ? PANELS_AT_ONCE : 1;
            const Ahead ahead = {next, next + loaded, lines};
            const float *a = A + s * a_step, *b = B + p * panel + s * TILE;
            if (nb == PANELS_AT_ONCE)
                multiply_all_rows(32, PANELS_AT_ONCE, 32, a, a_row, 1, a_step, b, 16, panel, TILE,
                                  now, C + 16 * p, c_row, s > 0, ahead);
            else
                multiply_all_rows(32, 1, 32, a, a_row, 1, a_step, b, 16, panel, TILE, now,
                                  C + 16 * p, c_row, s > 0, NOTHING_AHEAD);
            next += 2 * loaded;
        }
    }
}

/* product_and_prefetch without the prefetching. */
NOINLINE void product(const float *A, long a_row, long a_step, const float *B, long panel,
                      int steps, int panels, float *C, long c_row) {
    product_and_prefetch(A, a_row, a_step, B, panel, steps, panels, C, c_row, B, 0);
}

/* C (16, 16 panels) (+)= A B, a sum over `depth` products. depth % 16 is 0. Number (r, k) of A is
 * at A + r * a_row + k * a_column. Panels of B are b_panel apart. Takes `most` products at a time,
 * whose A and B stay in the cache. */
INLINE void multiply_16_rows(const float *A, long a_row, long a_column, const float *B,
                             long b_panel, int depth, int most, int panels, float *C, long c_row,
                             int add_old) {
    for (int k = 0; k < depth; k += most) {
        const int steps = (depth - k < most ? depth - k : most) / 16;
        const float *a = A + k * a_column;
        for (int p = 0; p < panels; p += PANELS_AT_ONCE) {
            const float *b = B + p * b_panel + 16 * k;
            if (p + PANELS_AT_ONCE <= panels)
                multiply_all_rows(16, PANELS_AT_ONCE, 16, a, a_row, a_column, 16 * a_column, b, 16,
                                  b_panel, 256, steps, C + 16 * p, c_row, add_old || k > 0,
                                  NOTHING_AHEAD);
            else
                multiply_all_rows(16, 1, 16, a, a_row, a_column, 16 * a_column, b, 16, b_panel, 256,
                                  steps, C + 16 * p, c_row, add_old || k > 0, NOTHING_AHEAD);
        }
    }
}

/* C (32, 32) (+)= A^T B, summed over `steps` pieces of A and B (numbers.h). */
NOINLINE void multiply_pieces(const float *A, long a_step, const float *B, long b_step, int steps,
                              float *C, long c_row, int add_old) {
    for (int s = 0; s < steps; s++, A += a_step, B += b_step)
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j += PANELS_AT_ONCE) {
                /* The next pieces are far away, so the processor does not load them by itself. Each
                 * round loads a quarter of both pieces, or a half. */
                const int from = 256 * (2 * i + j);
                const Ahead ahead = {A + a_step + from, B + b_step + from, 4 * PANELS_AT_ONCE};
                multiply_all_rows(16, PANELS_AT_ONCE, 32, A + 16 * i, 1, 32, 0, B + 16 * j, 32, 16,
                                  0, 1, C + 16 * i * c_row + 16 * j, c_row, add_old || s > 0,
                                  ahead);
            }
}

/* ---- packing rows into tiles ----------------------------------------------------------------- */

/* Packs X (32, columns) as B tiles, one for every 16 columns. In `out`, each tile begins
 * `tile` numbers after the one before. A product with these tiles sums over the 32 rows of X. */
static void pack_b32(const float *X, long row, int columns, float *out, long tile) {
    for (int c = 0; c < columns; c += 16, out += tile)
        for (int r = 0; r < 32; r++) store(out + 16 * r, load(X + r * row + c));
}

/* Packs the transpose of X (16, columns) as B tiles, one for every 32 columns. The tiles follow
 * one another in `out` without a gap. A product with these tiles sums over the columns of X. Zeros
 * fill the rest of the last tile. */
static void pack_b16_transposed(const float *X, long row, int columns, float *out) {
    for (int c = 0; c < columns; c += 16, out += TILE / 2) store_transposed16(X + c, row, out);
    if (columns % 32) memset(out, 0, TILE / 2 * sizeof *out);
}

#endif
