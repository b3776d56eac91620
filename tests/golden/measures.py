"""Every measure by another road than the Rust code takes, f64, NumPy and SciPy only.

Singular values where the code has a Gram matrix, explicit pairs where it has sums of unit vectors, n x n kernels
where it has d x d ones, all distances where it looks for candidates. Writes `measures/inputs.safetensors` (F64; what a
case calls f32 is exact in f32) and `measures/expected.json` (null is undefined). A state that is not finite leaves
every measure undefined: a rule, and not what NumPy would say.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from scipy.spatial.distance import cdist
from scipy.special import gammaln, softmax
from scipy.stats import entropy

RNG = np.random.default_rng(20261124)


def number(value):
    return float(value) if value is not None and math.isfinite(value) else None


def cosine(rows):
    """Mean over ordered pairs of distinct non-zero rows, pair by pair."""
    rows = [row for row in rows if np.linalg.norm(row) > 0]
    pairs = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in itertools.permutations(rows, 2)]
    return math.fsum(pairs) / len(pairs) if pairs else None


def fast_cosine(rows):
    """The same through the matrix of all cosines, for texts too long for a loop over pairs."""
    rows = rows[np.linalg.norm(rows, axis=1) > 0]
    n = len(rows)
    if n < 2:
        return None
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    every = unit @ unit.T
    return (every.sum() - np.trace(every)) / (n * (n - 1))


def token_centred(rows):
    centred = rows - rows.mean(0)
    centred[:, np.ptp(rows, axis=0) == 0] = 0  # the mean of equal numbers is that number
    return centred


def spectrum(rows):
    """Squared singular values, clamped; None for nothing or all zero."""
    if rows.size == 0 or not rows.any():
        return None
    values = np.linalg.svd(rows, compute_uv=False) ** 2
    values[values < max(rows.shape) * 2.2e-16 * values[0]] = 0
    return values[values > 0]


def effective_rank(values):
    return None if values is None else math.exp(entropy(np.sqrt(values)))


def stable_rank(values):
    return None if values is None else values.sum() / values[0]


def participation_ratio(values):
    return None if values is None else values.sum() ** 2 / (values**2).sum()


def composite(matrix):
    return math.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf))


def rank_residual(rows):
    if len(rows) < 2 or not rows.any():
        return None
    return composite(token_centred(rows)) / composite(rows)


def frequency_ratio(rows):
    low = np.linalg.norm(np.tile(rows.mean(0), (len(rows), 1)))
    return np.linalg.norm(token_centred(rows)) / low if len(rows) > 1 and low > 0 else None


def dirichlet(rows, weights=None):
    """Half the weighted sum over all pairs; weights 1/n unless given."""
    n = len(rows)
    if n < 2:
        return None
    weights = np.full((n, n), 1 / n) if weights is None else (weights + weights.T) / 2
    return 0.5 * float((weights * cdist(rows, rows, "sqeuclidean")).sum())


def retention(rows, start):
    pairs = [(a, b) for a, b in zip(rows, start) if a.any() and b.any()]
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
    return float(np.mean(cosines)) if cosines else None


def outlier_share(rows, top):
    energy = np.sort((rows**2).sum(0))[::-1]
    return energy[:top].sum() / energy.sum() if rows.any() else None


def text_measures(rows, mean, deviation, start):
    if not np.isfinite(rows).all():
        return dict.fromkeys(text_measures(np.ones((2, 2)), np.zeros(2), np.ones(2), np.ones((2, 2))))
    norms = np.linalg.norm(rows, axis=1)
    plain, centred = spectrum(rows), spectrum(token_centred(rows))
    pairwise = cosine if len(rows) < 100 else fast_cosine
    ratio = frequency_ratio(rows)
    kept = deviation > 0
    energy, whole = dirichlet(rows), float((rows**2).sum())
    values = {
        "cosine": pairwise(rows),
        "cosine_centred": pairwise(rows - mean),
        "cosine_standardised": pairwise((rows - mean)[:, kept] / deviation[kept]),
        "rank_residual": rank_residual(rows),
        "frequency_ratio": ratio,
        "dirichlet": energy,
        "dirichlet_normalised": energy / whole if ratio is not None else None,
        "norm_mean": norms.mean(),
        "norm_std": norms.std(ddof=1) if len(rows) > 1 else None,
        "retention": retention(rows, start),
        "outlier_share_1": outlier_share(rows, 1),
        "outlier_share_3": outlier_share(rows, 3),
        "outlier_share_10": outlier_share(rows, 10),
        "effective_rank": effective_rank(plain),
        "effective_rank_centred": effective_rank(centred),
        "stable_rank": stable_rank(plain),
        "stable_rank_centred": stable_rank(centred),
        "max_explained_variance": None if plain is None else plain[0] / plain.sum(),
        "participation_ratio": participation_ratio(centred),
    }
    values["mad"] = None if values["cosine"] is None else 1 - values["cosine"]
    return {name: number(value) for name, value in values.items()}


def random(n, d, offset=0.0):
    return RNG.normal(size=(n, d)) + offset * RNG.normal(size=d)


def single(values):
    return values.astype(np.float32).astype(np.float64)


def text_cases():
    """(name, rows, repeated, f32?): the rows stand `repeated` times one after the other."""
    outliers = random(20, 16, offset=1.0)
    outliers[:, 3] *= 100
    outliers[0] *= 30
    zero_row = random(6, 5)
    zero_row[2] = 0
    wide = random(7, 23, offset=0.5)
    yield "wide", wide, 1, False
    yield "tall", random(31, 5, offset=2.0), 1, False
    yield "square", random(12, 12), 1, False
    yield "single precision", single(random(17, 40, offset=3.0)), 1, True
    yield "one token", random(1, 6), 1, False
    yield "two tokens", random(2, 6), 1, False
    yield "identical tokens", random(1, 4), 9, False
    yield "one token 4000 times", single(random(1, 3)), 4000, True
    yield "three tokens 1200 times", random(3, 4), 1200, False
    yield "a zero row", zero_row, 1, False
    yield "all zero", np.zeros((3, 4)), 1, False
    yield "one dimension", random(12, 1, offset=1.0), 1, False
    yield "outliers", outliers, 1, False
    yield "outliers in single precision", single(outliers), 1, True
    for scale in (1e18, 1e-18):
        yield f"scale {scale:g}", wide * scale, 1, False
    for scale in (1e15, 1e-15):
        yield f"scale {scale:g} in single precision", single(wide * scale), 1, True
    pair = single(random(2, 6))
    yield "two identical tokens", pair[:1], 2, True
    yield "two opposite tokens", np.stack([pair[0], -2 * pair[0]]), 1, True
    yield "a token and a zero vector", np.stack([pair[0], 0 * pair[0]]), 1, True
    yield "one zero vector", np.zeros((1, 4)), 1, True
    yield "one token of one dimension", single(random(1, 1)), 1, True
    yield "two tokens of one dimension", np.array([[0.75], [-1.5]]), 1, True
    yield "one dimension, identical", single(random(1, 1)), 7, True
    yield "one token 4000 times in double precision", random(1, 5), 4000, False
    yield "a token and a zero vector 2000 times", np.stack([pair[1], 0 * pair[1]]), 2000, True
    for bad in (np.nan, np.inf, -np.inf):
        for row in (0, 2):
            rows = single(random(4, 3))
            rows[row, 1] = bad
            yield f"{bad} in row {row}", rows, 1, True


def anisotropy(texts):
    if not all(np.isfinite(text).all() for text in texts):
        return None
    cosines = []
    for a, b in itertools.combinations(range(len(texts)), 2):
        pairs = itertools.product(texts[a], texts[b])
        cosines += [x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in pairs if x.any() and y.any()]
    return math.fsum(cosines) / len(cosines) if cosines else None


def u_centred(kernel):
    """Szekely and Rizzo's U-centring, entry by entry; its inner product is the unbiased HSIC up to a factor."""
    n = len(kernel)
    kernel = kernel - np.diag(np.diag(kernel))
    rows, total = kernel.sum(1), kernel.sum()
    out = kernel - rows[:, None] / (n - 2) - rows[None, :] / (n - 2) + total / ((n - 1) * (n - 2))
    return out - np.diag(np.diag(out))


def cka(first, second, centre):
    """None where a side does not vary: by its values, since rounding would leave its kernel something to divide by."""
    if not all(np.isfinite(side).all() and np.ptp(side, axis=0).any() for side in (first, second)):
        return None
    if centre is u_centred and len(first) < 4:
        return None
    first, second = centre(first @ first.T), centre(second @ second.T)
    return (first * second).sum() / math.sqrt((first**2).sum() * (second**2).sum())


def centred_kernel(kernel):
    n = len(kernel)
    h = np.eye(n) - 1 / n
    return h @ kernel @ h


def two_nn(points):
    if not np.isfinite(points).all():
        return None
    points = np.unique(points, axis=0)
    n = len(points)
    if n < 50:
        return None
    ratios = []
    for i, point in enumerate(points):
        distances = np.sort([np.linalg.norm(point - other) for j, other in enumerate(points) if j != i])
        ratios.append(distances[1] / distances[0])
    ratios = np.sort(ratios)[: n * 9 // 10]
    x, y = np.log(ratios), -np.log(1 - np.arange(1, len(ratios) + 1) / n)
    if not x.any():
        return None  # a lattice: both neighbours at one distance
    return float(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])


def nearest(rows, table):
    """The lowest id among the table rows of the largest cosine, to 1e-12."""
    if not np.isfinite(rows).all() or not table.any():
        return None
    ids = []
    for row in rows:
        if not row.any():
            ids.append(None)
            continue
        cosines = np.array([row @ e / (np.linalg.norm(row) * np.linalg.norm(e)) if e.any() else -2 for e in table])
        ids.append(int(np.flatnonzero(cosines >= cosines.max() - 1e-12)[0]))
    return ids


def attention_case(maps, rows, causal, positions):
    heads, n = maps.shape[:2]
    case = {"heads": heads, "tokens": n, "causal": causal, "positions": positions}
    if not np.isfinite(maps).all():
        names = ("attention_entropy", "attention_entropy_normalised", "dirichlet_attention")
        return case | dict.fromkeys(names)
    plain = [entropy(maps[h, i]) for h in range(heads) for i in positions]
    visible = {i: i + 1 if causal else n for i in positions}
    scaled = [entropy(maps[h, i]) / math.log(visible[i]) for h in range(heads) for i in positions if visible[i] > 1]
    return case | {
        "attention_entropy": float(np.mean(plain)) if plain else None,
        "attention_entropy_normalised": float(np.mean(scaled)) if scaled else None,
        "dirichlet_attention": dirichlet(rows, maps.mean(0)[np.ix_(positions, positions)]),
    }


def random_maps(heads, n, causal):
    scores = RNG.normal(size=(heads, n, n)) * 2
    if causal:
        scores += np.triu(np.full((n, n), -np.inf), 1)
    return softmax(scores, axis=-1)


def attention_cases():
    """(name, maps, rows, causal?, positions)"""
    for heads, n, causal in ((3, 8, True), (2, 7, False)):
        yield "random", random_maps(heads, n, causal), random(n - 1, 9), causal, [i for i in range(n) if i != 2]
    for causal in (True, False):
        yield "one token", np.ones((2, 1, 1)), random(1, 3), causal, [0]
        yield "two tokens", random_maps(2, 2, causal), random(2, 3), causal, [0, 1]
        yield "one dimension", random_maps(1, 5, causal), random(5, 1), causal, list(range(5))
        uniform = np.tri(6) if causal else np.ones((6, 6))
        uniform = np.tile(uniform / uniform.sum(1, keepdims=True), (2, 1, 1))
        yield "identical tokens", uniform, np.tile(random(1, 4), (6, 1)), causal, list(range(6))
    yield "no token", random_maps(1, 3, True), np.zeros((0, 4)), True, []
    yield "all at the first token", np.tile(np.eye(1, 4), (2, 4, 1)), random(4, 3), True, list(range(4))
    zero_row = random(4, 3)
    zero_row[1] = 0
    yield "a zero vector", random_maps(2, 4, True), zero_row, True, list(range(4))
    for bad in (np.nan, np.inf):
        maps = random_maps(2, 3, False)
        maps[1, 1, 2] = bad
        yield f"{bad} in a map", maps, random(3, 2), False, [0, 1, 2]


def corpora():
    """(name, texts, others, repeated, f32?): every text stands `repeated` times."""
    texts = [random(n, 8, offset=0.7) for n in (5, 1, 12, 3, 9, 1)]
    texts[2][4] = 0
    yield "random", texts, [text @ random(8, 6) * 0.5 + random(len(text), 6) for text in texts], 1, False
    for count, name in ((1, "one token"), (2, "two tokens"), (3, "three tokens"), (4, "four tokens")):
        yield name, [random(count, 3)], [random(count, 5)], 1, False
    yield "two texts of one token", [random(1, 3), random(1, 3)], [random(1, 2), random(1, 2)], 1, False
    yield "one dimension", [random(4, 1), random(3, 1)], [random(4, 1), random(3, 1)], 1, False
    yield "identical tokens", [np.tile(random(1, 5, offset=2.0), (9, 1))], [random(9, 3)], 1, False
    same = random(1, 7, offset=2.0)
    yield "one token 4000 times", [same], [single(same)], 4000, False
    yield "one token 4000 times in single precision", [single(same)], [single(same)], 4000, True
    yield "one token 4000 times against five tokens", [np.tile(same, (5, 1))], [random(5, 4)], 800, False
    yield "five tokens 800 times", [random(5, 4)], [random(5, 3)], 800, False
    zero_row = [random(4, 3), np.zeros((1, 3)), random(3, 3)]
    yield "a zero vector", zero_row, [random(len(text), 4) for text in zero_row], 1, False
    yield "all zero", [np.zeros((3, 4)), np.zeros((2, 4))], [single(random(3, 2)), single(random(2, 2))], 1, True
    for bad in (np.nan, np.inf, -np.inf):
        texts = [random(4, 3), random(3, 3)]
        texts[1][0, 2] = bad
        yield f"{bad} in a text", texts, [random(4, 2), random(3, 2)], 1, False


def two_nn_cases():
    flat = RNG.uniform(size=(220, 3)) @ random(3, 10) + 5
    yield "flat", np.concatenate([flat, flat[:17]]), 1
    close = np.repeat(random(20, 4) + 5, 3, axis=0) + 1e-6 * random(60, 4)  # inner products alone lose this
    yield "close", close, 1
    yield "49 tokens", random(49, 4), 1
    fifty = single(random(50, 4))
    yield "50 tokens", fifty, 1
    yield "50 tokens 80 times", fifty, 80
    yield "one token", single(random(1, 4)), 1
    yield "two tokens", single(random(2, 4)), 1
    yield "one token 4000 times", single(random(1, 4)), 4000
    yield "one dimension", single(random(120, 1)), 1
    yield "one dimension, a lattice", np.arange(100.0)[:, None], 1
    zero_row = single(random(80, 3, offset=1.0))
    zero_row[11] = 0
    yield "a zero vector", zero_row, 1
    yield "all zero", np.zeros((60, 3)), 1
    for bad in (np.nan, np.inf, -np.inf):
        rows = single(random(60, 2))
        rows[31, 1] = bad
        yield f"{bad} in a token", rows, 1


def nearest_cases():
    """(name, table, rows, repeated); the table is exact in f32."""
    table = single(random(40, 6))
    table[17], table[31], table[23] = table[4], table[4], 0
    yield "random", table, np.concatenate([single(table[[4, 17, 9, 30, 31]] * 1.5), random(20, 6), np.zeros((1, 6))]), 1
    small = single(random(5, 3))
    yield "one token", small, random(1, 3), 1
    yield "two tokens", small, random(2, 3), 1
    yield "identical tokens", small, np.tile(random(1, 3), (6, 1)), 1
    yield "one token 4000 times", small, random(1, 3), 4000
    yield "a zero vector", small, np.stack([small[3], 0 * small[3]]), 1
    yield "a table of one row", small[:1], random(3, 3), 1
    yield "a table of zeros", np.zeros((4, 3)), random(2, 3), 1
    yield "no token", small, np.zeros((0, 3)), 1
    yield "one dimension", single(random(30, 1)), random(25, 1), 1
    yield "multiples of one row", single(np.arange(1, 30)[:, None] * np.array([[3.0, 5.0, 7.0]])), random(20, 3), 1
    for bad in (np.nan, np.inf, -np.inf):
        rows = random(4, 3)
        rows[1, 1] = bad
        yield f"{bad} in a token", small, rows, 1


def write_measures(folder):
    inputs, expected = {}, {"texts": [], "attention": []}
    for i, (name, rows, repeated, is_single) in enumerate(text_cases()):
        d = rows.shape[1]
        whole = np.tile(rows, (repeated, 1))
        size = np.abs(rows).max() or 1.0
        mean, deviation = random(1, d)[0] * size, np.abs(random(1, d)[0]) * size
        if d > 4:
            deviation[1] = 0
        start = random(len(whole), d) if repeated == 1 else np.tile(random(len(rows), d), (repeated, 1))
        inputs |= {f"text.{i}.rows": rows, f"text.{i}.mean": mean, f"text.{i}.deviation": deviation}
        start = single(start) if is_single else start
        inputs[f"text.{i}.start"] = start[: len(rows)]
        values = text_measures(whole, mean, deviation, start)
        expected["texts"].append({"name": name, "repeated": repeated, "f32": is_single, "values": values})

    for i, (name, maps, rows, causal, positions) in enumerate(attention_cases()):
        inputs |= {f"attention.{i}.maps": maps, f"attention.{i}.rows": rows}
        expected["attention"].append({"name": name} | attention_case(maps, rows, causal, positions))
    # Uniform causal attention, as of one token 4,000 times: the mean of ln(i + 1), ln 4000! of 4,000.
    expected["uniform"] = {"tokens": 4000, "attention_entropy": float(gammaln(4001) / 4000)}

    expected["corpora"] = []
    for i, (name, texts, others, repeated, is_single) in enumerate(corpora()):
        rows, other_rows = np.concatenate(texts), np.concatenate(others)
        inputs |= {f"corpus.{i}.rows": rows, f"corpus.{i}.others": other_rows}
        pooled, pooled_others = (np.concatenate([np.tile(t, (repeated, 1)) for t in side]) for side in (texts, others))
        finite = np.isfinite(pooled).all()
        case = {
            "name": name,
            "repeated": repeated,
            "f32": is_single,
            "lengths": [len(text) for text in texts],
            "mean": rows.mean(0).tolist() if finite else None,
            "deviation": np.where(np.ptp(rows, axis=0) > 0, rows.std(0), 0).tolist() if finite else None,
            "anisotropy": anisotropy([np.tile(text, (repeated, 1)) if len(texts) > 1 else text for text in texts]),
            "cka": cka(pooled, pooled_others, u_centred),
            "cka_biased": cka(pooled, pooled_others, centred_kernel),
        }
        expected["corpora"].append(case)

    expected["two_nn"], expected["nearest"] = [], []
    for i, (name, rows, repeated) in enumerate(two_nn_cases()):
        inputs[f"two_nn.{i}"] = rows
        value = two_nn(np.tile(rows, (repeated, 1)))
        expected["two_nn"].append({"name": name, "repeated": repeated, "value": value})
    for i, (name, table, rows, repeated) in enumerate(nearest_cases()):
        inputs |= {f"nearest.{i}.table": table, f"nearest.{i}.rows": rows}
        expected["nearest"].append({"name": name, "repeated": repeated, "ids": nearest(rows, table)})

    folder.mkdir(exist_ok=True)
    (folder / "inputs.safetensors").write_bytes(save({k: np.ascontiguousarray(v) for k, v in inputs.items()}))
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    write_measures(Path(__file__).parent / "measures")
