"""The model: an OpenAI-compatible server on loopback that follows a script, whatever it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.align.demo.script import Step


class HostileModel:
    """Serves ``POST /v1/chat/completions``: the n-th request gets the n-th step as one tool call.

    ``heard`` is the body of every request: all that the confined side could tell a model's owner. (The agent's own
    key is in a header, where it belongs.)
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.heard: list[bytes] = []
        lock = threading.Lock()
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                with lock:
                    heard.append(body)
                    turn = len(heard) - 1
                if self.path != "/v1/chat/completions" or turn >= len(steps):
                    self.send_error(404)
                    return
                answer = json.dumps(_answer(turn, steps[turn])).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> HostileModel:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(turn: int, step: Step) -> dict[str, object]:
    call = {
        "id": f"step-{step.name}",
        "type": "function",
        "function": {"name": "bash", "arguments": json.dumps({"command": step.command})},
    }
    return {
        "id": f"turn-{turn}",
        "object": "chat.completion",
        "created": 0,
        "model": "hostile",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": f"Next: {step.asks}.", "tool_calls": [call]},
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
