"""One of two processes that measure images of many counts, and write what they get."""

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from sides import AS_IS, Sides, sided

from cifar100_tk.evaluation.predictions import evaluate, predict

accelerator = Accelerator()
rank = accelerator.process_index
found: dict[str, Any] = {"num_processes": accelerator.num_processes}
for count in (1, 2, 7, 40):
    for flip in (False, True):
        said = predict(Sides(), sided(count), AS_IS, accelerator=accelerator, batch_size=3, flip=flip)
        found[f"{count} {flip}"] = [said.logits.tolist(), said.labels.tolist(), said.rows.tolist()]
    found[f"{count} sums"] = vars(evaluate(Sides(), sided(count), AS_IS, accelerator=accelerator, batch_size=3))
Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(found))
accelerator.end_training()  # A group that is left to the end of the interpreter may abort it.
