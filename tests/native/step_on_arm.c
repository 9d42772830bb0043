/* Reads numbers from a file, computes a training step and a step of Muon with them, and writes the
 * results to another file.
 *
 * tests/native/test_native_arm.py compiles it for aarch64 together with the library, and runs it in
 * an emulator. */

#include <stdio.h>

#include "gpt.c"

static void must(int fine) {
    if (!fine) exit(1);
}

static void *read_numbers(FILE *file, size_t bytes, size_t count) {
    void *p = malloc(bytes * count);
    must(p && fread(p, bytes, count, file) == count);
    return p;
}

int main(int count, char **words) {
    must(count == 3);
    FILE *in = fopen(words[1], "rb"), *out = fopen(words[2], "wb");
    must(in && out);
    Shape *shape = read_numbers(in, sizeof *shape, 1);
    int64_t *sizes = read_numbers(in, sizeof *sizes, 6); /* offsets, weights, B, T, Muon's R, C */
    int64_t *offsets = read_numbers(in, sizeof *offsets, sizes[0]);
    float *weights = read_numbers(in, sizeof *weights, sizes[1]);
    const size_t tokens = sizes[2] * sizes[3], matrix = sizes[4] * sizes[5];
    int64_t *idx = read_numbers(in, sizeof *idx, tokens),
            *targets = read_numbers(in, sizeof *targets, tokens);
    float *w = read_numbers(in, sizeof *w, matrix), *g = read_numbers(in, sizeof *g, matrix);
    float *m = calloc(matrix, sizeof *m), *gradients = calloc(sizes[1], sizeof *gradients);
    Model *model = gpt_new(shape, offsets);
    must(model && m && gradients);
    gpt_pack(model, weights);
    const double loss =
        gpt_loss(model, weights, gradients, idx, targets, sizes[2], sizes[3], 7, 1.0f / tokens, 0);
    must(gpt_muon(2, 1, &w, &g, &m, &sizes[4], &sizes[5], 0.1f, 0.9f, 0.5f, 5));
    must(fwrite(&loss, sizeof loss, 1, out) == 1);
    must(fwrite(gradients, sizeof *gradients, sizes[1], out) == (size_t)sizes[1]);
    must(fwrite(w, sizeof *w, matrix, out) == matrix);
    must(fclose(out) == 0);
    printf("%s\n", vector_unit());
    return 0;
}
