"""Prints the speed and memory of one evaluation and one search step, four supernets side by side.

With --network it prints images a second in the training of a derived network instead (size C,LAYERS,BATCH).

    python scripts/benchmark_search_step.py [--size T] [--threads 1] [--rounds 5] [--supernets native,literal]
        [--methods evaluation,moreau-lagged] [--no-memory] [--device cpu] [--json]
    python scripts/benchmark_search_step.py --network --size 36,20,16 [--cell DARTS_V2] [--threads 1] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sys

from nas_moreau.diagnostics.bench import BenchmarkPlan, benchmark
from nas_moreau.diagnostics.bench_cases import DEFAULT_METHODS, SUPERNETS, parse_size
from nas_moreau.diagnostics.bench_network import benchmark_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="T", help="T, M, full or channels,layers,batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--space", default="darts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--supernets", default=",".join(SUPERNETS))
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true", help="the whole result as JSON")
    parser.add_argument("--network", action="store_true", help="training of a derived network instead of a search")
    parser.add_argument("--cell", default="DARTS_V2", help="published cell of the derived network")
    given = parser.parse_args()
    if given.network:
        size = parse_size(given.size)
        result = benchmark_network(size, given.cell, given.threads, given.rounds, given.device).to_dict()
        if given.json:
            print(json.dumps(result, indent=1))
            return
        print(f"{result['hardware']}, torch {result['torch']}, {given.cell}, C,layers,batch {given.size}")
        for row in result["rows"]:
            print(
                f"threads {row['threads']} {row['network']:22} {row['milliseconds']:9.1f} ms a step  n={row['n']}"
                f"  {row['images_per_second']:7.1f} images/s"
            )
        return
    plan = BenchmarkPlan(
        given.size,
        given.threads,
        given.rounds,
        given.space,
        given.device,
        supernets=given.supernets.split(","),
        methods=given.methods.split(","),
        memory=not given.no_memory,
    )
    result = benchmark(plan, lambda text: print(text, file=sys.stderr, flush=True)).to_dict()
    if given.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['hardware']}, torch {result['torch']}, GEMM {result['gemm_gflops']:.0f} GFLOP/s")
    for row in result["rows"]:
        megabytes = [None if row[k] is None else round(row[k] / 1e6) for k in ("saved_bytes", "resident_bytes")]
        memory = f"saved {megabytes[0]} MB  added {megabytes[1]} MB"
        print(
            f"{row['size']:>5} threads {row['threads']} {row['supernet']:22} {row['method']:20} "
            f"{row['milliseconds']:9.1f} ms  n={row['n']}  {memory}  calls {row['operator_calls']}"
            f"  floor {row['floor_milliseconds']:.0f} ms"
        )


if __name__ == "__main__":
    main()
