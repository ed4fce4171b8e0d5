"""TensorBoard: event files in the folder `tensorboard` of the run directory (`tensorboard --logdir runs`).

They are no more than another form of the journal: a later sitting writes them anew from it.
"""

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from fedcl.track.tracker import About

FOLDER = "tensorboard"
FLUSH = 5  # seconds after which a file has what was logged


class TensorBoard:
    """A writer of event files."""

    def __init__(self, about: About) -> None:
        self._parameters, folder = dict(about.parameters), about.folder / FOLDER
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        # From step 0 on: a TensorBoard that shows the run already forgets what it has read.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=FLUSH)
        lines = [f"    {key}: {value}" for key, value in about.parameters.items()]
        self._writer.add_text("configuration", "\n".join(lines), 0)

    def last(self, name: str) -> int:
        """Return -1: the files are new."""
        return -1

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """Write scalars of a round."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)

    def close(self, status: str, round: int, figures: Mapping[str, float]) -> None:
        """Write the figures beside the configuration (HPARAMS compares runs by them) and close the file."""
        if figures:
            named = {f"figure/{name}": value for name, value in figures.items()}
            self._writer.add_hparams(self._parameters, named, run_name=".", global_step=round)
        self._writer.close()
