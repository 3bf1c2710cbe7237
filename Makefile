# README's two commands are `make demo` and `make test`; each does all its own set-up on a machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and by itself: where a CPU build is offered pip takes it, and nothing later pulls a CUDA build in. PyPI's build
# for Linux brings NVIDIA's libraries (2.7 GB); TORCH_INDEX=https://download.pytorch.org/whl/cpu has one without them.
TORCH := torch==2.13.0
TORCH_INDEX ?=

.PHONY: demo test test-lan test-token test-private test-tiers test-mqtt check bench bench-idle bench-wan bench-tcp bench-peers test-clients test-healing soak chaos seeding rehearsal soak-serve screenshots sanitize clean

demo: $(VENV)/.installed
	$(BIN)/shoal demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

# Three machines on a LAN without an uplink, as network namespaces: needs root and ip (iproute2), else it skips.
test-lan: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/swarm/lan_without_internet.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.links $(BIN)/lint-imports
	$(BIN)/python tools/check_native.py
	$(BIN)/python tools/messages.py --check
	$(BIN)/python tools/check_wheel.py

bench: $(VENV)/.installed
	$(BIN)/shoal bench wire
	$(BIN)/shoal bench kernels
	$(BIN)/shoal bench formats

# Decoding over networks of namespaces, delays, losses and rates: needs root, else it skips. It ends within 13 minutes and
# writes build/bench-wan/table.md and result.json. WAN="--quick" takes one, WAN="--full" has every combination (an hour).
bench-wan: $(VENV)/.installed
	$(BIN)/python -m shoal.simulations.bench.wan $(WAN)

# What TCP's congestion control costs an exchange over a network, as the kernel has it and as our sockets choose (root).
bench-tcp: $(VENV)/.installed
	$(BIN)/python -m shoal.simulations.wan.tcp_echo
	$(BIN)/python -m shoal.simulations.wan.channel_echo

# What the directory costs idle nodes, by cause: twenty peers in a network namespace of their own; ten minutes. Then our
# own calls alone, counted under the virtual clock.
bench-idle: $(VENV)/.installed
	unshare --net --map-root-user sh -c 'ip link set lo up; $(BIN)/python -m shoal.simulations.bench.idle_directory --peers 20'
	$(BIN)/python -m shoal.simulations.bench.idle_messages

# What every named swarm would give, as the table of docs/SIMULATE.md, and its pictures (matplotlib is in `plots`). No
# measurement: half a minute of any machine.
forecast: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt matplotlib
	$(BIN)/python -m shoal.simulations.forecast.table --pictures docs

# The forecast and the planner against real processes on sixteen networks of namespaces: needs root and a quiet machine;
# some minutes. Fails if a row misses. FORECAST="--quick" is half of it.
validate-forecast: $(VENV)/.installed
	$(BIN)/shoal simulate validate --real $(FORECAST)

# Calls beside hivemind's, decoding beside transformers' and llama.cpp's RPC (root, for namespaces), kernels beside
# kt-kernel's, ggml's and torch's own. Peers get environments of their own (made once: some minutes, 4 GB).
bench-peers: $(VENV)/.installed
	$(BIN)/python -m shoal.simulations.bench.peers.calls
	$(BIN)/python -m shoal.simulations.bench.peers.decode --environments .venv-peers
	$(BIN)/python -m shoal.simulations.bench.peers.rpc --environments .venv-peers
	$(BIN)/python -m shoal.simulations.bench.peers --environments .venv-peers

# openai-python 2 and 3, langchain, litellm, llm, lm-eval, openai-node and the AI SDK against `shoal serve --demo`; needs node and npm.
test-clients: $(VENV)/.installed
	$(BIN)/python tests/clients/run.py

# Telemetry against amqtt (in an environment of its own) and, where it is installed, Debian's mosquitto.
test-mqtt: $(VENV)/.installed-dev
	$(BIN)/python tests/mqtt/run.py

# A node and two clients with an empty disk and a token, each, against a founder that is killed: tokens as the oracle's.
test-token: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/swarm/token_suite.py

# The same in a private swarm, with strangers who ask at every door and a member who is revoked while his node runs.
test-private: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/swarm/private_suite.py

# A node with experts in memory and others on disk, whose only companion is killed: tokens as the oracle's.
test-tiers: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/swarm/tiers_suite.py

# Four node processes, one killed with SIGKILL in mid-answer: another takes over what only one still holds.
test-healing: $(VENV)/.installed
	$(BIN)/python tests/healing/run.py

# Ten minutes of eight clients at the gateway while nodes are killed, leave and come back.
soak-serve: $(VENV)/.installed
	$(BIN)/python -m shoal.simulations.bench.soak_serve --minutes 10

# A hundred thousand seeds of faults under the virtual clock; `make test` runs the first thousand. Some hours: ended by
# Ctrl-C or otherwise, the next `make soak` goes on. A changed program is refused until .soak.json is removed.
soak: $(VENV)/.installed
	$(BIN)/shoal simulate seeds --count 100000 --resume .soak.json

# Real processes in network namespaces: killed, frozen, cut off, restarted. Needs root; some minutes.
chaos: $(VENV)/.installed
	$(BIN)/shoal simulate chaos --repeats 10

# DeepSeek-V3.1 at its true size without its weights: plan, fetch, verify, assign. About a minute and 9 GB of disk.
rehearsal: $(VENV)/.installed
	$(BIN)/python -m shoal.simulations.rehearsal --into docs/REHEARSAL.md

# Fifty nodes that join at once, under a virtual clock: where their weights come from, and how fast. Some minutes.
seeding: $(VENV)/.installed
	$(BIN)/python -m shoal.simulations.seeding --into docs/SEEDING.md

screenshots: $(VENV)/.installed-dev
	$(BIN)/python tools/screenshot.py
	PYTHONPATH=.links:. $(BIN)/python tools/screens.py

# The kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer. Both must be loaded before Python; Python and
# torch keep memory until they end, so leaks are not looked for.
sanitize: $(VENV)/.installed-dev
	$(BIN)/python tools/sanitize.py

NATIVE := CMakeLists.txt $(wildcard kernels/csrc/*)

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) tools/check_python.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python tools/link.py
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-clients .venv-mqtt .links build dist
