"""The programs of `backend.py`, in Triton. Pointers in, pointers out; one program is one atom (attention) or a few (products).

A tile is [ROWS, LANES]: neighbours × channels, or atoms × channels. A row of the table has W columns, those of layout.py with H = K, which
begin at AT_...; coefficients and steps (`tabulate`) stand W apart. Triton knows no `(*a, b)`: tuples are added.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query,
    look,
    r,
    envelope,
    Y,
    pair,
    first,
    table,
    values,
    attended,
    plain,
    log_sum,
    LOOKS: tl.constexpr,
    OWN_WEIGHT: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    LM: tl.constexpr,
    DEGREES: tl.constexpr,
    L: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    AT_KEYS: tl.constexpr,
    AT_DIRECTION_KEYS: tl.constexpr,
    AT_VALUES: tl.constexpr,
    AT_RADIAL: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    INTERVALS: tl.constexpr,
    R_MAX: tl.constexpr,
    PLAIN_SCALE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Attended values, attended and plain basis of one atom, and the logarithm of the denominator of its weights."""
    atom = tl.program_id(0).to(tl.int64)
    start, end = tl.load(first + atom), tl.load(first + atom + 1)
    rows, lanes = tl.arange(0, ROWS), tl.arange(0, LANES)
    zero = tl.zeros([ROWS, LANES], dtype=r.dtype.element_ty)
    query += atom * D * K
    look += atom * T * K
    # each row of the tile has a largest score and sums of its own until the end; the atom itself, of score 0, belongs to the first row
    most = zero
    total = zero + tl.where(rows[:, None] == 0, OWN_WEIGHT, 0.0)
    sum_v = ()
    for _ in tl.static_range(V):
        sum_v = sum_v + (zero,)
    sum_a = ()
    for _ in tl.static_range(L):
        sum_a = sum_a + (zero,)
    sum_p = sum_a
    for block in range(start, end, ROWS):
        edge = block + rows
        here = edge < end
        f = tl.load(envelope + edge, mask=here, other=0.0)[:, None]
        at, u = _find(r, pair, table, edge, here, COEFFICIENTS, INTERVALS, R_MAX, W)
        tile_at, tile_u, tile_here = at[:, None] + lanes[None, :], u[:, None], here[:, None] & (lanes < K)[None, :]
        score = _scores(query, look, Y, edge, at + AT_KEYS, tile_at + AT_DIRECTION_KEYS, u, here, tile_here, zero, LOOKS, K, D, LM, L, W)[0]
        score = tl.where(f > 0, score + tl.log(tl.where(f > 0, f, 1.0)), float("-inf"))
        above = tl.maximum(most, score)
        shrink, weight = tl.exp(most - above), tl.exp(score - above)
        most = above
        total = total * shrink + weight
        more_v = ()
        for v in tl.static_range(V):
            value = _spline(tile_at + AT_VALUES + v * K, tile_u, tile_here, W)[0]
            more_v = more_v + (sum_v[v] * shrink + weight * value,)
        sum_v = more_v
        more_a = ()
        more_p = ()
        for l in tl.static_range(DEGREES):
            R = _spline(tile_at + AT_RADIAL + l * K, tile_u, tile_here, W)[0]
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                y = tl.load(Y + edge * L + m, mask=here, other=0.0)[:, None]
                more_a = more_a + (sum_a[m] * shrink + y * (weight * R),)
                more_p = more_p + (sum_p[m] + y * (f * R),)
        sum_a = more_a
        sum_p = more_p
    top = tl.max(most, axis=0)
    shrink = tl.exp(most - top[None, :])
    total = tl.sum(total * shrink, axis=0)
    inside = lanes < K
    tl.store(log_sum + atom * K + lanes, top + tl.log(total), mask=inside)
    for v in tl.static_range(V):
        tl.store(values + (atom * V + v) * K + lanes, tl.sum(sum_v[v] * shrink, axis=0) / total, mask=inside)
    for m in tl.static_range(L):
        tl.store(attended + (atom * L + m) * K + lanes, tl.sum(sum_a[m] * shrink, axis=0) / total, mask=inside)
        tl.store(plain + (atom * L + m) * K + lanes, tl.sum(sum_p[m], axis=0) * PLAIN_SCALE, mask=inside)


@triton.jit
def attend_back(
    query,
    look,
    r,
    envelope,
    Y,
    pair,
    first,
    table,
    values,
    attended,
    log_sum,
    g_values,
    g_attended,
    g_plain,
    g_query,
    g_look,
    g_r,
    g_envelope,
    g_Y,
    LOOKS: tl.constexpr,
    QUERIES: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    LM: tl.constexpr,
    DEGREES: tl.constexpr,
    L: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
    AT_KEYS: tl.constexpr,
    AT_DIRECTION_KEYS: tl.constexpr,
    AT_VALUES: tl.constexpr,
    AT_RADIAL: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    INTERVALS: tl.constexpr,
    R_MAX: tl.constexpr,
    PLAIN_SCALE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Slopes of what `attend` gives, along its inputs."""
    atom = tl.program_id(0).to(tl.int64)
    start, end = tl.load(first + atom), tl.load(first + atom + 1)
    rows, lanes = tl.arange(0, ROWS), tl.arange(0, LANES)
    inside = lanes < K
    zero = tl.zeros([ROWS, LANES], dtype=r.dtype.element_ty)
    query += atom * D * K
    look += atom * T * K
    g_values += atom * V * K + lanes
    g_attended += atom * L * K + lanes
    g_plain += atom * L * K + lanes
    # Σ_j α_j · (slope along α_j) is the product of what came out with the slopes along it
    dot = tl.zeros([LANES], dtype=r.dtype.element_ty)
    for v in tl.static_range(V):
        out = tl.load(values + (atom * V + v) * K + lanes, mask=inside, other=0.0)
        dot += out * tl.load(g_values + v * K, mask=inside, other=0.0)
    for m in tl.static_range(L):
        out = tl.load(attended + (atom * L + m) * K + lanes, mask=inside, other=0.0)
        dot += out * tl.load(g_attended + m * K, mask=inside, other=0.0)
    denominator = tl.load(log_sum + atom * K + lanes, mask=inside, other=0.0)[None, :]
    sum_q = ()
    if QUERIES:
        for _ in tl.static_range(D):
            sum_q = sum_q + (zero,)
    sum_look = ()
    if LOOKS:
        for _ in tl.static_range(T):
            sum_look = sum_look + (zero,)
    for block in range(start, end, ROWS):
        edge = block + rows
        here = edge < end
        f = tl.load(envelope + edge, mask=here, other=0.0)[:, None]
        at, u = _find(r, pair, table, edge, here, COEFFICIENTS, INTERVALS, R_MAX, W)
        tile_at, tile_u, tile_here = at[:, None] + lanes[None, :], u[:, None], here[:, None] & inside[None, :]
        score, d_score, keys, direction_keys = _scores(
            query, look, Y, edge, at + AT_KEYS, tile_at + AT_DIRECTION_KEYS, u, here, tile_here, zero, LOOKS, K, D, LM, L, W
        )
        bare = tl.exp(tl.where(f > 0, score, 0.0) - denominator)  # weight / envelope
        weight = f * bare
        g_weight = zero
        g_u = zero
        g_f = zero
        for v in tl.static_range(V):
            value, d_value = _spline(tile_at + AT_VALUES + v * K, tile_u, tile_here, W)
            g = tl.load(g_values + v * K, mask=inside, other=0.0)[None, :]
            g_weight += g * value
            g_u += g * weight * d_value
        radial = ()
        for l in tl.static_range(DEGREES):
            R, dR = _spline(tile_at + AT_RADIAL + l * K, tile_u, tile_here, W)
            along_a = zero
            along_p = zero
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                y = tl.load(Y + edge * L + m, mask=here, other=0.0)[:, None]
                along_a += y * tl.load(g_attended + m * K, mask=inside, other=0.0)[None, :]
                along_p += y * tl.load(g_plain + m * K, mask=inside, other=0.0)[None, :]
            along_p *= PLAIN_SCALE
            g_weight += R * along_a
            g_f += R * along_p
            g_u += dR * (weight * along_a + f * along_p)
            radial = radial + (R,)
        beyond = g_weight - dot[None, :]
        g_f += bare * beyond
        g_score = weight * beyond
        g_u += g_score * d_score
        tl.store(g_envelope + edge, tl.sum(g_f, axis=1), mask=here)
        tl.store(g_r + edge, tl.sum(g_u, axis=1) * (INTERVALS / R_MAX), mask=here)
        if QUERIES:
            more_q = ()
            for d in tl.static_range(D):
                more_q = more_q + (sum_q[d] + g_score * keys[d][:, None],)
            sum_q = more_q
        more_look = ()
        for l in tl.static_range(DEGREES):
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                g_a = tl.load(g_attended + m * K, mask=inside, other=0.0)[None, :]
                g_p = tl.load(g_plain + m * K, mask=inside, other=0.0)[None, :]
                g_y = radial[l] * (weight * g_a + f * PLAIN_SCALE * g_p)
                if LOOKS and l > 0:
                    y = tl.load(Y + edge * L + m, mask=here, other=0.0)[:, None]
                    g_seen = g_score * direction_keys[l - 1]
                    g_y += g_seen * tl.load(look + (m - 1) * K + lanes, mask=inside, other=0.0)[None, :]
                    more_look = more_look + (sum_look[m - 1] + g_seen * y,)
                tl.store(g_Y + edge * L + m, tl.sum(g_y, axis=1), mask=here)
        if LOOKS:
            sum_look = more_look
    if QUERIES:
        for d in tl.static_range(D):
            tl.store(g_query + (atom * D + d) * K + lanes, tl.sum(sum_q[d], axis=0), mask=inside)
    if LOOKS:
        for m in tl.static_range(T):
            tl.store(g_look + (atom * T + m) * K + lanes, tl.sum(sum_look[m], axis=0), mask=inside)


@triton.jit
def _find(r, pair, table, edge, here, COEFFICIENTS: tl.constexpr, INTERVALS: tl.constexpr, R_MAX: tl.constexpr, W: tl.constexpr):
    """Where in the table the coefficients for each neighbour begin, and how far it is into its interval, from 0 to 1; [ROWS] each."""
    x = tl.load(r + edge, mask=here, other=0.0) * (INTERVALS / R_MAX)
    knot = tl.maximum(tl.minimum(x, INTERVALS - 1.0), 0.0).to(tl.int32)  # also where r is not a number
    row = tl.load(pair + edge, mask=here, other=0).to(tl.int64) * COEFFICIENTS + knot
    return table + row * (2 * W), x - knot


@triton.jit
def _spline(at, u, here, W: tl.constexpr):
    """Values and slopes per interval, from a coefficient and the steps between its neighbours (`tabulate`)."""
    c = tl.load(at + 6 * W, mask=here, other=0.0)
    d0 = tl.load(at + W, mask=here, other=0.0)
    d1 = tl.load(at + 3 * W, mask=here, other=0.0)
    d2 = tl.load(at + 5 * W, mask=here, other=0.0)
    d3 = tl.load(at + 7 * W, mask=here, other=0.0)
    d4 = tl.load(at + 9 * W, mask=here, other=0.0)
    v = 1 - u
    w0 = v * v * v * v * v / 120
    w1 = (26 + u * (-50 + u * (20 + u * (20 + u * (-20 + u * 5))))) / 120
    w2 = (66 + u * u * (-60 + u * u * (30 - u * 10))) / 120
    w4 = (1 + u * (5 + u * (10 + u * (10 + u * (5 - u * 5))))) / 120
    w5 = u * u * u * u * u / 120
    value = c - w0 * d0 - (w0 + w1) * d1 - (w0 + w1 + w2) * d2 + (w4 + w5) * d3 + w5 * d4
    q1 = (11 + u * (-12 + u * (-6 + u * (12 - u * 4)))) / 24
    q2 = (11 + u * (12 + u * (-6 + u * (-12 + u * 6)))) / 24
    q3 = (1 + u * (4 + u * (6 + u * (4 - u * 4)))) / 24
    slope = v * v * v * v / 24 * d0 + q1 * d1 + q2 * d2 + q3 * d3 + u * u * u * u / 24 * d4
    return value, slope


@triton.jit
def _scores(
    query,
    look,
    Y,
    edge,
    at_keys,
    at_direction_keys,
    u,
    here,
    tile_here,
    zero,
    LOOKS: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    LM: tl.constexpr,
    L: tl.constexpr,
    W: tl.constexpr,
):
    """Scores and their slopes per interval, and the factors of query (D times [ROWS]) and of looks times Y (LM tiles) in them."""
    lanes = tl.arange(0, zero.shape[1])
    inside = lanes < K
    score = zero
    slope = zero
    keys = ()
    for d in tl.static_range(D):
        key, d_key = _spline(at_keys + d, u, here, W)
        q = tl.load(query + d * K + lanes, mask=inside, other=0.0)[None, :] * D**-0.5
        score += key[:, None] * q
        slope += d_key[:, None] * q
        keys = keys + (key * D**-0.5,)
    direction_keys = ()
    if LOOKS:
        for l in tl.static_range(1, LM + 1):
            seen = zero
            for m in tl.static_range(l * l, (l + 1) * (l + 1)):
                y = tl.load(Y + edge * L + m, mask=here, other=0.0)[:, None]
                seen += y * tl.load(look + (m - 1) * K + lanes, mask=inside, other=0.0)[None, :]
            key, d_key = _spline(at_direction_keys + (l - 1) * K, u[:, None], tile_here, W)
            score += key * seen * (2 * l + 1) ** -0.5
            slope += d_key * seen * (2 * l + 1) ** -0.5
            direction_keys = direction_keys + (key * (2 * l + 1) ** -0.5,)
    return score, slope, keys, direction_keys


@triton.jit
def contract(
    y, z, weight, first, factors, coefficient, x, num_atoms, L: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr
):
    """A tile is atoms × channels."""
    atom = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    here = (atom < num_atoms)[:, None] & (lanes < K)[None, :]
    offset = atom[:, None] * (L * K) + lanes[None, :]
    for m in range(L):
        total = tl.zeros([ROWS, LANES], dtype=y.dtype.element_ty)
        for term in range(tl.load(first + m), tl.load(first + m + 1)):
            i, j, path = tl.load(factors + 3 * term), tl.load(factors + 3 * term + 1), tl.load(factors + 3 * term + 2)
            w = tl.load(weight + path * K + lanes, mask=lanes < K, other=0.0) * tl.load(coefficient + term)
            total += w[None, :] * tl.load(y + offset + i * K, mask=here, other=0.0) * tl.load(z + offset + j * K, mask=here, other=0.0)
        tl.store(x + offset + m * K, total, mask=here)
