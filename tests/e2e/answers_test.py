"""The cluster answers: right, streamed, through router, prefill worker and decode worker."""

import time
import unittest

from cluster import Cluster, MODEL_NAME, wait_for

QUESTION = ("The code of Mia is 4821. The code of Tom is 9034. The code of Ana is 1177. "
            "What is the code of Tom?")


class AnswersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def test_question_is_answered_from_the_prompt(self):
        answer = self.cluster.chat(QUESTION)
        message = answer["choices"][0]["message"]
        self.assertIn("9034", message["content"])
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        self.assertNotIn("timings", answer, "only on request")
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_stream_equals_the_whole_answer(self):
        whole = self.cluster.chat(QUESTION)["choices"][0]["message"]["content"]
        chunks = list(self.cluster.stream("/v1/chat/completions", {
            "model": MODEL_NAME, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}))
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        self.assertEqual(text, whole)
        self.assertGreaterEqual(len(chunks), 2, "steps may share an event under load, but not all of them")
        self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "stop")

    def test_thinking_comes_apart(self):
        message = self.cluster.chat("What is 347 + 285?", max_tokens=200)["choices"][0]["message"]
        self.assertTrue(message["reasoning_content"])
        self.assertNotIn("<think>", message["content"])
        self.assertNotIn("</think>", message["content"] + message["reasoning_content"])

    def test_second_ask_hits_the_prefix_cache(self):
        facts = "\n".join(f"The code of {name} is {1000 + 37 * i}." for i, name in enumerate(
            ["Mia", "Tom", "Ana", "Ben", "Eva", "Max", "Lea", "Jan", "Ida", "Kai", "Zoe", "Leo"]))
        question = facts + "\nWhat is the code of Eva?"
        first = self.cluster.chat(question)
        second = self.cluster.chat(question)
        self.assertEqual(first["choices"][0]["message"], second["choices"][0]["message"])
        self.assertGreaterEqual(second["usage"]["prompt_tokens_details"]["cached_tokens"], 64)

    def test_stages_explain_the_time_to_first_token(self):
        for i in range(5):
            # Long enough that the stages, not the noise between client and router, make up the time.
            prompt = f"Attempt {i}. " + " ".join(f"word{(i + 1) * j}" for j in range(400))
            began = time.monotonic()
            first = None
            for chunk in self.cluster.stream("/v1/completions", {
                    "model": MODEL_NAME, "temperature": 0, "max_tokens": 4, "ignore_eos": True, "prompt": prompt,
                    "include_timings": True}):
                if first is None:
                    first = (time.monotonic() - began) * 1e3
                timings = chunk.get("timings")
            stages = timings["stages_ms"]
            self.assertEqual(list(stages), ["parse", "tokenize", "admission", "route", "prefill_queue", "prefill",
                                            "detokenize", "kv_transfer", "decode_queue", "first_step"])
            for stage, milliseconds in stages.items():
                self.assertGreaterEqual(milliseconds, 0, stage)
            ours = timings["time_to_first_token_ms"]
            explained = sum(list(stages.values())[:7])
            self.assertAlmostEqual(explained, ours, delta=0.05 * ours, msg=str(timings))
            self.assertLessEqual(ours, first)
            self.assertGreater(stages["prefill"], 0.1 * ours)
            self.assertLessEqual(sum(stages.values()), 1.05 * timings["total_ms"])

    def test_user_text_is_never_a_control_token(self):
        tokens = self.cluster.post("/tokenize", {
            "messages": [{"role": "user", "content": "<｜Assistant｜>"}]})["tokens"]
        plain = self.cluster.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]})["tokens"]
        assistant = plain[-1]
        self.assertEqual(tokens.count(assistant), 1, "only the template's own <｜Assistant｜>")

    def test_kv_really_moved_over_the_transport(self):
        self.cluster.chat("Who are you?")
        prefill, decode = self.cluster.workers

        def moved(process, direction):
            return sum(v for k, v in self.cluster.metrics(process).items()
                       if k.startswith("sluice_kv_transfer_bytes_total") and f'direction="{direction}"' in k)

        # The counters follow the answer, and the router hears of the transport in the next load report.
        wait_for(lambda: moved(prefill, "send") > 64 * 1024 and moved(prefill, "send") == moved(decode, "recv"), 5,
                 "as many bytes received as sent")
        wait_for(lambda: {t["transport"] for w in self.cluster.status()["workers"] for t in w["transports"]} == {"shm"},
                 5, "status to name shared memory")

    def test_everything_is_free_afterwards(self):
        self.cluster.wait_until_nothing_is_held()


if __name__ == "__main__":
    unittest.main(verbosity=2)
