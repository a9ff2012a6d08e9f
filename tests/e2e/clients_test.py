"""Unmodified public clients stream chat answers: OpenAI's JavaScript client, @grpc/grpc-js, grpcio.

The JavaScript clients come from npm (tests/e2e/node/package-lock.json); the Python stubs are generated
from our proto files into a temporary folder with Debian's protoc.
"""

import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from cluster import Cluster, MODEL_NAME, SOURCE_DIR

NODE_DIR = pathlib.Path(os.environ.get("E2E_NODE_DIR", pathlib.Path(__file__).parent / "node"))
QUESTION = ("The code of Mia is 4821. The code of Tom is 9034. The code of Ana is 1177. "
            "What is the code of Tom?")


def python_stubs():
    """Generated modules (generation_pb2, generation_pb2_grpc) of proto/sluice/v1."""
    folder = tempfile.mkdtemp(prefix="sluice-stubs-")
    plugin = subprocess.run(["which", "grpc_python_plugin"], check=True, capture_output=True, text=True)
    subprocess.run(["protoc", f"-I{SOURCE_DIR / 'proto'}", f"--python_out={folder}",
                    f"--grpc_python_out={folder}", f"--plugin=protoc-gen-grpc_python={plugin.stdout.strip()}",
                    "sluice/v1/generation.proto"], check=True)
    sys.path.insert(0, folder)
    return (importlib.import_module("sluice.v1.generation_pb2"),
            importlib.import_module("sluice.v1.generation_pb2_grpc"))


class ClientsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__(None, None, None)

    def run_node(self, script, *args):
        done = subprocess.run(["node", str(NODE_DIR / script), *args], capture_output=True, text=True, timeout=60,
                              cwd=NODE_DIR)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_openai_javascript_client(self):
        output = self.run_node("openai_client.mjs", self.cluster.base_url + "/v1", MODEL_NAME, QUESTION)
        self.assertIn("ok", output)

    def test_grpc_js(self):
        output = self.run_node("grpc_client.mjs", self.cluster.grpc_address, str(SOURCE_DIR / "proto"), QUESTION)
        self.assertIn("ok", output)

    def test_python_grpcio(self):
        import grpc
        pb, pb_grpc = python_stubs()
        with grpc.insecure_channel(self.cluster.grpc_address) as channel:
            stub = pb_grpc.GenerationStub(channel)
            models = stub.ListModels(pb.ListModelsRequest(), timeout=10).models
            self.assertEqual([m.id for m in models], [MODEL_NAME])
            request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=QUESTION)],
                                     sampling=pb.SamplingParams(temperature=0))
            text, last, messages, finished = "", None, 0, []
            for response in stub.Chat(request, timeout=30):
                text += response.text_delta
                last = response
                messages += 1
                if response.finished:
                    finished.append(response.finished)
            self.assertIn("9034", text)
            self.assertGreaterEqual(messages, 2)  # tokens that wait come as one delta
            self.assertEqual(finished, [pb.FINISH_REASON_STOP])
            self.assertGreater(last.usage.prompt_tokens, 40)
            # A refused request names the field.
            with self.assertRaises(grpc.RpcError) as refused:
                list(stub.Chat(pb.ChatRequest(messages=request.messages,
                                              sampling=pb.SamplingParams(temperature=-1)), timeout=10))
            self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn("temperature", refused.exception.details())
            # Cancelling in the middle frees everything.
            stream = stub.Generate(pb.GenerateRequest(text="Once", sampling=pb.SamplingParams(
                max_tokens=3000, ignore_eos=True)), timeout=60)
            next(stream)
            stream.cancel()
            self.cluster.wait_until_nothing_is_held(timeout_seconds=5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
