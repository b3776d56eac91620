"""Values of scikit-learn and SciPy for the metrics of tasks.

python task_metrics.py writes task_metrics.json beside it.
"""

import json
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, matthews_corrcoef


def classes(rng):
    for n, k, skill in [(40, 2, 0.7), (200, 2, 0.5), (30, 3, 0.6), (500, 5, 0.3), (25, 2, 0.0), (12, 2, 1.0)]:
        label = rng.integers(0, k, n)
        predicted = np.where(rng.random(n) < skill, label, rng.integers(0, k, n))
        yield predicted, label
    yield np.ones(10, int), rng.integers(0, 2, 10)
    yield np.zeros(6, int), np.zeros(6, int)


def scores(rng):
    for n, noise, digits in [(30, 0.5, None), (200, 3.0, None), (60, 1.0, 0), (1500, 1.0, 1), (5, 0.1, None)]:
        label = rng.random(n) * 5
        predicted = 0.7 * label + noise * rng.standard_normal(n)
        if digits is not None:
            label, predicted = label.round(digits), predicted.round(digits)
        yield predicted, label


def stated(rng):
    for n, k, heat in [(50, 2, 1.0), (203, 4, 2.0), (7, 3, 0.5), (1000, 2, 3.0)]:
        logits = heat * rng.standard_normal((n, k))
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        label = np.array([rng.choice(k, p=0.6 * row + 0.4 / k) for row in p])
        yield p, label


def ece(p, label, bins=15):
    """Equal mass: items by confidence, bin b from b*n//bins to (b+1)*n//bins."""
    order = np.argsort(p.max(1), kind="stable")
    confidence, right = p.max(1)[order], (p.argmax(1) == label)[order]
    n, bins = len(label), min(bins, len(label))
    total = 0.0
    for b in range(bins):
        piece = slice(b * n // bins, (b + 1) * n // bins)
        total += len(right[piece]) * abs(right[piece].mean() - confidence[piece].mean())
    return total / n


def main():
    rng = np.random.default_rng(7)
    rows = {"classes": [], "scores": [], "calibration": []}
    for predicted, label in classes(rng):
        rows["classes"].append({
            "predicted": predicted.tolist(), "label": label.tolist(),
            "accuracy": accuracy_score(label, predicted), "matthews": matthews_corrcoef(label, predicted),
            "f1": f1_score((label == 1).astype(int), (predicted == 1).astype(int), zero_division=0),
        })
    for predicted, label in scores(rng):
        rows["scores"].append({
            "predicted": predicted.tolist(), "label": label.tolist(),
            "pearson": pearsonr(predicted, label).statistic, "spearman": spearmanr(predicted, label).statistic,
        })
    for p, label in stated(rng):
        one_hot = np.eye(p.shape[1])[label]
        brier = brier_score_loss(label, p, labels=list(range(p.shape[1])), scale_by_half=False)
        assert abs(brier - ((p - one_hot) ** 2).sum(1).mean()) < 1e-12
        rows["calibration"].append({
            "probabilities": p.tolist(), "label": label.tolist(), "ece": ece(p, label), "brier": brier,
            "nll": log_loss(label, p, labels=list(range(p.shape[1]))),
        })
    rows["made_with"] = {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}
    (Path(__file__).parent / "task_metrics.json").write_text(json.dumps(rows) + "\n")


main()
