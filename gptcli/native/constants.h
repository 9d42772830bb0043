/* Constants of GELU and Muon that the Python code also has.
 *
 * tests/native/test_native_library.py reads this file and compares the values with Python's. */

#ifndef GPTCLI_CONSTANTS_H
#define GPTCLI_CONSTANTS_H

/* GELU in its tanh form: x * sigmoid(GELU_SCALE * (x + GELU_CUBIC x^3)), GELU_SCALE = 2 sqrt(2/pi).
 * Source: Hendrycks and Gimpel 2016, section 2. */
#define GELU_SCALE 1.5957691216f
#define GELU_CUBIC 0.044715f

/* Newton-Schulz iteration of Muon: X becomes A X + (B Y + C Y Y) X with Y = X X^T. The eps prevents
 * a division by zero for a matrix of zeros. training/optimizers.py has the same four numbers. */
#define MUON_A 3.4445f
#define MUON_B (-4.7750f)
#define MUON_C 2.0315f
#define MUON_EPS 1e-7f

enum {
    ALIGNMENT = 64,      /* bytes; a cache line, and the width of an AVX-512 register */
    HUGE_PAGE = 2 << 20, /* bytes of a huge page of Linux on x86-64 */
};

#endif
