/* Distance and pair of elements in; the edge functions of a layer out, keys, direction keys, values and radial
   functions in one row [W]: nn/edge_functions.py, tabulated. */

/* u in [0, 1]: weights of uniform B-splines of degree 5 by the recurrence of Cox and de Boor, as weights of the
   steps between the coefficients. Rounded numbers lose less in this form, and those of degree 4 give the slope from
   the same steps. */
static void bsplines(double u, double per_angstrom, Edge *e) {
    double w[6] = {1, 0, 0, 0, 0, 0};
    for (int d = 1; d <= 5; d++) {
        if (d == 5) for (int k = 0; k < 5; k++) e->slope[k] = per_angstrom * w[k];
        for (int k = d; k >= 0; k--) w[k] = ((k + 1 - u) * w[k] + (k > 0 ? (u + d - k) * w[k - 1] : 0)) / d;
    }
    e->spline[0] = -w[0]; e->spline[1] = -w[0] - w[1]; e->spline[2] = -w[0] - w[1] - w[2]; /* y = c3 + steps from c3 */
    e->spline[3] = w[4] + w[5]; e->spline[4] = w[5];
}

/* the interval that the distance lies in, and the weights of its steps, for value and slope; one for all layers */
static void splines_find(const Model *model, Edge *e) {
    const double place = (e->r_seen < model->r_max ? e->r_seen / model->r_max : 1) * model->intervals;
    e->knot = place < model->intervals ? (int64_t)place : model->intervals - 1; /* also where r is not a number */
    e->log_f = e->f > 0 ? log(e->f) : 0;
    bsplines(place - e->knot, model->intervals / model->r_max, e);
}

/* curve [W], and where it is not NULL dcurve [W], the slope along r_seen */
FA_INLINE void splines(const Model *model, const Layer *layer, const Edge *e, real *restrict curve,
                       real *restrict dcurve) {
    const real *restrict row = layer->table + (e->pair * (model->coefficients) + e->knot) * 2 * W;
    const real *restrict p = e->spline, *restrict q = e->slope, *restrict c = row + 6 * W;
    const real *restrict d0 = row + W, *restrict d1 = row + 3 * W, *restrict d2 = row + 5 * W;
    const real *restrict d3 = row + 7 * W, *restrict d4 = row + 9 * W;
    for (int w = 0; w < W; w++)
        curve[w] = c[w] + (p[0] * d0[w] + p[1] * d1[w] + p[2] * d2[w] + p[3] * d3[w] + p[4] * d4[w]);
    if (dcurve == NULL) return;
    for (int w = 0; w < W; w++)
        dcurve[w] = q[0] * d0[w] + q[1] * d1[w] + q[2] * d2[w] + q[3] * d3[w] + q[4] * d4[w];
}

static void splines_forward(const Model *model, const Layer *layer, const Edge *e, real *curve) {
    splines(model, layer, e, curve, NULL);
}

/* the curves again, and their slopes; `attention_backward` multiplies these as it goes, and keeps no slope along a
   curve */
static void splines_backward(const Model *model, const Layer *layer, const Edge *e, real *curve, real *dcurve) {
    splines(model, layer, e, curve, dcurve);
}
