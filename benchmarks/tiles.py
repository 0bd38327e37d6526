"""Which tile, rows × draws at once, is the quickest for log P(x)?

The constants in ``pyrovae/noise.py`` come from here: numbers in the widest layer of a tile down, draws across,
microseconds a draw, compiled; and what pyrovae chooses by itself.

    python benchmarks/tiles.py --json benchmarks/results/tiles.json
"""

from __future__ import annotations

from collections.abc import Callable

from harness import Options, Peer, Table, arguments, compare, report
from peers import binary_rows, mlp_vae
from torch import Tensor

import pyrovae as pv

# Columns, hidden widths, latents; and rows, enough to fill the largest tile.
SIZES = {"50-200-200-784": (784, (200, 200), 50, 336), "8-64-64": (64, (64,), 8, 4096)}
DRAWS = 512
TILE_NUMBERS = tuple(1 << power for power in range(17, 24))
TILE_DRAWS = (32, 128, 512)


def sweep(title: str, options: Options) -> Table:
    """Every tile for one VAE; the ratio is to the tile that pyrovae chooses."""
    width, hidden, latents, num_rows = SIZES[title]
    vae, x = mlp_vae(width, hidden, latents), binary_rows(num_rows, width)
    tiles: dict[str, tuple[int, int] | None] = {"as chosen": None}
    for numbers in TILE_NUMBERS:
        for draws in TILE_DRAWS:
            tiles[name(numbers, draws)] = (max(1, numbers // (width * draws)), draws)
    peers = [Peer(tile, by_tile(vae, x, shape), num_rows * DRAWS) for tile, shape in tiles.items()]
    return compare(
        f"tiles, {title}, K = {DRAWS}",
        peers,
        options=options,
        reference="as chosen",
        unit="µs a draw",
        answer="log P(x), nats a row",
    )


def by_tile(vae: pv.VAE, x: Tensor, tile: tuple[int, int] | None) -> Callable[[], float]:
    return lambda: pv.log_evidence(vae, x, num_samples=DRAWS, tile=tile, compile=True, check=False).mean


def name(numbers: int, draws: int) -> str:
    return f"2^{numbers.bit_length() - 1} numbers, {draws} draws"


def grid(table: Table) -> str:
    """The medians: numbers of a tile down, draws across."""
    lines = [
        f"{table.title}; {table.unit}, {len(table.timings[0].seconds)} rounds",
        "",
        f"| numbers  | {' | '.join(f'{draws:>6} draws' for draws in TILE_DRAWS)} |",
        f"|{'-' * 9}:|{'|'.join('-' * 13 + ':' for _ in TILE_DRAWS)}|",
    ]
    for numbers in TILE_NUMBERS:
        cells = [f"{table.median(name(numbers, draws)):12.3g}" for draws in TILE_DRAWS]
        lines.append(f"| {f'2^{numbers.bit_length() - 1}':>8} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"as chosen: {table.median('as chosen'):.3g}"])


def main() -> None:
    options = Options.of(arguments(__doc__, rounds=5).parse_args())
    tables = []
    for title in SIZES:
        tables.append(sweep(title, options))
        print(grid(tables[-1]), end="\n\n")
    report(tables, options.json)


if __name__ == "__main__":
    main()
