"""What tests of several files need."""

from contextlib import contextmanager

import joblib
import pytest


@pytest.fixture
def dask_cluster(tmp_path):
    """`with dask_cluster(n_workers) as client`: joblib works on a cluster of this machine, one thread a worker."""
    distributed = pytest.importorskip("distributed")

    @contextmanager
    def opened(n_workers, *, processes=True):
        options = dict(dashboard_address=":0", silence_logs=50, local_directory=str(tmp_path))
        with (
            distributed.LocalCluster(n_workers=n_workers, threads_per_worker=1, processes=processes, **options) as own,
            distributed.Client(own) as client,
            joblib.parallel_config("dask"),
        ):
            yield client

    return opened
