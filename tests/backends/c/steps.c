/* Each step of evaluate.c on its own, for test_steps.py: n edges or B atoms; what goes in, what comes out, slopes
   along what comes out, and slopes along what went in, which come as zeros. */
#include "evaluate.c"

#define STEP(name) void step_##name(const Model *model, const Layer *layer, int64_t n, const int64_t *pair
#define COPY(to, from, size) memcpy(to, from, (size) * sizeof *(to))

static Work work;
static Kept kept;

/* an edge whose distance is all that one knows of it */
static Edge at(const Model *model, int64_t pair, double r, double f) {
    Edge edge = {.r = r, .r_seen = r, .f = f, .pair = pair};
    splines_find(model, &edge);
    return edge;
}

STEP(geometry), const double *v, double *r, real *Y, double *f, const double *g_r, const real *g_Y, const double *g_f,
     double *g) {
    for (int64_t e = 0; e < n; e++) {
        Edge edge;
        geometry_forward(model, v + 3 * e, pair[e], &edge, Y + e * L);
        r[e] = edge.r_seen; f[e] = edge.f;
        geometry_backward(model, &edge, g_r[e], g_f[e], g_Y + e * L, g + 3 * e);
    }
}

STEP(repulsion), const double *v, double *energy, const double *g_energy, double *g) {
    for (int64_t e = 0; e < n; e++) {
        Edge edge;
        real Y[L];
        geometry_forward(model, v + 3 * e, pair[e], &edge, Y);
        energy[e] = repulsion(model, &edge, g + 3 * e);
        for (int c = 0; c < 3; c++) g[3 * e + c] *= g_energy[e];
    }
}

STEP(splines), const double *r, real *curve, const real *g_curve, double *g_r) {
    for (int64_t e = 0; e < n; e++) {
        const Edge edge = at(model, pair[e], r[e], 1);
        real again[W], dcurve[W];
        splines_forward(model, layer, &edge, curve + e * W);
        splines_backward(model, layer, &edge, again, dcurve);
        for (int w = 0; w < W; w++) g_r[e] += again[w] == curve[e * W + w] ? g_curve[e * W + w] * dcurve[w] : NAN;
    }
}

STEP(attention), const double *r, const double *f, const real *Y, const real *query, const real *look, real *values,
     real *attended, real *plain, const real *g_values, const real *g_attended, const real *g_plain, double *g_r,
     double *g_f, real *g_Y, real *g_query, real *g_look) {
    static Edge edge[64];
    static real weight[64 * HP] __attribute__((aligned(64))), bare[64 * HP] __attribute__((aligned(64))), g[64 * HP];
    static real curve[64 * W], dcurve[64 * W], seen[64 * LM * H];
    const Room room = {weight, bare, g, curve, dcurve, seen};
    if (!has_tensors(model, layer)) look = NULL;
    for (int64_t e = 0; e < n; e++) edge[e] = at(model, pair[e], r[e], f[e]);
    attention_forward(model, layer, n, edge, Y, query, look, &room, values, attended, plain);
    attention_backward(model, layer, n, edge, Y, query, look, &room, g_values, g_attended, g_plain, g_r, g_f, g_Y,
                       g_query, g_look);
}

STEP(queries), const vec *s, const vec *t, vec *query, vec *look, const vec *g_query, const vec *g_look, vec *g_s,
     vec *g_t) {
    COPY(work.s, s, F); COPY(work.t, t, T * K);
    queries_forward(layer, &work);
    COPY(query, work.query, D * H); COPY(look, work.look, T * H);
    COPY(work.query, g_query, D * H); COPY(work.look, g_look, T * H);
    memset(work.g_s, 0, sizeof work.g_s); memset(work.g_t, 0, sizeof work.g_t);
    queries_backward(layer, &work);
    COPY(g_s, work.g_s, F); COPY(g_t, work.g_t, T * K);
}

STEP(mix), const vec *basis, const vec *s, const vec *t, vec *A, const vec *g_A, vec *g_basis, vec *g_s, vec *g_t) {
    mix_forward(layer, has_tensors(model, layer), basis, s, t, A);
    mix_backward(layer, has_tensors(model, layer), g_A, g_basis, g_s, g_t);
}

STEP(product), const vec *A, vec *orders, const vec *g_orders, vec *g_A) {
    vec rho[NU * K];
    COPY(orders, A, L * K);
    product_forward(model, layer, orders, rho);
    COPY(work.orders, g_orders, NU * L * K);
    product_backward(model, layer, orders, rho, work.orders);
    COPY(g_A, work.orders, L * K);
}

STEP(state), const vec *orders, const vec *values, const vec *s, const vec *t, vec *s_out, vec *t_out,
     const vec *g_s_out, const vec *g_t_out, vec *g_orders, vec *g_values, vec *g_s, vec *g_t) {
    const int tensors = has_tensors(model, layer);
    COPY(s_out, s, F); COPY(t_out, t, T * K);
    state_forward(layer, tensors, orders, values, s_out, t_out, work.ds, work.dt);
    state_backward(layer, g_s_out, g_t_out, g_orders, g_values, work.ds, work.dt);
    COPY(g_s, g_s_out, F);
    if (tensors) COPY(g_t, g_t_out, T * K);
}

STEP(feed_forward), const vec *s, const vec *t, vec *s_out, vec *t_out, const vec *g_s_out, const vec *g_t_out,
     vec *g_s, vec *g_t) {
    COPY(s_out, s, F); COPY(t_out, t, T * K);
    feed_forward_forward(model->per_feed_forward, layer, s_out, t_out, &kept.gates, work.x, work.hidden);
    COPY(g_s, g_s_out, F); COPY(g_t, g_t_out, T * K);
    feed_forward_backward(layer, &kept.gates, g_s, g_t, work.gate, work.x, work.hidden);
}

STEP(readout), const vec *s, vec *energy, const vec *g_energy, vec *g_s) {
    *energy = readout_forward(layer, s, kept.readout);
    readout_backward(layer, kept.readout, g_s, work.gate);
    for (int i = 0; i < F; i++) g_s[i] *= *g_energy;
}

STEP(saturated), const double *network, double *energy, const double *g_energy, double *g) {
    for (int64_t i = 0; i < n; i++) {
        energy[i] = energy_of(model, pair[i], network[i], g + i);
        g[i] *= g_energy[i];
    }
}
