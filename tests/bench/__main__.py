"""All benchmarks, each against its ceiling or a peer in the same run: ``make bench``, or with ARGS=--quick."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tests.bench import (
    bench_consumer,
    bench_freshness,
    bench_http,
    bench_ranking,
    bench_sizes,
    bench_swaps,
    bench_training,
)
from tests.bench.world import bench_world, say

NAMES = ("consumer", "freshness", "http", "swaps", "training", "ranking", "sizes")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default all")
    parser.add_argument("--quick", action="store_true", help="shorter runs, rougher numbers")
    options = parser.parse_args()
    chosen = options.names or NAMES
    if unknown := set(chosen) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    results: dict[str, object] = {}
    if {"consumer", "freshness"} & set(chosen):
        with bench_world() as world:
            if "consumer" in chosen:
                results["consumer"] = bench_consumer.run(world, options.quick)
            if "freshness" in chosen:
                results["freshness"] = bench_freshness.run(world, options.quick)
    if "http" in chosen:
        results["http"] = http = bench_http.run(options.quick)
        _say_http(http)
    if "swaps" in chosen:
        results["swaps"] = swaps = bench_swaps.run(options.quick)
        _say_swaps(swaps)
    if "training" in chosen:
        results["training"] = bench_training.run(options.quick)
    if "ranking" in chosen:
        results["ranking"] = bench_ranking.run(options.quick)
    if "sizes" in chosen:
        results["sizes"] = bench_sizes.run(options.quick)
    print(json.dumps(results))


def _say_http(http: dict[str, object]) -> None:
    for name, title in (("default", "as configured"), ("nothing_cached", "no ranking kept in memory")):
        part = dict(http[name])  # type: ignore[call-overload]
        at = part["at_1000_per_second"]
        say(
            f"http, {title}: 1,000 requests/s, p50 {at['p50_ms']:.1f} p90 {at['p90_ms']:.1f} p99 {at['p99_ms']:.1f} ms "
            f"(wanted p90 under 7, p99 under 25); at most {part['most_per_second']:,.0f}/s; "
            f"{part['cache_hit_share']:.0%} from memory"
        )
    if "serenade" in http:
        say(f"http, ratio to serenade on the same machine in the same run: {http['ratio_to_serenade']}")


def _say_swaps(swaps: dict[str, Any]) -> None:
    during, between = swaps["during"], swaps["between"]
    say(
        f"swaps: {swaps['swaps']} under load; {swaps['failed_requests']} of {swaps['answers']} requests failed (must "
        f"be 0); in use after {swaps['swap_s_median']} s, at most {swaps['swap_s_max']} s (wanted 5); p50 "
        f"{during['p50_ms']:.1f} p99 {during['p99_ms']:.1f} ms during swaps, {between['p50_ms']:.1f} and "
        f"{between['p99_ms']:.1f} ms between them"
    )


if __name__ == "__main__":
    main()
