"""Hostile input against the shipped programs; afterwards nothing of it is left.

    hostile_input_test.py [--connections N] [--bomb-bytes N]

JSON and header bombs, framing that proxies and servers read differently, control tokens in every text field, numbers at and
beyond every edge, thousands of idle connections, slow senders, and gRPC messages with what no client would send. Each is
refused as the client's mistake or served; the cluster answers others meanwhile, and at the end every block is free or
cached, and memory and descriptors of all processes are what they were.
"""

import argparse
import collections
import json
import resource
import socket
import threading
import time

import grpc

from cancellation_test import num_fds, rss_bytes
from clients_test import python_stubs
from cluster import Cluster, MODEL_NAME, connect_raw, wait_for, wait_for_kv_memory
from fault_table import write_section

MAX_RSS_GROWTH_BYTES = 64 << 20
MAX_FD_GROWTH = 8
# An allocator may keep a 70 MB message's memory in one more of its arenas: once. A leak grows in every round.
ROUNDS = 3

CHAT = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3}
COMPLETION = {"model": MODEL_NAME, "prompt": "Hello", "max_tokens": 3}
# Control tokens, their look-alikes, and characters that end strings elsewhere.
TEXTS = ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<think>", "</think>",
         "<|im_end|>", "\0", "a\0b", "\u2028\u202e\ufeff", "\x1b[2J", "\r\n\r\ndata: [DONE]\r\n\r\n", "𝔘" * 50, "' OR 1=1 --"]
HUGE_INTEGERS = [2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**9, 10**30, -1, -2**31 - 1, -2**63 - 1]
HUGE_NUMBERS = ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1e-400", "0x10", "01", "1.", ".5", "+1", "1e"]


class Hostile:
    def __init__(self, cluster, args):
        self.cluster, self.args = cluster, args
        self.counts = collections.Counter()

    def expect(self, path, body, statuses, what):
        """Sends a body; the status must be one of `statuses` and an error must say something."""
        status, headers, raw = self.cluster.request("POST", path, body)
        self.counts[what] += 1
        shown = (json.dumps(body) if isinstance(body, dict) else repr(body))[:200]
        assert status in statuses, f"{what}: {shown} -> {status} {raw[:300]!r}"
        if status != 200:
            error = json.loads(raw)["error"]
            assert error["message"] and error["type"], raw[:300]
        return status, raw

    def raw(self, data, half_close=False, timeout=20):
        """Everything that comes back until the router closes or says that it keeps the connection."""
        sock = connect_raw(self.cluster)
        sock.settimeout(timeout)
        received = b""
        try:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while True:
                piece = sock.recv(65536)
                if not piece:
                    break
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        finally:
            sock.close()
        return received

    # --- bodies ---

    def json_bombs(self):
        size = self.args.bomb_bytes
        for path in ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]:
            for body in [b"[" * size, b'{"a":' * (size // 5), b'{"messages":' + b"[" * 1000 + b"]" * 1000 + b"}",
                         b'"' + b"\\u0000" * (size // 6), b"1" * size, b"-" * size, b"[" + b"0," * (size // 2) + b"0]",
                         b'{"prompt":"x","x":' + b"9" * 100_000 + b"}", b"{" + b'"a":1,' * 10_000 + b'"b":1}']:
                self.expect(path, body, {400}, "JSON bomb")
        over = b'{"prompt":"' + b"x" * (9 << 20) + b'"}'
        self.expect("/v1/completions", over, {413}, "body above the limit")

    def duplicate_keys(self):
        for body in [b'{"model":"%s","prompt":"a","prompt":"b"}', b'{"model":"%s","prompt":"a","max_tokens":1,"max_tokens":2}',
                     b'{"model":"%s","prompt":"a","user":{"x":1,"x":2}}', b'{"model":"%s","prompt":"a","\\u0070rompt":"b"}']:
            _, raw = self.expect("/v1/completions", body % MODEL_NAME.encode(), {400}, "duplicate key")
            assert b"duplicate key" in raw, raw

    def numbers(self):
        integers = ["n", "max_tokens", "min_tokens", "top_k", "seed", "best_of", "logprobs"]
        for field in integers:
            for value in HUGE_INTEGERS:
                if field == "n" and value == -1:
                    continue
                # A seed may be any 64-bit number and max_tokens is cut to the context where that is what OpenAI does.
                self.expect("/v1/completions", {**COMPLETION, field: value}, {200, 400}, "integer at an edge")
        for value in [10**9, 2**31, 2**63]:
            self.expect("/v1/completions", {**COMPLETION, "n": value}, {400}, "n out of range")
            self.expect("/v1/chat/completions", {**CHAT, "n": value}, {400}, "n out of range")
        floats = ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
        for field in floats + integers:
            for number in HUGE_NUMBERS:
                body = b'{"model":"%s","prompt":"Hello","max_tokens":2,"%s":%s}' % (
                    MODEL_NAME.encode(), field.encode(), number.encode())
                if field == "max_tokens":
                    body = body.replace(b'"max_tokens":2,', b"")
                # 1e-400 is a valid number that is zero.
                self.expect("/v1/completions", body, {200, 400} if number == "1e-400" else {400}, "not a number")

        # Numbers that fit a double and hardly, or not, a float: each has one meaning, or is refused by its name.
        for field in floats:
            for number in ["1e-320", "1e-46", "1e-40", "1.2e-38"]:
                refused = field == "repetition_penalty"
                body = b'{"model":"%s","prompt":"Hello","max_tokens":2,"%s":%s}' % (
                    MODEL_NAME.encode(), field.encode(), number.encode())
                _, raw = self.expect("/v1/completions", body, {400 if refused else 200}, "denormal number")
                assert not refused or json.loads(raw)["error"]["param"] == field, raw

    def control_tokens(self):
        for text in TEXTS:
            shapes = [
                ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": text}]}),
                ("/v1/chat/completions", {**CHAT, "messages": [{"role": "system", "content": text}, *CHAT["messages"]]}),
                ("/v1/chat/completions", {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": text},
                                                               *CHAT["messages"]]}),
                ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x", "name": text}]}),
                ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user",
                                                                "content": [{"type": "text", "text": text}]}]}),
                ("/v1/chat/completions", {**CHAT, "stop": [text]}), ("/v1/completions", {**COMPLETION, "stop": text}),
                ("/v1/completions", {**COMPLETION, "prompt": text}),
                ("/v1/completions", {**COMPLETION, "prompt": [text, text]}),
                ("/v1/completions", {**COMPLETION, "user": text}), ("/tokenize", {"model": MODEL_NAME, "prompt": text}),
            ]
            for path, body in shapes:
                self.expect(path, body, {200, 400}, "control token in a field")
            for path, body in [("/v1/completions", {**COMPLETION, "model": text}),
                               ("/v1/chat/completions", {**CHAT, "model": text})]:
                self.expect(path, body, {400, 404}, "control token as the model")
            for body in [{**CHAT, "messages": [{"role": text, "content": "x"}]}, {**CHAT, "tools": [{"type": text}]},
                         {**CHAT, "tools": [{"type": "function", "function": {"name": text}}]},
                         {**CHAT, "messages": [{"role": "user", "content": [{"type": text, "text": "x"}]}]},
                         {**CHAT, "logit_bias": {text: 1}}, {**CHAT, "response_format": {"type": text}}]:
                self.expect("/v1/chat/completions", body, {400}, "control token where a word of ours belongs")
        # A user who writes a control token sends those characters, not the token.
        control = json.loads(self.expect("/tokenize", {"model": MODEL_NAME, "messages": [
            {"role": "user", "content": "<｜end▁of▁sentence｜>"}]}, {200, 400}, "control token in a field")[1])
        if "tokens" in control:
            assert 1 not in control["tokens"][1:], control

    def broken_text(self):
        prefix = b'{"model":"%s","max_tokens":2,"prompt":"' % MODEL_NAME.encode()
        for text in [b"\\ud800", b"\\udc00\\ud800", b"\\ud800x", b"\xed\xa0\x80", b"\xff\xfe", b"\xc0\x80", b"\xf4\x90\x80\x80",
                     b"a\x00b", b"\\u00", b"\\x41", b"tab\tin", b"\xef\xbb\xbf\xc3"]:
            self.expect("/v1/completions", prefix + text + b'"}', {400}, "broken text")
        self.expect("/v1/completions", prefix + b"a\\u0000b" + b'"}', {200}, "NUL as text")
        self.expect("/v1/completions", b"\xef\xbb\xbf" + json.dumps(COMPLETION).encode(), {200, 400}, "byte order mark")
        utf16 = json.dumps(COMPLETION).encode("utf-16")
        self.expect("/v1/completions", utf16, {400}, "broken text")

    def long_lists(self):
        for extra in [{"stop": ["x" * 100] * 50_000}, {"stop": ["x" * 1_000_000]}, {"stop_token_ids": [1] * 300_000},
                      {"logit_bias": {str(i): 1 for i in range(200_000)}}, {"logit_bias": {"-1": 1}},
                      {"logit_bias": {"1": 1e300}}, {"logit_bias": {"99999999999999999999": 1}},
                      {"prompt": ["x"] * 5000}, {"prompt": [[1, 2]] * 5000}, {"prompt": [1] * 1_000_000}]:
            self.expect("/v1/completions", {**COMPLETION, **extra}, {400}, "long list")
        self.expect("/v1/completions", {**COMPLETION, "logit_bias": {str(i): -100 for i in range(300)}}, {200, 400}, "long list")
        self.expect("/v1/chat/completions", {**CHAT, "messages": CHAT["messages"] * 50_000}, {400}, "long list")

    def content_types(self):
        body = json.dumps(COMPLETION).encode()
        for content_type, status in [("text/plain", 415), ("multipart/form-data; boundary=x", 415), ("application/xml", 415),
                                     ("application/jsonx", 415), ("application/json;charset=utf-8", 200)]:
            got, _, raw = self.cluster.request("POST", "/v1/completions", body, headers={"Content-Type": content_type})
            assert got == status, (content_type, got, raw[:200])
            self.counts["content type"] += 1

    # --- framing ---

    def framing(self):
        body = json.dumps(COMPLETION).encode()
        smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"

        def post(*headers, body=body):
            lines = [b"POST /v1/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json", *headers]
            return b"\r\n".join(lines) + b"\r\n\r\n" + body

        length = b"Content-Length: %d" % len(body)
        chunked = b"Transfer-Encoding: chunked"
        # Two readings of where the request ends: never served, or served and closed with nothing read behind it.
        for name, data in {
                "two lengths": post(length, b"Content-Length: 5", body=body + smuggled),
                "length and chunked": post(length, chunked, body=b"0\r\n\r\n" + smuggled),
                "chunked and length": post(chunked, b"Content-Length: 5", body=b"0\r\n\r\n" + smuggled),
                "chunked twice": post(chunked, chunked, body=b"0\r\n\r\n" + smuggled),
                "unknown encoding": post(b"Transfer-Encoding: xchunked", length, body=body + smuggled),
                "space before colon": post(b"Content-Length : %d" % len(body), body=body + smuggled),
                "signed length": post(b"Content-Length: +%d" % len(body), body=body + smuggled),
                "length list": post(b"Content-Length: %d, 5" % len(body), body=body + smuggled),
                "chunk of 2^64": post(chunked, body=b"10000000000000000\r\n" + smuggled),
                "chunk of -1": post(chunked, body=b"-1\r\n" + smuggled),
                "chunk of nothing": post(chunked, body=b"\r\n" + smuggled),
                "chunk longer than it says": post(chunked, body=b"2\r\n{}XX\r\n0\r\n\r\n" + smuggled),
                "folded header": post(b"X-A: b\r\n " + length, body=body + smuggled)}.items():
            answer = self.raw(data, half_close=True)
            assert b'"object":"list"' not in answer.replace(b" ", b""), f"{name}: the smuggled request was answered: {answer!r}"
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), f"{name}: {answer[:200]!r}"
            assert not answer.startswith(b"HTTP/1.1 500"), f"{name}: {answer[:200]!r}"
            self.counts["smuggling shape"] += 1
        flood = [b"X-%d: %s" % (i, b"y" * 50) for i in range(20_000)]
        for data in [post(*flood), post(b"X: " + b"y" * (1 << 20)), b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n"]:
            answer = self.raw(data, half_close=True)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]
            self.counts["header flood"] += 1
        # Old and unusual, but right: served.
        ten = self.raw(b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n" + length + b"\r\n\r\n" + body)
        assert ten.startswith(b"HTTP/1.1 200") and b"chunked" not in ten, ten[:200]
        absolute = self.raw(b"GET http://any.where/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert absolute.startswith(b"HTTP/1.1 200"), absolute[:200]
        pipelined = self.raw(smuggled * 3 + b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert pipelined.count(b"HTTP/1.1 200") == 4, pipelined[:200]
        good_chunks = self.raw(post(chunked, b"Connection: close", body=b"".join(
            b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"))
        assert good_chunks.startswith(b"HTTP/1.1 200"), good_chunks[:200]
        self.counts["unusual but right"] += 4

    # --- connections ---

    def idle_connections(self):
        """More connections than the router keeps, none with a request: others are answered throughout."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        count = min(self.args.connections, hard - 512)
        held, answered = [], 0
        try:
            for i in range(count):
                held.append(connect_raw(self.cluster))
                if i % 500 == 499:
                    status, _, _ = self.cluster.request("GET", "/v1/models")
                    assert status == 200, f"{i} idle connections: {status}"
                    answered += 1
            open_now = self.cluster.metrics(self.cluster.router)["sluice_http_connections"]
            assert open_now <= 4096, open_now
            assert self.cluster.chat("Hello!")["choices"], "no answer beside idle connections"
            self.counts["idle connection"] += count
        finally:
            for sock in held:
                sock.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wait_for(lambda: self.cluster.metrics(self.cluster.router)["sluice_http_connections"] <= 1, 30,
                 "the idle connections to be closed")

    def slow_senders(self):
        """A byte now and then: the time for the headers runs out, and others are answered meanwhile."""
        results = []

        def trickle():
            sock = connect_raw(self.cluster)
            sock.settimeout(0.25)
            answer, began = b"", time.monotonic()
            try:
                while time.monotonic() - began < 60:
                    sock.sendall(b"G" if not answer else b"")
                    try:
                        piece = sock.recv(4096)
                        if not piece:
                            break
                        answer += piece
                    except socket.timeout:
                        pass
            except OSError:
                pass
            sock.close()
            results.append((answer, time.monotonic() - began))

        threads = [threading.Thread(target=trickle) for _ in range(50)]
        for thread in threads:
            thread.start()
        assert self.cluster.chat("Hello!")["choices"]
        for thread in threads:
            thread.join()
        for answer, seconds in results:
            assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 4")), answer[:100]
            assert seconds < 50, f"a slow sender was kept for {seconds:.0f} s"
        self.counts["slow sender"] += len(results)

    # --- gRPC ---

    def grpc_messages(self, stubs):
        pb, pb_grpc = stubs
        channel = grpc.insecure_channel(self.cluster.grpc_address, options=[
            ("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 24)])
        stub = pb_grpc.GenerationStub(channel)
        raw = channel.unary_stream("/sluice.v1.Generation/Generate", request_serializer=lambda data: data,
                                   response_deserializer=lambda data: data)
        codes = grpc.StatusCode
        refusals = {codes.INVALID_ARGUMENT, codes.RESOURCE_EXHAUSTED, codes.INTERNAL, codes.NOT_FOUND, codes.UNIMPLEMENTED,
                    codes.OUT_OF_RANGE}

        def refused(call, what, allowed=refusals):
            try:
                list(call())
            except grpc.RpcError as error:
                assert error.code() in allowed, f"{what}: {error.code()} {error.details()}"
                self.counts["gRPC message"] += 1
                return
            raise AssertionError(f"{what} was served")

        refused(lambda: stub.Generate(pb.GenerateRequest(), timeout=30), "no prompt", {codes.INVALID_ARGUMENT})
        refused(lambda: stub.Chat(pb.ChatRequest(), timeout=30), "no messages", {codes.INVALID_ARGUMENT})
        refused(lambda: stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds()), timeout=30), "no tokens")
        refused(lambda: stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[-1, 2**31 - 1])), timeout=30), "bad ids")
        refused(lambda: stub.Generate(pb.GenerateRequest(model="x" * 1_000_000, text="a"), timeout=30), "long model name")
        refused(lambda: stub.Generate(pb.GenerateRequest(text="x" * (70 << 20)), timeout=60), "message above the limit")
        for field, value in [("n", 10**9), ("n", -1), ("max_tokens", -1), ("temperature", float("nan")),
                             ("temperature", float("inf")), ("top_p", -1.0), ("min_tokens", -5), ("top_k", -7),
                             ("repetition_penalty", float("nan")), ("presence_penalty", float("-inf"))]:
            request = pb.GenerateRequest(text="a")
            setattr(request.sampling, field, value)
            refused(lambda: stub.Generate(request, timeout=30), field, {codes.INVALID_ARGUMENT})
        biased = pb.GenerateRequest(text="a")
        biased.sampling.logit_bias[-5] = 1
        refused(lambda: stub.Generate(biased, timeout=30), "logit_bias", {codes.INVALID_ARGUMENT})
        stops = pb.GenerateRequest(text="a")
        stops.sampling.stop.extend(["x"] * 100_000)
        refused(lambda: stub.Generate(stops, timeout=30), "stop list", {codes.INVALID_ARGUMENT})
        # Bytes that are no message, and a string field that is no UTF-8.
        for data in [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x02\xff\xfe", b"\x22" + b"\x22" * 5000]:
            refused(lambda: raw(data, timeout=30), repr(data[:8]))
        channel.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--bomb-bytes", type=int, default=2 << 20)
    args = parser.parse_args()
    stubs = python_stubs()
    with Cluster(kv_cache="64MiB", router_args=["--worker-timeout", "10s"]) as cluster:
        processes = [cluster.router, *cluster.workers]
        hostile = Hostile(cluster, args)
        parts = [hostile.json_bombs, hostile.duplicate_keys, hostile.numbers, hostile.control_tokens, hostile.broken_text,
                 hostile.long_lists, hostile.content_types, hostile.framing, lambda: hostile.grpc_messages(stubs),
                 hostile.idle_connections, hostile.slow_senders]

        def settled():
            cluster.wait_until_nothing_is_held(timeout_seconds=20)
            wait_for(lambda: cluster.metrics(cluster.router)["sluice_http_connections"] == 0, 30,
                     "all connections to be closed")

        # Once through all that allocates, so that buffers and threads have their size.
        hostile.json_bombs()
        hostile.long_lists()
        hostile.grpc_messages(stubs)
        hostile.idle_connections()
        cluster.chat("Hello!")
        settled()
        wait_for_kv_memory(cluster.workers)
        for _ in range(ROUNDS):
            baseline = {p.name: (rss_bytes(p), num_fds(p)) for p in processes}
            hostile.counts.clear()
            for part in parts:
                began = time.monotonic()
                part()
                print(f"{getattr(part, '__name__', 'grpc_messages')}: {time.monotonic() - began:.1f} s, "
                      f"router {rss_bytes(cluster.router) >> 20} MiB", flush=True)
                for process in processes:
                    assert process.popen.poll() is None, f"{process.name} died"
            settled()
            answer = cluster.chat("The code of Tom is 9034.\nWhat is the code of Tom?", max_tokens=60)
            assert "9034" in str(answer["choices"][0]["message"]), answer
            settled()

            growth, problems = {}, []
            for process in processes:
                rss, fds = rss_bytes(process) - baseline[process.name][0], num_fds(process) - baseline[process.name][1]
                growth[process.name] = f"{rss / 2**20:+.0f} MiB, {fds:+d} fds"
                if rss > MAX_RSS_GROWTH_BYTES:
                    problems.append(f"{process.name} grew by {rss >> 20} MiB")
                if fds > MAX_FD_GROWTH:
                    problems.append(f"{process.name} holds {fds} more descriptors")
            if not problems:
                break
            print(f"{problems}: again", flush=True)
        result = "; ".join(f"{name} {change}" for name, change in growth.items())
        write_section("Hostile input", [(what, count, "refused or served, blocks, memory, descriptors", result)
                                        for what, count in sorted(hostile.counts.items())],
                      "Afterwards a question is answered rightly.")
        assert not problems, problems


if __name__ == "__main__":
    main()
