/* Neighbour vectors in, energy of each atom and its slope along each neighbour vector out: the whole model, for
   inference on a CPU.

   The same steps as on the plain path, in the same order, and then backwards; a header for each, which names the
   file of nn/ that it repeats. layout.py says what stands in `Model` and `Layer` and writes layout.h for the sizes
   of a model: F hidden_dim, K num_channels, H num_heads, D key_dim, LM l_max, NU correlation, P num_layers, RW
   width of the readouts; L components, T of them tensors. backend.py packs the weights, compiles this file and
   calls `evaluate`. Neighbours of an atom are gone through one by one, with channels or heads in the lanes of a
   vector; what is left to do for an atom is done for B atoms at once, side by side in the lanes. */
#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define FA_INLINE static inline __attribute__((always_inline))

#include "layout.h"
#include "vectors.h"
#include "geometry.h"
#include "repulsion.h"
#include "splines.h"
#include "attention.h"
#include "product.h"
#include "update.h"
#include "layer.h"

/* where things stand in the memory that is lent: a block, of at most `most` neighbours for each atom */
typedef struct { Block block; Work *work; Kept *kept; } Places;

static void *take(char *memory, size_t *used, size_t size) {
    const size_t start = *used;
    *used += (size + sizeof(vec) - 1) / sizeof(vec) * sizeof(vec);
    return memory == NULL ? NULL : memory + start;
}

/* how much of the memory is used; NULL is enough to ask */
static size_t share_out(char *memory, int64_t most, Places *p) {
    assert((uintptr_t)memory % sizeof(vec) == 0);
    const size_t edges = B * most;
    size_t used = 0;
    Block *block = &p->block;
    Room *room = &block->room;
    p->kept = take(memory, &used, P * sizeof(Kept));
    p->work = take(memory, &used, sizeof(Work));
    block->edge = take(memory, &used, edges * sizeof(Edge));
    block->Y = take(memory, &used, edges * L * sizeof(real));
    block->g_Y = take(memory, &used, edges * L * sizeof(real));
    block->g_r = take(memory, &used, edges * sizeof(double));
    block->g_f = take(memory, &used, edges * sizeof(double));
    room->weight = take(memory, &used, most * HP * sizeof(real));
    room->bare = take(memory, &used, most * HP * sizeof(real));
    room->g = take(memory, &used, most * HP * sizeof(real));
    room->curve = take(memory, &used, most * W * sizeof(real));
    room->dcurve = take(memory, &used, most * W * sizeof(real));
    room->seen = take(memory, &used, most * LM * H * sizeof(real));
    return used;
}

/* bytes that `evaluate` wants to be lent, at an address that 64 divides */
int64_t memory_for(int64_t most) {
    Places p;
    return share_out(NULL, most, &p);
}

/* of the n atoms of the block, after a layer: F + RW numbers, in rows of P times as many */
static void features_of(const Work *work, const Kept *kept, int n, real *out) {
    for (int f = 0; f < F + RW; f++) {
        const vec x = f < F ? work->s[f] : silu(kept->readout[f - F]);
        for (int b = 0; b < n; b++) out[b * P * (F + RW) + f] = x[b];
    }
}

/* edges that are known by their vectors -> what the readouts sum up to; features [n, P, F + RW] where not NULL */
static vec block_forward(const Model *model, const Places *at, real *features) {
    const Block *block = &at->block;
    vec energy = ZERO;
    for (int b = 0; b < B; b++) {
        const real *embedding = model->embedding + block->species[b < block->n ? b : 0] * F;
        for (int f = 0; f < F; f++) at->work->s[f][b] = embedding[f];
    }
    for (int p = 0; p < P; p++) {
        layer_forward(model, model->layers + p, block, at->work, at->kept + p);
        energy += readout_forward(model->layers + p, at->work->s, at->kept[p].readout);
        if (features != NULL) features_of(at->work, at->kept + p, block->n, features + p * (F + RW));
    }
    return energy;
}

/* slopes of that along r, f and Y of the edges */
static void block_backward(const Model *model, const Places *at) {
    const Block *block = &at->block;
    const int64_t edges = block->first[block->n] - block->first[0];
    Work *work = at->work;
    memset(work->g_s, 0, sizeof work->g_s); memset(work->g_t, 0, sizeof work->g_t);
    memset(block->g_r, 0, edges * sizeof(double)); memset(block->g_f, 0, edges * sizeof(double));
    memset(block->g_Y, 0, edges * L * sizeof(real));
    for (int p = P - 1; p >= 0; p--) {
        readout_backward(model->layers + p, at->kept[p].readout, work->g_s, work->gate);
        layer_backward(model, model->layers + p, block, work, at->kept + p);
    }
}

/* what the network gives -> energy in eV; and its slope along that: `saturated` of nn/bounds.py */
static double energy_of(const Model *model, int64_t species, double network, double *slope) {
    const double beyond = model->scale * (network - model->alone[species]), u = beyond * model->per_energy;
    const double v = 1 + u * u * u * u, rest = 1 / sqrt(sqrt(v));
    *slope = model->scale * rest / v;
    return model->e0[species] + beyond * rest;
}

/* Centres from start to before end: first [centres + 1] of the edges of each, `most` at most, neighbour [E],
   edge_vec [E, 3], species [atoms] -> energies [centres] eV; g [E, 3] eV/A, their slopes along the edges; features
   [centres, P * (F + RW)] where not NULL. */
void evaluate(const Model *model, char *memory, int64_t most, int64_t start, int64_t end, const int64_t *first,
              const int64_t *neighbour, const double *edge_vec, const int64_t *species, double *energies, double *g,
              real *features) {
    Places at;
    Block *block = &at.block;
    share_out(memory, most, &at);
    for (int64_t i = start; i < end; i += B) {
        const int64_t a = first[i];
        block->n = end - i < B ? end - i : B; block->first = first + i; block->species = species + i;
        for (int b = 0; b < block->n; b++)
            for (int64_t e = first[i + b]; e < first[i + b + 1]; e++) {
                const int64_t pair = species[i + b] * model->elements + species[neighbour[e]];
                geometry_forward(model, edge_vec + 3 * e, pair, block->edge + e - a, block->Y + (e - a) * L);
                splines_find(model, block->edge + e - a);
            }
        const vec network = block_forward(model, &at, features == NULL ? NULL : features + i * P * (F + RW));
        block_backward(model, &at);
        for (int b = 0; b < block->n; b++) {
            double slope;
            energies[i + b] = energy_of(model, species[i + b], network[b], &slope);
            for (int64_t e = first[i + b] - a; e < first[i + b + 1] - a; e++) {
                double *out = g + 3 * (a + e);
                out[0] = out[1] = out[2] = 0;
                geometry_backward(model, block->edge + e, block->g_r[e], block->g_f[e], block->g_Y + e * L, out);
                for (int c = 0; c < 3; c++) out[c] *= slope;
                if (model->zbl_end != NULL) energies[i + b] += repulsion(model, block->edge + e, out);
            }
        }
    }
}

/* The sums over edges: slopes g [E, 3] -> forces [atoms, 3], stresses [centres, 3, 3]; and over the centres of a
   structure: energy, stress. Sums come in as zeros. Stresses of a cell without volume are not numbers. */
void assemble(int64_t centres, const int64_t *first, const int64_t *neighbour, const double *edge_vec, const double *g,
              const double *energies, const int64_t *structure, const double *cell, double *energy, double *forces,
              double *stress, double *stresses) {
    for (int64_t i = 0; i < centres; i++) {
        const double *a = cell + 9 * structure[i], *b = a + 3, *c = a + 6;
        const double volume = fabs(a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) +
                                   a[2] * (b[0] * c[1] - b[1] * c[0]));
        double w[9] = {0};
        for (int64_t e = first[i]; e < first[i + 1]; e++) {
            const double *r = edge_vec + 3 * e, *ge = g + 3 * e;
            for (int x = 0; x < 3; x++) {
                forces[3 * i + x] += ge[x];
                forces[3 * neighbour[e] + x] -= ge[x];
                for (int y = 0; y < 3; y++) w[3 * x + y] += (r[x] * ge[y] + r[y] * ge[x]) / 2;
            }
        }
        energy[structure[i]] += energies[i];
        for (int x = 0; x < 9; x++) {
            stresses[9 * i + x] = volume > 0 ? w[x] / volume : NAN;
            stress[9 * structure[i] + x] += stresses[9 * i + x];
        }
    }
}
