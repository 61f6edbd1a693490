/* Numbers side by side in the lanes of a vector, and linear maps of such vectors. */
/* B lanes; HV vectors hold the heads, with HP lanes */
enum { B = 64 / sizeof(real), HV = (H + B - 1) / B, HP = HV * B };
typedef real vec __attribute__((vector_size(64), may_alias));
#define FA_WHOLE(type) _Generic((type)0, float: (int32_t)0, double: (int64_t)0)
typedef __typeof__(FA_WHOLE(real)) ivec __attribute__((vector_size(64), may_alias));
_Static_assert(sizeof(vec) == 64 && 64 % _Alignof(vec) == 0, "memory is shared out in pieces of 64 bytes");
static const vec ZERO = {0};

static inline vec pick(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

/* by a power of two and a polynomial, as precise as x itself is; not a number gives not a number */
static inline vec exponential(vec x) {
    const real most = sizeof(real) == 4 ? 88 : 708;
    const vec zero = ZERO;
    x = pick(x > most, most + zero, pick(x < -most, -most + zero, x));
    const vec half = pick(x < 0, (real)-0.5 + zero, (real)0.5 + zero);
    const vec whole = pick(x == x, x * (real)1.4426950408889634 + half, zero);
    const ivec n = __builtin_convertvector(whole, ivec);
    const vec m = __builtin_convertvector(n, vec);
    const vec r = x - m * (real)0.6931471805599453;
    vec y;
    ivec power;
    if (sizeof(real) == 4) {
        y = (real)1 / 120 + r * ((real)1 / 720 + r * ((real)1 / 5040));
        y = 1 + r * (1 + r * ((real)1 / 2 + r * ((real)1 / 6 + r * ((real)1 / 24 + r * y))));
        power = (n + 127) << 23;
    } else {
        y = 1 + ZERO;
        for (int k = 13; k >= 1; k--) y = 1 + y * r / (real)k;
        power = (n + 1023) << (sizeof(real) == 4 ? 0 : 52);
    }
    return y * (vec)power;
}

static inline vec root(vec x) {
    vec y;
    for (int b = 0; b < B; b++) y[b] = sizeof(real) == 4 ? sqrtf(x[b]) : sqrt(x[b]);
    return y;
}

static inline vec sigmoid(vec x) { return 1 / (1 + exponential(-x)); }

static inline vec silu(vec x) { return x * sigmoid(x); }

static inline vec silu_slope(vec x) { const vec y = sigmoid(x); return y * (1 + x * (1 - y)); }

/* x [in] -> y [out] += W^T x, W [in, out] */
static __attribute__((noinline)) void map_forward(int in, int out, const real *restrict w, const vec *restrict x,
                                                  vec *restrict y) {
    int o = 0;
    for (; o + 8 <= out; o += 8) {
        vec a[8];
        for (int j = 0; j < 8; j++) a[j] = y[o + j];
        for (int i = 0; i < in; i++) for (int j = 0; j < 8; j++) a[j] += w[i * out + o + j] * x[i];
        for (int j = 0; j < 8; j++) y[o + j] = a[j];
    }
    if (out % 8) for (; o < out; o++) for (int i = 0; i < in; i++) y[o] += w[i * out + o] * x[i];
}

/* y [out] -> x [in] += W y */
static __attribute__((noinline)) void map_backward(int in, int out, const real *restrict w, const vec *restrict y,
                                                   vec *restrict x) {
    int i = 0;
    for (; i + 8 <= in; i += 8) {
        vec a[8];
        for (int j = 0; j < 8; j++) a[j] = x[i + j];
        for (int o = 0; o < out; o++) for (int j = 0; j < 8; j++) a[j] += w[(i + j) * out + o] * y[o];
        for (int j = 0; j < 8; j++) x[i + j] = a[j];
    }
    if (in % 8) for (; i < in; i++) for (int o = 0; o < out; o++) x[i] += w[i * out + o] * y[o];
}

/* x [components, in] -> y [components, out], a matrix w [in, out] for each degree from `first` on */
static void map_tensors_forward(int in, int out, const real *w, const vec *x, vec *y, int first) {
    for (int l = first, m = 0; l <= LM; l++, w += in * out)
        for (int n = 0; n < 2 * l + 1; n++, m++) map_forward(in, out, w, x + m * in, y + m * out);
}

static void map_tensors_backward(int in, int out, const real *w, const vec *y, vec *x, int first) {
    for (int l = first, m = 0; l <= LM; l++, w += in * out)
        for (int n = 0; n < 2 * l + 1; n++, m++) map_backward(in, out, w, y + m * out, x + m * in);
}

/* x [n] of atom b into its lane of y: rows of `row` numbers, which stand from `offset` on in rows of `stride` there
   */
static void spread(int n, int b, const real *restrict x, vec *restrict y, int stride, int offset, int row) {
    for (int i = 0; i < n / row; i++)
        for (int k = 0; k < row; k++) y[i * stride + offset + k][b] = x[i * row + k];
}

static void gather(int n, int b, const vec *restrict y, real *restrict x, int stride, int offset, int row) {
    for (int i = 0; i < n / row; i++)
        for (int k = 0; k < row; k++) x[i * row + k] = y[i * stride + offset + k][b];
}
