"""Read a published model back by all ways, measure it, and say what came."""

import json
import sys
from pathlib import Path

import timm
import torch

import cifar100_tk
from cifar100_tk import eval

revision, file = sys.argv[1:]
ours = cifar100_tk.load("me/whole").model
theirs = timm.create_model("hf-hub:me/whole", pretrained=True).eval()
before = cifar100_tk.load("me/whole", revision=revision).model
x = torch.randn(4, 3, 32, 32)
try:
    cifar100_tk.load("me/pickled")
except ValueError as error:
    refused = str(error)
sys.argv = ["eval", "me/whole", "--data.source", "shapes100", "--data.shapes100-rows", "100", "100"]
sys.argv += ["--output", file]
eval.main()
print(json.dumps([torch.equal(ours(x), theirs(x)), torch.equal(ours(x), before(x)), refused]))
print(json.dumps(json.loads(Path(file).read_text())))
