"""Model of a run on 1 to 64 GPUs, from figures measured on one. A simulation: no such machine was used.

    python benchmarks/scaling.py --images-per-second 20000 [--fixed-ms 4] [--gpus-per-machine 8] [--link-gb 200]
        [--network-gb 25] [--latency-us 20] [--batch-size 2048] [--weak]

The share of a GPU takes fixed + share / rate. The gradient goes round a ring (Patarasuk and Yuan, 2009): each GPU sends
2 (n - 1) / n of it over the slowest link, in 2 (n - 1) messages of one latency each. Of that time the backward pass, two
thirds of the computation, can hide all but the last bucket of 25 MB.
"""

import argparse
from dataclasses import dataclass

GRADIENT_BYTES = 4 * 23_705_252
"""Gradient of the reference recipe's ResNet-50 in float32: 94.8 MB."""
BUCKET_BYTES = 25 * 2**20
"""Bucket size of DistributedDataParallel."""
TRAIN_IMAGES = 50_000
EPOCHS = 200


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Measured figures."""

    images_per_second: float
    """Throughput of one GPU with a large local batch."""
    fixed_ms: float = 4.0
    """Fixed cost of a step: kernel launches, the optimizer, the flags. Measure it with a tiny local batch."""
    gpus_per_machine: int = 8
    link_gb: float = 200.0
    """Bandwidth between GPUs of one machine in GB/s."""
    network_gb: float = 25.0
    """Bandwidth between machines in GB/s."""
    latency_us: float = 20.0
    """Latency of one message in the ring."""


def compute_seconds(machines: Machines, share: float) -> float:
    """Return the seconds of a step without communication. share: local batch size."""
    return machines.fixed_ms / 1e3 + share / machines.images_per_second


def exchange_seconds(machines: Machines, gpus: int, size: float = GRADIENT_BYTES) -> float:
    """Return the seconds of a ring all-reduce of `size` bytes over the GPUs."""
    if gpus == 1:
        return 0.0
    # A ring is as fast as its slowest link: the network, if there are several machines.
    slowest = machines.link_gb if gpus <= machines.gpus_per_machine else machines.network_gb
    return 2 * (gpus - 1) / gpus * size / (slowest * 1e9) + 2 * (gpus - 1) * machines.latency_us / 1e6


def step_seconds(machines: Machines, gpus: int, batch_size: int) -> float:
    """Return the seconds of a step of the global batch.

    >>> one = Machines(images_per_second=20_000, fixed_ms=4)
    >>> round(step_seconds(one, 1, 2048), 4)  # 0.004 + 2048 / 20000
    0.1064
    """
    compute = compute_seconds(machines, batch_size / gpus)
    exchange = exchange_seconds(machines, gpus)
    last = exchange_seconds(machines, gpus, BUCKET_BYTES)
    return compute + max(exchange - 2 / 3 * compute, min(last, exchange))


def table(machines: Machines, batch_size: int, *, weak: bool) -> str:
    """Return the table as Markdown. weak: fixed local batch size, so that the global batch grows with the GPUs.

    Numbers of GPUs over which the batch does not split are left out.
    """
    alone = batch_size / step_seconds(machines, 1, batch_size)
    rows = [
        "| GPUs | global batch | a GPU's share | step, ms | exchange not hidden, ms | images/s | efficiency | 200 epochs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        batch = batch_size * gpus if weak else batch_size
        if batch % gpus:
            continue
        step = step_seconds(machines, gpus, batch)
        waiting = step - compute_seconds(machines, batch / gpus)
        rate = batch / step
        minutes = EPOCHS * (TRAIN_IMAGES // batch) * step / 60
        whole = f"{minutes:.1f} min" if batch <= TRAIN_IMAGES else "no whole batch"
        rows.append(
            f"| {gpus} | {batch:,} | {batch / gpus:,.0f} | {1e3 * step:.1f} | {1e3 * waiting:.1f} | {rate:,.0f} "
            f"| {rate / alone / gpus:.0%} | {whole} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, required=True, help="measured throughput of one GPU")
    parser.add_argument("--fixed-ms", type=float, default=4.0, help="fixed cost of a step")
    parser.add_argument("--gpus-per-machine", type=int, default=8)
    parser.add_argument("--link-gb", type=float, default=200.0, help="bandwidth between GPUs of one machine in GB/s")
    parser.add_argument("--network-gb", type=float, default=25.0, help="bandwidth between machines in GB/s")
    parser.add_argument("--latency-us", type=float, default=20.0, help="latency of one message")
    parser.add_argument("--batch-size", type=int, default=2048, help="global batch size, or local with --weak")
    parser.add_argument(
        "--weak", action="store_true", help="keep the local batch fixed, so that the global batch grows with the GPUs"
    )
    options = vars(parser.parse_args())
    for name, value in options.items():
        may_be_zero = name in ("fixed_ms", "latency_us", "weak")
        if not (0 < value < float("inf") or (value == 0 and may_be_zero)):
            wanted = "0 or more" if may_be_zero else "more than 0"
            parser.error(f"--{name.replace('_', '-')} {value:g} cannot be; give a figure of {wanted}.")
    batch_size, weak = options.pop("batch_size"), options.pop("weak")
    print("Simulated, not measured.")
    print(table(Machines(**options), batch_size, weak=weak))


if __name__ == "__main__":
    main()
