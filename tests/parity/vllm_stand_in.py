"""An HTTP server that answers as `vllm serve` does to TRL's client, over a transformers model of its own.

It takes only weights whose names and shapes its model has, as vLLM does. What real vLLM receives over NCCL is handed
over in memory after the same announcement.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class StandIn:
    """A running server: `url`, its `model`, and a list of `requests` seen, (path, body) each."""

    def __init__(self, model: Any, tokenizer: Any, noise: float = 0.0) -> None:
        self.model, self.tokenizer, self.noise = model.eval(), tokenizer, noise
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.announced: dict[str, list[int]] = {}
        self.logprobs_mode: str | None = "processed_logprobs"  # None: of a version that does not say
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                answers = {
                    "/health": {},
                    "/v1/models": {"data": [{"id": "stand-in"}]},
                    "/get_world_size": {"world_size": 1},
                    "/server_info": {
                        "vllm_config": {
                            "weight_transfer_config": {"backend": "nccl"},
                            "model_config": {"logprobs_mode": outer.logprobs_mode} if outer.logprobs_mode else {},
                        }
                    },
                }
                self.answer(answers[self.path.split("?")[0]])

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                outer.requests.append((self.path, body))
                self.answer(outer.post(self.path, body))

            def answer(self, value: dict[str, Any]) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/completions":
            return {"choices": [c for prompt in body["prompt"] for c in self.complete(prompt, body)]}
        if path == "/update_weights":
            info = body["update_info"]
            self.announced = dict(zip(info["names"], info["shapes"], strict=True))
        return {"success": True}

    @torch.no_grad()
    def receive(self, name: str, weight: torch.Tensor) -> None:
        """One tensor of an update, in place of NCCL."""
        own = dict(self.model.named_parameters())
        if name not in own:
            raise KeyError(f"There is no module or parameter named {name!r}")  # as vLLM
        assert self.announced[name] == list(weight.shape) == list(own[name].shape)
        own[name].copy_(weight)

    @torch.no_grad()
    def complete(self, prompt: list[int], body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["return_token_ids"]
        assert body["logprobs"] == 0
        choices = []
        for _ in range(body["n"]):
            ids, logprobs = list(prompt), []
            while len(ids) < len(prompt) + body["max_tokens"]:
                logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float() / body["temperature"]
                logits = logits + self.noise * torch.randn(logits.shape)  # as if its kernels were others
                token = int(torch.multinomial(logits.softmax(-1), 1))
                ids.append(token)
                logprobs.append(logits.log_softmax(-1)[token].item())
                if token == self.tokenizer.eos_token_id:
                    break
            tokens = [f"token_id:{token}" for token in ids[len(prompt) :]]
            choices.append(
                {
                    "prompt_token_ids": prompt,
                    "token_ids": ids[len(prompt) :],
                    "logprobs": {
                        "tokens": tokens,
                        "token_logprobs": logprobs,
                        "top_logprobs": [{t: p} for t, p in zip(tokens, logprobs, strict=True)],
                    },
                }
            )
        return choices
