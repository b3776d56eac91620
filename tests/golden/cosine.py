"""Token cosine by its definition: every pair, O(n^2), f64. No closed form, so that it can judge one."""

import torch


def mean_pairwise_cosine(rows):
    """Mean of cos(h_i, h_j) over ordered pairs i != j of non-zero rows; None for fewer than two."""
    rows = [row for row in rows if row.norm() > 0]
    n = len(rows)
    if n < 2:
        return None
    total = sum(
        torch.dot(rows[i], rows[j]).item() / (rows[i].norm() * rows[j].norm()).item()
        for i in range(n)
        for j in range(n)
        if i != j
    )
    return total / (n * (n - 1))


def summary(values):
    """Texts that entered, their mean and sample deviation (None where undefined)."""
    known = [value for value in values if value is not None]
    n = len(known)
    mean = sum(known) / n if n else None
    std = (sum((v - mean) ** 2 for v in known) / (n - 1)) ** 0.5 if n > 1 else None
    return {"per_text": values, "texts": n, "mean": mean, "std": std}


def similarity(layers):
    """`layers`: a list of (layer, site, [one [n, d] tensor per text]); gives one row per layer, measure, token set.

    The centre of `cosine_centred` is the mean over all tokens of the token set in all texts, those of texts
    too short for a cosine of their own included; each token weighs 1.
    """
    rows = []
    for layer, site, texts in layers:
        for tokens, first in (("all", 0), ("no_first", 1)):
            chosen = [text.double()[first:] for text in texts]
            centre = torch.cat(chosen).mean(0)
            for measure, shift in (("cosine", torch.zeros_like(centre)), ("cosine_centred", centre)):
                values = [mean_pairwise_cosine(text - shift) for text in chosen]
                rows.append({"layer": layer, "site": site, "measure": measure, "tokens": tokens} | summary(values))
    return rows
