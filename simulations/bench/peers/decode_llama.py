"""llama.cpp decodes the small DeepSeek-V3, alone or with its layers on RPC servers, by its own Python binding.

decode_llama DIRECTORY GGUF [HOST:PORT …]     {"tokens": 48, "streams": 1} -> {"ids": [[…]], "seconds": […]}, of
every step but the first, which is the prompts'. {"kill": PID, "after": 16} besides: kill a server within the answer.

Runs in llama.cpp's environment, one thread. Without servers everything is in this process; with servers all layers and
the head are on them in equal parts, as `--rpc` does, and the embedding stays here. GGUF is written if it is not there.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np

from shoal.simulations.bench.peers.gguf_model import write_gguf
from shoal.simulations.bench.peers.program import Answer, answer_lines
from shoal.simulations.bench.peers.small_model import PROMPT_IDS, SHAPE, prompt_of

VOCAB_SIZE = int(str(SHAPE["vocab_size"]))
CONTEXT_TOKENS = 512
"""Of each stream."""

ALL_LAYERS = 999


class Llama:
    """A model, and a context for each number of streams that was asked for."""

    def __init__(self, path: Path, servers: Sequence[str]) -> None:
        """
        Raises:
            RuntimeError: the model does not open.
        """
        llama_cpp.llama_backend_init()
        for server in servers:
            _add_server(server)
        model_settings = llama_cpp.llama_model_default_params()
        model_settings.n_gpu_layers = ALL_LAYERS if servers else 0
        self._shares = (ctypes.c_float * 16)(*[1.0] * len(servers))
        model_settings.tensor_split = self._shares if servers else None
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_settings)
        if not self._model:
            raise RuntimeError("llama.cpp does not open the model")
        self._contexts: dict[int, Context] = {}

    def decode(self, num_tokens: int, num_streams: int, kill: int = 0, after: int = 0) -> Answer:
        """So many greedy answers together. kill: process that gets SIGKILL before step `after`; 0: none."""
        context = self._contexts.get(num_streams) or Context(self._model, num_streams)
        self._contexts[num_streams] = context
        context.clear()
        steps = [prompt_of(stream) for stream in range(num_streams)]
        ids: list[list[int]] = [[] for _ in steps]
        seconds, position = list[float](), 0
        for number in range(num_tokens):
            if kill and number == after:
                os.kill(kill, signal.SIGKILL)
            started = perf_counter()
            chosen = context.step(steps, position)
            seconds.append(perf_counter() - started)
            position += len(steps[0])
            steps = [[each] for each in chosen]
            for stream, each in zip(ids, chosen, strict=True):
                stream.append(each)
        return {"ids": ids, "seconds": seconds[1:]}


class Context:
    """The caches of some streams."""

    def __init__(self, model: int, num_streams: int) -> None:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = CONTEXT_TOKENS * num_streams, num_streams
        settings.n_batch = settings.n_ubatch = len(PROMPT_IDS) * num_streams
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        # on, which "auto" makes it, logits of this model are 0.3 off transformers' (relative L2); off, 9e-7
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)

    def clear(self) -> None:
        """Forget all answers."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def step(self, steps: Sequence[Sequence[int]], position: int) -> list[int]:
        """The next token of every stream, whose new tokens stand from `position` on."""
        batch, count = self._batch, 0
        last = list[int]()
        for stream, tokens in enumerate(steps):
            for offset, token in enumerate(tokens):
                batch.token[count], batch.pos[count] = token, position + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, stream
                batch.logits[count] = offset == len(tokens) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        return [int(np.argmax(self._logits(place))) for place in last]

    def _logits(self, place: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, place), (VOCAB_SIZE,))


def _add_server(server: str) -> None:
    """What `common/arg.cpp` does for `--rpc`."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml.so"))
    rpc = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-rpc.so"))
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    library.ggml_backend_register.argtypes = [ctypes.c_void_p]
    added = rpc.ggml_backend_rpc_add_server(server.encode())
    if not added:
        raise RuntimeError(f"llama.cpp does not reach {server}")
    library.ggml_backend_register(added)


def main() -> None:
    """Write the model if need be, open it, answer."""
    directory, path = Path(sys.argv[1]), Path(sys.argv[2])
    if not path.exists():
        write_gguf(directory, path)
    llama = Llama(path, sys.argv[3:])
    answer_lines(
        lambda asked: llama.decode(asked["tokens"], asked["streams"], asked.get("kill", 0), asked.get("after", 0))
    )


if __name__ == "__main__":
    main()
