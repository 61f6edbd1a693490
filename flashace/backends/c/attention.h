/* State of one atom and curves of its M neighbours in; attended values, attended and plain basis out, and backwards:
   nn/attention.py. Neighbours are gone through one by one, with channels or heads in the lanes. */
enum { KH = K / H }; /* channels of a head */

/* what is kept for the neighbours of one atom; heads in whole vectors */
typedef struct {
    real *weight, *bare;                     /* [M, HP], scores first; bare is weight / envelope */
    real *g;                                 /* [M, HP], slope along weight, then along score */
    real *curve, *dcurve;                    /* [M, W] */
    real *seen;                              /* [M, LM, H]: look times Y */
} Room;

/* curve [W], Y [L], query [D, H], look [T, H] or NULL -> score [HP], seen [LM, H] */
static inline void scores_forward(const real *restrict curve, const real *restrict Y, const real *restrict query,
                                  const real *restrict look, real *restrict score, real *restrict seen) {
    const real scale = 1 / sqrt((double)D);
    for (int h = 0; h < HP; h++) score[h] = 0;
    for (int d = 0; d < D; d++) {
        const real key = scale * curve[AT_KEYS + d];
        for (int h = 0; h < H; h++) score[h] += key * query[d * H + h];
    }
    if (look == NULL) return;
    for (int l = 1, m = 0; l <= LM; l++) {
        real *restrict t = seen + (l - 1) * H;
        const real *restrict key = curve + AT_DIRECTION_KEYS + (l - 1) * H;
        const real scale_l = 1 / sqrt(2.0 * l + 1);
        for (int h = 0; h < H; h++) t[h] = 0;
        for (int n = 0; n < 2 * l + 1; n++, m++) {
            const real a = scale_l * Y[m + 1];
            for (int h = 0; h < H; h++) t[h] += a * look[m * H + h];
        }
        for (int h = 0; h < H; h++) score[h] += key[h] * t[h];
    }
}

/* g [H], slope along the score, in; slopes along query, look and Y are added to; along r returned */
FA_INLINE real scores_backward(const real *restrict curve, const real *restrict dcurve, const real *restrict Y,
                               const real *restrict query, const real *restrict look, const real *restrict seen,
                               const real *restrict g, real *restrict g_query, real *restrict g_look,
                               real *restrict g_Y) {
    const real scale = 1 / sqrt((double)D);
    real g_r = 0, dscore[H];
    for (int h = 0; h < H; h++) dscore[h] = 0;
    for (int d = 0; d < D; d++) {
        const real key = scale * curve[AT_KEYS + d], dkey = scale * dcurve[AT_KEYS + d];
        for (int h = 0; h < H; h++) { dscore[h] += dkey * query[d * H + h]; g_query[d * H + h] += key * g[h]; }
    }
    if (look != NULL)
        for (int l = 1, m = 0; l <= LM; l++) {
            const real scale_l = 1 / sqrt(2.0 * l + 1);
            const real *restrict key = curve + AT_DIRECTION_KEYS + (l - 1) * H;
            const real *restrict dkey = dcurve + AT_DIRECTION_KEYS + (l - 1) * H;
            real x[H];
            for (int h = 0; h < H; h++) {
                dscore[h] += seen[(l - 1) * H + h] * dkey[h];
                x[h] = scale_l * g[h] * key[h];
            }
            for (int n = 0; n < 2 * l + 1; n++, m++) {
                real gy = 0;
                const real Ym = Y[m + 1];
                for (int h = 0; h < H; h++) { gy += x[h] * look[m * H + h]; g_look[m * H + h] += Ym * x[h]; }
                g_Y[m + 1] += gy;
            }
        }
    for (int h = 0; h < H; h++) g_r += g[h] * dscore[h];
    return g_r;
}

/* scores [M, HV] in, weights in their place out; bare [M, HV] is weight / envelope */
static void weights_forward(real own, int64_t M, const Edge *edge, vec *restrict weight, vec *restrict bare) {
    for (int h = 0; h < HV; h++) {
        vec shift = ZERO, sum;
        for (int64_t e = 0; e < M; e++) {
            if (!(edge[e].f > 0)) continue;
            const vec t = weight[e * HV + h] + edge[e].log_f;
            shift = pick(t > shift, t, shift);
        }
        sum = own * exponential(-shift);
        for (int64_t e = 0; e < M; e++) {
            const real f = edge[e].f;
            weight[e * HV + h] = f > 0 ? exponential(weight[e * HV + h] - shift) : ZERO;
            sum += f * weight[e * HV + h];
        }
        sum = 1 / sum;
        for (int64_t e = 0; e < M; e++) {
            bare[e * HV + h] = weight[e * HV + h] * sum;
            weight[e * HV + h] = (real)edge[e].f * bare[e * HV + h];
        }
    }
}

/* g [H], slope along the weight, becomes that along the score; dot [H] is its sum with the weights over all
   neighbours. Returns the slope along the envelope. */
FA_INLINE real weights_backward(const real *restrict weight, const real *restrict bare, const real *restrict dot,
                                real *restrict g) {
    real g_f = 0;
    for (int h = 0; h < H; h++) {
        const real d = g[h] - dot[h];
        g_f += bare[h] * d;
        g[h] = weight[h] * d;
    }
    return g_f;
}

/* what one neighbour adds to values [V, H], attended and plain [L, K]; plain_weight is f / sqrt(<N>) */
FA_INLINE void basis_forward(const real *restrict weight, real plain_weight, const real *restrict curve,
                             const real *restrict Y, real *restrict values, real *restrict attended,
                             real *restrict plain) {
    for (int j = 0; j < V; j++)
        for (int h = 0; h < H; h++) values[j * H + h] += weight[h] * curve[AT_VALUES + j * H + h];
    for (int l = 0, m = 0; l <= LM; l++) {
        const real *restrict R = curve + AT_RADIAL + l * K;
        real x[K], z[K];
        for (int k = 0; k < K; k++) { x[k] = weight[k / KH] * R[k]; z[k] = plain_weight * R[k]; }
        for (int n = 0; n < 2 * l + 1; n++, m++) {
            const real Ym = Y[m];
            for (int k = 0; k < K; k++) { attended[m * K + k] += Ym * x[k]; plain[m * K + k] += Ym * z[k]; }
        }
    }
}

/* slopes along values, attended and plain in; along r and plain_weight, added, and weight g [H] out; g_Y [L] is
   added to */
FA_INLINE void basis_backward(const real *restrict weight, real plain_weight, const real *restrict curve,
                              const real *restrict dcurve, const real *restrict Y, const real *restrict g_values,
                              const real *restrict g_attended, const real *restrict g_plain, real *restrict g,
                              real *restrict g_Y, real *g_r, real *g_plain_weight) {
    real gk[K], gfk[K], grk[K], grh[H]; /* summed over channels or heads at the end, once */
    for (int h = 0; h < H; h++) g[h] = grh[h] = 0;
    for (int k = 0; k < K; k++) gk[k] = gfk[k] = grk[k] = 0;
    for (int j = 0; j < V; j++) for (int h = 0; h < H; h++) {
        g[h] += curve[AT_VALUES + j * H + h] * g_values[j * H + h];
        grh[h] += dcurve[AT_VALUES + j * H + h] * g_values[j * H + h];
    }
    for (int l = 0, m = 0; l <= LM; l++) {
        const real *restrict R = curve + AT_RADIAL + l * K, *restrict dR = dcurve + AT_RADIAL + l * K;
        real along_a[K], along_p[K], x[K], z[K];
        for (int k = 0; k < K; k++) {
            along_a[k] = along_p[k] = 0;
            x[k] = weight[k / KH] * R[k];
            z[k] = plain_weight * R[k];
        }
        for (int n = 0; n < 2 * l + 1; n++, m++) {
            const real Ym = Y[m];
            real gy = 0;
            for (int k = 0; k < K; k++) {
                along_a[k] += Ym * g_attended[m * K + k];
                along_p[k] += Ym * g_plain[m * K + k];
                gy += x[k] * g_attended[m * K + k] + z[k] * g_plain[m * K + k];
            }
            g_Y[m] += gy;
        }
        for (int k = 0; k < K; k++) {
            gk[k] += R[k] * along_a[k];
            gfk[k] += R[k] * along_p[k];
            grk[k] += dR[k] * (weight[k / KH] * along_a[k] + plain_weight * along_p[k]);
        }
    }
    for (int h = 0; h < H; h++) *g_r += weight[h] * grh[h];
    for (int k = 0; k < K; k++) { *g_r += grk[k]; *g_plain_weight += gfk[k]; }
    for (int k = 0; k < K; k++) g[k / KH] += gk[k];
}

/* M edges, Y [M, L], query [D, H], look [T, H] or NULL -> values [V, H], attended and plain [L, K] */
static void attention_forward(const Model *model, const Layer *layer, int64_t M, const Edge *edge, const real *Y,
                              const real *query, const real *look, const Room *room,
                              real *values, real *attended, real *plain) {
    for (int64_t e = 0; e < M; e++) {
        splines_forward(model, layer, edge + e, room->curve + e * W);
        scores_forward(room->curve + e * W, Y + e * L, query, look, room->weight + e * HP, room->seen);
    }
    weights_forward(model->own_weight, M, edge, (vec *)room->weight, (vec *)room->bare);
    real v[F] = {0}, a[L * K] = {0}, p[L * K] = {0};
    for (int64_t e = 0; e < M; e++) {
        const real plain_weight = edge[e].f * model->plain_scale;
        basis_forward(room->weight + e * HP, plain_weight, room->curve + e * W, Y + e * L, v, a, p);
    }
    memcpy(values, v, sizeof v); memcpy(attended, a, sizeof a); memcpy(plain, p, sizeof p);
}

/* slopes along values, attended and plain in; along query, and look where it is not NULL, out; those along r, f and
   Y of the edges are added to */
static void attention_backward(const Model *model, const Layer *layer, int64_t M, const Edge *edge, const real *Y,
                               const real *query, const real *look, const Room *room, const real *g_values,
                               const real *g_attended, const real *g_plain, double *g_r, double *g_f, real *g_Y,
                               real *g_query, real *g_look) {
    real dot[H] = {0};
    for (int64_t e = 0; e < M; e++) {
        splines_backward(model, layer, edge + e, room->curve + e * W, room->dcurve + e * W);
        scores_forward(room->curve + e * W, Y + e * L, query, look, room->weight + e * HP, room->seen + e * LM * H);
    }
    weights_forward(model->own_weight, M, edge, (vec *)room->weight, (vec *)room->bare);
    for (int64_t e = 0; e < M; e++) {
        const real *restrict weight = room->weight + e * HP, plain_weight = edge[e].f * model->plain_scale;
        real *restrict g = room->g + e * HP;
        real gr = 0, gp = 0;
        basis_backward(weight, plain_weight, room->curve + e * W, room->dcurve + e * W, Y + e * L,
                       g_values, g_attended, g_plain, g, g_Y + e * L, &gr, &gp);
        for (int h = 0; h < H; h++) dot[h] += weight[h] * g[h];
        g_r[e] += gr;
        g_f[e] += gp * model->plain_scale;
    }
    memset(g_query, 0, D * H * sizeof(real));
    if (look != NULL) memset(g_look, 0, T * H * sizeof(real));
    for (int64_t e = 0; e < M; e++) {
        g_f[e] += weights_backward(room->weight + e * HP, room->bare + e * HP, dot, room->g + e * HP);
        g_r[e] += scores_backward(room->curve + e * W, room->dcurve + e * W, Y + e * L, query, look,
                                  room->seen + e * LM * H, room->g + e * HP, g_query, g_look, g_Y + e * L);
    }
}
