"""Bad input gets a clear error, never a crash, and nothing is leaked."""

import json
import unittest

from cluster import Cluster, MODEL_NAME, connect_raw

CHAT = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
COMPLETION = {"model": MODEL_NAME, "prompt": "Hello", "max_tokens": 4}


def raw_request(cluster, data):
    """Sends bytes, half-closes, returns what came back."""
    sock = connect_raw(cluster)
    received = b""
    try:
        sock.sendall(data)
        while True:
            piece = sock.recv(65536)
            if not piece:
                break
            received += piece
            if b"\r\n\r\n" in received and b"Connection: close" not in received:
                break
    except (ConnectionResetError, BrokenPipeError):
        pass
    finally:
        sock.close()
    return received


class BadInputTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def tearDown(self):
        self.assertTrue(all(w.popen.poll() is None for w in self.cluster.workers), "a worker died")
        self.assertIsNone(self.cluster.router.popen.poll(), "the router died")
        self.cluster.wait_until_nothing_is_held()

    def refused(self, path, body, status, contains=""):
        got, headers, raw = self.cluster.request("POST", path, body)
        self.assertEqual(got, status, f"{body!r:.300} -> {raw[:300]!r}")
        error = json.loads(raw)["error"]
        self.assertTrue(error["message"] and error["type"])
        self.assertIn(contains, error["message"] + str(error.get("param")))

    def test_malformed_json(self):
        for body in [b"", b"{", b"[]", b"null", b'"x"', b'{"model":', b"{'model': 1}", b"\xff\xfe{}", b"{}{}",
                     b"[" * 100000, b'{"a":' * 50000, b'{"messages": [{"role":"user","content":"\xc3\x28"}]}']:
            self.refused("/v1/chat/completions", body, 400)

    def test_wrong_types(self):
        for field, value in [("messages", "hi"), ("messages", []), ("messages", [1]), ("messages", [{"role": "king"}]),
                             ("messages", [{"role": "user", "content": 5}]), ("temperature", "hot"), ("n", 1.5),
                             ("stop", {"a": 1}), ("stop", [1]), ("stream", "yes"), ("logit_bias", [1]),
                             ("seed", "x"), ("max_tokens", "many"), ("logprobs", "x"), ("stop_token_ids", "x")]:
            self.refused("/v1/chat/completions", {**CHAT, field: value}, 400, field)

    def test_absurd_numbers(self):
        for field, value in [("temperature", -1), ("temperature", 1e30), ("top_p", 0), ("top_p", 1.5), ("top_k", -7),
                             ("min_p", 2), ("n", 0), ("n", -1), ("n", 2**31), ("n", 10**30), ("max_tokens", -5),
                             ("max_tokens", 2**63), ("presence_penalty", 9), ("frequency_penalty", -9),
                             ("repetition_penalty", 0), ("min_tokens", -1), ("top_logprobs", 99)]:
            body = {**CHAT, field: value}
            if field == "top_logprobs":
                body["logprobs"] = True
            self.refused("/v1/chat/completions", body, 400, field)
        for raw in [b'{"prompt":"x","temperature":1e309}', b'{"prompt":"x","temperature":NaN}',
                    b'{"prompt":"x","max_tokens":-0.5}', b'{"prompt":"x","logit_bias":{"99999999":1}}',
                    b'{"prompt":"x","stop_token_ids":[-1]}', b'{"prompt":[1,-1]}', b'{"prompt":[4096000]}',
                    b'{"prompt":[1.5]}', b'{"prompt":[]}', b'{"prompt":"x","stop":["a","b","c","d","e","f","g",'
                    b'"h","i","j","k","l","m","n","o","p","q"]}']:
            self.refused("/v1/completions", raw, 400)

    def test_unknown_model_and_paths(self):
        self.refused("/v1/chat/completions", {**CHAT, "model": "gpt-17"}, 404, "gpt-17")
        self.assertEqual(self.cluster.request("POST", "/v1/nonsense", {})[0], 404)
        status, headers, _ = self.cluster.request("GET", "/v1/chat/completions")
        self.assertEqual(status, 405)
        self.assertIn("POST", headers["Allow"])

    def test_too_long(self):
        self.refused("/v1/completions", {**COMPLETION, "prompt": [5] * 5000}, 400, "maximum context length is 4096 tokens")
        self.refused("/v1/completions", {**COMPLETION, "prompt": [5] * 4000, "max_tokens": 400}, 400,
                     "maximum context length is 4096 tokens")
        self.refused("/v1/completions", {**COMPLETION, "prompt": "x" * (9 << 20)}, 413)

    def test_rude_bytes(self):
        for data in [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n" +
                     b"X: y\r\n" * 10000 + b"\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"]:
            answer = raw_request(self.cluster, data)
            self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200])

    def test_accepted_oddities(self):
        for extra in [{"logprobs": None, "stop": None, "seed": None}, {"store": True, "metadata": {"a": "b"}},
                      {"unknown_key_of_some_client": [1, 2]}, {"max_completion_tokens": 3, "max_tokens": 2000},
                      {"tools": [], "response_format": {"type": "text"}}]:
            self.cluster.post("/v1/chat/completions", {**CHAT, **extra})


if __name__ == "__main__":
    unittest.main(verbosity=2)
