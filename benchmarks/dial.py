"""Prints and plots the trainings behind the choices of `--minutes`: the loss by size and time.

    python benchmarks/dial.py [--plot docs/dial.svg]

The list RUNS in this file holds the settings of these trainings and their measured losses. To
repeat a training, replace the capital letters of this command by the settings of the training:
    gptcli train model.n_layer=L model.n_embd=C model.n_head=C/64 model.block_size=T \
        train.batch_size=B train.max_steps=N model.dropout=P train.eval_every=N
The plot needs matplotlib (extra `pictures`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gptcli.config import Config
from gptcli.training.choice import block_parameters
from gptcli.training.cost import relative_seconds

RUNS = [
    # n_layer, n_embd, T, B, steps, dropout, loss
    (2, 128, 128, 8, 2600, 0.0, 1.6713),
    (3, 128, 256, 8, 1000, 0.0, 1.6371),
    (4, 128, 256, 4, 1400, 0.0, 1.6453),
    (4, 192, 256, 8, 500, 0.0, 1.6620),
    (4, 128, 256, 8, 2500, 0.0, 1.5575),
    (4, 128, 256, 4, 4500, 0.0, 1.5507),
    (4, 128, 128, 8, 4500, 0.0, 1.5625),
    (3, 192, 256, 8, 2000, 0.0, 1.5557),
    (4, 192, 256, 8, 1500, 0.0, 1.5435),
    (4, 192, 256, 4, 2700, 0.0, 1.5561),
    (4, 192, 256, 16, 800, 0.0, 1.5473),
    (4, 192, 128, 8, 3000, 0.0, 1.5643),
    (6, 192, 256, 4, 1900, 0.0, 1.5637),
    (4, 256, 256, 4, 1600, 0.0, 1.5894),
    (4, 192, 256, 8, 1500, 0.1, 1.6029),
    (4, 192, 256, 4, 2700, 0.1, 1.6301),
    (4, 192, 256, 8, 3000, 0.0, 1.5268),
    (4, 192, 256, 8, 3000, 0.05, 1.5181),
    (4, 192, 256, 8, 4500, 0.1, 1.5161),
    (5, 256, 256, 8, 2700, 0.1, 1.5103),
    (4, 192, 256, 8, 1608, 0.0, 1.5358),
    (5, 256, 256, 8, 2109, 0.02, 1.5033),
    (6, 320, 256, 8, 4519, 0.06, 1.4806),
    (5, 256, 256, 8, 7767, 0.15, 1.4900),
    (6, 384, 256, 16, 1809, 0.1, 1.5094),
]
CHARACTERS = 1_140_545


def main() -> None:
    """Print the table, and draw the plot if --plot names a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    print("| layers, width | T, B | steps | times read | dropout | budget, s | loss |")
    print("|---|---|---|---|---|---|---|")
    for run in sorted(RUNS, key=budget):
        n_layer, n_embd, T, B, steps, dropout, loss = run
        epochs = steps * T * B / CHARACTERS
        print(
            f"| {n_layer}, {n_embd} | {T}, {B} | {steps:,} | {epochs:.1f} | {dropout} "
            f"| {budget(run):.0f} | {loss:.4f} |"
        )
    if asked.plot:
        draw(asked.plot)


def budget(run: tuple[float, ...]) -> float:
    """The seconds that all steps of the run take, as gptcli.training.cost estimates them."""
    n_layer, n_embd, T, B, steps, *_ = run
    model = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // 64, "block_size": T}
    config = Config.model_validate({"model": model, "train": {"batch_size": B}})
    return steps * relative_seconds(config, 68)


def draw(path: Path) -> None:
    """Plot loss against size. Marks and colours show the time, and hollow marks are runs with
    dropout. The same list of runs always gives the same file."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.style.use("tableau-colorblind10")
    plt.rcParams["svg.hashsalt"] = "dial"
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for number, (low, high, mark) in enumerate(
        ((0, 30, "o"), (30, 80, "s"), (80, 130, "^"), (130, 220, "D"), (500, 700, "v"))
    ):
        there = [run for run in RUNS if low <= budget(run) < high]
        first, last = (f"{f(map(budget, there)):.0f}" for f in (min, max))
        for run in there:
            size = block_parameters(int(run[0]), int(run[1])) / 1e6
            colour = f"C{number}"
            axis.plot(size, run[-1], mark, color=colour, mfc="none" if run[5] else colour)
        axis.plot(
            [], [], mark, color=f"C{number}", label=" to ".join(dict.fromkeys((first, last))) + " s"
        )
    axis.plot([], [], "o", color="black", mfc="none", label="hollow: with dropout")
    axis.set_xscale("log")
    axis.set_xlabel("parameters of the blocks, millions")
    axis.set_ylabel("validation loss, nats per character")
    axis.set_xticks([0.5, 1, 2, 5, 10], labels=["0.5", "1", "2", "5", "10"])
    axis.legend(title="time of the steps")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
