"""Every measure by another road than the Rust code takes, f64, NumPy and SciPy only.

Singular values where the code has a Gram matrix, explicit pairs where it has sums of unit vectors, n x n kernels
where it has d x d ones, all distances where it looks for candidates. Writes `measures/inputs.safetensors` (F64; what a
case calls f32 is exact in f32) and `measures/expected.json` (null is undefined).
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from scipy.spatial.distance import cdist
from scipy.special import softmax
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


def anisotropy(texts):
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
    first, second = centre(first @ first.T), centre(second @ second.T)
    return (first * second).sum() / math.sqrt((first**2).sum() * (second**2).sum())


def centred_kernel(kernel):
    n = len(kernel)
    h = np.eye(n) - 1 / n
    return h @ kernel @ h


def two_nn(points):
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
    return float(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])


def nearest(rows, table):
    """The lowest id among the table rows of the largest cosine, to 1e-12."""
    ids = []
    for row in rows:
        if not row.any():
            ids.append(None)
            continue
        cosines = np.array([row @ e / (np.linalg.norm(row) * np.linalg.norm(e)) if e.any() else -2 for e in table])
        ids.append(int(np.flatnonzero(cosines >= cosines.max() - 1e-12)[0]))
    return ids


def attention_case(heads, n, causal):
    scores = RNG.normal(size=(heads, n, n)) * 2
    if causal:
        scores += np.triu(np.full((n, n), -np.inf), 1)
    maps = softmax(scores, axis=-1)
    positions = [i for i in range(n) if i != 2]
    plain = [entropy(maps[h, i]) for h in range(heads) for i in positions]
    visible = {i: i + 1 if causal else n for i in positions}
    scaled = [entropy(maps[h, i]) / math.log(visible[i]) for h in range(heads) for i in positions if visible[i] > 1]
    rows = random(len(positions), 9)
    weights = maps.mean(0)[np.ix_(positions, positions)]
    return maps, rows, {
        "heads": heads,
        "tokens": n,
        "causal": causal,
        "positions": positions,
        "attention_entropy": float(np.mean(plain)),
        "attention_entropy_normalised": float(np.mean(scaled)),
        "dirichlet_attention": dirichlet(rows, weights),
    }


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
        inputs[f"text.{i}.start"] = start[: len(rows)]
        values = text_measures(whole, mean, deviation, start)
        expected["texts"].append({"name": name, "repeated": repeated, "f32": is_single, "values": values})

    for i, (heads, n, causal) in enumerate([(3, 8, True), (2, 7, False)]):
        maps, rows, values = attention_case(heads, n, causal)
        inputs |= {f"attention.{i}.maps": maps, f"attention.{i}.rows": rows}
        expected["attention"].append(values)

    texts = [random(n, 8, offset=0.7) for n in (5, 1, 12, 3, 9, 1)]
    texts[2][4] = 0
    others = [text @ random(8, 6) * 0.5 + random(len(text), 6) for text in texts]
    pooled, pooled_others = np.concatenate(texts), np.concatenate(others)
    inputs |= {"corpus.rows": pooled, "corpus.others": pooled_others}
    expected["corpus"] = {
        "lengths": [len(text) for text in texts],
        "mean": pooled.mean(0).tolist(),
        "deviation": pooled.std(0).tolist(),
        "anisotropy": anisotropy(texts),
        "cka": cka(pooled, pooled_others, u_centred),
        "cka_biased": cka(pooled, pooled_others, centred_kernel),
    }

    flat = RNG.uniform(size=(220, 3)) @ random(3, 10) + 5
    flat = np.concatenate([flat, flat[:17]])
    close = np.repeat(random(20, 4) + 5, 3, axis=0) + 1e-6 * random(60, 4)  # inner products alone lose this
    inputs |= {"two_nn.flat": flat, "two_nn.close": close, "two_nn.few": random(49, 4)}
    expected["two_nn"] = {key: two_nn(inputs[f"two_nn.{key}"]) for key in ("flat", "close", "few")}

    table = single(random(40, 6))
    table[17], table[31], table[23] = table[4], table[4], 0
    rows = np.concatenate([single(table[[4, 17, 9, 30, 31]] * 1.5), random(20, 6), np.zeros((1, 6))])
    inputs |= {"nearest.table": table, "nearest.rows": rows}
    expected["nearest"] = nearest(rows, table)

    folder.mkdir(exist_ok=True)
    (folder / "inputs.safetensors").write_bytes(save({k: np.ascontiguousarray(v) for k, v in inputs.items()}))
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    write_measures(Path(__file__).parent / "measures")
