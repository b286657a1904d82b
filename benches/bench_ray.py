"""What the gateway adds on Ray Serve, started as `tiller serve` starts it; measured as `gateway`.

A request goes through the proxy, the gateway's replica and a handle to the engine's.
"""

from benches.bench_gateway import FEW, Sizes, measured
from benches.figures import Figure
from service import haproxy


def run(*, smoke: bool = False) -> list[Figure]:
    """The figures, to be read; `smoke` asks few times."""
    proxy = "HAProxy, gRPC" if haproxy.found() else "Ray's own proxy: there is no HAProxy here"
    where = f"Ray Serve ({proxy})"
    return measured(where, local=False, most=None, sizes=FEW if smoke else Sizes())
