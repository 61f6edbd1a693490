/* State, attention and products of B atoms in, the next state out, s [F] and t [T, K]: `Layer.update` and
   `FeedForward` of nn/layer.py, and nn/readout.py. */

/* basis [L, 2, K], attended and plain; s; t, none in the first layer -> A [L, K] */
static void mix_forward(const Layer *layer, int has_tensors, const vec *basis, const vec *s, const vec *t, vec *A) {
    memset(A, 0, L * K * sizeof(vec));
    for (int c = 0; c < K; c++) A[c] += layer->mix_scalars_bias[c];
    map_tensors_forward(2 * K, K, layer->mix_basis, basis, A, 0);
    map_forward(F, K, layer->mix_scalars, s, A);
    if (has_tensors) map_tensors_forward(K, K, layer->mix_tensors, t, A + K, 1);
}

/* slope along A in, along basis out; those along s and t are added to, but in the first layer, whose s is given */
static void mix_backward(const Layer *layer, int has_tensors, const vec *g_A, vec *g_basis, vec *g_s, vec *g_t) {
    memset(g_basis, 0, L * 2 * K * sizeof(vec));
    map_tensors_backward(2 * K, K, layer->mix_basis, g_A, g_basis, 0);
    if (!has_tensors) return;
    map_backward(F, K, layer->mix_scalars, g_A, g_s);
    map_tensors_backward(K, K, layer->mix_tensors, g_A + K, g_t, 1);
}

/* orders [NU, L, K], values [V, H] -> what they add to s and t; ds [F] and dt [T, K] are scratch */
static void state_forward(const Layer *layer, int has_tensors, const vec *orders, const vec *values, vec *s, vec *t,
                          vec *ds, vec *dt) {
    memset(ds, 0, F * sizeof(vec)); memset(dt, 0, T * K * sizeof(vec));
    for (int o = 0; o < NU; o++) map_forward(K, F, layer->scalars_out + o * K * F, orders + o * L * K, ds);
    map_forward(F, F, layer->values_out, values, ds);
    for (int i = 0; i < F; i++) s[i] += layer->scale_scalars[i] * ds[i];
    const real *w = layer->tensors_out;
    for (int l = 1, m = 0; l <= LM; l++, w += NU * K * K)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int o = 0; o < NU; o++) map_forward(K, K, w + o * K * K, orders + (o * L + m + 1) * K, dt + m * K);
    for (int i = 0; i < T * K; i++) t[i] = (has_tensors ? t[i] : ZERO) + layer->scale_tensors[i % K] * dt[i];
}

/* slopes along s and t in, which stay; along orders and values out */
static void state_backward(const Layer *layer, const vec *g_s, const vec *g_t, vec *g_orders, vec *g_values,
                           vec *g_ds, vec *g_dt) {
    memset(g_orders, 0, NU * L * K * sizeof(vec)); memset(g_values, 0, F * sizeof(vec));
    for (int i = 0; i < F; i++) g_ds[i] = layer->scale_scalars[i] * g_s[i];
    for (int i = 0; i < T * K; i++) g_dt[i] = layer->scale_tensors[i % K] * g_t[i];
    for (int o = 0; o < NU; o++) map_backward(K, F, layer->scalars_out + o * K * F, g_ds, g_orders + o * L * K);
    map_backward(F, F, layer->values_out, g_ds, g_values);
    const real *w = layer->tensors_out;
    for (int l = 1, m = 0; l <= LM; l++, w += NU * K * K)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int o = 0; o < NU; o++)
                map_backward(K, K, w + o * K * K, g_dt + m * K, g_orders + (o * L + m + 1) * K);
}

/* what the way back needs of the feed-forward */
typedef struct {
    vec t[T * K];                            /* what came in */
    vec slope[X];                            /* of the bounded invariants along the invariants */
    vec gate[2 * F], factor[X];              /* gate and value; the update of s, and the factors of t */
} Gates;

/* s and t in place; x [X] and hidden [F] are scratch; per is 1 / limit^2 */
static void feed_forward_forward(real per, const Layer *layer, vec *s, vec *t, Gates *k, vec *x, vec *hidden) {
    memcpy(k->t, t, sizeof k->t);
    memcpy(x, s, F * sizeof(vec));
    memset(x + F, 0, LM * K * sizeof(vec));
    for (int l = 1, m = 0; l <= LM; l++)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int c = 0; c < K; c++) x[F + (l - 1) * K + c] += t[m * K + c] * t[m * K + c] / (real)(2 * l + 1);
    for (int i = 0; i < X; i++) {
        const vec rho = 1 / root(1 + per * (x[i] * x[i]));
        k->slope[i] = rho * rho * rho;
        x[i] *= rho;
    }
    for (int i = 0; i < 2 * F; i++) k->gate[i] = layer->gate_and_value_bias[i] + ZERO;
    map_forward(X, 2 * F, layer->gate_and_value, x, k->gate);
    for (int i = 0; i < F; i++) hidden[i] = silu(k->gate[i]) * k->gate[F + i];
    memset(k->factor, 0, sizeof k->factor);
    map_forward(F, X, layer->out, hidden, k->factor);
    for (int i = 0; i < F; i++) s[i] += layer->scale_scalars[F + i] * k->factor[i];
    for (int l = 1, m = 0; l <= LM; l++)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int c = 0; c < K; c++)
                t[m * K + c] += layer->scale_tensors[K + c] * k->factor[F + (l - 1) * K + c] * t[m * K + c];
}

/* slopes along the state that went out become those along the state that came in; g [2F], g_x [X] and g_hidden [F]
   are scratch */
static void feed_forward_backward(const Layer *layer, const Gates *k, vec *g_s, vec *g_t, vec *g, vec *g_x,
                                  vec *g_hidden) {
    memset(g_x, 0, X * sizeof(vec)); memset(g_hidden, 0, F * sizeof(vec));
    for (int i = 0; i < F; i++) g_x[i] = layer->scale_scalars[F + i] * g_s[i];
    for (int l = 1, m = 0; l <= LM; l++)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int c = 0; c < K; c++) {
                const int f = F + (l - 1) * K + c;
                g_x[f] += layer->scale_tensors[K + c] * (g_t[m * K + c] * k->t[m * K + c]);
                g_t[m * K + c] *= 1 + layer->scale_tensors[K + c] * k->factor[f];
            }
    map_backward(F, X, layer->out, g_x, g_hidden);
    for (int i = 0; i < F; i++) {
        g[i] = g_hidden[i] * k->gate[F + i] * silu_slope(k->gate[i]);
        g[F + i] = g_hidden[i] * silu(k->gate[i]);
    }
    memset(g_x, 0, X * sizeof(vec));
    map_backward(X, 2 * F, layer->gate_and_value, g, g_x);
    for (int i = 0; i < X; i++) g_x[i] *= k->slope[i];
    for (int i = 0; i < F; i++) g_s[i] += g_x[i];
    for (int l = 1, m = 0; l <= LM; l++)
        for (int j = 0; j < 2 * l + 1; j++, m++)
            for (int c = 0; c < K; c++)
                g_t[m * K + c] += ((real)2 / (real)(2 * l + 1)) * g_x[F + (l - 1) * K + c] * k->t[m * K + c];
}

/* s -> energies of B atoms in units of the scale, hidden [RW] before its silu */
static vec readout_forward(const Layer *layer, const vec *s, vec *hidden) {
    vec energy = ZERO;
    for (int i = 0; i < RW; i++) hidden[i] = layer->readout_hidden_bias[i] + ZERO;
    map_forward(F, RW, layer->readout_hidden, s, hidden);
    for (int i = 0; i < F; i++) energy += layer->readout_linear[i] * s[i];
    for (int i = 0; i < RW; i++) energy += layer->readout_out[i] * silu(hidden[i]);
    return energy;
}

/* the slope of the energies along s is added to g_s; g [RW] is scratch */
static void readout_backward(const Layer *layer, const vec *hidden, vec *g_s, vec *g) {
    for (int i = 0; i < RW; i++) g[i] = layer->readout_out[i] * silu_slope(hidden[i]);
    for (int i = 0; i < F; i++) g_s[i] += layer->readout_linear[i];
    map_backward(F, RW, layer->readout_hidden, g, g_s);
}
