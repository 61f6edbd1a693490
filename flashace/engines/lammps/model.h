/* What a model file for LAMMPS holds, under the name flashace_model: model.c makes it, pair_flashace.cpp reads it. */
#include <stdint.h>

#define FLASHACE_ABI 3 /* files of version 2 are the same without the last four fields; another layout gets another number */

typedef struct {
    int64_t abi;
    const char *elements; /* symbols with a space between, in the order of species */
    const char *needs;    /* features that the processor must have, as Linux names them but without underscores, a space between */
    const char *dtype;
    const char *origin;   /* what was exported */
    double r_max;         /* A */
    int64_t num_elements; /* S */
    int64_t envelope;     /* exponent of the polynomial that counts neighbours */
    const double *shortest;     /* [S, S] A, of each pair in training; NULL where it is not known */
    const double *coordination; /* [S, S, 2]: least and most neighbours of the second element that the first one had; NULL as well */
    const void *weights;
    int64_t (*memory_for)(int64_t most); /* this and the next are described in evaluate.c */
    void (*evaluate)(const void *weights, char *memory, int64_t most, int64_t start, int64_t end, const int64_t *first, const int64_t *neighbour,
                     const double *edge_vec, const int64_t *species, double *energies, double *g, void *features);
    int64_t feature_bytes; /* of the features of an atom, which `evaluate` gives; 0 where the model has no uncertainty */
    int64_t num_sums;      /* of which `uncertainty` adds up */
    double largest_mean;   /* length of their mean over the atoms of a structure: the largest in the calibration; 0 where it is not known */
    /* described in model.c */
    void (*uncertainty)(int64_t centres, const int64_t *first, const int64_t *species, const void *features, double *found, double *sums);
} FlashACEModel;
