#!/usr/bin/env python3
"""Writes the hand-made seeds of corpus/ from the golden data and from the hostile cases listed here.

Findings that were added to corpus/ later are left alone: they have other names.
"""

import copy
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden" / "data"

USER, ASSISTANT, BOS = "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>"
SPECIALS = BOS + USER + ASSISTANT + "<think></think><｜tool▁outputs▁begin｜>"
HUGE_NUMBERS = [-1, 0, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -2**63, 1e308, 1e-320]


def write(target, name, content):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_json(target, name, value):
    write(target, name, compact(value))


def depth_bombs(target):
    write(target, "depth_lists", "[" * 3000)
    write(target, "depth_objects", '{"a":' * 3000)
    write(target, "depth_keys_below", "[" * 100 + '{"a":1}' + "]" * 100)
    write(target, "depth_inside", '{"messages":' + "[" * 200 + "]" * 200 + "}")


# --- JSON files of a checkpoint ---

def model_spec():
    target = "model_spec_fuzz"
    for model in ("tiny-v2", "tiny-v2lite", "tiny-v3", "tiny-v3-fp8"):
        write_json(target, model, json.loads((GOLDEN / model / "config.json").read_text()))
    base = json.loads((GOLDEN / "tiny-v3" / "config.json").read_text())
    for i, number in enumerate(HUGE_NUMBERS):
        for field in ("num_hidden_layers", "vocab_size", "qk_rope_head_dim", "n_routed_experts"):
            write_json(target, f"{field}_{i}", {**base, field: number})
    write_json(target, "all_large", {k: 2**31 - 1 if type(v) is int else v for k, v in base.items()})
    scaling = {**base["rope_scaling"], "factor": 1e-300, "beta_fast": 1e300, "mscale": -1e300}
    write_json(target, "rope_extremes", {**base, "rope_scaling": scaling, "rope_theta": 1e-300})
    write_json(target, "rope_theta_one", {**base, "rope_theta": 1})
    write(target, "duplicate_key", compact(base)[:-1] + ',"vocab_size":-1,"vocab_size":7}')
    write_json(target, "architecture_is_a_token", {**base, "architectures": [SPECIALS]})
    depth_bombs(target)


def safetensors():
    target = "safetensors_fuzz"

    def file(name, header, data=b"", length=None):
        text = header if isinstance(header, bytes) else compact(header).encode()
        write(target, name, struct.pack("<Q", len(text) if length is None else length) + text + data)

    def tensor(dtype, shape, begin, end):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    two = {"__metadata__": {"format": "pt"}, "a": tensor("BF16", [2, 3], 0, 12),
           "b": tensor("F32", [4], 12, 28)}
    file("two_tensors", two, bytes(28))
    file("scalar_and_empty", {"s": tensor("F32", [], 0, 4), "e": tensor("F32", [0, 5], 4, 4)}, bytes(4))
    file("no_tensors", {})
    file("truncated_data", two, bytes(27))
    file("header_longer_than_file", two, length=2**63)
    file("header_length_wraps", two, length=2**64 - 4)
    write(target, "truncated_length", b"\x10\0\0")
    file("hole", {"a": tensor("U8", [1], 1, 2)}, bytes(2))
    file("overlap", {"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3))
    file("backwards", {"a": tensor("U8", [2], 2, 0)}, bytes(2))
    file("shape_wraps", {"a": tensor("U8", [2**32, 2**32], 0, 0)})
    file("shape_wraps_to_fit", {"a": tensor("F32", [2**62, 4], 0, 16)}, bytes(16))
    file("negative_shape", {"a": tensor("U8", [-1, -4], 0, 4)}, bytes(4))
    file("offsets_overflow", {"a": tensor("U8", [4], 2**64 - 4, 2**64)}, bytes(4))
    file("unknown_dtype", {"a": tensor("F4", [4], 0, 4)}, bytes(4))
    file("name_is_a_token", {SPECIALS: tensor("U8", [4], 0, 4)}, bytes(4))
    file("same_name_twice", (compact({"a": tensor("U8", [1], 0, 1)})[:-1] + "," +
                             compact({"a": tensor("U8", [1], 1, 2)})[1:]).encode(), bytes(2))
    file("deep", b"[" * 3000)


def tokenizer_json():
    target = "tokenizer_json_fuzz"
    full = json.loads((GOLDEN / "tiny-v3-chat" / "tokenizer.json").read_text())
    # Bytes that every base vocabulary needs and a few merges keep the seeds small.
    small = copy.deepcopy(full)
    small["added_tokens"] = small["added_tokens"][:4]
    small["model"]["merges"] = small["model"]["merges"][:8]
    write_json(target, "golden_small", small)

    def variant(name, change):
        value = copy.deepcopy(small)
        change(value)
        write_json(target, name, value)

    vocab = small["model"]["vocab"]
    first = next(iter(vocab))
    for i, number in enumerate((-1, 2**22, 2**63, 1e308)):
        variant(f"vocab_id_{i}", lambda v, n=number: v["model"]["vocab"].update({first: n}))
        variant(f"added_id_{i}", lambda v, n=number: v["added_tokens"][0].update(id=n))
    variant("added_empty", lambda v: v["added_tokens"][0].update(content=""))
    variant("added_twice", lambda v: v["added_tokens"].append(dict(v["added_tokens"][0])))
    variant("added_strips", lambda v: v["added_tokens"][1].update(lstrip=True, rstrip=True))
    variant("added_is_a_byte", lambda v: v["added_tokens"][0].update(content="a"))
    variant("added_in_the_alphabet", lambda v: v["added_tokens"][3].update(content="<thin\u00e2k>"))
    variant("added_spells_a_byte", lambda v: v["added_tokens"][0].update(content="\u00f8", id=v["model"]["vocab"]["\u00f8"]))
    variant("merge_unknown", lambda v: v["model"]["merges"].append("zz qq"))
    variant("merge_three_parts", lambda v: v["model"]["merges"].append("a b c"))
    variant("merge_list", lambda v: v["model"].update(merges=[["a", "b"]]))
    variant("merge_twice", lambda v: v["model"]["merges"].append(v["model"]["merges"][0]))
    variant("vocab_is_a_list", lambda v: v["model"].update(vocab=[]))
    variant("normalizer", lambda v: v.update(normalizer={"type": "NFC"}))
    variant("few_bytes", lambda v: v["model"].update(vocab={"a": 5}, merges=[]))
    write(target, "same_token_twice", compact(small).replace('"vocab":{', '"vocab":{"a":1,"a":2,', 1))
    write(target, "truncated", compact(small)[:1500])
    depth_bombs(target)


# --- text ---

def texts():
    target = "tokenizer_text_fuzz"
    for i, line in enumerate((GOLDEN / "text" / "tokenizer_v3.jsonl").read_text().splitlines()[::40][:12]):
        text = json.loads(line).get("text")
        if isinstance(text, str):
            write(target, f"golden_{i}", text[:400])
    write(target, "specials", SPECIALS * 3)
    write(target, "special_cut", USER[:-2])
    write(target, "combining", "e\u0301\u0302" * 20 + "\u200d\U0001f468\u200d\U0001f469")
    write(target, "spaces", " \t\r\n\u00a0\u3000" * 20)
    write(target, "digits", "1234567890" * 20 + "٣٤٥")
    write(target, "long_word", "a" * 2000)
    write(target, "bad_utf8", b"\xff\xfe\xf0\x9f\x98")
    write(target, "ids", struct.pack("<8h", 0, 1, 2, -1, -32768, 32767, 300, 301))


def chats():
    target = "chat_encoder_fuzz"
    end = "\x01"
    system, user, assistant, tool, developer, other = range(6)

    def chat(name, flags, *messages):
        body = "".join(chr(kind) + "".join(field + end for field in fields) for kind, *fields in messages)
        write(target, name, chr(flags) + body)

    chat("single", 1, (user, "Hello"))
    chat("turns", 1, (system, "Be brief"), (user, "a"), (assistant, "b"), (user, "c"))
    chat("thinking", 7, (user, "a"), (assistant | 8, "b</think>c", "why"), (user, "d"))
    chat("tools", 1, (user, "w"), (assistant | 16, "", "call_0", "f", '{"x":1}'), (tool, "9"))
    chat("two_calls", 3, (user, "w"), (assistant | 32, "t", "1", "f", "{}", "2", "g", "{}"), (tool, "9"),
         (tool, "8"), (user, "and"))
    chat("specials_everywhere", 5, (system, SPECIALS), (user, SPECIALS),
         (assistant | 8 | 16, SPECIALS, SPECIALS, SPECIALS, SPECIALS, SPECIALS), (tool, SPECIALS),
         (user, ASSISTANT + "yes"))
    chat("split_special", 1, (user, "<｜Us"), (user, "er｜>"), (developer, "<"), (user, "｜Assistant｜>"))
    chat("unknown_role", 1, (other, USER, "x"))
    chat("empty", 0)
    chat("only_assistant", 0, (assistant, ""))
    chat("many", 1, *[(user, "x"), (assistant, "y")] * 32)


def bodies():
    target = "http_body_fuzz"
    chat = {"model": "deepseek-tiny", "messages": [{"role": "user", "content": "Hello"}]}
    completion = {"model": "deepseek-tiny", "prompt": "Hello", "max_tokens": 4}
    write_json(target, "chat", chat)
    write_json(target, "chat_full", {
        **chat, "temperature": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.1, "seed": -1, "n": 2,
        "stop": ["\n", "END"], "presence_penalty": 1, "frequency_penalty": -1, "logprobs": True,
        "repetition_penalty": 1.1, "top_logprobs": 5, "logit_bias": {"5": -100}, "min_tokens": 1,
        "max_completion_tokens": 7, "stream": True, "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"thinking": True}, "stop_token_ids": [1], "user": "u", "tools": []})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": SPECIALS}]
    write_json(target, "chat_parts", {"messages": [
        {"role": "developer", "content": parts}, {"role": "user", "content": SPECIALS, "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "9"},
        {"role": "assistant", "content": "The", "prefix": True, "reasoning_content": "r"}]})
    write_json(target, "chat_image", {"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})
    write_json(target, "specials_in_every_field", {
        key: SPECIALS for key in ("model", "prompt", "messages", "stop", "user", "tool_choice", "role",
                                  "response_format", "stream_options", "logit_bias", "suffix", "tokens")})
    write_json(target, "completion", completion)
    write_json(target, "completion_ids", {"prompt": [1, 2, 3], "echo": True, "logprobs": 3, "n": 2})
    write_json(target, "completion_batch", {"prompt": [[1], [2, 3]], "best_of": 1})
    write_json(target, "completion_texts", {"prompt": ["a", "b", ""], "n": 16})
    write_json(target, "size_bomb_prompts", {"prompt": ["a"] * 300, "n": 16})
    write_json(target, "size_bomb_text", {"prompt": "word " * 6000})
    write_json(target, "size_bomb_stops", {**completion, "stop": ["s"] * 500})
    write_json(target, "tokenize", {"prompt": "Hello", "add_special_tokens": False})
    write_json(target, "tokenize_chat", {**chat, "add_generation_prompt": False})
    write_json(target, "detokenize", {"tokens": [0, 1, 2, 300]})
    write_json(target, "detokenize_hostile", {"tokens": [-1, 2**31, 2**63 - 1]})
    for i, number in enumerate(HUGE_NUMBERS):
        write_json(target, f"numbers_{i}", {**completion, "max_tokens": number, "prompt": "a"})
        write_json(target, f"sampling_{i}", {
            "prompt": [number], **{key: number for key in (
                "temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", "presence_penalty",
                "repetition_penalty", "top_logprobs", "min_tokens")},
            "logit_bias": {str(number): number}, "stop_token_ids": [number]})
        write_json(target, f"seed_{i}", {**completion, "seed": number})
        write_json(target, f"ids_{i}", {"prompt": [number], "tokens": [number]})
    write(target, "duplicate_key", '{"prompt":"a","prompt":"b"}')
    write(target, "duplicate_escaped_key", '{"prompt":"a","pr\\u006fmpt":"b"}')
    write(target, "lone_surrogate", '{"prompt":"\\ud800"}')
    write(target, "nul_in_text", '{"prompt":"a\\u0000b"}')
    write(target, "bad_utf8", b'{"prompt":"\xff\xfe"}')
    write(target, "truncated", '{"prompt":"Hel')
    write(target, "not_an_object", "[1]")
    write(target, "empty", b"")
    depth_bombs(target)


# --- handoff ---

def frames():
    target = "handoff_frame_fuzz"

    def frame(name, kind, body, magic=0x564b4c53, version=1):
        head = struct.pack("<IBBHQQ", magic, version, kind, 0, 11, 22) + bytes(range(1, 17))
        write(target, name, head + body)

    def string(data, size=None):
        return struct.pack("<H", len(data) if size is None else size) + data

    bind = bytes(16) + struct.pack("<IIIIQ", 3, 64, 1000, 64, 4096)
    frame("bind", 1, bind + string(b"fingerprint") + string(b"address"))
    frame("bind_long_strings", 1, bind + string(bytes(128)) + string(bytes(4096)))
    frame("bind_string_too_long", 1, bind + string(bytes(129)) + string(b""))
    frame("bind_length_lies", 1, bind + string(b"x", 0xffff))
    frame("offer", 2, struct.pack("<IIIQQ", 4, 64, 128, 1 << 20, 0xfedcba9876543210))
    frame("offer_overflow", 2, struct.pack("<IIIQQ", 2**32 - 1, 2**32 - 1, 0, 2**64 - 1, 0))
    frame("ack", 3, struct.pack("<IQI", 3, 32 << 20, 5000) + string(b"\x05\x80"))
    frame("final", 4, struct.pack("<IIIfH", 7, 1000, 5, -0.25, 2) + struct.pack("<IfIf", 1, -1.5, 2, -2.5))
    frame("final_nan", 4, struct.pack("<IIIfH", 7, 1000, 5, float("nan"), 0))
    frame("final_count_lies", 4, struct.pack("<IIIfH", 7, 1000, 5, -0.25, 0xffff))
    frame("commit", 5, b"")
    frame("cancel", 6, struct.pack("<BB", 1, 4) + string(b"late"))
    frame("cancel_bad_enums", 6, struct.pack("<BB", 9, 200) + string(b""))
    frame("cancel_ack", 7, b"\0")
    frame("nack", 8, struct.pack("<BI", 4, 9))
    frame("heartbeat", 9, b"")
    frame("heartbeat_and_more", 9, b"more")
    fetch = bytes(range(16)) + struct.pack("<IIIQ", 64, 640, 64, 4096)
    frame("fetch", 10, fetch + string(b"fingerprint") + string(b"address"))
    frame("fetch_string_too_long", 10, fetch + string(b"") + string(bytes(4097)))
    frame("fetch_cut_short", 10, fetch[:20])
    frame("unknown_type", 77, b"")
    frame("other_version", 9, b"", version=2)
    frame("other_magic", 9, b"", magic=0)
    write(target, "truncated_head", b"SLKV\x01\x02")


def handoff_scripts():
    target = "handoff_script_fuzz"
    begin, offer, finish, abandon, cancel, wait = range(6)
    faults, cut_to, cut_back, heal, pause, crash_p, crash_d, stranger = range(6, 14)
    start = [begin, 4, 1, 0]  # five blocks, the last one short, the same model
    tail = [wait, 100] * 3

    def script(name, *steps):
        write(target, name, bytes(value for step in steps for value in step))

    script("plain", start, [offer, 1, offer, 4, finish], tail)
    script("two_transfers", (start + [offer, 7, finish, wait, 50]) * 2)
    script("rendezvous", [faults, 0, 0, 0, 0, 0, 0, 0], start, [offer, 7, finish], tail)
    script("all_faults", [faults, 0, 3, 3, 3, 3, 3, 3], start, [offer, 1, wait, 9, offer, 7, finish], tail)
    script("abandoned", start, [offer, 1, abandon], tail)
    script("cancelled", start, [offer, 1, wait, 1, cancel], tail)
    script("never_offered", start, tail)
    script("cut", start, [cut_back, offer, 7, finish, wait, 200, heal], tail)
    script("one_way", start, [cut_to, offer, 7, finish, wait, 250, wait, 250, heal], tail)
    script("sender_crashes", [faults, 0, 0, 0, 0, 0, 0, 0], start, [offer, 7, crash_p], tail)
    script("receiver_crashes", [faults, 0, 0, 0, 0, 0, 0, 0], start, [offer, 7, crash_d], tail)
    script("paused_sender", start, [offer, 7, finish, pause, 1, 1, wait, 250, pause, 1, 0], tail)
    script("other_model", [begin, 4, 0, 15, offer, 7, finish], tail)
    # A stranger's message: to the decode worker?, as the prefill worker?, which one, its fields.
    for kind, fields in enumerate((
            [1, 1, 1, 0, 0, 0, 20, 1, 4, 1, 64, 1, 1, 1], [1, 0, 0, 1, 4, 1, 64, 1, 1, 1],
            [1, 5, 2, 255, 255, 200, 200, 9, 9], [1, 2, 10, 2], [], [0], [1], [3, 1, 1],
            [7, 0, 0, 1, 4, 1, 1, 1, 1], [])):
        for to_decode in (0, 1):
            script(f"stranger_{kind}_{to_decode}", start, [offer, 1, wait, 1, stranger, to_decode, to_decode, kind],
                   fields, [3, 1], [offer, 7, finish], tail)


# --- the fleet protocol, encoded by hand ---

def varint(value):
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(**fields):
    """f3=... is field 3: int as varint, float as fixed32, bytes and str with their length, list repeated."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:])
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float):
                out += varint(number << 3 | 5) + struct.pack("<f", item)
            elif isinstance(item, int):
                out += varint(number << 3) + varint(item)
            else:
                data = item.encode() if isinstance(item, str) else item
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def worker_messages(request=None, attempt=0):
    """One message of each kind, and the hostile ones. Without a request the script names it."""
    name = {} if request is None else {"f1": request, "f2": attempt}
    second = message(f1=1)
    token = message(**name, f3=0, f4=7, f5=-0.5, f6=[message(f1=7, f2=-0.5)],
                    f7=message(f1=second, f2=second), f8=0)
    end = {reason: message(f6=message(**name, f3=reason)) for reason in (1, 2, 3, 5)}
    bad_duration = message(f1=2**63 - 1, f2=-2**31)
    return {
        "register": message(f1=message(f1="new", f2=9, f3=3, f4="m", f5="fp", f7=128, f8=4, f9=16, f10=64,
                                       f11="address", f15="")),
        "register_hostile": message(f1=message(f1=SPECIALS, f3=3, f4="m", f5="fp", f7=-1, f8=-1,
                                               f9=-2**63, f10=0)),
        "load": message(f2=message(f1=1, f2=1, f3=100, f4=message(f1=16, f2=8), f8=1, f10=[bytes(16)])),
        "load_hostile": message(f2=message(f1=-1, f3=2**63 - 1, f4=message(f1=-2**63, f2=2**63 - 1), f8=1,
                                           f10=[b"short"], f12=bad_duration)),
        "grant": message(f3=message(**name, f3=bytes(16), f4=1, f5=0, f6=second)),
        "grant_cached": message(f3=message(**name, f3=bytes(16), f4=1, f5=64, f6=second)),
        "grant_all_cached": message(f3=message(**name, f3=bytes(16), f4=1, f5=2**31 - 64, f6=second)),
        "grant_hostile": message(f3=message(**name, f3=b"x", f4=1, f5=-64, f6=bad_duration)),
        "busy": message(f4=message(**name, f3="full", f4=second)),
        "busy_forever": message(f4=message(**name, f3="full", f4=bad_duration)),
        "token": message(f5=message(f1=[token])),
        "tokens": message(f5=message(f1=[message(**name, f3=i, f4=i) for i in range(1, 9)])),
        "token_gap": message(f5=message(f1=[message(**name, f3=2**31 - 1, f4=-1, f8=-1)])),
        "token_negative": message(f5=message(f1=[message(**name, f3=-1, f4=1)])),
        "end_stop": end[1], "end_length": end[2], "end_cancelled": end[3], "end_handed_over": end[5],
        "end_failed": message(f6=message(**name, f3=4, f4=13, f5=SPECIALS, f6="decode")),
        "end_unknown_reason": message(f6=message(**name, f3=99, f4=-1)),
        "preempted": message(f7=message(**name)),
        "kv_ready": message(f8=message(**name, f3=second)),
        "empty": b"",
    }


def fleet_codec():
    target = "fleet_codec_fuzz"
    request = bytes([1]) + bytes(15)
    for name, bytes_ in worker_messages(request, 1).items():
        write(target, f"worker_{name}", bytes_)
    sampling = {"f1": 1.0, "f2": 0.5, "f3": 40, "f4": 0.1, "f5": 2**64 - 1, "f6": 0.0, "f7": 0.0, "f8": 1.0,
                "f9": [message(f1=5, f2=-1.0), message(f1=-1, f2=100.0)], "f10": [1, 2], "f11": 0, "f12": 20,
                "f13": -1}
    nan = float("nan")

    def sequence(tokens=(1, 2, 3), outputs=0, attempt=1, more=None, **changes):
        return {"f1": request, "f2": attempt,
                "f3": message(f1=b"".join(varint(t) for t in tokens), f2=outputs, f3=SPECIALS),
                "f4": message(**{**sampling, **changes}), "f5": message(f1=3), **(more or {})}

    for name, fields in {
            "reserve": sequence(), "no_tokens": sequence(tokens=()), "all_output": sequence(outputs=3),
            "negative_output": sequence(outputs=-1), "attempt_0": sequence(attempt=0),
            "nan": sequence(f1=nan), "nan_bias": sequence(f9=[message(f1=1, f2=nan)]),
            "negative_token": sequence(tokens=(-1, 2**31)), "max_tokens_0": sequence(f12=0),
            "max_tokens_negative": sequence(f12=-2**31, f11=2**31 - 1),
            "short_id": {**sequence(), "f1": b"x"}}.items():
        write(target, f"router_{name}", message(f2=message(**fields)))
    write(target, "router_run", message(f4=message(**sequence())))
    grant = message(f1=request, f2=1, f3=bytes(16), f4=1, f5=0, f6=message(f1=5))
    prefill = {"f6": grant, "f7": "address", "f8": "d0", "f9": "fp"}
    write(target, "router_prefill", message(f3=message(**sequence(more=prefill))))
    write(target, "router_prefill_no_grant", message(f3=message(**sequence())))
    write(target, "router_cancel", message(f5=message(f1=request, f2=1, f3="gone")))
    write(target, "router_welcome", message(f1=message(f1="r", f2=1)))


def worker_scripts():
    target = "worker_message_fuzz"
    messages = worker_messages()
    prefill, decode = 0, 2

    def play(worker, name):
        return bytes([worker << 3]) + struct.pack("<H", len(messages[name])) + messages[name]

    submit, wait = bytes([4, 70, 7]), bytes([6, 20])

    def script(name, disaggregated, *steps):
        write(target, name, bytes([disaggregated, 70, 7]) + b"".join(steps))

    happy = [play(decode, "grant"), play(prefill, "token"), play(decode, "kv_ready"),
             play(prefill, "end_handed_over"), play(decode, "tokens")]
    script("disaggregated", 1, *happy, play(decode, "end_stop"))
    script("length", 1, *happy, play(decode, "end_length"))
    script("together", 0, play(0, "token"), play(0, "tokens"), play(0, "end_stop"))
    script("preempted", 1, *happy, play(decode, "preempted"), wait, *happy)
    script("failed", 1, *happy, play(decode, "end_failed"), wait, *happy)
    script("decode_lost", 1, *happy, bytes([7 | decode << 3]), play(decode, "register"), play(decode, "load"),
           wait, play(3, "grant"), play(prefill, "token"))
    script("prefill_lost", 1, play(decode, "grant"), bytes([7]), wait, play(decode, "grant"), play(1, "token"))
    script("busy", 1, play(decode, "busy"), wait, play(3, "busy_forever"), wait, play(decode, "grant"))
    script("cancelled", 1, *happy[:2], bytes([5, 0]), play(decode, "end_cancelled"))
    script("queued", 0, submit * 10, play(0, "token"), play(1, "token"), play(2, "end_length"), wait)
    script("tokens_before_first", 1, play(decode, "grant"), play(decode, "kv_ready"), play(decode, "tokens"), wait)
    for name in messages:
        script(f"first_{name}", 1, play(decode, name), play(decode, "grant"), play(prefill, name), wait)
        script(f"later_{name}", 0, play(0, "token"), play(0, name), play(1, name), wait)


def connections():
    target = "http_connection_fuzz"
    body = compact({"model": "deepseek-tiny", "prompt": "Hi", "max_tokens": 2}).encode()

    def post(*headers, body=body, path="/v1/completions", version="1.1", length=True):
        lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
        if length:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def chunked(*chunks):
        return post("Transfer-Encoding: chunked", body=b"".join(chunks), length=False)

    whole = b"%x\r\n%s\r\n" % (len(body), body)
    for name, data in {
            "post": post(), "get": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            "head": b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", "http_1_0": post(version="1.0"),
            "http_1_0_keep_alive": post("Connection: keep-alive", version="1.0"), "http_9_9": post(version="9.9"),
            "absolute_uri": b"GET http://a.b/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            "authority_only": b"CONNECT a.b:80 HTTP/1.1\r\nHost: x\r\n\r\n",
            "pipelined": post() + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + post(),
            "segments": post().replace(b"\r\n", b"\r\xff\n"), "chunked": chunked(whole, b"0\r\n\r\n"),
            "chunk_extension": chunked(whole.replace(b"\r\n", b";a=b\r\n", 1), b"0\r\nX: y\r\n\r\n"),
            "chunk_size_bad": chunked(b"zz\r\n", body), "chunk_size_huge": chunked(b"f" * 17 + b"\r\n", body),
            "chunk_size_negative": chunked(b"-1\r\n", body), "chunk_short": chunked(b"5\r\nabc\r\n0\r\n\r\n"),
            "two_lengths": post("Content-Length: 3"), "same_lengths": post(f"Content-Length: {len(body)}"),
            "length_and_chunked": post("Transfer-Encoding: chunked", body=b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
            "length_negative": post("Content-Length: -1", length=False),
            "length_huge": post("Content-Length: 99999999999999999999", length=False),
            "length_plus": post(f"Content-Length: +{len(body)}", length=False),
            "encoding_twice": post("Transfer-Encoding: identity, chunked", length=False),
            "folded": post("X-A: b\r\n c"), "space_before_colon": post("X-A : b"), "bare_newlines":
            b"GET /health HTTP/1.1\nHost: x\n\n", "nul_in_header": post("X-A: \0"), "expect": post("Expect: 100-continue"),
            "no_header_end": b"GET / HTTP/1.1\r\nX: ", "flood": post(*[f"X-{i}: y" for i in range(900)]),
            "request_id": post("x-request-id: " + "\r" * 3 + "<a>"), "stream":
            post(body=compact({"prompt": "Hi", "stream": True}).encode()), "nothing": b"\r\n\r\n"}.items():
        write(target, name, data)


def manifests():
    target = "manifest_fuzz"
    digest = "ab" * 32
    golden = {"dtype": "f32", "prompt": [0, 5], "output": [7], "logprobs": [-0.5], "margins": [1.5],
              "tolerance": {"f32": 0.001, "bf16": 0.05}}
    whole = {"format": 1, "files": [{"name": "config.json", "bytes": 3, "sha256": digest}],
             "shards": [{"name": "model.safetensors", "bytes": 99, "header_sha256": digest, "tensors": {"a": digest}}],
             "golden": golden}
    write_json(target, "whole", whole)
    write_json(target, "no_golden", {k: v for k, v in whole.items() if k != "golden"})
    for i, number in enumerate(HUGE_NUMBERS):
        write_json(target, f"bytes_{i}", {**whole, "files": [{**whole["files"][0], "bytes": number}]})
        write_json(target, f"golden_{i}", {**whole, "golden": {**golden, "prompt": [number], "margins": [number]}})
    write_json(target, "path", {**whole, "files": [{**whole["files"][0], "name": "../x"}]})
    write_json(target, "later_format", {**whole, "format": 2})
    depth_bombs(target)


def main():
    model_spec()
    safetensors()
    manifests()
    connections()
    tokenizer_json()
    texts()
    chats()
    bodies()
    frames()
    handoff_scripts()
    fleet_codec()
    worker_scripts()


if __name__ == "__main__":
    main()
