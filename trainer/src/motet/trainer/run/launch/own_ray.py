"""Which Ray is ours: the first thing that every process of a Ray started for one run does.

    a process of Ray --`settle`--> RAY_ADDRESS in its environment

Ray Train's cleaner asks whether the run's controller is alive at RAY_ADDRESS, or else at any Ray that it finds on the machine
(2.60). Another Ray knows no such controller, and the cleaner then takes the run's workers away.
"""

from __future__ import annotations

import os


def settle() -> None:
    """Note the address of the Ray that this process belongs to."""
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
