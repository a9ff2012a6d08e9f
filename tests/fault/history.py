"""Requests, their undisturbed answers (the oracle), and what clients really received (the history).

An answer is compared whole: token ids, text, log-probabilities, reasoning, finish reasons, usage. The oracle is
asked before any fault, streamed and not, and must agree with itself; afterwards every answer must equal it.
"""

import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field

from cluster import MODEL_NAME

QUESTIONS = [
    "What is 347 + 285?", "The code of Tom is 9034. The code of Ana is 1177. What is the code of Ana?",
    "Tell me a story about a dog.", "¿Qué es 12 + 30? 日本語 🙂 naïve café", "Who are you?"]
TEXTS = [
    "Once upon a time there was", "The code of Mia is 4821. The code of", "naïve café 日本語 🙂🙃 ἀλήθεια",
    "Tell me a story about a dog.", "1 + 1 = 2\n2 + 2 = 4\n"]


@dataclass
class Answer:
    """One finished request as its client saw it. `choices` is canonical: equal answers compare equal."""
    choices: dict = field(default_factory=dict)
    usage: dict = field(default_factory=dict)
    error: str = ""        # the table's error, if it ended with one
    status: int = 0
    damage: str = ""       # malformed: closed early, bad JSON, event after the end
    began: float = 0.0
    ended: float = 0.0

    def same_as(self, other):
        return self.choices == other.choices and self.usage == other.usage


def make_specs(seed, count):
    """`count` request bodies as (path, body), a mix of everything that recovery must carry over."""
    rng = random.Random(seed)
    specs = []
    for i in range(count):
        sampling = {"temperature": 0} if i % 2 else {
            "temperature": rng.choice([0.7, 1.0, 1.5]), "top_p": rng.choice([0.9, 1.0]), "seed": rng.randrange(1 << 31)}
        body = {"model": MODEL_NAME, "return_token_ids": True, "max_tokens": rng.randrange(30, 90), **sampling}
        if i % 5 == 4:
            body["n"] = 3
        if i % 3 == 0:  # chat, mostly with thinking
            body.update(messages=[{"role": "user", "content": rng.choice(QUESTIONS)}])
            if i % 2:
                body.update(logprobs=True, top_logprobs=2)
            specs.append(("/v1/chat/completions", body))
        else:
            filler = " ".join(str(rng.randrange(1000)) for _ in range(rng.choice([0, 0, 40, 120])))
            body.update(prompt=filler + rng.choice(TEXTS), ignore_eos=bool(rng.randrange(4)))
            if i % 4 == 1:
                body.update(logprobs=2)
            if i % 7 == 2:
                body.update(presence_penalty=0.5, frequency_penalty=0.3)
            specs.append(("/v1/completions", body))
    return specs


def with_stop_string(spec, answer, rng):
    """The same request with a stop string taken from the middle of its answer, so that it spans tokens."""
    path, body = spec
    text = answer.choices[0]["text"]
    if len(text) < 24:
        return None
    at = rng.randrange(len(text) // 2, len(text) - 8)
    return path, {**body, "stop": [text[at:at + 6], "never to be seen"]}


def ask(address, spec, stream, timeout_seconds):
    """Sends one request on a connection of its own and reads its answer to the end."""
    path, body = spec
    answer = Answer(began=time.monotonic())
    if stream:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(body).encode()
    received = bytearray()
    try:
        with socket.create_connection(address, timeout=timeout_seconds) as sock:
            sock.sendall(b"POST %s HTTP/1.1\r\nHost: fault\r\nConnection: close\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(raw), raw))
            while piece := sock.recv(1 << 16):
                received += piece
    except OSError as error:
        answer.damage = f"{type(error).__name__}: {error}"
    answer.ended = time.monotonic()
    if not answer.damage:
        try:
            _parse(bytes(received), stream, answer)
        except (ValueError, KeyError, IndexError, AssertionError) as error:
            answer.damage = f"{type(error).__name__}: {error}"
    return answer


def _parse(received, stream, answer):
    head, separator, rest = received.partition(b"\r\n\r\n")
    assert separator, f"no headers in {received[:100]!r}"
    answer.status = int(head.split(b" ", 2)[1])
    content = _dechunk(rest) if b"transfer-encoding: chunked" in head.lower() else rest
    if answer.status != 200:
        answer.error = json.loads(content)["error"]["message"]
    elif stream:
        _parse_events(content, answer)
    else:
        whole = json.loads(content)
        for choice in whole["choices"]:
            _add(answer, choice, choice.get("message", choice))
        answer.usage = _usage(whole["usage"])


def _dechunk(data):
    content = bytearray()
    while True:
        size, separator, data = data.partition(b"\r\n")
        assert separator, "cut off in a chunk header"
        length = int(size, 16)
        if length == 0:
            return bytes(content)
        assert len(data) >= length + 2, "cut off in a chunk"
        content += data[:length]
        data = data[length + 2:]


def _parse_events(content, answer):
    events = content.decode().split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]", f"no [DONE]: {events[-2:]}"
    for event in events[:-2]:
        assert event.startswith("data: "), event
        chunk = json.loads(event[len("data: "):])
        if "error" in chunk:
            answer.error = chunk["error"]["message"]
            continue
        assert not answer.error, "an event after the error"
        for choice in chunk["choices"]:
            _add(answer, choice, choice.get("delta", choice))
        if chunk.get("usage"):
            answer.usage = _usage(chunk["usage"])


def _usage(usage):
    return {key: usage[key] for key in ("prompt_tokens", "completion_tokens")}  # caching may differ


def _add(answer, choice, message):
    """Appends a chunk's (or a whole answer's) choice to the canonical form."""
    to = answer.choices.setdefault(choice["index"], {
        "text": "", "reasoning": "", "token_ids": [], "logprobs": [], "finish_reason": None})
    assert to["finish_reason"] is None, "text after the end"
    to["text"] += message.get("text") or message.get("content") or ""
    to["reasoning"] += message.get("reasoning_content") or ""
    to["token_ids"] += choice.get("token_ids") or []
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:
        to["logprobs"] += [(t["token"], t["logprob"], t.get("top_logprobs")) for t in logprobs["content"]]
    elif logprobs:
        to["logprobs"] += list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]))
    to["finish_reason"] = choice.get("finish_reason")


def _ask_patiently(address, spec, stream, timeout_seconds, tries=10):
    """Asks again after a refusal: on a crowded machine a starved worker looks lost."""
    for _ in range(tries):
        answer = ask(address, spec, stream, timeout_seconds)
        if not answer.error:
            break
        time.sleep(1)
    return answer


def ask_oracle(address, specs, rng, timeout_seconds=60):
    """[(spec, answer)]: each spec undisturbed, streamed and not, and variants with stop strings."""
    def undisturbed(spec):
        whole, streamed = (_ask_patiently(address, spec, stream, timeout_seconds) for stream in (False, True))
        for answer in (whole, streamed):
            assert not answer.error and not answer.damage, f"{spec}: {answer.error or answer.damage}"
        assert whole.same_as(streamed), f"{spec}: undisturbed answers differ:\n{whole}\n{streamed}"
        return spec, whole

    oracle = [undisturbed(spec) for spec in specs]
    with_stops = [with_stop_string(spec, answer, rng) for spec, answer in oracle[::2]]
    return oracle + [undisturbed(spec) for spec in with_stops if spec is not None]


class History:
    """What all clients saw. Thread safe."""

    def __init__(self, oracle):
        self.oracle = oracle
        self.answers = []
        self.damaged = []   # descriptions, to be empty
        self._mu = threading.Lock()

    def record(self, index, stream, answer):
        spec, expected = self.oracle[index]
        damage = answer.damage
        if not damage and not answer.error and not answer.same_as(expected):
            damage = f"differs from the oracle\n got {answer.choices}\nwant {expected.choices}\n usage {answer.usage}"
        if not damage and answer.error:
            # Up to its error an answer must be a beginning of the right one.
            for number, choice in answer.choices.items():
                want = expected.choices[number]
                for key in ("text", "reasoning", "token_ids", "logprobs"):
                    if choice[key] != want[key][:len(choice[key])]:
                        damage = f"{key} sent before the error is not the oracle's: {choice[key]!r}, {want[key]!r}"
        with self._mu:
            self.answers.append(answer)
            if damage:
                self.damaged.append(f"request {index} stream={stream} {spec}: {damage}")

    def errors(self):
        return [answer for answer in self.answers if answer.error]


class Clients:
    """`count` clients that ask one request after the other until stopped."""

    def __init__(self, address, history, count, seed, timeout_seconds=120):
        self._stop = threading.Event()
        self._threads = [threading.Thread(
            target=self._run, args=(address, history, random.Random(seed * 1000 + i), timeout_seconds))
            for i in range(count)]

    def _run(self, address, history, rng, timeout_seconds):
        while not self._stop.is_set():
            index, stream = rng.randrange(len(history.oracle)), rng.random() < 0.8
            answer = ask(address, history.oracle[index][0], stream, timeout_seconds)
            history.record(index, stream, answer)
            if answer.status in (429, 503):
                time.sleep(0.2)

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def stop(self):
        """Lets every client finish its request."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
