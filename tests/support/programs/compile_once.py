"""Compile a network, and say whether that was in the cache, and the seconds."""

import time

import torch
from torch._dynamo.utils import counters

from cifar100_tk.models import TimmModel
from cifar100_tk.training.compiling import compile_network

net = TimmModel(name="resnet10_cifar_w16").build(100).to(memory_format=torch.channels_last)
compile_network(net)
start_time = time.perf_counter()
net(torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
cache = counters["aot_autograd"]
print(cache["autograd_cache_hit"], cache["autograd_cache_miss"], round(time.perf_counter() - start_time, 1))
