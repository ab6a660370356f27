"""Times the matrix products of our train step, each alone: by shape, and all together beside one large square product.

    python benchmarks/step_products.py [--size full|babyai|tiny] [--precision bf16|f32] [--mode visible|all]
        [--frames 4] [--batch 4] [--text 32] [--actions 12] [--depth 0] [--top 20] [--least-share 0.002] [--json PATH]

Their sum is the time of a step in which everything else costs nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

from machine import describe, write_json
from product_rates import LEAST_SHARE, alone, square_product
from train_step_worker import Case, add_sizes, model_products, run_config, sizes_of

from agent_jax.json_files import json_path


def main() -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--mode", choices=("visible", "all"), default="visible")
    parser.add_argument("--top", type=int, default=20, help="products to print, those that take longest")
    parser.add_argument("--least-share", type=float, default=LEAST_SHARE,
                        help="of the FLOPs of all products; those below count at the mean rate of the others")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    sizes = sizes_of(parser, options)
    machine = describe()
    config = run_config(sizes, Case("ours", options.precision, True, options.mode))
    products, whole = alone(model_products(sizes, config), options.least_share)
    square = square_product("jax", options.precision, options.size)()
    rows: list[dict[str, Any]] = []
    for product in products:
        seconds = product.seconds()
        rows.append({"shapes": product.shapes, "axes": product.axes, "times": product.times,
                     "seconds": seconds * product.times, "flops_per_second": product.flops / seconds})
    rows.sort(key=lambda row: -row["seconds"])
    # Products that are too small to be timed count at the mean rate of the others.
    seconds = sum(row["seconds"] for row in rows) * whole / sum(each.flops * each.times for each in products)
    found = {"seconds": seconds, "flops": whole, "square_flops_per_second": square, "products": rows}
    print(f"all products of a step alone: {1e3 * seconds:.2f} ms, {whole / seconds / 1e12:,.3g} TFLOP/s; one large "
          f"square product: {square / 1e12:,.3g} TFLOP/s")
    print("| operands | contracted, batched | times | ms a step | TFLOP/s |\n|---|---|---:|---:|---:|")
    for row in rows[: options.top]:
        shapes = " . ".join("x".join(map(str, shape)) for shape in row["shapes"])
        print(f"| {shapes} | {row['axes'][0]}, {row['axes'][1]} | {row['times']} | {1e3 * row['seconds']:.2f} | "
              f"{row['flops_per_second'] / 1e12:,.3g} |")
    if options.json:
        write_json(options.json, machine, found)


if __name__ == "__main__":
    main()
