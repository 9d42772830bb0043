"""Writes a run for wandb: offline, unless the user sets WANDB_MODE."""

from __future__ import annotations

import html
import os
import shutil
from pathlib import Path

from gptcli.loggers.log import RunFacts
from gptcli.loggers.rows import Row, Sample

PROJECT = "gptcli"


class WandbLog:
    """A wandb run, stored in the subfolder wandb of `folder`. Its steps are those of the training.

    Offline, the log replaces the files of earlier logs of this run. Online, the log continues the
    earlier wandb run. wandb accepts each step only once, so the log leaves out the rows up to
    wandb's last step."""

    def __init__(self, folder: Path, facts: RunFacts) -> None:
        files = folder / "wandb"
        files.mkdir(parents=True, exist_ok=True)
        offline = os.environ.setdefault("WANDB_MODE", "offline") not in ("online", "shared", "run")
        # Without this, wandb reports its own errors to its makers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._cache = files / "cache"
        shutil.rmtree(self._cache, ignore_errors=True)
        for name in ("CACHE", "DATA", "ARTIFACT"):
            os.environ[f"WANDB_{name}_DIR"] = str(self._cache)
        if offline:  # online, the user's settings and login apply
            os.environ["WANDB_CONFIG_DIR"] = str(self._cache)
            for earlier in files.glob(f"offline-run-*-{facts.identity}"):
                shutil.rmtree(earlier)
        import wandb

        self._html = wandb.Html
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=facts.identity,
            name=facts.name,
            dir=str(folder),
            config=facts.config,
            resume=None if offline else "allow",
            settings=wandb.Settings(
                silent=True,
                symlink=False,
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                x_start_time=facts.began,
            ),
        )
        self._logged = self._run.step - 1 if self._run.resumed else -1

    def row(self, row: Row, time: float) -> None:
        if row.step > self._logged:
            self._run.log({**row.values, "_timestamp": time}, step=row.step)
            self._logged = row.step

    def sample(self, sample: Sample, time: float) -> None:
        text = self._html(f"<pre>{html.escape(sample.text)}</pre>", inject=False)
        # The sample at the end belongs to the best step, which can be earlier than the last row.
        self._logged = max(sample.step, self._logged)
        self._run.log(
            {"sample": text, "sample_step": sample.step, "_timestamp": time}, step=self._logged
        )

    def flush(self) -> None:
        """Do nothing, because wandb writes in its own process."""

    def close(self) -> None:
        self._run.finish()
        # Links in `logs` lead into the cache, which is deleted below. Links to missing files would
        # break a copy of the run folder.
        for path in self._cache.parent.glob(f"*-{self._run.id}/logs/*"):
            if path.is_symlink():
                path.unlink()
        shutil.rmtree(self._cache, ignore_errors=True)
