"""``config``: what can be configured, and whether a file is valid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pscl_hpc.cli.options import OVERRIDES

config_app = typer.Typer(no_args_is_help=True, help="Print every key of a configuration, or check a file.")

Method = Annotated[str, typer.Option("--method", help="Show the keys of this pretraining method.")]
SemiSupervised = Annotated[str, typer.Option(help="Show the keys of this semi-supervised training.")]
Model = Annotated[str, typer.Option("--model", help="Show the keys of this trunk.")]


@config_app.command("pretrain")
def pretrain(method: Method = "", model: Model = "") -> None:
    """Every key of pretraining with its meaning, type and default, as YAML.

    **Examples**

    `pscl-hpc config pretrain`

    `pscl-hpc config pretrain --method pscl-clustered --model efficientnet-lite0 > my.yaml`
    """
    _describe("pretrain", {"method": method, "model": model})


@config_app.command("finetune")
def finetune(model: Model = "", semi_supervised: SemiSupervised = "") -> None:
    """Every key of fine-tuning with its meaning, type and default, as YAML.

    **Examples**

    `pscl-hpc config finetune > my.yaml`
    """
    _describe("finetune", {"model": model, "semi_supervised": semi_supervised})


@config_app.command("classifier")
def classifier(
    features: Annotated[str, typer.Option(help="Show the keys of these features.")] = "",
    head: Annotated[str, typer.Option(help="Show the keys of this head.")] = "",
    model: Model = "",
) -> None:
    """Every key of a pixel classifier with its meaning, type and default, as YAML.

    **Examples**

    `pscl-hpc config classifier --features trunk --head forest > my.yaml`
    """
    _describe("classifier", {"features": features, "head": head, "model": model})


@config_app.command("study")
def study() -> None:
    """Every key of a study with its meaning, type and default, as YAML.

    **Examples**

    `pscl-hpc config study > my-study.yaml`
    """
    from pscl_hpc.config.describe import describe
    from pscl_hpc.study.config import StudyConfig

    typer.echo(describe(StudyConfig, {}), nl=False)


@config_app.command("check")
def check(
    file: Annotated[
        Path, typer.Argument(help="Configuration of a pretraining, a fine-tuning, a classifier or a study.")
    ],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
) -> None:
    """Validate a file without running it. Archives and weights that it names are not opened.

    **Examples**

    `pscl-hpc config check my.yaml`

    `pscl-hpc config check configs/pretrain/simclr.yaml data.archive=alloys.h5 schedule.steps=100`
    """
    from pscl_hpc.config import load_config, read_tree
    from pscl_hpc.study.config import load_study

    kind = read_tree(file).get("kind", "pretrain")
    if kind == "study":
        load_study(file, overrides or ())
    else:
        load_config(file, overrides or ())
    typer.echo(f"{file}: a valid {kind} configuration")


def _describe(kind: str, chosen: dict[str, str]) -> None:
    from pscl_hpc.classifiers import FEATURES, HEADS
    from pscl_hpc.config import Registry, schema_of
    from pscl_hpc.config.describe import describe
    from pscl_hpc.errors import UserError, did_you_mean
    from pscl_hpc.methods import METHODS
    from pscl_hpc.models import TRUNKS
    from pscl_hpc.segmentation.semi_supervised import SEMI_SUPERVISED

    alternatives: dict[str, Registry[Any, Any]] = {
        "method": METHODS,
        "model": TRUNKS,
        "semi_supervised": SEMI_SUPERVISED,
        "features": FEATURES,
        "head": HEADS,
    }
    for key, names in ((key, registry.names) for key, registry in alternatives.items()):
        if chosen.get(key) and chosen[key] not in names:
            raise UserError(
                f"--{key.replace('_', '-')} {chosen[key]}: not found{did_you_mean(chosen[key], names)}"
            )
    typer.echo(describe(schema_of(kind), {key: name for key, name in chosen.items() if name}), nl=False)
