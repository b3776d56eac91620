"""Intervals and p-values from SciPy, and Holm's correction and the bootstrap by full enumeration.

Remade by `python intervals.py`; see README.md.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import scipy.stats as st

# Student's sleep data (1908), and seeds as a study gives them: accuracy differences in points.
SAMPLES = {
    "sleep": [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4],
    "two": [0.5, 0.7],
    "three": [-0.4, 1.1, 0.6],
    "five": [2.9, 3.4, 1.2, 4.8, 2.2],
    "negative": [-1.3, -0.2, -2.4, -0.9, -1.1, 0.3],
}


def close(a, b, tolerance=1e-12):
    assert abs(a - b) <= tolerance * max(1.0, abs(b)), (a, b)


def wilson():
    rows = []
    for k, n in ((0, 1), (1, 1), (0, 10), (3, 7), (15, 20), (1, 1000), (1830, 2000), (9999, 10000)):
        for level in (0.8, 0.95, 0.99):
            interval = st.binomtest(k, n).proportion_ci(level, "wilson")
            # Its definition: both ends solve (p - k/n)^2 = z^2 p(1-p)/n.
            z = st.norm.ppf(0.5 + level / 2)
            for end in (interval.low, interval.high):
                close((end - k / n) ** 2, z * z * end * (1 - end) / n, 1e-9)
            rows.append({"successes": k, "trials": n, "level": level, "low": interval.low, "high": interval.high})
    return rows


def mcnemar():
    rows = []
    for b, c in ((0, 1), (0, 6), (1, 9), (5, 5), (9, 1), (12, 30), (150, 120), (1000, 1100)):
        n, k = b + c, min(b, c)
        exact = st.binomtest(k, n, 0.5).pvalue
        # Mid-p by its definition: what is more extreme, and half of what is as extreme.
        spread = np.abs(2 * np.arange(n + 1) - n)
        law = st.binom.pmf(np.arange(n + 1), n, 0.5)
        mid = law[spread > abs(b - c)].sum() + 0.5 * law[spread == abs(b - c)].sum()
        rows.append({"only_first": b, "only_second": c, "exact": exact, "mid": float(mid)})
    return rows


def student():
    rows = []
    for name, values in SAMPLES.items():
        test = st.ttest_1samp(values, 0.0)
        intervals = {str(level): list(test.confidence_interval(level)) for level in (0.9, 0.95, 0.99)}
        tost = {}
        for margin in (0.5, 2.0, 4.0):
            above = st.ttest_1samp(values, -margin, alternative="greater").pvalue
            below = st.ttest_1samp(values, margin, alternative="less").pvalue
            tost[str(margin)] = max(above, below)
        rows.append({"name": name, "values": values, "p": test.pvalue, "intervals": intervals, "tost": tost})
    return rows


def holm():
    """Holm's procedure is the closure of Bonferroni's: p_i is the largest Bonferroni p of a set that holds i."""
    rows = []
    for p in ([0.01, 0.04, 0.03, 0.005], [0.2], [0.05, 0.05, 0.05], [0.9, 0.8, 1.0], [0.001, 0.5, 0.011, 0.02, 0.0, 0.013]):
        sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r)]
        adjusted = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(len(p))]
        rows.append({"p": p, "adjusted": adjusted})
    return rows


def sign_flips():
    rows = []
    for name, values in SAMPLES.items():
        test = st.permutation_test(
            (np.array(values),), lambda x, axis: np.abs(np.sum(x, axis=axis)), permutation_type="samples",
            n_resamples=np.inf, alternative="greater", vectorized=True,
        )
        # By hand: every pattern of signs.
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        sums = np.abs(patterns @ values)
        close(test.pvalue, np.mean(sums >= abs(sum(values)) - 1e-12))
        rows.append({"values": values, "p": float(test.pvalue)})
    return rows


def bootstrap():
    """The bootstrap without chance: all n^n resamples of a small sample. Quantiles of their means, at p - 0.5 %,
    p and p + 0.5 % for both ends of three levels, bound what 10,000 random resamples may give."""
    rows = []
    for values in ([0.31, 1.7, -0.4, 2.25, 0.9], [1.0, 0.2, 5.5, 0.3, 0.7, 2.1]):
        n = len(values)
        means = np.array(values)[np.array(list(itertools.product(range(n), repeat=n)))].mean(axis=1)
        for level in (0.8, 0.9, 0.95):
            tail = (1 - level) / 2
            ends = {}
            for name, p in (("low", tail), ("high", 1 - tail)):
                ends[name] = [float(np.quantile(means, p + shift)) for shift in (-0.005, 0.0, 0.005)]
            rows.append({"values": values, "level": level} | ends)
    return rows


def main():
    golden = {
        "wilson": wilson(), "mcnemar": mcnemar(), "student": student(), "holm": holm(),
        "sign_flips": sign_flips(), "bootstrap": bootstrap(),
    }
    path = Path(__file__).resolve().parent / "intervals.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
