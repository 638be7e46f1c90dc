"""``millrace check-feature``: proof that features do not look ahead."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from millrace.cli_options import ConfigOption, JsonOption, SetOption, print_json
from millrace.settings import load_settings


def check_feature(
    features: Annotated[
        list[str] | None,
        typer.Argument(help="Names such as 'rsi(14)', '1h:log_close' or package.module:function; none: env.features."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV of bars to check on, as for feed.file; none: random bars.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed does the same checks.")] = 0,
    trials: Annotated[
        int | None, typer.Option("--trials", min=5, help="Times that the future of each feature is changed.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the future at random, and demand the same past of each feature, bit for bit. Exits with 1 if one differs.

    Also checks that a feature looks no further back than it declares, and that its values are finite. Modules are found
    on the Python path and in the working directory.
    """
    from env.bars import SymbolBars
    from env.lookahead import TRIALS
    from env.lookahead import check_feature as check
    from millrace.pipeline import read_bars
    from millrace.report import Progress, console

    settings = load_settings(config, [*(set_ or ()), *([f"feed.file={file}"] if file else [])])
    bars = None
    if file is not None:
        feed = read_bars(settings, Progress(console(stderr=True)))
        bars = [
            SymbolBars(
                item.symbol, 0, item.ts_open, item.ts_close, item.open, item.high, item.low, item.close, item.volume,
                item.funding_rate,
            )
            for item in feed.bars.values()
        ]  # fmt: skip
    # Behind everything else, so that a folder named as one of ours shadows nothing.
    sys.path.append(str(Path.cwd()))
    report = check(features or settings.env.features, bars, seed=seed, trials=trials or TRIALS)
    if as_json:
        print_json(asdict(report) | {"ok": report.ok})
    else:
        typer.echo(str(report))
    raise typer.Exit(0 if report.ok else 1)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("check-feature", epilog="Example: millrace check-feature 'rsi(14)' my_features:momentum")(check_feature)
