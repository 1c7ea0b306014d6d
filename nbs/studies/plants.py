"""Which measures of coherence find filters that look for one thing, and no others? Writes plants.csv next to this.

    python nbs/studies/plants.py            # about half an hour of one core
    python nbs/studies/plants.py plain      # these changes alone

A convolutional layer holds eight copies of a grating, with noise, and as many unrelated filters (`planted_filters`).
Something is done to the unrelated ones that does not make them look for one thing, or the noise in the copies grows.
All measures of coherence are taken of both groups, beside random groups of the layer. A row of the table is one group
of one network in one measure. A network that is in the table is passed over when the program is run again.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from specialize_nb import Partition, coherence, digits
from specialize_nb.dev.testing import planted_filters

TABLE = Path(__file__).resolve().with_name("plants.csv")
N_NETWORKS = 20
CASES: dict[str, list[tuple[str, float]]] = {  # Name -> change of the unrelated filters, noise in the copies
    "plain": [("plain", 0.5)],
    "offset": [("offset", 0.5)],
    "scale": [("scale", 0.5)],
    "rare": [("rare", 0.5)],
    "loud": [("loud", 0.5)],
    "noise": [("plain", 1.0), ("plain", 2.0), ("plain", 3.0)],
}
ON_DATA = ("correlation", "map_correlation", "map_correlation_rest", "predictability", "predictability_rest")
ON_PICTURES = ("attainability", "least_attained", "transfer", "visual_score", "visual_entropy")
OPTIONS = dict(outcomes=ON_DATA + ON_PICTURES, n_controls=199, n_visual=99, n_starts=2, steps=32, n_boot=2)


def rows_of(change: str, noise: float, seed: int) -> pd.DataFrame:
    """Both groups of one network in all measures."""
    model, labels = planted_filters(change, noise=noise, seed=seed)
    groups, start = Partition.from_labels({"0": labels}), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = coherence(model, digits("test"), groups, seed=seed, **OPTIONS).to_frame().query("cluster < 2")
    keys = dict(change=change, noise=noise, network=seed, seconds=round(time.process_time() - start, 1))
    group = found["cluster"].map({0: "copies", 1: "unrelated"})
    return found[["outcome", "effect", "p_value", "p_fwer"]].round(4).assign(group=group, **keys)


def main() -> None:
    asked = [case for name in sys.argv[1:] or CASES for case in CASES[name]]
    known = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["change", "noise", "network"])
    done = set(known[["change", "noise", "network"]].itertuples(index=False, name=None))
    left = [(*case, seed) for seed in range(N_NETWORKS) for case in asked if (*case, seed) not in done]
    for case in tqdm(left):
        rows_of(*case).to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)


if __name__ == "__main__":
    main()
