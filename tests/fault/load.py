"""Load by `sluice bench`, whose clients cost little of the cores that the cluster needs."""

import json
import subprocess
import tempfile

from cluster import BIN_DIR, MODEL_NAME


def bench(cluster, output_tokens, *flags):
    """The figures of one run with short prompts."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([str(BIN_DIR / "sluice"), "bench", "--url", cluster.base_url, "--model", MODEL_NAME, "--quiet",
                        "--prompt-tokens", "8", "--output-tokens", str(output_tokens), "--json", file.name, *flags],
                       check=True, stdout=subprocess.DEVNULL, timeout=600)
        return json.load(file)["runs"][0]
