"""What only fmopt opens, PyTorch checkpoints among it, served in a process of its own:

python -m fmopt.measurement.runtime_process REQUEST
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.model import Artifact
from fmopt.edge.board.footprint import served


def open_torch(request: dict[str, Any]) -> Any:
    """A call of the checkpoint's network."""
    import torch

    from fmopt.models.structure import load_network
    from fmopt.models.wrappers.seq2seq import EncoderDecoder, is_encoder_decoder

    torch.set_num_threads(request["threads"])
    options = request["options"]
    net = load_network(Path(request["path"]), options.get("auto_class", "AutoModel"), options.get("dtype", "fp32"))

    if is_encoder_decoder(net):
        return EncoderDecoder(net).run

    def run(inputs: dict[str, np.ndarray]) -> Any:
        with torch.inference_mode():
            return net(**{name: torch.from_numpy(array) for name, array in inputs.items()})

    return run


def open_other(request: dict[str, Any]) -> Any:
    """The run method of a runner of another package's runtime."""
    artifact = Artifact(request["runtime"], Path(request["path"]), request["options"])
    return plugins.find("runtimes", artifact.runtime).open(artifact, request["threads"]).run


def main(words: str) -> None:
    """Serve what the request says, and print what it took."""
    request = json.loads(words)
    opened = open_torch if request["runtime"] == "torch" else open_other
    print(json.dumps(served(request, lambda: opened(request))))


if __name__ == "__main__":
    main(sys.argv[1])
