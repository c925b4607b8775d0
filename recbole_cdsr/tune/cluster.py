"""Ray for a search: started on this machine for itself alone, or reached at an address."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import Any

from recbole_cdsr.errors import CDSRError

SECONDS_TO_ANSWER = 5
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_started(address: str | None, dashboard: bool, gpus: bool):
    """Ray on this machine alone, reachable from it alone; or the cluster at an address; or the one that runs already.

    Raises:
        CDSRError: if ray is missing, or there is no cluster at the address.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not address:  # read when ray is imported: 127.0.0.1 stays what it is, instead of an address of the network
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise CDSRError("a search needs ray; run: pip install 'recbole-cdsr[tune]'") from None
    if address:
        _refuse_silence(address)
    if ray.is_initialized():
        yield ray
        return
    keys: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if address:
        keys["address"] = address
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        keys |= {"address": "local", "num_cpus": cores, "_node_ip_address": "127.0.0.1"}
        keys |= {"include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
        if not gpus:
            keys["num_gpus"] = 0
    try:
        ray.init(**keys)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CDSRError(f"Ray cannot be reached ({reason}); check --ray_address, or leave it out") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """CDSRError if nobody answers at HOST:PORT, where Ray would try for minutes; Ray understands other forms too."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CDSRError(
            f"no Ray cluster answers at {address} ({reason}); check --ray_address, or leave it out"
        ) from None


def refuse_too_much(cpus: float, gpus: float) -> None:
    """CDSRError if no node has what one trial asks for: Ray would wait for such a node for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    has = f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs"
    raise CDSRError(
        f"a trial asks for {cpus:g} CPUs and {gpus:g} GPUs, but the largest node has {has}; "
        f"set --cpus_per_trial and --gpus_per_trial to less"
    )
