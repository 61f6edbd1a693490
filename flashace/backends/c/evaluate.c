/* Neighbour vectors in, energy of each atom and its slope along each neighbour vector out: the whole model, for inference on a CPU.

   The same steps as nn/layer.py, in the same order, and then backwards; cpu.py packs the weights, compiles this file for the sizes of a model
   and calls `evaluate`. Constants given by the compiler: F hidden_dim, K num_channels, H num_heads, D key_dim, LM l_max, NU correlation,
   P num_layers, RW width of the readouts, TRUSTED and ENVELOPE as in model.py; REAL is float or double.
   Neighbours of an atom are gone through one by one, with channels or heads in the lanes of a vector; what is left to do for an atom is done
   for B atoms at once, side by side in the lanes. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef REAL real;
enum { B = 64 / sizeof(real), L = (LM + 1) * (LM + 1), T = L - 1, V = F / H, KH = K / H, X = F + LM * K,
       HV = (H + B - 1) / B, HP = HV * B, /* heads, filled up to whole vectors */
       AT_DIR = D, AT_VAL = AT_DIR + LM * H, AT_RAD = AT_VAL + F, W = AT_RAD + (LM + 1) * K };
typedef real vec __attribute__((vector_size(B * sizeof(real)), may_alias));
#define WHOLE(type) _Generic((type)0, float: (int32_t)0, double: (int64_t)0)
typedef __typeof__(WHOLE(real)) ivec __attribute__((vector_size(B * sizeof(real)), may_alias));
static const vec ZERO = {0};

typedef struct {
    const real *table;                       /* [pairs, knots + 5, 2, W]: coefficients of B-splines, and the step from each to the next */
    const real *query, *query_bias;          /* [F, D*H], in the order D, H; in the first layer the query of each element [elements, D*H] */
    const real *look;                        /* [LM, K, H]; NULL in the first layer */
    const real *mix_basis;                   /* [LM+1, 2K, K] */
    const real *mix_scalars, *mix_scalars_bias;
    const real *mix_tensors;                 /* [LM, K, K]; NULL in the first layer */
    const real *path_weights;                /* all orders, one after the other: [paths, K] */
    const real *scalars_out;                 /* [NU*K, F] */
    const real *values_out;                  /* [F, F], rows in the order V, H */
    const real *tensors_out;                 /* [LM, NU*K, K] */
    const real *gate_and_value, *gate_and_value_bias; /* [X, 2F] */
    const real *out;                         /* [F, X] */
    const real *scale_scalars, *scale_tensors;
    const real *readout_linear, *readout_hidden, *readout_hidden_bias, *readout_out;
} Layer;

typedef struct {
    Layer layers[P];
    const real *embedding;                   /* [elements, F] */
    int64_t elements;
    const double *e0, *alone;                /* [elements]: reference energies in eV; what the network gives for an atom alone */
    double scale;                            /* eV */
    int64_t knots;
    double r_max, plain_scale, own_weight;   /* the last is what an atom weighs beside its neighbours */
    double per_basis, per_product, per_feed_forward; /* 1 / limit^2 of nn/bounds.py, 0 where nothing is bounded */
    double per_energy;                       /* 1 / energy_bound, 1/eV */
    int64_t start[NU];                       /* the terms of the products of order o + 1 stand from start[o - 1] to start[o] */
    const int32_t *term;                     /* [.., 4]: path, counted through all orders, i, j, m */
    const real *coupling;
    const int32_t *monomials;                /* [.., 3]: powers of x, y, z; all degrees, one after the other */
    const double *harmonics;                 /* per degree [monomials, 2l+1] */
    const double *shortest;                  /* [pairs]; NULL without ZBL */
    const double *zbl_strength, *zbl_length, *zbl_end; /* [pairs] */
} Model;

static inline vec pick(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

/* by a power of two and a polynomial, as precise as x itself is; not a number gives not a number */
static inline vec exponential(vec x) {
    const real most = sizeof(real) == 4 ? 88 : 708;
    const vec zero = ZERO;
    x = pick(x > most, most + zero, pick(x < -most, -most + zero, x));
    const vec whole = pick(x == x, x * (real)1.4426950408889634 + pick(x < 0, (real)-0.5 + zero, (real)0.5 + zero), zero);
    const ivec n = __builtin_convertvector(whole, ivec);
    const vec m = __builtin_convertvector(n, vec);
    const vec r = x - m * (real)0.6931471805599453;
    vec y;
    ivec power;
    if (sizeof(real) == 4) {
        y = 1 + r * (1 + r * ((real)1 / 2 + r * ((real)1 / 6 + r * ((real)1 / 24 + r * ((real)1 / 120 + r * ((real)1 / 720 + r * ((real)1 / 5040)))))));
        power = (n + 127) << 23;
    } else {
        y = 1 + ZERO;
        for (int k = 13; k >= 1; k--) y = 1 + y * r / (real)k;
        power = (n + 1023) << (sizeof(real) == 4 ? 0 : 52);
    }
    return y * (vec)power;
}

/* y += W^T x, W [in, out]; and its transpose x += W y */
static __attribute__((noinline)) void map(int in, int out, const real *restrict w, const vec *restrict x, vec *restrict y) {
    int o = 0;
    for (; o + 8 <= out; o += 8) {
        vec a[8];
        for (int j = 0; j < 8; j++) a[j] = y[o + j];
        for (int i = 0; i < in; i++) for (int j = 0; j < 8; j++) a[j] += w[i * out + o + j] * x[i];
        for (int j = 0; j < 8; j++) y[o + j] = a[j];
    }
    if (out % 8) for (; o < out; o++) for (int i = 0; i < in; i++) y[o] += w[i * out + o] * x[i];
}

static __attribute__((noinline)) void map_back(int in, int out, const real *restrict w, const vec *restrict y, vec *restrict x) {
    int i = 0;
    for (; i + 8 <= in; i += 8) {
        vec a[8];
        for (int j = 0; j < 8; j++) a[j] = x[i + j];
        for (int o = 0; o < out; o++) for (int j = 0; j < 8; j++) a[j] += w[(i + j) * out + o] * y[o];
        for (int j = 0; j < 8; j++) x[i + j] = a[j];
    }
    if (in % 8) for (; i < in; i++) for (int o = 0; o < out; o++) x[i] += w[i * out + o] * y[o];
}

static void map_tensors(int in, int out, const real *w, const vec *x, vec *y, int first) {
    for (int l = first, m = 0; l <= LM; l++, w += in * out) for (int n = 0; n < 2 * l + 1; n++, m++) map(in, out, w, x + m * in, y + m * out);
}

static void map_tensors_back(int in, int out, const real *w, const vec *y, vec *x, int first) {
    for (int l = first, m = 0; l <= LM; l++, w += in * out) for (int n = 0; n < 2 * l + 1; n++, m++) map_back(in, out, w, y + m * out, x + m * in);
}

static inline vec sigmoid(vec x) { return 1 / (1 + exponential(-x)); }

static inline vec root(vec x) {
    vec y;
    for (int b = 0; b < B; b++) y[b] = sizeof(real) == 4 ? sqrtf(x[b]) : sqrt(x[b]);
    return y;
}

/* ---- geometry of one edge ---- */
typedef struct {
    double r, seen, dseen, f, df, unit[3];
    int64_t pair, knot;                      /* of which two elements; the interval of the splines that `seen` lies in */
    real log_f, spline[5], slope[5];         /* weights of the steps, for value and slope */
} Edge;

/* u in [0, 1]: weights of uniform B-splines of degree 5 by the recurrence of Cox and de Boor, as weights of the steps between the coefficients.
   Rounded numbers lose less in this form, and those of degree 4 give the slope from the same steps. */
static void bsplines(double u, double per_angstrom, Edge *e) {
    double w[6] = {1, 0, 0, 0, 0, 0};
    for (int d = 1; d <= 5; d++) {
        if (d == 5) for (int k = 0; k < 5; k++) e->slope[k] = per_angstrom * w[k];
        for (int k = d; k >= 0; k--) w[k] = ((k + 1 - u) * w[k] + (k > 0 ? (u + d - k) * w[k - 1] : 0)) / d;
    }
    e->spline[0] = -w[0]; e->spline[1] = -w[0] - w[1]; e->spline[2] = -w[0] - w[1] - w[2]; /* y = c3 + sum of steps from c3 */
    e->spline[3] = w[4] + w[5]; e->spline[4] = w[5];
}

static void geometry(const Model *model, const double *v, int64_t pair, Edge *e, real *Y) {
    e->pair = pair;
    e->r = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    for (int c = 0; c < 3; c++) e->unit[c] = v[c] / e->r;
    e->seen = e->r; e->dseen = 1;
    if (model->shortest != NULL) {
        const double least = TRUSTED * model->shortest[pair], a = least > 1e-3 ? least : 1e-3;
        if (e->r < least) {
            double t = (e->r / a - 0.9) / 0.1;
            const int inside = t > 0 && t < 1;
            t = t < 0 ? 0 : t > 1 ? 1 : t;
            e->seen = least * (0.95 + 0.1 * t * t * t * t * (2.5 - 3 * t + t * t));
            e->dseen = inside ? least * 0.1 * t * t * t * (10 - 15 * t + 6 * t * t) / (0.1 * a) : 0;
        }
    }
    const double x = e->seen < model->r_max ? e->seen / model->r_max : 1;
    double tail = 0, dtail = 0;
    for (int k = ENVELOPE - 1; k >= 0; k--) { dtail = dtail * x + tail; tail = tail * x + (k + 1) * (k + 2) / 2; }
    const double u = 1 - x;
    e->f = u * u * u * tail;
    e->df = (u * u * u * dtail - 3 * u * u * tail) / model->r_max;
    e->log_f = e->f > 0 ? log(e->f) : 0;
    const double place = x * model->knots;
    e->knot = place < model->knots ? (int64_t)place : model->knots - 1; /* also where r is not a number */
    bsplines(place - e->knot, model->knots / model->r_max, e);
    double power[3][LM + 1];
    for (int c = 0; c < 3; c++) { power[c][0] = 1; for (int l = 1; l <= LM; l++) power[c][l] = power[c][l - 1] * e->unit[c]; }
    const int32_t *mono = model->monomials;
    const double *coefficient = model->harmonics;
    for (int l = 0, m = 0; l <= LM; m += 2 * l + 1, l++) {
        double y[2 * LM + 1];
        for (int k = 0; k < 2 * l + 1; k++) y[k] = 0;
        for (int n = 0; n < (l + 1) * (l + 2) / 2; n++, mono += 3, coefficient += 2 * l + 1) {
            const double p = power[0][mono[0]] * power[1][mono[1]] * power[2][mono[2]];
            for (int k = 0; k < 2 * l + 1; k++) y[k] += coefficient[k] * p;
        }
        for (int k = 0; k < 2 * l + 1; k++) Y[m + k] = y[k];
    }
}

/* slopes along r, f and Y in, along the vector out */
static void geometry_back(const Model *model, const Edge *e, double gr, double gf, const real *gY, double *g) {
    double power[3][LM + 1], gu[3] = {0, 0, 0};
    for (int c = 0; c < 3; c++) { power[c][0] = 1; for (int l = 1; l <= LM; l++) power[c][l] = power[c][l - 1] * e->unit[c]; }
    const int32_t *mono = model->monomials;
    const double *coefficient = model->harmonics;
    for (int l = 0, m = 0; l <= LM; m += 2 * l + 1, l++)
        for (int n = 0; n < (l + 1) * (l + 2) / 2; n++, mono += 3, coefficient += 2 * l + 1) {
            double h = 0;
            for (int k = 0; k < 2 * l + 1; k++) h += gY[m + k] * coefficient[k];
            const double x = power[0][mono[0]], y = power[1][mono[1]], z = power[2][mono[2]];
            if (mono[0]) gu[0] += h * mono[0] * power[0][mono[0] - 1] * y * z;
            if (mono[1]) gu[1] += h * mono[1] * power[1][mono[1] - 1] * x * z;
            if (mono[2]) gu[2] += h * mono[2] * power[2][mono[2] - 1] * x * y;
        }
    double along = 0;
    for (int c = 0; c < 3; c++) along += gu[c] * e->unit[c];
    const double radial = (gr + gf * e->df) * e->dseen;
    for (int c = 0; c < 3; c++) g[c] += (gu[c] - along * e->unit[c]) / e->r + radial * e->unit[c];
}

static double repulsion(const Model *model, const Edge *e, double *g) {
    static const double A[4] = {0.18175, 0.50986, 0.28022, 0.02817}, d[4] = {3.19980, 0.94229, 0.40290, 0.20162};
    const double end = model->zbl_end[e->pair], r = e->r;
    if (r >= end) return 0;
    double phi = 0, dphi = 0;
    for (int k = 0; k < 4; k++) { const double a = A[k] * exp(-d[k] * r / model->zbl_length[e->pair]); phi += a; dphi -= a * d[k] / model->zbl_length[e->pair]; }
    const double x = r / end, u = 1 - x;
    double tail = 0, dtail = 0;
    for (int k = 5; k >= 0; k--) { dtail = dtail * x + tail; tail = tail * x + (k + 1) * (k + 2) / 2; }
    const double f = u * u * u * tail, df = (u * u * u * dtail - 3 * u * u * tail) / end, c = 0.5 * model->zbl_strength[e->pair];
    const double slope = c * ((dphi * f + phi * df) / r - phi * f / (r * r));
    for (int k = 0; k < 3; k++) g[k] += slope * e->unit[k];
    return c * phi * f / r;
}

/* ---- attention of one atom over its M neighbours ---- */
static inline void curves(const Model *model, const Layer *layer, const Edge *e, real *restrict y, real *restrict dy) {
    const real *restrict row = layer->table + (e->pair * (model->knots + 5) + e->knot) * 2 * W, *restrict p = e->spline, *restrict q = e->slope;
    const real *restrict c = row + 6 * W, *restrict d0 = row + W, *restrict d1 = row + 3 * W, *restrict d2 = row + 5 * W, *restrict d3 = row + 7 * W, *restrict d4 = row + 9 * W;
    for (int w = 0; w < W; w++) y[w] = c[w] + (p[0] * d0[w] + p[1] * d1[w] + p[2] * d2[w] + p[3] * d3[w] + p[4] * d4[w]);
    if (dy != NULL) for (int w = 0; w < W; w++) dy[w] = q[0] * d0[w] + q[1] * d1[w] + q[2] * d2[w] + q[3] * d3[w] + q[4] * d4[w];
}

static inline void scores(const real *restrict y, const real *restrict Y, const real *restrict q, const real *restrict look, real *restrict s, real *restrict seen) {
    const real c = 1 / sqrt((double)D);
    for (int h = 0; h < HP; h++) s[h] = 0;
    for (int d = 0; d < D; d++) { const real key = c * y[d]; for (int h = 0; h < H; h++) s[h] += key * q[d * H + h]; }
    if (look == NULL) return;
    for (int l = 1, m = 0; l <= LM; l++) {
        real *restrict t = seen + (l - 1) * H;
        const real *restrict dk = y + AT_DIR + (l - 1) * H;
        const real cl = 1 / sqrt(2.0 * l + 1);
        for (int h = 0; h < H; h++) t[h] = 0;
        for (int n = 0; n < 2 * l + 1; n++, m++) { const real a = cl * Y[m + 1]; for (int h = 0; h < H; h++) t[h] += a * look[m * H + h]; }
        for (int h = 0; h < H; h++) s[h] += dk[h] * t[h];
    }
}

/* scores in, weights out; b is weight / envelope */
static void weigh(real own, int64_t M, const Edge *edge, vec *restrict s, vec *restrict b) {
    for (int h = 0; h < HV; h++) {
        vec shift = ZERO, sum;
        for (int64_t e = 0; e < M; e++) {
            if (!(edge[e].f > 0)) continue;
            const vec t = s[e * HV + h] + edge[e].log_f;
            shift = pick(t > shift, t, shift);
        }
        sum = own * exponential(-shift);
        for (int64_t e = 0; e < M; e++) {
            const real f = edge[e].f;
            s[e * HV + h] = f > 0 ? exponential(s[e * HV + h] - shift) : ZERO;
            sum += f * s[e * HV + h];
        }
        sum = 1 / sum;
        for (int64_t e = 0; e < M; e++) {
            b[e * HV + h] = s[e * HV + h] * sum;
            s[e * HV + h] = (real)edge[e].f * b[e * HV + h];
        }
    }
}

/* room for the neighbours of one atom; s, b and g in whole vectors */
typedef struct { real *s, *b, *g, *y, *dy, *seen; } Room;

static void attend(const Model *model, const Layer *layer, int64_t M, const Edge *edge, const real *Y, const real *q, const real *look,
                   const Room *room, real *values, real *attended, real *plain) {
    for (int64_t e = 0; e < M; e++) {
        curves(model, layer, edge + e, room->y + e * W, NULL);
        scores(room->y + e * W, Y + e * L, q, look, room->s + e * HP, room->seen);
    }
    weigh(model->own_weight, M, edge, (vec *)room->s, (vec *)room->b);
    real v[F] = {0}, A[L * K] = {0}, N[L * K] = {0};
    for (int64_t e = 0; e < M; e++) {
        const real *restrict y = room->y + e * W, *restrict al = room->s + e * HP, *restrict Ye = Y + e * L;
        const real fp = edge[e].f * model->plain_scale;
        for (int j = 0; j < V; j++) for (int h = 0; h < H; h++) v[j * H + h] += al[h] * y[AT_VAL + j * H + h];
        for (int l = 0, m = 0; l <= LM; l++) {
            const real *restrict R = y + AT_RAD + l * K;
            real x[K], z[K];
            for (int k = 0; k < K; k++) { x[k] = al[k / KH] * R[k]; z[k] = fp * R[k]; }
            for (int n = 0; n < 2 * l + 1; n++, m++) { const real Ym = Ye[m]; for (int k = 0; k < K; k++) { A[m * K + k] += Ym * x[k]; N[m * K + k] += Ym * z[k]; } }
        }
    }
    memcpy(values, v, sizeof v); memcpy(attended, A, sizeof A); memcpy(plain, N, sizeof N);
}

static void attend_back(const Model *model, const Layer *layer, int64_t M, const Edge *edge, const real *Y, const real *q, const real *look,
                        const Room *room, const real *gv, const real *GA, const real *GP, double *g_r, double *g_f, real *g_Y, real *gq, real *gl) {
    const real c = 1 / sqrt((double)D);
    real dot[H] = {0};
    for (int64_t e = 0; e < M; e++) {
        curves(model, layer, edge + e, room->y + e * W, room->dy + e * W);
        scores(room->y + e * W, Y + e * L, q, look, room->s + e * HP, room->seen + e * LM * H);
    }
    weigh(model->own_weight, M, edge, (vec *)room->s, (vec *)room->b);
    memset(gq, 0, D * H * sizeof(real));
    if (gl != NULL) memset(gl, 0, T * H * sizeof(real));
    for (int64_t e = 0; e < M; e++) {
        const real *restrict y = room->y + e * W, *restrict dy = room->dy + e * W, *restrict al = room->s + e * HP, *restrict Ye = Y + e * L;
        real *restrict g = room->g + e * HP, *restrict gY = g_Y + e * L;
        const real fp = edge[e].f * model->plain_scale;
        real gr = 0, gf = 0, gk[K], gfk[K], grk[K], grh[H]; /* summed over channels or heads at the end, once */
        for (int h = 0; h < H; h++) g[h] = grh[h] = 0;
        for (int k = 0; k < K; k++) gk[k] = gfk[k] = grk[k] = 0;
        for (int j = 0; j < V; j++) for (int h = 0; h < H; h++) {
            g[h] += y[AT_VAL + j * H + h] * gv[j * H + h];
            grh[h] += dy[AT_VAL + j * H + h] * gv[j * H + h];
        }
        for (int l = 0, m = 0; l <= LM; l++) {
            const real *restrict R = y + AT_RAD + l * K, *restrict dR = dy + AT_RAD + l * K;
            real ta[K], tp[K], x[K], z[K];
            for (int k = 0; k < K; k++) { ta[k] = tp[k] = 0; x[k] = al[k / KH] * R[k]; z[k] = fp * R[k]; }
            for (int n = 0; n < 2 * l + 1; n++, m++) {
                const real Ym = Ye[m];
                real gy = 0;
                for (int k = 0; k < K; k++) {
                    ta[k] += Ym * GA[m * K + k]; tp[k] += Ym * GP[m * K + k];
                    gy += x[k] * GA[m * K + k] + z[k] * GP[m * K + k];
                }
                gY[m] += gy;
            }
            for (int k = 0; k < K; k++) {
                gk[k] += R[k] * ta[k];
                gfk[k] += R[k] * tp[k];
                grk[k] += dR[k] * (al[k / KH] * ta[k] + fp * tp[k]);
            }
        }
        for (int h = 0; h < H; h++) gr += al[h] * grh[h];
        for (int k = 0; k < K; k++) { gr += grk[k]; gf += gfk[k]; }
        for (int k = 0; k < K; k++) g[k / KH] += gk[k];
        for (int h = 0; h < H; h++) dot[h] += al[h] * g[h];
        g_r[e] += gr;
        g_f[e] += gf * model->plain_scale;
    }
    for (int64_t e = 0; e < M; e++) {
        const real *restrict y = room->y + e * W, *restrict dy = room->dy + e * W, *restrict Ye = Y + e * L, *restrict t = room->seen + e * LM * H;
        real *restrict gs = room->g + e * HP, *restrict gY = g_Y + e * L;
        real gf = 0, gr = 0, grh[H];
        for (int h = 0; h < H; h++) { const real d = gs[h] - dot[h]; gf += room->b[e * HP + h] * d; gs[h] = room->s[e * HP + h] * d; grh[h] = 0; }
        for (int d = 0; d < D; d++) {
            const real key = c * y[d], dkey = c * dy[d];
            for (int h = 0; h < H; h++) { grh[h] += dkey * q[d * H + h]; gq[d * H + h] += key * gs[h]; }
        }
        if (look != NULL)
            for (int l = 1, m = 0; l <= LM; l++) {
                const real cl = 1 / sqrt(2.0 * l + 1);
                const real *restrict dk = y + AT_DIR + (l - 1) * H, *restrict ddk = dy + AT_DIR + (l - 1) * H;
                real x[H];
                for (int h = 0; h < H; h++) { grh[h] += t[(l - 1) * H + h] * ddk[h]; x[h] = cl * gs[h] * dk[h]; }
                for (int n = 0; n < 2 * l + 1; n++, m++) {
                    real gy = 0;
                    const real Ym = Ye[m + 1];
                    for (int h = 0; h < H; h++) { gy += x[h] * look[m * H + h]; gl[m * H + h] += Ym * x[h]; }
                    gY[m + 1] += gy;
                }
            }
        for (int h = 0; h < H; h++) gr += gs[h] * grh[h];
        g_r[e] += gr;
        g_f[e] += gf;
    }
}

/* ---- a block of B atoms ---- */
typedef struct {
    vec s[F], t[T * K];                              /* the state that came in */
    real q[B][D * H], look[B][T * H];
    vec values[F], basis[L * 2 * K];
    vec orders[NU][L * K], rho[NU][K];               /* bounded, and by which factor */
    vec s1[F], t1[T * K], slope[X], gate[2 * F], hidden[F], factor[X]; /* slope: of the bounded invariants along the invariants */
    vec s2[F], readout[RW];
} Kept;

/* what is needed for a moment only; too large for the stack */
typedef struct {
    vec s[F], t[T * K], gs[F], gt[T * K];
    vec q[D * H], look[T * H], x[X], ds[F], dt[T * K], g[2 * F > RW ? 2 * F : RW], gh[F], values[F], basis[L * 2 * K], orders[NU][L * K];
} Work;

static void spread(int n, int b, const real *restrict x, vec *restrict y, int stride, int offset, int row) {
    for (int i = 0; i < n / row; i++) for (int k = 0; k < row; k++) y[i * stride + offset + k][b] = x[i * row + k];
}

static void gather(int n, int b, const vec *restrict y, real *restrict x, int stride, int offset, int row) {
    for (int i = 0; i < n / row; i++) for (int k = 0; k < row; k++) x[i * row + k] = y[i * stride + offset + k][b];
}

/* x [L, K] in, no longer than the limit out, and the factor rho [K]; and backwards, from the bounded x */
static void shorten(real per, vec *restrict x, vec *restrict rho) {
    for (int c = 0; c < K; c++) {
        vec sum = ZERO;
        for (int m = 0; m < L; m++) sum += x[m * K + c] * x[m * K + c];
        rho[c] = 1 / root(1 + per * sum);
        for (int m = 0; m < L; m++) x[m * K + c] *= rho[c];
    }
}

static void shorten_back(real per, const vec *restrict x, const vec *restrict rho, vec *restrict g) {
    for (int c = 0; c < K; c++) {
        vec dot = ZERO;
        for (int m = 0; m < L; m++) dot += x[m * K + c] * g[m * K + c];
        for (int m = 0; m < L; m++) g[m * K + c] = rho[c] * (g[m * K + c] - per * dot * x[m * K + c]);
    }
}

static void products(const Model *model, const Layer *layer, Kept *k) {
    shorten(model->per_basis, k->orders[0], k->rho[0]);
    for (int o = 1; o < NU; o++) {
        for (int i = 0; i < L * K; i++) k->orders[o][i] = ZERO;
        for (int64_t n = model->start[o - 1]; n < model->start[o]; n++) {
            const int32_t *term = model->term + 4 * n;
            const real *w = layer->path_weights + term[0] * K;
            const vec *x = k->orders[o - 1] + term[1] * K, *y = k->orders[0] + term[2] * K;
            vec *z = k->orders[o] + term[3] * K;
            for (int c = 0; c < K; c++) z[c] += (model->coupling[n] * w[c]) * (x[c] * y[c]);
        }
        shorten(model->per_product, k->orders[o], k->rho[o]);
    }
}

/* slopes along all orders in, along the first of them out, in g[0] */
static void products_back(const Model *model, const Layer *layer, const Kept *k, vec (*g)[L * K]) {
    for (int o = NU - 1; o >= 1; o--) {
        shorten_back(model->per_product, k->orders[o], k->rho[o], g[o]);
        for (int64_t n = model->start[o - 1]; n < model->start[o]; n++) {
            const int32_t *term = model->term + 4 * n;
            const real *w = layer->path_weights + term[0] * K;
            const vec *x = k->orders[o - 1] + term[1] * K, *y = k->orders[0] + term[2] * K, *gz = g[o] + term[3] * K;
            vec *gx = g[o - 1] + term[1] * K, *gy = g[0] + term[2] * K;
            for (int c = 0; c < K; c++) {
                const vec a = (model->coupling[n] * w[c]) * gz[c];
                gx[c] += a * y[c];
                gy[c] += a * x[c];
            }
        }
    }
    shorten_back(model->per_basis, k->orders[0], k->rho[0], g[0]);
}

static void layer_forward(const Model *model, const Layer *layer, Kept *k, int n, const int64_t *first, const int64_t *species, const Edge *edge, const real *Y, const Room *room, Work *work) {
    vec *s = work->s, *t = work->t, *q = work->q, *lk = work->look;
    memcpy(k->s, s, sizeof k->s);
    const int deeper = layer != model->layers; /* before, all atoms of an element are alike */
    if (deeper) {
        for (int o = 0; o < D * H; o++) q[o] = layer->query_bias[o] + ZERO;
        map(F, D * H, layer->query, s, q);
    }
    if (layer->look != NULL) {
        memcpy(k->t, t, sizeof k->t);
        memset(lk, 0, sizeof work->look);
        map_tensors(K, H, layer->look, t, lk, 1);
    }
    memset(k->values, 0, sizeof k->values);
    memset(k->basis, 0, sizeof k->basis);
    for (int b = 0; b < n; b++) {
        real values[F], attended[L * K], plain[L * K];
        const int64_t a = first[b] - first[0];
        if (deeper) gather(D * H, b, q, k->q[b], H, 0, H);
        else memcpy(k->q[b], layer->query + species[b] * D * H, sizeof k->q[b]);
        if (layer->look != NULL) gather(T * H, b, lk, k->look[b], H, 0, H);
        attend(model, layer, first[b + 1] - first[b], edge + a, Y + a * L, k->q[b], layer->look != NULL ? k->look[b] : NULL, room, values, attended, plain);
        spread(F, b, values, k->values, H, 0, H);
        spread(L * K, b, attended, k->basis, 2 * K, 0, K);
        spread(L * K, b, plain, k->basis, 2 * K, K, K);
    }
    vec *A = k->orders[0];
    memset(A, 0, sizeof k->orders[0]);
    for (int c = 0; c < K; c++) A[c] += layer->mix_scalars_bias[c];
    map_tensors(2 * K, K, layer->mix_basis, k->basis, A, 0);
    map(F, K, layer->mix_scalars, s, A);
    if (layer->mix_tensors != NULL) map_tensors(K, K, layer->mix_tensors, t, A + K, 1);
    products(model, layer, k);
    vec *ds = work->ds, *dt = work->dt, *x = work->x;
    memset(ds, 0, sizeof work->ds); memset(dt, 0, sizeof work->dt);
    for (int o = 0; o < NU; o++) map(K, F, layer->scalars_out + o * K * F, k->orders[o], ds);
    map(F, F, layer->values_out, k->values, ds);
    for (int i = 0; i < F; i++) s[i] += layer->scale_scalars[i] * ds[i];
    for (int l = 1, m = 0; l <= LM; l++)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int o = 0; o < NU; o++) map(K, K, layer->tensors_out + ((l - 1) * NU + o) * K * K, k->orders[o] + (m + 1) * K, dt + m * K);
    for (int i = 0; i < T * K; i++) t[i] = (layer->mix_tensors != NULL ? t[i] : ZERO) + layer->scale_tensors[i % K] * dt[i];
    memcpy(k->s1, s, sizeof k->s1); memcpy(k->t1, t, sizeof k->t1);

    memcpy(x, s, F * sizeof(vec));
    memset(x + F, 0, LM * K * sizeof(vec));
    for (int l = 1, m = 0; l <= LM; l++) for (int j = 0; j < 2 * l + 1; j++, m++) for (int c = 0; c < K; c++) x[F + (l - 1) * K + c] += t[m * K + c] * t[m * K + c] / (real)(2 * l + 1);
    const real per = model->per_feed_forward;
    for (int i = 0; i < X; i++) {
        const vec rho = 1 / root(1 + per * (x[i] * x[i]));
        k->slope[i] = rho * rho * rho;
        x[i] *= rho;
    }
    for (int i = 0; i < 2 * F; i++) k->gate[i] = layer->gate_and_value_bias[i] + ZERO;
    map(X, 2 * F, layer->gate_and_value, x, k->gate);
    for (int i = 0; i < F; i++) k->hidden[i] = k->gate[i] * sigmoid(k->gate[i]) * k->gate[F + i];
    memset(k->factor, 0, sizeof k->factor);
    map(F, X, layer->out, k->hidden, k->factor);
    for (int i = 0; i < F; i++) s[i] += layer->scale_scalars[F + i] * k->factor[i];
    for (int l = 1, m = 0; l <= LM; l++) for (int j = 0; j < 2 * l + 1; j++, m++) for (int c = 0; c < K; c++)
        t[m * K + c] += layer->scale_tensors[K + c] * k->factor[F + (l - 1) * K + c] * t[m * K + c];
    memcpy(k->s2, s, sizeof k->s2);
}

static vec readout(const Layer *layer, Kept *k) {
    vec e = ZERO;
    for (int i = 0; i < RW; i++) k->readout[i] = layer->readout_hidden_bias[i] + ZERO;
    map(F, RW, layer->readout_hidden, k->s2, k->readout);
    for (int i = 0; i < F; i++) e += layer->readout_linear[i] * k->s2[i];
    for (int i = 0; i < RW; i++) e += layer->readout_out[i] * (k->readout[i] * sigmoid(k->readout[i]));
    return e;
}

static inline vec silu_slope(vec x) { const vec y = sigmoid(x); return y * (1 + x * (1 - y)); }

/* gs, gt: slopes along the state that goes out; become those along the state that came in */
static void layer_back(const Model *model, const Layer *layer, const Kept *k, int n, const int64_t *first, const Edge *edge, const real *Y, const Room *room, Work *work,
                       double *g_r, double *g_f, real *g_Y) {
    vec *gs = work->gs, *gt = work->gt, *g = work->g, *gx = work->x, *gh = work->gh;
    for (int i = 0; i < RW; i++) g[i] = layer->readout_out[i] * silu_slope(k->readout[i]);
    for (int i = 0; i < F; i++) gs[i] += layer->readout_linear[i];
    map_back(F, RW, layer->readout_hidden, g, gs);

    memset(gx, 0, sizeof work->x);
    for (int i = 0; i < F; i++) gx[i] = layer->scale_scalars[F + i] * gs[i];
    for (int l = 1, m = 0; l <= LM; l++) for (int j = 0; j < 2 * l + 1; j++, m++) for (int c = 0; c < K; c++) {
        const int f = F + (l - 1) * K + c;
        gx[f] += layer->scale_tensors[K + c] * (gt[m * K + c] * k->t1[m * K + c]);
        gt[m * K + c] *= 1 + layer->scale_tensors[K + c] * k->factor[f];
    }
    memset(gh, 0, sizeof work->gh);
    map_back(F, X, layer->out, gx, gh);
    for (int i = 0; i < F; i++) {
        g[i] = gh[i] * k->gate[F + i] * silu_slope(k->gate[i]);
        g[F + i] = gh[i] * k->gate[i] * sigmoid(k->gate[i]);
    }
    memset(gx, 0, sizeof work->x);
    map_back(X, 2 * F, layer->gate_and_value, g, gx);
    for (int i = 0; i < X; i++) gx[i] *= k->slope[i];
    for (int i = 0; i < F; i++) gs[i] += gx[i];
    for (int l = 1, m = 0; l <= LM; l++) for (int j = 0; j < 2 * l + 1; j++, m++) for (int c = 0; c < K; c++)
        gt[m * K + c] += ((real)2 / (real)(2 * l + 1)) * gx[F + (l - 1) * K + c] * k->t1[m * K + c];

    vec (*go)[L * K] = work->orders, *gd = work->ds, *gdt = work->dt;
    memset(go, 0, sizeof work->orders); memset(work->values, 0, sizeof work->values); memset(work->basis, 0, sizeof work->basis);
    for (int i = 0; i < F; i++) gd[i] = layer->scale_scalars[i] * gs[i];
    for (int i = 0; i < T * K; i++) gdt[i] = layer->scale_tensors[i % K] * gt[i];
    for (int o = 0; o < NU; o++) map_back(K, F, layer->scalars_out + o * K * F, gd, go[o]);
    map_back(F, F, layer->values_out, gd, work->values);
    for (int l = 1, m = 0; l <= LM; l++)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int o = 0; o < NU; o++) map_back(K, K, layer->tensors_out + ((l - 1) * NU + o) * K * K, gdt + m * K, go[o] + (m + 1) * K);
    products_back(model, layer, k, go);
    map_tensors_back(2 * K, K, layer->mix_basis, go[0], work->basis, 0);
    const int deeper = layer->mix_tensors != NULL;
    if (deeper) {
        map_back(F, K, layer->mix_scalars, go[0], gs);
        map_tensors_back(K, K, layer->mix_tensors, go[0] + K, gt, 1);
    }
    vec *gq = work->q, *glk = work->look;
    memset(gq, 0, sizeof work->q); memset(glk, 0, sizeof work->look);
    for (int b = 0; b < n; b++) {
        real gv[F], GA[L * K], GP[L * K], q1[D * H], l1[T * H];
        const int64_t a = first[b] - first[0];
        gather(F, b, work->values, gv, H, 0, H);
        gather(L * K, b, work->basis, GA, 2 * K, 0, K);
        gather(L * K, b, work->basis, GP, 2 * K, K, K);
        attend_back(model, layer, first[b + 1] - first[b], edge + a, Y + a * L, k->q[b], deeper ? k->look[b] : NULL, room, gv, GA, GP, g_r + a, g_f + a, g_Y + a * L, q1, deeper ? l1 : NULL);
        if (deeper) { spread(D * H, b, q1, gq, H, 0, H); spread(T * H, b, l1, glk, H, 0, H); }
    }
    if (deeper) {
        map_back(F, D * H, layer->query, gq, gs);
        map_tensors_back(K, H, layer->look, glk, gt, 1);
    }
}

/* where things stand in the memory that is lent: `most` neighbours for each of B atoms */
typedef struct { Kept *kept; Work *work; Edge *edge; real *Y, *gY; double *gr, *gf; Room room; char *end; } Places;

static void *take(char **end, size_t size) { void *found = *end; *end += (size + 63) / 64 * 64; return found; }

static Places places(char *memory, int64_t most) {
    Places p = {.end = memory};
    const size_t edges = B * most;
    p.kept = take(&p.end, P * sizeof(Kept)); p.work = take(&p.end, sizeof(Work)); p.edge = take(&p.end, edges * sizeof(Edge));
    p.Y = take(&p.end, edges * L * sizeof(real)); p.gY = take(&p.end, edges * L * sizeof(real));
    p.gr = take(&p.end, edges * sizeof(double)); p.gf = take(&p.end, edges * sizeof(double));
    real **heads[3] = {&p.room.s, &p.room.b, &p.room.g}, **curves[2] = {&p.room.y, &p.room.dy};
    for (int i = 0; i < 3; i++) *heads[i] = take(&p.end, most * HP * sizeof(real));
    for (int i = 0; i < 2; i++) *curves[i] = take(&p.end, most * W * sizeof(real));
    p.room.seen = take(&p.end, most * LM * H * sizeof(real));
    return p;
}

/* bytes that `evaluate` wants to be lent, at an address that 64 divides */
int64_t memory_for(int64_t most) { return places(NULL, most).end - (char *)NULL; }

/* Centres from start to before end: first [centres + 1] of the edges of each, `most` at most, neighbour [E], edge_vec [E, 3], species [atoms]
   -> energies [centres] eV; g [E, 3] eV/A, their slopes along the edges; features [centres, P * (F + RW)] where not NULL. */
void evaluate(const Model *model, char *memory, int64_t most, int64_t start, int64_t end, const int64_t *first, const int64_t *neighbour, const double *edge_vec,
              const int64_t *species, double *energies, double *g, real *features) {
    const Places at = places(memory, most);
    Kept *kept = at.kept;
    Work *work = at.work;
    Edge *edge = at.edge;
    real *Y = at.Y, *gY = at.gY;
    double *gr = at.gr, *gf = at.gf;
    for (int64_t i = start; i < end; i += B) {
        const int n = end - i < B ? end - i : B;
        const int64_t a = first[i], E = first[i + n] - a;
        for (int b = 0; b < n; b++)
            for (int64_t e = first[i + b]; e < first[i + b + 1]; e++)
                geometry(model, edge_vec + 3 * e, species[i + b] * model->elements + species[neighbour[e]], edge + e - a, Y + (e - a) * L);
        vec energy = ZERO;
        for (int b = 0; b < B; b++) for (int f = 0; f < F; f++) work->s[f][b] = model->embedding[species[i + (b < n ? b : 0)] * F + f];
        for (int p = 0; p < P; p++) {
            layer_forward(model, model->layers + p, kept + p, n, first + i, species + i, edge, Y, &at.room, work);
            energy += readout(model->layers + p, kept + p);
            if (features != NULL)
                for (int b = 0; b < n; b++) {
                    real *out = features + ((i + b) * P + p) * (F + RW);
                    for (int f = 0; f < F; f++) out[f] = kept[p].s2[f][b];
                    for (int f = 0; f < RW; f++) out[F + f] = (kept[p].readout[f] * sigmoid(kept[p].readout[f]))[b];
                }
        }
        double slope[B]; /* of what is left of the energy along what the network gives */
        for (int b = 0; b < n; b++) {
            const double beyond = model->scale * (energy[b] - model->alone[species[i + b]]), u = beyond * model->per_energy, v = 1 + u * u * u * u;
            const double rest = 1 / sqrt(sqrt(v));
            energies[i + b] = model->e0[species[i + b]] + beyond * rest;
            slope[b] = model->scale * rest / v;
        }
        memset(work->gs, 0, sizeof work->gs); memset(work->gt, 0, sizeof work->gt);
        memset(gr, 0, E * sizeof(double)); memset(gf, 0, E * sizeof(double)); memset(gY, 0, E * L * sizeof(real));
        for (int p = P - 1; p >= 0; p--) layer_back(model, model->layers + p, kept + p, n, first + i, edge, Y, &at.room, work, gr, gf, gY);
        for (int b = 0; b < n; b++) {
            for (int64_t e = first[i + b] - a; e < first[i + b + 1] - a; e++) {
                double *out = g + 3 * (a + e);
                out[0] = out[1] = out[2] = 0;
                geometry_back(model, edge + e, gr[e], gf[e], gY + e * L, out);
                for (int c = 0; c < 3; c++) out[c] *= slope[b];
                if (model->zbl_end != NULL) energies[i + b] += repulsion(model, edge + e, out);
            }
        }
    }
}

/* the sums over edges: slopes g [E, 3] -> forces [atoms, 3], stresses [centres, 3, 3]; and over the centres of a structure: energy, stress.
   Sums come in as zeros. Stresses of a cell without volume are not numbers. */
void assemble(int64_t centres, const int64_t *first, const int64_t *neighbour, const double *edge_vec, const double *g, const double *energies,
              const int64_t *structure, const double *cell, double *energy, double *forces, double *stress, double *stresses) {
    for (int64_t i = 0; i < centres; i++) {
        const double *a = cell + 9 * structure[i], *b = a + 3, *c = a + 6;
        const double volume = fabs(a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0]));
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
