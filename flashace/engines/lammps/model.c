/* A whole model in one library: evaluate.c for its sizes (layout.h), and the weights that export.py writes to
   weights.h and weights.bin. */
#include "evaluate.c"
#include "model.h"

#include "weights.h" /* WEIGHTS_FILE, WEIGHTS, and the values of FlashACEModel */

__asm__(".pushsection .rodata\n.balign 64\nflashace_data:\n.incbin \"" WEIGHTS_FILE "\"\n.popsection");
extern const char flashace_data[] __attribute__((visibility("hidden")));

const Model flashace_weights = WEIGHTS;
const FlashACEModel flashace_model = {
    FLASHACE_ABI, ELEMENTS, NEEDS, DTYPE, ORIGIN, R_MAX, NUM_ELEMENTS, ENVELOPE_EXPONENT,
    SHORTEST, COORDINATION, &flashace_weights, memory_for, (void *)evaluate};
