# `make check` is exactly what continuous integration runs.
.PHONY: check format docs notebook transcripts recording distributed multi-node slurm soak mutations gpu

check:
	ruff format --check .
	ruff check .
	mypy --strict
	lint-imports
	$(MAKE) docs
	pytest -n auto cifar100_tk tests

# The documentation site, in docs/_build; a broken link or an object that cannot be imported fails the build.
docs:
	sphinx-build -W --keep-going -q -b html docs docs/_build

# Runs docs/notebook.ipynb again and saves its outputs; a minute or two on two quiet cores.
notebook:
	python -c "import nbclient, nbformat; path = 'docs/notebook.ipynb'; notebook = nbformat.read(path, 4); \
		nbclient.NotebookClient(notebook, record_timing=False).execute(); nbformat.write(notebook, path)"

# Runs every command of the documents' transcripts once, the quickstart among them, and writes its output into the documents and
# benchmarks/results/transcripts.json; ten minutes on two cores. Needs the extras `dev` and, for two hosts, root and iproute2.
transcripts:
	python benchmarks/transcripts.py

# The terminal recording in the README: trains the quickstart, evaluates it and draws both, in two minutes on two quiet cores.
recording:
	python benchmarks/recording.py

# All tests that start several processes, including the slow ones that `check` skips: one process against micro-batches and
# two processes, every way in which one of two can fail, and two hosts.
distributed:
	pytest -m distributed tests

format:
	ruff format .
	ruff check --fix .

# What `check` has no time for: every moment at which a run can be killed, stopped or refused a write, random ones, Inductor, two hosts.
soak:
	pytest -m slow -rP tests

# Breaks one line of a copy of the package at a time, and lists whether the tests beside it fail, in tests/mutations.md.
mutations:
	python tests/mutations.py

# One run across two hosts, which are network namespaces of this machine; needs root and iproute2.
multi-node:
	pytest -m slow tests/integration/distributed/test_multi_node.py -rs

# slurm.sbatch under Slurm: a time limit, a requeue and a lost node; needs root, and Debian's slurm-wlm and munge. Ten minutes.
slurm:
	pytest -m slow tests/integration/distributed/test_slurm.py -rs

# Measures a GPU machine, docs/gpu.md. GPU: arguments of all phases, such as GPU="--data.source PATH --data.holdout 5000".
gpu:
	for phase in check step train; do \
		until python benchmarks/gpu.py $$phase $(GPU); do [ $$? -eq 75 ] || break; done; \
	done
