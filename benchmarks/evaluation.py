"""What does importance-weighted log P(x) cost: pyrovae's, plain Pyro's, and one written by hand in torch?

Microseconds a (row, sample) for K = 5000 draws a row, on the same networks and rows. Plain Pyro traces the
guide and the model under a plate of all K particles, for a few rows at a time. The hand-written loop goes
over blocks of rows and draws whose temporaries stay near the cache, and sums the log weights up. Both give
log P(x) alone; pyrovae checks the pair and gives error, bias, ESS and k-hat besides. The ratio is to plain
Pyro. The floor is the decoder's matrix products alone, with nothing before, between or after them, in
blocks of the size that is quickest for them. Compiling is done before, and its time given by itself. With ``--tiles`` the question is which tile (rows × samples at once) pyrovae should choose; the
constants in ``pyrovae/noise.py`` come from there.

    python benchmarks/evaluation.py --json benchmarks/results/evaluation.json
    python benchmarks/evaluation.py --tiles --json benchmarks/results/tiles.json
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
import torch._inductor.config
import torch.nn.functional as F
from harness import Options, Peer, Table, arguments, compare, report
from peers import TutorialVAE, binary_rows, mlp_vae, networks
from pyro import poutine
from torch import Tensor

import pyrovae as pv


@dataclass(frozen=True)
class Size:
    """A VAE and the work it is timed on.

    Attributes:
        rows, samples: of a run of the peers.
        rows_at_once: plain Pyro's chunk, about 60 MB for the observed site.
        tile_rows, tile_samples: of a run of the sweep, enough to fill the largest tile.
    """

    title: str
    data_dim: int
    hidden_dims: tuple[int, ...]
    latent_dim: int
    rows: int
    samples: int
    rows_at_once: int
    tile_rows: int
    tile_samples: int

    def vae(self) -> pv.VAE:
        return mlp_vae(self.data_dim, self.hidden_dims, self.latent_dim)


SIZES = (
    Size(
        "MNIST-sized: 50-200-200-784",
        784,
        (200, 200),
        50,
        rows=40,
        samples=5000,
        rows_at_once=4,
        tile_rows=336,
        tile_samples=512,
    ),
    Size(
        "small: 8-64-64",
        64,
        (64,),
        8,
        rows=384,
        samples=5000,
        rows_at_once=48,
        tile_rows=4096,
        tile_samples=512,
    ),
)

# Of the hand-written loop: numbers of x times samples in a block, the quickest of 2^17 … 2^22, and samples.
BLOCK_ELEMENTS = 1 << 20
BLOCK_SAMPLES = 128

# Rows of a bare product, for the floor.
AT_ONCE = (512, 1280, 2500, 5000)
FLOOR = "floor: the products, {} at once"

TILE_ELEMENTS = tuple(1 << power for power in range(17, 24))
TILE_SAMPLES = (32, 128, 512)


def by_pyrovae(size: Size, x: Tensor, compiled: bool) -> Callable[[], float]:
    vae = size.vae()
    return lambda: pv.log_evidence(vae, x, num_samples=size.samples, compile=compiled).mean


def products(size: Size, at_once: int) -> Callable[[], float]:
    """The decoder's matrix products for all rows and draws, so many of them at once."""
    weights = [layer.weight.detach().T for layer in networks(size.vae())[1] if hasattr(layer, "weight")]
    z = torch.randn(at_once, size.latent_dim)
    held = [torch.empty(at_once, weight.shape[1]) for weight in weights]

    def run() -> float:
        for _ in range(size.rows * size.samples // at_once):
            layer = z
            for weight, product in zip(weights, held, strict=True):
                layer = torch.mm(layer, weight, out=product)
        return math.nan

    return run


def by_pyro(size: Size, x: Tensor, validation: bool) -> Callable[[], float]:
    """Guide and model traced under a plate of K particles, some rows at a time."""
    pair = TutorialVAE(f"{size.title}-{validation}", *networks(size.vae()), size.latent_dim)

    def log_evidence(rows: Tensor) -> Tensor:
        with pyro.plate("particles", size.samples, dim=-2):
            guide = poutine.trace(pair.guide).get_trace(rows)
            model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(rows)
        guide.compute_log_prob()
        model.compute_log_prob()
        log_joint = model.nodes["latent"]["log_prob"] + model.nodes["obs"]["log_prob"]
        log_weights = log_joint - guide.nodes["latent"]["log_prob"]
        return torch.logsumexp(log_weights, dim=0) - math.log(size.samples)

    @torch.no_grad()
    def run() -> float:
        with pyro.validation_enabled(validation):
            return torch.cat([log_evidence(rows) for rows in x.split(size.rows_at_once)]).mean().item()

    return run


def by_hand(size: Size, x: Tensor) -> Callable[[], float]:
    """Torch alone, in blocks of rows × draws; a row is encoded once."""
    encoder, decoder = networks(size.vae())
    height = max(1, BLOCK_ELEMENTS // (size.data_dim * BLOCK_SAMPLES))

    def log_weights(rows: Tensor, loc: Tensor, log_scale: Tensor, num_samples: int) -> Tensor:
        unit = torch.randn(num_samples, *loc.shape)
        z = loc + log_scale.exp() * unit
        logits = decoder(z)
        # log P(x | z) = x·logit − Σ softplus(logit): one pass over the block less than cross-entropy.
        likelihood = torch.einsum("srd,rd->sr", logits, rows) - F.softplus(logits).sum(dim=-1)
        return likelihood + ((unit**2 - z**2) / 2 + log_scale).sum(dim=-1)

    @torch.no_grad()
    def run() -> float:
        found = []
        for rows in x.split(height):
            loc, log_scale = encoder(rows).chunk(2, dim=-1)
            blocks = [
                log_weights(rows, loc, log_scale, min(BLOCK_SAMPLES, size.samples - first))
                for first in range(0, size.samples, BLOCK_SAMPLES)
            ]
            found.append(torch.logsumexp(torch.cat(blocks), dim=0) - math.log(size.samples))
        return torch.cat(found).mean().item()

    return run


def measure(size: Size, options: Options) -> Table:
    """The table of one size."""
    x = binary_rows(size.rows, size.data_dim)
    reference = "Pyro, K particles at once"
    runs = {
        reference: by_pyro(size, x, validation=True),
        "Pyro, validation off": by_pyro(size, x, validation=False),
        "torch by hand, in blocks": by_hand(size, x),
        "pyrovae, compile=False": by_pyrovae(size, x, compiled=False),
        "pyrovae, compile=True": by_pyrovae(size, x, compiled=True),
        **{FLOOR.format(at_once): products(size, at_once) for at_once in AT_ONCE},
    }
    return compare(
        f"{size.title}, K = {size.samples}",
        [Peer(name, run, size.rows * size.samples) for name, run in runs.items()],
        options=options,
        reference=reference,
        unit="µs a draw",
        answer="log P(x), nats a row",
    )


def shares(table: Table) -> str:
    """What compiled tiles have of the best bare product of the same run."""
    floor = min(table.median(FLOOR.format(at_once)) for at_once in AT_ONCE)
    compiled = table.median("pyrovae, compile=True")
    return f"products: {floor:.3g} {table.unit}, {floor / compiled:.0%} of what compiled tiles take"


def compiling(size: Size) -> str:
    """The seconds that a first compiled evaluation of one tile takes, with nothing kept on the disk."""
    x = binary_rows(size.rows, size.data_dim)
    seconds = []
    for compiled in (False, True):
        started = time.perf_counter()
        with torch._inductor.config.patch(force_disable_caches=True):
            pv.log_weights(size.vae(), x, num_samples=128, compile=compiled)
        seconds.append(time.perf_counter() - started)
    return f"compiling takes {seconds[1] - seconds[0]:.1f} s"


def sweep(size: Size, options: Options) -> Table:
    """Every tile size for one VAE, through ``log_evidence``; the ratio is to the tile pyrovae chooses."""
    vae = size.vae()
    x = binary_rows(size.tile_rows, size.data_dim)

    def peer(name: str, tile: tuple[int, int] | None) -> Peer:
        def run() -> float:
            return pv.log_evidence(vae, x, num_samples=size.tile_samples, tile=tile, compile=True).mean

        return Peer(name, run, size.tile_rows * size.tile_samples)

    peers = [peer("as chosen", None)]
    for elements in TILE_ELEMENTS:
        for samples in TILE_SAMPLES:
            height = max(1, elements // (size.data_dim * samples))
            peers.append(peer(tile_name(elements, samples), (height, samples)))
    return compare(
        f"tiles, {size.title}, K = {size.tile_samples}",
        peers,
        options=options,
        reference="as chosen",
        unit="µs a draw",
        answer="log P(x), nats a row",
    )


def tile_name(elements: int, samples: int) -> str:
    return f"2^{elements.bit_length() - 1} elements, {samples} samples"


def grid(table: Table) -> str:
    """A sweep's medians: elements of a tile down, samples of a tile across."""
    lines = [
        f"{table.title}; {table.unit}, {len(table.timings[0].seconds)} rounds",
        "",
        f"| elements | {' | '.join(f'{samples:>4} samples' for samples in TILE_SAMPLES)} |",
        f"|{'-' * 9}:|{'|'.join('-' * 13 + ':' for _ in TILE_SAMPLES)}|",
    ]
    for elements in TILE_ELEMENTS:
        cells = [f"{table.median(tile_name(elements, samples)):12.3g}" for samples in TILE_SAMPLES]
        lines.append(f"| {f'2^{elements.bit_length() - 1}':>8} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"as chosen: {table.median('as chosen'):.3g}"])


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--tiles", action="store_true", help="sweep the tile instead")
    parsed = parser.parse_args()
    options = Options.of(parsed)
    tables = []
    for size in SIZES:
        tables.append((sweep if parsed.tiles else measure)(size, options))
        print(grid(tables[-1]) if parsed.tiles else tables[-1])
        if not parsed.tiles:
            print(f"{shares(tables[-1])}; {compiling(size)}")
        print()
    report(tables, options.json)


if __name__ == "__main__":
    main()
