/* Atomic basis of B atoms in, its products of all orders out: nn/product.py and `bounded` of nn/bounds.py. */

/* x [L, K] in, no longer than the limit out, and the factor rho [K]; per is 1 / limit^2 */
static void bounded_forward(real per, vec *restrict x, vec *restrict rho) {
    for (int c = 0; c < K; c++) {
        vec sum = ZERO;
        for (int m = 0; m < L; m++) sum += x[m * K + c] * x[m * K + c];
        rho[c] = 1 / root(1 + per * sum);
        for (int m = 0; m < L; m++) x[m * K + c] *= rho[c];
    }
}

/* slope g [L, K] along the bounded x becomes that along what was bounded */
static void bounded_backward(real per, const vec *restrict x, const vec *restrict rho, vec *restrict g) {
    for (int c = 0; c < K; c++) {
        vec dot = ZERO;
        for (int m = 0; m < L; m++) dot += x[m * K + c] * g[m * K + c];
        for (int m = 0; m < L; m++) g[m * K + c] = rho[c] * (g[m * K + c] - per * dot * x[m * K + c]);
    }
}

/* orders [NU, L, K], of which the first is given; all are bounded, by factors rho [NU, K] */
static void product_forward(const Model *model, const Layer *layer, vec *orders, vec *rho) {
    bounded_forward(model->per_basis, orders, rho);
    for (int o = 1; o < NU; o++) {
        vec *product = orders + o * L * K;
        memset(product, 0, L * K * sizeof(vec));
        for (int64_t n = model->start[o - 1]; n < model->start[o]; n++) {
            const int32_t *term = model->term + 4 * n;
            const real *w = layer->path_weights + term[0] * K;
            const vec *x = orders + ((o - 1) * L + term[1]) * K, *y = orders + term[2] * K;
            vec *z = product + term[3] * K;
            for (int c = 0; c < K; c++) z[c] += (model->coupling[n] * w[c]) * (x[c] * y[c]);
        }
        bounded_forward(model->per_product, product, rho + o * K);
    }
}

/* slopes g [NU, L, K] along all orders in, along the first before it was bounded out, in the first of g */
static void product_backward(const Model *model, const Layer *layer, const vec *orders, const vec *rho, vec *g) {
    for (int o = NU - 1; o >= 1; o--) {
        vec *g_product = g + o * L * K;
        bounded_backward(model->per_product, orders + o * L * K, rho + o * K, g_product);
        for (int64_t n = model->start[o - 1]; n < model->start[o]; n++) {
            const int32_t *term = model->term + 4 * n;
            const real *w = layer->path_weights + term[0] * K;
            const vec *x = orders + ((o - 1) * L + term[1]) * K, *y = orders + term[2] * K;
            const vec *gz = g_product + term[3] * K;
            vec *gx = g + ((o - 1) * L + term[1]) * K, *gy = g + term[2] * K;
            for (int c = 0; c < K; c++) {
                const vec a = (model->coupling[n] * w[c]) * gz[c];
                gx[c] += a * y[c];
                gy[c] += a * x[c];
            }
        }
    }
    bounded_backward(model->per_basis, orders, rho, g);
}
