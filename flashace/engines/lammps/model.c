/* A whole model in one library: evaluate.c for its sizes (layout.h), and the weights that export.py writes to
   weights.h and weights.bin. */
#include "evaluate.c"
#include "model.h"

#include "weights.h" /* WEIGHTS_FILE, WEIGHTS, and the values of FlashACEModel */

__asm__(".pushsection .rodata\n.balign 64\nflashace_data:\n.incbin \"" WEIGHTS_FILE "\"\n.popsection");
extern const char flashace_data[] __attribute__((visibility("hidden")));

#ifdef UNCERTAINTY_FILE
__asm__(".pushsection .rodata\n.balign 64\nflashace_uncertainty:\n.incbin \"" UNCERTAINTY_FILE "\"\n.popsection");
extern const real flashace_uncertainty[] __attribute__((visibility("hidden")));

enum { FEATURES = P * (F + RW), FEATURE_BYTES = FEATURES * sizeof(real), ROWS = 8 };
enum { SUMS = (FEATURES + ROWS - 1) / ROWS * ROWS };

/* first [centres + 1], species, and features [centres, FEATURES] that `evaluate` gave -> found [centres] eV/A, how
   uncertain the forces are: |R (features - those of the same atom alone)| ^ EXPONENT; the vectors in it are added to
   sums [SUMS]. What export.py writes is the features of atoms alone [elements, FEATURES], and R, an upper triangle:
   ROWS rows at a time, all from the diagonal of the first of them on, the numbers of a column side by side. */
static void uncertainty(int64_t centres, const int64_t *first, const int64_t *species, const void *features,
                        double *found, double *sums) {
    vec x[FEATURES];
    for (int64_t i = 0; i < centres; i += B) {
        for (int b = 0; b < B; b++) {
            const int64_t k = i + b < centres ? i + b : i;
            const int counts = i + b < centres && first[k] < first[k + 1]; /* exactly zero without neighbours */
            const real *own = (const real *)features + k * FEATURES, *alone = flashace_uncertainty + species[k] * FEATURES;
            for (int f = 0; f < FEATURES; f++) x[f][b] = counts ? own[f] - alone[f] : 0;
        }
        const real *rows = flashace_uncertainty + NUM_ELEMENTS * FEATURES;
        vec squares = ZERO;
        for (int f = 0; f < FEATURES; rows += ROWS * (FEATURES - f), f += ROWS) {
            vec y[ROWS] = {0};
            map_forward(FEATURES - f, ROWS, rows, x + f, y);
            for (int r = 0; r < ROWS; r++) {
                squares += y[r] * y[r];
                for (int b = 0; b < B; b++) sums[f + r] += y[r][b];
            }
        }
        for (int b = 0; b < B && i + b < centres; b++) found[i + b] = pow(squares[b], 0.5 * EXPONENT);
    }
}
#else
#define uncertainty NULL
enum { FEATURE_BYTES = 0, SUMS = 0 };
#endif

const Model flashace_weights = WEIGHTS;
const FlashACEModel flashace_model = {
    FLASHACE_ABI, ELEMENTS, NEEDS, DTYPE, ORIGIN, R_MAX, NUM_ELEMENTS, ENVELOPE_EXPONENT,
    SHORTEST, COORDINATION, &flashace_weights, memory_for, (void *)evaluate, FEATURE_BYTES, SUMS,
    LARGEST_MEAN, uncertainty};
