/* The repulsion of the nuclei along one edge, in eV; its slope is added to g [3]: potential/repulsion.py. */
static double repulsion(const Model *model, const Edge *e, double *g) {
    static const double A[4] = {0.18175, 0.50986, 0.28022, 0.02817}, d[4] = {3.19980, 0.94229, 0.40290, 0.20162};
    const double end = model->zbl_end[e->pair], length = model->zbl_length[e->pair], r = e->r;
    if (r >= end) return 0;
    double phi = 0, dphi = 0, df;
    for (int k = 0; k < 4; k++) {
        const double a = A[k] * exp(-d[k] * r / length);
        phi += a;
        dphi -= a * d[k] / length;
    }
    const double f = envelope(r / end, 6, &df), c = 0.5 * model->zbl_strength[e->pair];
    const double slope = c * ((dphi * f + phi * df / end) / r - phi * f / (r * r));
    for (int k = 0; k < 3; k++) g[k] += slope * e->unit[k];
    return c * phi * f / r;
}
