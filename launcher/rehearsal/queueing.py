"""Where a rehearsal's numbers come from: a closed queueing network, and nothing that was measured.

N users (the concurrency) each send a request, wait for its last token and send the next. A request visits prefill and
then decode; W_p and W_d are their workers, G_p and G_d the GPUs of one.

- Prefill takes one request at a time per worker: S = I / (RATE * G_p) seconds for I input tokens. W_p workers are taken
  as a queue of demand D = S / W_p and a delay S - D (Seidmann's approximation of several servers).
- Decode batches: with b requests on a worker one step, a token for each, takes t(b) = t0 + t1 * b seconds, where
  t0 = 0.004 + 0.012 / G_d is the reading of the weights and t1 = 0.0004 / G_d the work for one request more.
- Aggregated workers do both on the same GPUs: prefill has half the rate.

Mean values as of Schweitzer's approximation, O output tokens, X throughput in requests a second, a = (N - 1) / N:

    Q_p(X) = X * D / (1 - a * X * D)                  R_p(X) = D * (1 + a * Q_p) + S - D
    b(X)   = max(1, X * O * t0 / (W_d - X * O * t1))  R_d(X) = O * t(b)
    X * (R_p(X) + R_d(X)) = N                         one solution: the left side grows with X

so that X grows with N and saturates at min(1 / D, W_d / (O * t1)), and the time to the first token, R_p + t(b), grows
with N. The constants are round numbers, of no GPU in particular.
"""

from __future__ import annotations

from dataclasses import dataclass

NAME = "closed queueing network: prefill queue and batched decode, Schweitzer's mean values (launcher/rehearsal)"

PREFILL_RATE = 16000.0
"""Input tokens that one GPU prefills in a second."""


@dataclass(frozen=True)
class Topology:
    """Workers and GPUs per worker of both sides; the decode side alone when ``aggregated``."""

    prefill_workers: int
    prefill_gpus: int
    decode_workers: int
    decode_gpus: int
    aggregated: bool = False

    @property
    def gpus(self) -> int:
        own = self.decode_workers * self.decode_gpus
        return own if self.aggregated else own + self.prefill_workers * self.prefill_gpus


@dataclass(frozen=True)
class Means:
    """Mean values of one concurrency: requests a second, and seconds."""

    throughput: float
    ttft: float
    tpot: float
    e2el: float


def solve(topology: Topology, *, users: int, input_tokens: float, output_tokens: float) -> Means:
    """The means for ``users`` requests in flight. All arguments must be at least 1."""
    rate = PREFILL_RATE * topology.prefill_gpus / (2 if topology.aggregated else 1)
    service = input_tokens / rate
    demand = service / topology.prefill_workers
    step0 = 0.004 + 0.012 / topology.decode_gpus
    step1 = 0.0004 / topology.decode_gpus
    others = (users - 1) / users

    def at(throughput: float) -> Means:
        queue = throughput * demand / (1 - others * throughput * demand)
        prefill = demand * (1 + others * queue) + service - demand
        left = topology.decode_workers - throughput * output_tokens * step1
        step = step0 + step1 * max(1.0, throughput * output_tokens * step0 / left)
        return Means(throughput, prefill + step, step, prefill + output_tokens * step)

    low, high = 0.0, min(1 / demand, topology.decode_workers / (output_tokens * step1)) * (1 - 1e-12)
    for _ in range(100):
        middle = (low + high) / 2
        if middle * at(middle).e2el < users:
            low = middle
        else:
            high = middle
    return at(low)
