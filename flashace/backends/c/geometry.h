/* The vector to a neighbour in; distance, envelope and harmonics out: `AttentionACE.geometry`. */
typedef struct {
    double r, unit[3];
    double r_seen, dr_seen;                  /* the distance that the network sees, and its slope along r */
    double f, df;                            /* envelope, and its slope along r_seen */
    int64_t pair;                            /* of which two elements: centre * S + neighbour */
    int64_t knot;                            /* from here on: `splines_find` */
    real log_f, spline[5], slope[5];
} Edge;

/* f of nn/radial/envelope.py and its slope; x in units of where it ends, at most 1 */
static inline double envelope(double x, int exponent, double *slope) {
    double tail = 0, dtail = 0;
    for (int k = exponent - 1; k >= 0; k--) { dtail = dtail * x + tail; tail = tail * x + (k + 1) * (k + 2) / 2; }
    const double u = 1 - x;
    *slope = u * u * u * dtail - 3 * u * u * tail;
    return u * u * u * tail;
}

static inline void never_closer(double least, Edge *e) {
    if (!(e->r < least)) return;
    const double a = least > 1e-3 ? least : 1e-3;
    double t = (e->r / a - 0.9) / 0.1;
    const int inside = t > 0 && t < 1;
    t = t < 0 ? 0 : t > 1 ? 1 : t;
    e->r_seen = least * (0.95 + 0.1 * t * t * t * t * (2.5 - 3 * t + t * t));
    e->dr_seen = inside ? least * 0.1 * t * t * t * (10 - 15 * t + 6 * t * t) / (0.1 * a) : 0;
}

static inline void powers(const double *unit, double (*power)[LM + 1]) {
    for (int c = 0; c < 3; c++) {
        power[c][0] = 1;
        for (int l = 1; l <= LM; l++) power[c][l] = power[c][l - 1] * unit[c];
    }
}

/* v [3] A -> edge, Y [L] */
static void geometry_forward(const Model *model, const double *v, int64_t pair, Edge *e, real *Y) {
    e->pair = pair;
    e->r = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    for (int c = 0; c < 3; c++) e->unit[c] = v[c] / e->r;
    e->r_seen = e->r; e->dr_seen = 1;
    if (model->shortest != NULL) never_closer(TRUSTED * model->shortest[pair], e);
    e->f = envelope(e->r_seen < model->r_max ? e->r_seen / model->r_max : 1, ENVELOPE, &e->df);
    e->df /= model->r_max;
    double power[3][LM + 1];
    powers(e->unit, power);
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

/* slopes along r_seen, f and Y [L] in, along the vector g [3] out, added */
static void geometry_backward(const Model *model, const Edge *e, double g_r, double g_f, const real *g_Y, double *g) {
    double power[3][LM + 1], g_unit[3] = {0, 0, 0}, along = 0;
    powers(e->unit, power);
    const int32_t *mono = model->monomials;
    const double *coefficient = model->harmonics;
    for (int l = 0, m = 0; l <= LM; m += 2 * l + 1, l++)
        for (int n = 0; n < (l + 1) * (l + 2) / 2; n++, mono += 3, coefficient += 2 * l + 1) {
            double h = 0;
            for (int k = 0; k < 2 * l + 1; k++) h += g_Y[m + k] * coefficient[k];
            const double x = power[0][mono[0]], y = power[1][mono[1]], z = power[2][mono[2]];
            if (mono[0]) g_unit[0] += h * mono[0] * power[0][mono[0] - 1] * y * z;
            if (mono[1]) g_unit[1] += h * mono[1] * power[1][mono[1] - 1] * x * z;
            if (mono[2]) g_unit[2] += h * mono[2] * power[2][mono[2] - 1] * x * y;
        }
    for (int c = 0; c < 3; c++) along += g_unit[c] * e->unit[c];
    const double radial = (g_r + g_f * e->df) * e->dr_seen;
    for (int c = 0; c < 3; c++) g[c] += (g_unit[c] - along * e->unit[c]) / e->r + radial * e->unit[c];
}
