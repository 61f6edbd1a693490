/* One layer for a block of up to B atoms, side by side in the lanes: nn/layer.py, step by step, and backwards. */

/* n atoms and their edges, those of atom b from first[b] - first[0] to before first[b + 1] - first[0] */
typedef struct {
    int n;
    const int64_t *first, *species;
    Edge *edge;
    real *Y, *g_Y;                           /* [edges, L] */
    double *g_r, *g_f;                       /* [edges], slopes along the distance that is seen and the envelope */
    Room room;
} Block;

/* what the way back needs of a layer */
typedef struct {
    real query[B][D * H], look[B][T * H];
    vec orders[NU * L * K], rho[NU * K];
    Gates gates;
    vec readout[RW];
} Kept;

/* what is needed for a moment only; too large for the stack */
typedef struct {
    vec s[F], t[T * K], g_s[F], g_t[T * K];  /* state, and slopes along it */
    vec query[D * H], look[T * H];           /* these and the next: those of the atoms, or slopes along them */
    vec values[F], basis[L * 2 * K], orders[NU * L * K];
    vec ds[F], dt[T * K], x[X], gate[2 * F > RW ? 2 * F : RW], hidden[F];
} Work;

/* the first layer comes before all tensors, and finds atoms of an element alike: `has_tensors` of nn/layer.py */
static inline int has_tensors(const Model *model, const Layer *layer) { return layer != model->layers; }

static void queries_forward(const Layer *layer, Work *w) {
    for (int i = 0; i < D * H; i++) w->query[i] = layer->query_bias[i] + ZERO;
    map_forward(F, D * H, layer->query, w->s, w->query);
    memset(w->look, 0, sizeof w->look);
    map_tensors_forward(K, H, layer->direction_query, w->t, w->look, 1);
}

static void queries_backward(const Layer *layer, Work *w) {
    map_backward(F, D * H, layer->query, w->query, w->g_s);
    map_tensors_backward(K, H, layer->direction_query, w->look, w->g_t, 1);
}

/* s and t in `w` become those after the layer */
static void layer_forward(const Model *model, const Layer *layer, const Block *block, Work *w, Kept *k) {
    const int tensors = has_tensors(model, layer);
    if (tensors) queries_forward(layer, w);
    memset(w->values, 0, sizeof w->values);
    memset(w->basis, 0, sizeof w->basis);
    for (int b = 0; b < block->n; b++) {
        real values[F], attended[L * K], plain[L * K];
        const int64_t a = block->first[b] - block->first[0], M = block->first[b + 1] - block->first[b];
        if (tensors) {
            gather(D * H, b, w->query, k->query[b], H, 0, H);
            gather(T * H, b, w->look, k->look[b], H, 0, H);
        } else memcpy(k->query[b], model->element_query + block->species[b] * D * H, sizeof k->query[b]);
        attention_forward(model, layer, M, block->edge + a, block->Y + a * L, k->query[b],
                          tensors ? k->look[b] : NULL, &block->room, values, attended, plain);
        spread(F, b, values, w->values, H, 0, H);
        spread(L * K, b, attended, w->basis, 2 * K, 0, K);
        spread(L * K, b, plain, w->basis, 2 * K, K, K);
    }
    mix_forward(layer, tensors, w->basis, w->s, w->t, k->orders);
    product_forward(model, layer, k->orders, k->rho);
    state_forward(layer, tensors, k->orders, w->values, w->s, w->t, w->ds, w->dt);
    feed_forward_forward(model->per_feed_forward, layer, w->s, w->t, &k->gates, w->x, w->hidden);
}

/* g_s and g_t in `w`, slopes along the state that goes out, become those along the state that came in; none of
   these in the first layer */
static void layer_backward(const Model *model, const Layer *layer, const Block *block, Work *w, const Kept *k) {
    const int tensors = has_tensors(model, layer);
    feed_forward_backward(layer, &k->gates, w->g_s, w->g_t, w->gate, w->x, w->hidden);
    state_backward(layer, w->g_s, w->g_t, w->orders, w->values, w->ds, w->dt);
    product_backward(model, layer, k->orders, k->rho, w->orders);
    mix_backward(layer, tensors, w->orders, w->basis, w->g_s, w->g_t);
    memset(w->query, 0, sizeof w->query); memset(w->look, 0, sizeof w->look);
    for (int b = 0; b < block->n; b++) {
        real g_values[F], g_attended[L * K], g_plain[L * K], g_query[D * H], g_look[T * H];
        const int64_t a = block->first[b] - block->first[0], M = block->first[b + 1] - block->first[b];
        gather(F, b, w->values, g_values, H, 0, H);
        gather(L * K, b, w->basis, g_attended, 2 * K, 0, K);
        gather(L * K, b, w->basis, g_plain, 2 * K, K, K);
        attention_backward(model, layer, M, block->edge + a, block->Y + a * L, k->query[b],
                           tensors ? k->look[b] : NULL, &block->room, g_values, g_attended, g_plain,
                           block->g_r + a, block->g_f + a, block->g_Y + a * L, g_query, g_look);
        if (!tensors) continue;
        spread(D * H, b, g_query, w->query, H, 0, H);
        spread(T * H, b, g_look, w->look, H, 0, H);
    }
    if (tensors) queries_backward(layer, w);
}
